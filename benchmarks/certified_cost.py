"""What a certificate costs: operator applications until an accuracy is certified, over those until it is there.

    python benchmarks/certified_cost.py --data DIR --record

DIR holds hard_foe.npz and BSDS500. Every call has default options. float64.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from hard_foe import SIDE, SIGMA, images, variants
from harness import Table, arguments, finish
from torch import Tensor

import learnreg as lr
from learnreg.certificates.judgement import gradient_distance, gradient_norm, judge
from learnreg.commands.process import large_blocks_kept
from learnreg.linear.samples import sum_samples
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.pairing import pairing_gradient
from learnreg.lower_level.point import Point
from learnreg.operators import Identity
from learnreg.regularizers import Regularizer, TotalVariation
from learnreg.solvers import iterate
from learnreg.solvers.choice import make_adjoint_solver
from learnreg.solvers.newton_correction import correct_adjoint

TARGETS = (1e-1, 1e-2, 1e-3)
STATES = [10.0 ** (-k / 4) for k in range(11, 26)]
ADJOINTS = [10.0 ** (-k / 4) for k in range(2, 15)]


def problems(folder: Path) -> Iterator[tuple[str, Regularizer, int]]:
    """(name, regularizer, first image)."""
    yield from variants(folder)
    for first in (0, 40):
        yield f"total variation, images {first} to {first + 3}", TotalVariation(0.0666, 1e-3).double(), first


@torch.no_grad()
def fewest_applications(
    problem: lr.LowerLevelProblem, b: Tensor, loss: lr.UpperLoss, truth: dict[str, Tensor], target: float
) -> int | None:
    """Applications of the cheapest plain gradient with a true error below the target: states from ``lr.solve`` and
    adjoint states, both by default solvers, accuracies from a grid. No certificate of the gradient is counted."""
    best: int | None = None
    for tolerance in STATES:
        solution = lr.solve(problem, b, tolerance)
        spent = solution.operator_applications
        if best is not None and spent >= best:
            break
        instance = problem.instance(b)
        equation = AdjointEquation.at(instance, solution.x, instance.apply(solution.x), loss.gradient(solution.x))
        size = sum_samples(equation.rhs**2).sqrt()
        for share in ADJOINTS:
            before = instance.counter.applications
            solver = make_adjoint_solver("auto", instance, False, share)
            X = iterate(solver, equation, torch.zeros_like(b), share * size, torch.zeros_like(size)).x
            needed = spent + 1 + instance.counter.applications - before + 4
            if best is not None and needed >= best:
                break
            error = gradient_distance(pairing_gradient(Point.of(problem, b, loss, solution.x, X)), truth)
            if error <= target * gradient_norm(truth):
                best = needed
    return best


def row(name: str, regularizer: Regularizer, x_true: Tensor) -> Iterator[dict[str, Any]]:
    """One row per target."""
    noise = torch.randn(x_true.shape, generator=torch.Generator().manual_seed(0), dtype=x_true.dtype)
    b, loss = x_true + SIGMA * noise, lr.SquaredError(x_true)
    problem = lr.LowerLevelProblem(Identity((1, SIDE, SIDE)), regularizer)
    exact = lr.solve(problem, b, 1e-13, solver="newton-cg", start=lr.solve(problem, b, 1e-8).x).x
    point = Point.of(problem, b, loss, exact, torch.zeros_like(b))
    X = correct_adjoint(point, torch.full((b.shape[0],), 1e-14).to(b)).point
    truth = judge(point.at(exact, X)).gradient
    for target in TARGETS:
        entry: dict[str, Any] = {"problem": name, "relative error": f"{target:.0e}"}
        entry["fewest, true"] = fewest_applications(problem, b, loss, truth, target)
        for certificate in ("auto", "published"):
            result = lr.hypergradient(problem, b, loss, tolerance=target, certificate=certificate)  # type: ignore[arg-type]
            error = gradient_distance(result.gradient, truth)
            assert error <= result.error_bound
            reached = result.status.converged and result.certified
            entry[certificate] = result.operator_applications if reached else "not reached"
            if certificate == "auto":
                entry["true error of auto"] = error / gradient_norm(truth)
        if isinstance(entry["auto"], int) and entry["fewest, true"]:
            entry["ratio"] = entry["auto"] / entry["fewest, true"]
        print(entry, file=sys.stderr, flush=True)
        yield entry


@large_blocks_kept()
def main() -> None:
    small = {"SIDE": 16, "hard_foe.SIDE": 16, "TARGETS": (1e-1,), "STATES": STATES[::4], "ADJOINTS": ADJOINTS[::4]}
    options = arguments(
        __doc__ or "", quick=small, data={"default": os.environ.get("LEARNREG_DATA", ""), "help": "folder of data"}
    )
    folder = Path(options.data)
    if not options.data or not (folder / "hard_foe.npz").is_file():
        sys.exit("hard_foe.npz not found: give its folder with --data or LEARNREG_DATA")
    table = Table(
        name="certified_cost",
        order=7,
        title="The price of a certificate",
        command="python benchmarks/certified_cost.py --data DIR --record",
        text="""Operator applications of `lr.hypergradient(tolerance=...)` until the relative error of the hypergradient
is certified ("auto": the sharp certificate, "published": norms at one point), four 96 x 96 images at once, from x = b,
over the fewest with which a plain gradient has that accuracy: solver tolerances taken from a grid with the truth
known, no certificate of the gradient counted.""",
    )
    for name, regularizer, first in problems(folder):
        table.rows.extend(row(name, regularizer, images(folder, first)))
    ratios = torch.tensor([float(r.get("ratio", "inf")) for r in table.rows], dtype=torch.float64)
    table.tracked["median ratio"] = float(ratios.median())
    table.notes.append(f"Median ratio {float(ratios.median()):.2f}, largest {float(ratios.max()):.2f}.")
    finish(table, options)


if __name__ == "__main__":
    main()
