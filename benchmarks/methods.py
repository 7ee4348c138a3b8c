"""Every method of differentiation on the same problems: true error of the hypergradient against its cost.

    python benchmarks/methods.py --record

float64, one thread, no certificates (``certificate="none"``): each method alone at a row of settings, its tolerance or
its number of steps. The truth is Newton's method on autograd of the energy, to rounding. The photographs and phantoms
need no download.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import Table, arguments, finish
from matplotlib.figure import Figure
from torch import Tensor

import learnreg as lr
from learnreg.accuracy.problems import clean_patches
from learnreg.accuracy.reference import Reference, solve_reference
from learnreg.certificates.judgement import gradient_distance
from learnreg.datasets import load_ct_images
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.operators import Blur, Identity, ParallelBeam2D
from learnreg.regularizers import FieldsOfExperts, GeneralisedTikhonov

SIDE, ROWS, COLUMNS = 16, 60, 10
TOLERANCES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
STEPS = (3, 10, 30, 100, 300, 1000)
TARGETS = (1e-1, 1e-2, 1e-4)
LONGEST = 20.0
"""CPU seconds of one call beyond which a method's finer settings are left out."""


@dataclass(frozen=True)
class Case:
    """A problem, its data and loss, and where to start."""

    problem: lr.LowerLevelProblem
    b: Tensor
    loss: lr.UpperLoss
    start: lr.Start | None = None


@dataclass(frozen=True)
class Setting:
    """A method with a tolerance, and how many terms or steps it was given."""

    method: HypergradientMethod
    tolerance: float
    knob: float


def problems() -> dict[str, Case]:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def experts(weight: float) -> FieldsOfExperts:
        made = FieldsOfExperts(4, 3, lr.PseudoHuber(1e-2, weight), generator=torch.Generator().manual_seed(0))
        return made.double()

    clean = clean_patches(2, SIDE, 0)
    noisy = clean + 25 / 255 * randn(*clean.shape)
    denoising = lr.LowerLevelProblem(Identity(clean.shape[1:]), experts(0.1))
    scan = ParallelBeam2D(SIDE, 12).double()
    phantoms = torch.stack(list(load_ct_images("ellipses", SIDE, count=2)[0].values())).double()
    tomography = lr.LowerLevelProblem(scan, experts(1e-3), ridge=1e-2)
    sinograms = scan(phantoms)
    sinograms = sinograms + 0.01 * sinograms.mean() * randn(*sinograms.shape)
    blur = Blur(torch.full((3, 3), 1 / 9, dtype=torch.float64), clean.shape[1:], "reflect")
    tikhonov = GeneralisedTikhonov(4, 3, generator=torch.Generator().manual_seed(0)).double()
    smooth = lr.LowerLevelProblem(blur, tikhonov, ridge=1e-2)
    blurred = blur(clean) + 0.02 * randn(*clean.shape)
    return {
        "denoising, Field of Experts": Case(denoising, noisy, lr.SquaredError(clean)),
        "CT, Field of Experts": Case(tomography, sinograms, lr.SquaredError(phantoms)),
        "logistic regression": _logistic(randn),
        "quadratic": Case(smooth, blurred, lr.SquaredError(clean)),
    }


def _logistic(randn: Callable[..., Tensor]) -> Case:
    """A penalty for each coefficient."""
    rows, held_out, truth = randn(ROWS, COLUMNS), randn(ROWS, COLUMNS), randn(COLUMNS)
    labels, held_labels = ((a @ truth + randn(ROWS) > 0).double() for a in (rows, held_out))
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits

    def lower(x: Tensor, theta: Tensor, d: Any) -> Tensor:
        return cross_entropy(d[0] @ x, d[1], reduction="sum") + 0.5 * (theta.exp() * x**2).sum()

    def upper(x: Tensor, theta: Tensor, d: Any) -> Tensor:
        return cross_entropy(d[2] @ x, d[3])

    largest = float(torch.linalg.matrix_norm(rows, 2)) ** 2
    problem = lr.BilevelProblem(lower, upper, 1.0, gradient_lipschitz=1.0 + 0.25 * largest)
    return _posed(problem, (rows, labels, held_out, held_labels))


def _posed(problem: lr.BilevelProblem, data: tuple[Tensor, ...]) -> Case:
    start = torch.full((COLUMNS,), 0.1, dtype=torch.float64)
    posed = problem.at(torch.zeros(COLUMNS, dtype=torch.float64), start, data)
    return Case(posed.problem, posed.b, posed.loss, lr.Start(posed.start, torch.zeros_like(posed.start)))


