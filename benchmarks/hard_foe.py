"""Operator applications on a trained Field of Experts (condition number 3,243) and five variants of it.

    python benchmarks/hard_foe.py --data DIR --record

DIR holds hard_foe.npz (filters, weights, smoothing) and BSDS500. Nothing is tuned to a variant: every call is
``lr.solve`` or an adjoint solver with default options. float64.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Table, arguments, finish
from torch import Tensor

import learnreg as lr
from learnreg.commands.process import large_blocks_kept
from learnreg.datasets import BSDS500
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts
from learnreg.solvers import AdjointPDHG, AdjointSolver, ConjugateGradient, iterate

SIGMA, CROP, SIDE = 25 / 255, 100, 96
STATE_TARGETS, ADJOINT_TARGETS = (1e-3, 1e-4), (1e-1, 1e-2, 1e-3)
GRID = 5
"""Numbers of steps are multiples of this."""


def images(folder: Path, first: int) -> Tensor:
    """Four crops (4, 1, 96, 96) of consecutive BSDS training images, luma."""
    dataset = BSDS500(folder / "BSDS500", splits=("train",))
    crop = slice(CROP, CROP + SIDE)
    return torch.stack([dataset[i][..., crop, crop].double() for i in range(first, first + 4)])


def variants(folder: Path) -> Iterator[tuple[str, FieldsOfExperts, int]]:
    """(name, regularizer, first image)."""
    stored = np.load(folder / "hard_foe.npz")
    w, l, v = (stored[key].astype(np.float64) for key in ("filters", "weights", "smoothing"))
    build = FieldsOfExperts.from_arrays
    yield "as trained", build(w, l, v), 0
    yield "filters rotated by 90 degrees", build(np.rot90(w, axes=(1, 2)).copy(), l, v), 0
    yield "filters transposed", build(w.transpose(0, 2, 1).copy(), l, v), 0
    yield "weights times 2", build(w, 2 * l, v), 0
    yield "smoothing times 1/2", build(w, l, v / 2), 0
    yield "other images", build(w, l, v), 40


def rms(difference: Tensor) -> float:
    """The largest root-mean-square entry of a sample."""
    return float(difference.square().flatten(1).mean(1).sqrt().max())


def smallest_steps(reached: Callable[[int], bool], limit: int = 1000) -> int | None:
    """The smallest number of steps that suffices, by bisection on multiples of ``GRID``."""
    low, high = 0, 1
    while not reached(GRID * high):
        low, high = high, 2 * high
        if GRID * high > limit:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(GRID * middle) else (middle, high)
    return GRID * high


def applications_to_error(run: Callable[[int], tuple[float, int]], target: float) -> int | None:
    """Operator applications of ``run(steps)``, which returns (error, applications), with the fewest steps that reach
    the target."""
    steps = smallest_steps(lambda k: run(k)[0] <= target)
    return None if steps is None else run(steps)[1]


def adjoint_run(
    equation: AdjointEquation, solver: AdjointSolver[Any], exact: Tensor
) -> Callable[[int], tuple[float, int]]:
    """Relative error of the adjoint state after k steps from 0, and the applications it took."""
    never = torch.zeros(exact.shape[0], dtype=exact.dtype)

    def run(steps: int) -> tuple[float, int]:
        before = equation.instance.counter.applications
        X = iterate(solver, equation, torch.zeros_like(exact), never, never, steps).x
        error = ((X - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)).max()
        return float(error), equation.instance.counter.applications - before

    return run


@torch.no_grad()
def row(name: str, regularizer: FieldsOfExperts, x_true: Tensor) -> dict[str, Any]:
    """All counts of one variant."""
    noise = torch.randn(x_true.shape, generator=torch.Generator().manual_seed(0), dtype=x_true.dtype)
    b = x_true + SIGMA * noise
    problem = lr.LowerLevelProblem(Identity((1, SIDE, SIDE)), regularizer)
    exact = lr.solve(problem, b, 1e-12, solver="newton-cg", start=lr.solve(problem, b, 1e-8).x).x
    entry: dict[str, Any] = {"problem": name}

    def run(steps: int) -> tuple[float, int]:
        solution = lr.solve(problem, b, 1e-15, max_steps=steps)
        return rms(solution.x - exact), solution.operator_applications

    for target in STATE_TARGETS:
        entry[f"true {target:.0e}"] = applications_to_error(run, target)
    for target in STATE_TARGETS:
        solution = lr.solve(problem, b, target)
        assert solution.status.converged
        assert rms(solution.x - exact) <= target
        entry[f"certified {target:.0e}"] = solution.operator_applications
        entry["solver"] = solution.solver
    instance = problem.instance(b)
    equation = AdjointEquation.at(instance, exact, instance.apply(exact), lr.SquaredError(x_true).gradient(exact))
    never = torch.zeros(4, dtype=b.dtype)
    X = iterate(ConjugateGradient(), equation, torch.zeros_like(exact), never, never, 600).x
    for solver in (ConjugateGradient(), AdjointPDHG()):
        adjoint = adjoint_run(equation, solver, X)
        counts = [applications_to_error(adjoint, target) for target in ADJOINT_TARGETS]
        entry[f"adjoint {solver.name}"] = " / ".join(str(c) for c in counts)
    print(entry, file=sys.stderr, flush=True)
    return entry


@large_blocks_kept()
def main() -> None:
    options = arguments(
        __doc__ or "",
        quick={"SIDE": 24, "STATE_TARGETS": (1e-3,), "ADJOINT_TARGETS": (1e-1,)},
        data={"default": os.environ.get("LEARNREG_DATA", ""), "help": "folder of data"},
    )
    folder = Path(options.data)
    if not options.data or not (folder / "hard_foe.npz").is_file():
        sys.exit("hard_foe.npz not found: give its folder with --data or LEARNREG_DATA")
    table = Table(
        name="hard_foe",
        order=1,
        title="A trained Field of Experts, condition number 3,243",
        command="python benchmarks/hard_foe.py --data DIR --record",
        text="""Operator applications (K and K^T count one each, those of checks and certificates included) that
`lr.solve` needs on four 96 x 96 images at once until the true root-mean-square error of each is below 1e-3 and 1e-4,
and until that is certified; and for the adjoint state at the exact solution until its true relative error is 1e-1 /
1e-2 / 1e-3, by conjugate gradients and by the piggyback iteration. float64, from x = b, default options everywhere.""",
    )
    for name, regularizer, first in variants(folder):
        table.rows.append(row(name, regularizer, images(folder, first)))
    for key in [f"{kind} {target:.0e}" for kind in ("true", "certified") for target in STATE_TARGETS]:
        table.tracked[f"largest {key}"] = max(float(r[key] or "inf") for r in table.rows)
    finish(table, options)


if __name__ == "__main__":
    main()
