"""``learnreg.solve``: the lower-level solution with a certified root-mean-square error."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from learnreg.certificates.lowest_curvature import LowestCurvature
from learnreg.errors import ConfigError, SolverError
from learnreg.linear.arguments import check_batch, check_one_of, is_whole, real_number, shown
from learnreg.linear.grad_mode import outside_inference
from learnreg.lower_level.banded import in_bands, is_large
from learnreg.lower_level.blame import blame_operators, why_stagnated
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.problem import LowerLevelProblem, freeze
from learnreg.result import Solution, Status
from learnreg.solvers.base import Solver
from learnreg.solvers.chain import solve_chain
from learnreg.solvers.choice import FALLBACKS, SOLVERS, SolverName, fits_pdhg, make_solver
from learnreg.solvers.continuation import continued_newton
from learnreg.solvers.judged import Judged, judge
from learnreg.solvers.loop import LoopResult, iterate
from learnreg.solvers.noise_levels import joined
from learnreg.solvers.recorder import Recorder

__all__ = [
    "SolveCertificate",
    "check_failure_option",
    "check_tolerance",
    "initial_point",
    "run_state_solver",
    "solve",
]

FailureOption = Literal["return", "raise"]
SolveCertificate = Literal["auto", "none"]

_AIM, _FLOAT32_AIM, _MAX_ATTEMPTS, _MAX_LOCAL_ATTEMPTS = 0.999, 0.97, 4, 6
"""Shares of the tolerance that solvers aim at, so that the judgement in float64 agrees; attempts with smaller ones,
more where a ball is looked for, which may be smaller by orders of magnitude than what was asked for."""

_PROGRESS = 0.1
"""Share of the error that an attempt which ended early must leave for another one to be worth it."""

_DEAR_AIM = 0.01
"""The same where looking for a ball, which is found near the minimiser alone, takes longer than getting nearer."""

_NEARER = 0.03
"""By which attempts get more accurate while no ball around x is certified to hold a minimiser."""

_USUAL_MODULUS = 1e-2
"""What residuals are judged by where a ball around x is to tell the modulus."""

_ENDED_EARLY = (Status.PRECISION, Status.STAGNATED, Status.NOT_FINITE)
"""How a solver ends in float32 that float64 may help: steps too short for the pixels' rounding stagnate, too."""


def check_tolerance(tolerance: float, name: str = "tolerance") -> float:
    """The tolerance as a float, or ConfigError unless it is positive."""
    return real_number(tolerance, name, above=0.0, finite=False)


def check_failure_option(on_failure: str) -> None:
    """ConfigError unless on_failure is known."""
    check_one_of(on_failure, ("return", "raise"), "on_failure")


def check_max_steps(max_steps: int | None) -> None:
    """ConfigError unless max_steps is None or a positive integer."""
    if max_steps is not None and not is_whole(max_steps):
        raise ConfigError(f"max_steps={shown(max_steps)}: expected a positive integer or None.")


def initial_point(instance: Instance, b: Tensor) -> Tensor:
    """What minimises the data term, roughly, in the box."""
    x = instance.guess(instance.quadratic, instance.q, b)
    return instance.started(instance.latent.image(instance.box.prox(x)))


def residual_tolerance(instance: Instance, error: Tensor) -> Tensor:
    """The residual that certifies a 2-norm error, (batch,); with no modulus, or a small one and the hope for a ball,
    that of a modulus of 1e-2 for want of one."""
    mu = instance.strong_convexity
    if instance.local or not mu > 0:
        mu = max(mu, _USUAL_MODULUS)
    return error * mu


def run_state_solver(
    solver: Solver[Any],
    instance: Instance,
    x: Tensor,
    error: Tensor,
    max_steps: int | None,
    t: Tensor | None = None,
    recorder: Recorder | None = None,
) -> LoopResult:
    """Iterate to a certified 2-norm error per sample, from x and the dual pull-back t of an earlier run; where that
    ends early, Newton-CG goes on (in float64; in float32 it would meet the same rounding); where that stagnates, as it
    does far from the solution of a problem with kinks, in float64 also PDHG on diagonal data terms, and last Newton's
    method by way of smoother problems. What ends early in float32 its callers repeat in float64. ``recorder`` gets what
    all of them see."""
    record = None if recorder is None else recorder.following()
    residual = residual_tolerance(instance, error)
    bound = error if instance.strong_convexity > 0 else torch.zeros_like(error)
    result = iterate(solver, instance, x, residual, bound, max_steps, solver.resume(instance, x, t), record)
    if not instance.potential.differentiable or (result.status is Status.STAGNATED and why_stagnated(instance)):
        return result
    for other in FALLBACKS:
        if other == "continuation" and instance.potential.foreign:
            break  # nothing smoother is known
        limited = result.status is Status.PRECISION and x.dtype == torch.float64 and other == "newton-cg"
        ended_early = limited or result.status in (Status.STAGNATED, Status.NOT_FINITE)
        left = None if max_steps is None else max_steps - result.steps
        if not ended_early or left == 0:
            break
        if other == solver.name or (other == "pdhg" and not fits_pdhg(instance)):
            continue
        if other != "newton-cg" and x.dtype != torch.float64:
            break
        index = ((result.residual > residual) & (result.bound > bound)).nonzero()[:, 0]
        if not len(index):
            break
        part, rest = instance.select(index), (result.x[index], residual[index], bound[index], left)
        record = None if recorder is None else recorder.following(index)
        if other == "continuation":
            more = continued_newton(part, *rest, record=record)
        else:
            more = iterate(SOLVERS[other](), part, *rest, record=record)
        result = _followed(instance, result, more, index)
    return result


