"""Measuring hypergradients and their certificates against a reference that is known to rounding."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from learnreg.accuracy.problems import AccuracyProblem
from learnreg.accuracy.reference import Reference, adjoint_at, solve_reference
from learnreg.accuracy.report import CERTIFICATES, AccuracyReport, AccuracyRow, CertificateKind, PlainRow
from learnreg.certificates.judgement import gradient_distance, gradient_norm
from learnreg.hypergradients import METHODS
from learnreg.hypergradients.certify import certify
from learnreg.hypergradients.compute import hypergradient
from learnreg.progress import Count

__all__ = ["measure"]

_STATE_ERRORS = (1e-2, 1e-3, 1e-4)
_DRAWS = 3


def measure(
    problems: Sequence[AccuracyProblem],
    methods: Sequence[str],
    tolerances: Sequence[float],
    seed: int = 0,
    progress: bool = True,
) -> AccuracyReport:
    """Every method at every tolerance on every problem that it is defined for, by both certificates, and judged
    gradients of perturbed points.

    ``seed``: of the perturbations. Progress goes to stderr.

    Raises
    ------
    AssumptionError, SolverError: a problem has no reference.
    """
    started = time.perf_counter()
    judged = len(CERTIFICATES) * len(_STATE_ERRORS) * _DRAWS
    count = len(problems) * (1 + len(CERTIFICATES) * len(methods) * len(tolerances) + judged)
    rows: list[AccuracyRow] = []
    plain: list[PlainRow] = []
    errors: dict[str, float] = {}
    with Count("accuracy", count, shown=progress) as bar:
        for problem in problems:
            reference = solve_reference(problem.problem, problem.b, problem.loss)
            errors[problem.name] = reference.error / reference.norm
            bar.update()
            for row in _rows(problem, reference, methods, tolerances):
                rows.append(row)
                bar.update()
            for judgement in _plain_rows(problem, reference, seed):
                plain.append(judgement)
                bar.update()
    return AccuracyReport(
        tuple(rows), tuple(plain), errors, seed, torch.get_num_threads(), time.perf_counter() - started
    )


def _rows(
    problem: AccuracyProblem, reference: Reference, methods: Sequence[str], tolerances: Sequence[float]
) -> Iterator[AccuracyRow]:
    instance = problem.problem.instance(problem.b)
    fitting = [name for name in methods if METHODS[name]().fits(instance)]
    for certificate in CERTIFICATES:
        for name in fitting:
            for tolerance in tolerances:
                yield _row(problem, reference, name, tolerance, certificate)


def _row(
    problem: AccuracyProblem, reference: Reference, name: str, tolerance: float, certificate: CertificateKind
) -> AccuracyRow:
    started = time.perf_counter()
    found = hypergradient(problem.problem, problem.b, problem.loss, METHODS[name](), tolerance, certificate=certificate)
    seconds = time.perf_counter() - started
    error = gradient_distance(found.gradient, reference.gradient)
    return AccuracyRow(
        problem=problem.name,
        method=name,
        tolerance=tolerance,
        relative_error=_ratio(error, found.norm),
        relative_bound=found.relative_error_bound,
        certified=found.certified,
        operator_applications=found.operator_applications,
        seconds=seconds,
        certificate=certificate,
        effectivity=_ratio(found.error_bound, error),
        holds=_holds(found.error_bound, error, reference),
    )


def _plain_rows(problem: AccuracyProblem, reference: Reference, seed: int) -> Iterator[PlainRow]:
    directions = _directions(problem, reference, seed)
    for state_error in _STATE_ERRORS:
        for name, direction in directions:
            x = reference.x + state_error * float(reference.x.norm() / direction.norm()) * direction
            X = adjoint_at(problem.problem, problem.b, problem.loss, x, state_error)
            for certificate in CERTIFICATES:
                yield _plain_row(problem, reference, (name, state_error), x, X, certificate)


def _directions(problem: AccuracyProblem, reference: Reference, seed: int) -> list[tuple[str, Tensor]]:
    """Where iterates may have stopped: on the line to the back-projected data, or anywhere."""
    generator = torch.Generator().manual_seed(seed)
    towards_data = problem.problem.operator.adjoint(problem.b) - reference.x
    noise = [torch.randn(reference.x.shape, generator=generator, dtype=torch.float64) for _ in range(_DRAWS - 1)]
    return [("data", towards_data), *(("noise", draw) for draw in noise)]


def _plain_row(
    problem: AccuracyProblem,
    reference: Reference,
    kind: tuple[str, float],
    x: Tensor,
    X: Tensor,
    certificate: CertificateKind,
) -> PlainRow:
    started = time.perf_counter()
    found = certify(problem.problem, problem.b, problem.loss, x, X, certificate)
    seconds = time.perf_counter() - started
    error, norm = gradient_distance(found.gradient, reference.gradient), gradient_norm(found.gradient)
    return PlainRow(
        problem=problem.name,
        direction=kind[0],
        state_error=kind[1],
        relative_error=_ratio(error, norm),
        relative_bound=_ratio(found.gradient_error_bound, norm),
        certified=found.certified,
        operator_applications=found.operator_applications,
        seconds=seconds,
        certificate=certificate,
        effectivity=_ratio(found.gradient_error_bound, error),
        holds=_holds(found.gradient_error_bound, error, reference),
    )


def _ratio(value: float, norm: float) -> float:
    return value / norm if norm > 0 else math.inf


def _holds(bound: float, error: float, reference: Reference) -> bool:
    """Whether the error, less what the reference itself may err by, is within the bound."""
    return error - reference.error <= bound