def settings() -> dict[str, list[Setting]]:
    """Each method from its roughest setting to its finest one."""

    def tolerances(make: Callable[[], HypergradientMethod]) -> list[Setting]:
        return [Setting(make(), t, t) for t in TOLERANCES]

    def steps(make: Callable[[int], HypergradientMethod]) -> list[Setting]:
        return [Setting(make(n), 1e-12, n) for n in STEPS]

    return {
        "implicit, cg": tolerances(lambda: lr.Implicit("cg")),
        "implicit, minres": tolerances(lambda: lr.Implicit("minres")),
        "implicit, Neumann": tolerances(lambda: lr.Implicit("neumann")),
        "implicit, Nystrom": tolerances(lambda: lr.Implicit("nystrom")),
        "piggyback": tolerances(lr.Piggyback),
        "unrolled": steps(lr.Unrolled),
        "unrolled, last 10": steps(lambda n: lr.Unrolled(n, min(n, 10))),
        "one step": tolerances(lr.OneStep),
        "equilibrium, one-sided": tolerances(lambda: lr.EquilibriumPropagation(nudges=1)),
        "equilibrium, symmetric": tolerances(lr.EquilibriumPropagation),
        "equilibrium, holomorphic": tolerances(lambda: lr.EquilibriumPropagation(nudges=4)),
        "closed form": tolerances(lr.ClosedForm)[:1],
        "finite differences": tolerances(lr.FiniteDifference),
        "BSG-1": [Setting(lr.BSG1(n), 1.0, n) for n in STEPS[:4]],
        "BSG-N-FD": [Setting(lr.BSGNewtonFD(n, n), 1e-6, n) for n in STEPS],
        "BSG-H": [Setting(lr.BSGHessian(n, n), 1e-6, n) for n in STEPS],
    }


def measured(case: Case, reference: Reference, options: list[Setting]) -> Iterator[tuple[float, float, int]]:
    """Relative error, CPU seconds and operator applications of each setting, until one takes too long."""
    for setting in options:
        try:
            began = time.process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what BSG-1 says of itself
                found = lr.hypergradient(
                    case.problem,
                    case.b,
                    case.loss,
                    setting.method,
                    setting.tolerance,
                    certificate="none",
                    start=case.start,
                )
            seconds = time.process_time() - began
        except lr.ConfigError:  # not defined for the problem
            return
        error = gradient_distance(found.gradient, reference.gradient) / reference.norm
        yield error, seconds, found.operator_applications
        if seconds > LONGEST:
            return


def main() -> None:
    options = arguments(
        __doc__ or "",
        quick={"SIDE": 16, "TOLERANCES": (1.0, 1e-2), "STEPS": (3, 10), "ROWS": 20, "COLUMNS": 3},
        figure={"default": "", "help": "where to draw errors against seconds, as methods.png"},
    )
    torch.set_default_dtype(torch.float32)
    table = Table(
        name="methods",
        title="Every way to differentiate, on the same problems",
        command="python benchmarks/methods.py --figure docs/methods.png --record",
        text=(
            f"Relative error of the hypergradient against Newton's method to rounding, float64: two {SIDE} x {SIDE} "
            f"images with 4 filters 3x3 (quadratic: deblurring), or {ROWS} rows and {COLUMNS} coefficients with a "
            "penalty for each; no certificates. Each method at tolerances from 1 to 1e-6, or with 3 to 1,000 steps. "
            "*seconds to E*, *applications to E*: the fewest with which the true error is at most E; *-*: not reached. "
            "Methods that are not defined for a problem have no row. *least error*: of all settings."
        ),
        order=12,
    )
    curves: dict[str, dict[str, list[tuple[float, float, int]]]] = {}
    for name, case in problems().items():
        reference = solve_reference(case.problem, case.b, case.loss)
        curves[name] = {}
        for method, choices in settings().items():
            points = list(measured(case, reference, choices[:1])) and list(measured(case, reference, choices))
            if not points:
                continue
            curves[name][method] = points
            row: dict[str, Any] = {"problem": name, "method": method, "least error": min(p[0] for p in points)}
            for target in TARGETS:
                enough = [p for p in points if p[0] <= target]
                row[f"seconds to {target:g}"] = min((p[1] for p in enough), default="-")
                row[f"applications to {target:g}"] = min((p[2] for p in enough), default="-")
            table.rows.append(row)
            print(row, file=sys.stderr)
        for method in ("implicit, cg", "piggyback", "equilibrium, symmetric"):
            applications = [p[2] for p in curves[name].get(method, []) if p[0] <= 1e-2]
            if applications:
                table.tracked[f"{name}: {method}, applications to 1e-2"] = float(min(applications))
    if options.figure:
        draw(curves, Path(options.figure))
        table.notes.append("![true error against CPU seconds](methods.png)")
    finish(table, options)


def draw(curves: dict[str, dict[str, list[tuple[float, float, int]]]], path: Path) -> None:
    """Error against seconds, one panel for each problem."""
    figure = Figure(figsize=(10, 8), layout="constrained")
    axes = figure.subplots(2, math.ceil(len(curves) / 2)).flat
    names = list(settings())
    for axis, (problem, found) in zip(axes, curves.items(), strict=False):
        for method, points in found.items():
            k = names.index(method)
            errors, seconds = [max(p[0], 1e-15) for p in points], [p[1] for p in points]
            axis.loglog(
                seconds, errors, "osv^D*Px"[k % 8] + ("-" if k < 8 else "--"), color=f"C{k % 10}", label=method, ms=4
            )
        axis.set(title=problem, xlabel="CPU seconds", ylabel="relative error")
        axis.grid(alpha=0.3)
    handles = {label: h for axis in figure.axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