def _followed(instance: Instance, first: LoopResult, then: LoopResult, index: Tensor) -> LoopResult:
    """What followed for some samples, where it is better; with the steps of both."""
    comparable = torch.isfinite(first.bound[index]) & torch.isfinite(then.bound)
    better = torch.where(comparable, then.bound <= first.bound[index], then.residual <= first.residual[index])
    chosen = index[better]
    t = None
    if first.t is not None or then.t is not None:  # a solver without pull-backs leaves K x
        t = instance.apply(first.x) if first.t is None else first.t
        later = instance.select(index).apply(then.x) if then.t is None else then.t
        t = t.index_copy(0, chosen, later[better])
    x, residual, bound = (
        old.index_copy(0, chosen, new[better])
        for old, new in ((first.x, then.x), (first.residual, then.residual), (first.bound, then.bound))
    )
    return LoopResult(x, t, residual, bound, then.status, first.steps + then.steps)


@outside_inference
def solve(
    problem: LowerLevelProblem | FrozenProblem,
    b: Tensor,
    tolerance: float = 1e-4,
    *,
    max_steps: int | None = None,
    solver: SolverName | Solver[Any] = "auto",
    start: Tensor | None = None,
    certificate: SolveCertificate = "auto",
    on_failure: FailureOption = "return",
) -> Solution:
    """Minimise ``problem.energy(., b)`` until the root-mean-square error of x is certified to be below the tolerance.

    Parameters
    ----------
    problem: the lower level, or ``problem.frozen()``.
    b: measurements (batch, *range_shape).
    tolerance: root-mean-square error per sample, in units of x. A rigorous bound when the problem is strongly convex,
        else an estimate (``Solution.bound_kind``).
    max_steps: iterations at most; None stops when the bound stagnates, too.
    solver: "auto", "pdhg", "lbfgs" or "newton-cg", or one of ``learnreg.solvers``; ``Solution.solver`` says which ran.
    start: where to start, (batch, *domain_shape).
    certificate: "auto", a bound where there is one; "none": where bounds take longer than an estimate by a Newton step,
        as those of local minimisers do, that estimate alone. Energies with kinks, and those of images so large that
        they are worked through by bands, keep their bounds.
    on_failure: "return" a Solution whose status says what happened, or "raise".

    Raises
    ------
    ShapeError, DataError, ConfigError: bad input. OperatorError: an operator made NaN of finite numbers. SolverError:
    not converged, with ``on_failure="raise"``; its ``result`` is the Solution.
    """
    target = check_tolerance(tolerance)
    check_failure_option(on_failure)
    check_max_steps(max_steps)
    check_one_of(certificate, ("auto", "none"), "certificate")
    certify = certificate == "auto"
    frozen = freeze(problem)
    if start is not None:
        frozen.operator.check_domain(start, "start")
        check_batch(start, b.shape[0], "start")
    parts = frozen.parts(b)
    if len(parts) > 1 and frozen.of_chains:
        raise ConfigError(
            "solve: a chain of problems takes one noise level for all samples; solve each level by itself."
        )
    if len(parts) == 1:
        solution = _solved(parts[0][1], b, target, max_steps, solver, start, certify)
    else:
        found = [
            _solved(part, b[index], target, max_steps, solver, None if start is None else start[index], certify)
            for index, part in parts
        ]
        solution = joined(found, [index for index, _ in parts])
    if on_failure == "raise" and not solution.status.converged:
        worst, why = float(solution.error_bound.max()), solution.reason or solution.status.value
        raise SolverError(f"solve(tolerance={target:g}): error bound {worst:.3g}. {why}", solution)
    return solution


def _solved(
    frozen: FrozenProblem,
    b: Tensor,
    target: float,
    max_steps: int | None,
    solver: SolverName | Solver[Any],
    start: Tensor | None,
    certify: bool,
) -> Solution:
    """Of samples of one noise level, by one problem or a chain."""
    if frozen.chain is None:
        return _solve(frozen, b, target, max_steps, solver, start, certify)

    def solve_stage(stage: FrozenProblem, tolerance: float, left: int | None, begin: Tensor | None) -> Solution:
        return _solve(stage, b, tolerance, left, solver, begin, certify)

    return solve_chain(frozen, b, target, max_steps, start, solve_stage)


def _solve(
    frozen: FrozenProblem,
    b: Tensor,
    target: float,
    max_steps: int | None,
    solver: SolverName | Solver[Any],
    start: Tensor | None,
    certify: bool,
) -> Solution:
    """Of samples of one noise level, by one problem."""
    instance = frozen.at(b)
    smooth = instance.potential.differentiable
    by_bands = isinstance(solver, str) and solver == "auto" and smooth and is_large(instance)
    by_bands = by_bands and (instance.strong_convexity > 0 or not instance.local)
    instance = in_bands(instance) if by_bands else instance
    method = make_solver(solver, instance, warm=start is not None)
    x = initial_point(instance, b) if start is None else instance.started(start.detach().to(b))
    scale = math.sqrt(math.prod(frozen.operator.domain_shape))
    working, aim, steps = instance, target * (_AIM if b.dtype == torch.float64 else _FLOAT32_AIM), 0
    aim *= _DEAR_AIM if instance.local and certify and LowestCurvature(instance).is_dear else 1.0
    t, reached = None, math.inf
    recorder = Recorder(instance.counter, b.shape[0])
    attempts = _MAX_LOCAL_ATTEMPTS if instance.local else _MAX_ATTEMPTS
    for attempt in range(attempts):
        error = torch.full((b.shape[0],), aim * scale, dtype=x.dtype, device=x.device)
        left = None if max_steps is None else max_steps - steps
        result = run_state_solver(method, working, x, error, left, t, recorder)
        steps += result.steps
        x, t = result.x, result.t
        if attempt == 0:  # not before: it takes memory that large images need for their steps
            judge_instance = _exact(frozen, instance, b, by_bands)
        judged = judge(judge_instance, x, t, b.dtype, scale, certify)
        fault = why_stagnated(judge_instance) if result.status is Status.STAGNATED else ""
        if fault:
            judged = replace(judged, bound=torch.full_like(judged.bound, math.inf), reason=fault)
        worst = float(judged.bound.max())
        spent = result.status is Status.MAX_STEPS or (max_steps is not None and steps >= max_steps)
        if fault or spent or worst <= target:
            break
        exact = working.q.dtype == torch.float64
        stuck = result.status in _ENDED_EARLY and not worst < _PROGRESS * reached
        if exact and (result.status is Status.PRECISION or stuck or judged.hopeless(result.status)):
            break
        reached = worst
        if result.status in _ENDED_EARLY and not exact:
            working, x, t = judge_instance, x.double(), None if t is None else t.double()
        elif attempt + 1 < attempts and (instance.local or math.isfinite(worst)):
            aim *= min(0.3, 0.5 * target / worst) if math.isfinite(worst) else _NEARER
    if not math.isfinite(worst):
        blame_operators(judge_instance, x)
    status = _final_status(worst <= target, judged, result.status)
    error_bound = judged.bound.to(b.dtype) * (1.0 + 2.0 * torch.finfo(b.dtype).eps)
    return Solution(
        x=instance.latent.image(judged.x),
        dual=judged.dual(frozen),
        error_bound=error_bound,
        bound_kind=judged.kind,
        reason=judged.reason,
        status=status,
        steps=steps,
        operator_applications=instance.counter.applications,
        solver=method.name,
        history=recorder.history(steps, error_bound, result.residual, scale),
        certified_scope=frozen.minimiser,
        radius=judged.ball_radius(b.dtype),
    )


def _exact(frozen: FrozenProblem, instance: Instance, b: Tensor, by_bands: bool) -> Instance:
    """The instance in float64, to judge by."""
    if b.dtype == torch.float64:
        return instance
    exact = frozen.at(b.double(), instance.counter)
    return in_bands(exact) if by_bands else exact


def _final_status(reached: bool, judged: Judged, loop_status: Status) -> Status:
    if not judged.definite:
        return Status.INDEFINITE
    if reached:
        return Status.CONVERGED if judged.kind == "rigorous" else Status.ESTIMATED
    return Status.STAGNATED if loop_status is Status.CONVERGED else loop_status
