"""Bilevel stochastic gradients on quadratic problems: with and without noise, free and under linear constraints.

python benchmarks/stochastic_bilevel.py --record
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import ROOT, Table, arguments, finish
from torch import Tensor

import learnreg as lr
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.lower_level.linear_constraints import Polyhedron

UNKNOWNS, PARAMETERS, CONSTRAINTS, STEPS, EVERY = 20, 20, 5, 150, 5
NOISES = (0.0, 0.3)
STEP_SIZES = (0.01, 0.1, 1.0)
OPTIMUM_STEPS = 3000
KINDS = ("free", "equalities", "inequalities")
BEST_OF = 0.1
"""Share of the steps, the last ones, over which losses are averaged."""

METHODS: dict[str, Callable[[], HypergradientMethod]] = {
    "BSG-1": lr.BSG1,
    "BSG-N-FD": lr.BSGNewtonFD,
    "BSG-H": lr.BSGHessian,
    "Implicit": lr.Implicit,
}
INCREASING = 10
"""Lower-level steps at most, of methods that take more and more; BSG-1 takes one."""


class Quadratic:
    """lower: ½ <x, Hx> - <x, B theta> + sigma <xi, x>; upper: ½ ‖x - aim‖² + rho/2 ‖theta‖² + sigma (<eta, x> +
    <zeta, theta>), with noise xi, eta, zeta drawn anew at each step."""

    def __init__(self, kind: str, noise: float) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        A, self.noise = draw(UNKNOWNS, UNKNOWNS), noise
        self.H = A @ A.T / UNKNOWNS + 0.5 * torch.eye(UNKNOWNS, dtype=torch.float64)
        self.B, self.aim, self.rho = draw(UNKNOWNS, PARAMETERS) / math.sqrt(UNKNOWNS), draw(UNKNOWNS), 0.1
        C, inner = draw(CONSTRAINTS, UNKNOWNS), 0.1 * draw(UNKNOWNS)
        constraint: Any = {
            "free": None,
            "equalities": lr.LinearConstraints(C, C @ inner),
            "inequalities": lr.LinearConstraints(C, C @ inner + 0.1, "inequality"),
        }[kind]
        self.polyhedron = None if constraint is None else Polyhedron.of(constraint, UNKNOWNS)
        eigenvalues = torch.linalg.eigvalsh(self.H)
        self.mu, self.L = float(eigenvalues[0]), float(eigenvalues[-1])
        constants = {"strong_convexity": self.mu, "gradient_lipschitz": self.L}
        self.problem = lr.BilevelProblem(self.lower, self.upper, **constants, constraint=constraint)

    def lower(self, x: Tensor, theta: Tensor, data: dict[str, Tensor]) -> Tensor:
        return 0.5 * x @ self.H @ x - x @ (self.B @ theta) + self.noise * x @ data["lower"]

    def upper(self, x: Tensor, theta: Tensor, data: dict[str, Tensor]) -> Tensor:
        return self.loss(x, theta) + self.noise * (x @ data["upper"] + theta @ data["theta"])

    def loss(self, x: Tensor, theta: Tensor) -> Tensor:
        return 0.5 * (x - self.aim).square().sum() + 0.5 * self.rho * theta.square().sum()

    def sample(self, generator: torch.Generator, step: int) -> dict[str, Tensor]:
        sizes = {"lower": UNKNOWNS, "upper": UNKNOWNS, "theta": PARAMETERS}
        return {name: torch.randn(n, generator=generator, dtype=torch.float64) for name, n in sizes.items()}

    def solution(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Without noise, by a dense quadratic program, and an orthonormal basis of the directions along its face."""
        free = torch.linalg.solve(self.H, self.B @ theta)
        if self.polyhedron is None:
            return free, torch.eye(UNKNOWNS, dtype=torch.float64)
        found = self.polyhedron.nearest(free.numpy(), self.H.numpy())
        normals = self.polyhedron.face(found.held).normals
        Z = torch.linalg.svd(normals, full_matrices=True)[0][:, normals.shape[1] :]
        return torch.from_numpy(found.point), Z

    def value(self, theta: Tensor) -> float:
        return float(self.loss(self.solution(theta)[0], theta))

    def optimum(self) -> float:
        """The least loss that gradient descent with exact hypergradients finds from 0."""
        theta, lowest = torch.zeros(PARAMETERS, dtype=torch.float64), math.inf
        size = 1.0 / (self.rho + float(torch.linalg.matrix_norm(self.B, ord=2)) ** 2 / self.mu**2)
        for _ in range(OPTIMUM_STEPS):
            x, Z = self.solution(theta)
            lowest = min(lowest, float(self.loss(x, theta)))
            adjoint = Z @ torch.linalg.solve(Z.T @ self.H @ Z, Z.T @ (x - self.aim))
            theta = theta - size * (self.B.T @ adjoint + self.rho * theta)
        return lowest


@dataclass
class Run:
    """A method at its best step size: relative excess of the exact loss at steps, and what it took."""

    step_size: float
    steps: list[int]
    excess: list[float]
    lower_steps: int
    seconds: float

    @property
    def final(self) -> float:
        count = max(1, round(BEST_OF * len(self.excess)))
        return sum(self.excess[-count:]) / count


def run(case: Quadratic, name: str, step_size: float, best: float) -> Run | None:
    """None where it diverges."""
    theta, x = torch.zeros(PARAMETERS, dtype=torch.float64), torch.zeros(UNKNOWNS, dtype=torch.float64)
    first = case.value(theta)
    thetas: list[tuple[int, Tensor]] = []

    def keep(k: int, theta: Tensor, x: Tensor, loss: float) -> None:
        if (k + 1) % EVERY == 0:
            thetas.append((k + 1, theta.clone()))

    descent = lr.StochasticDescent(
        case.problem,
        case.sample,
        METHODS[name](),
        step_size=step_size,
        decay=0.5 if case.noise else 0.0,
        lower_step_size=1.0 / case.L,
        lower_decay=0.5 if case.noise and name == "BSG-1" else 0.0,
        most_lower_steps=None if name == "BSG-1" else INCREASING,
        adjoint_steps=10 if name == "Implicit" else None,
    )
    began = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "BSG1")
            done = descent.run(theta, x, STEPS, torch.Generator().manual_seed(1), keep)
    except lr.SolverError:
        return None
    seconds = time.process_time() - began
    excess = [(case.value(t) - best) / (first - best) for _, t in thetas]
    return Run(step_size, [k for k, _ in thetas], excess, done.lower_steps[-1], seconds)


def best_run(case: Quadratic, name: str, best: float) -> Run:
    runs = [found for size in STEP_SIZES if (found := run(case, name, size, best)) and math.isfinite(found.final)]
    return min(runs, key=lambda r: r.final)


def draw(curves: dict[tuple[str, float], dict[str, Run]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    kinds = list(dict.fromkeys(kind for kind, _ in curves))
    figure, axes = plt.subplots(
        len(NOISES), len(kinds), figsize=(4.2 * len(kinds), 3.4 * len(NOISES)), layout="constrained", squeeze=False
    )
    for (kind, noise), runs in curves.items():
        panel = axes[NOISES.index(noise), kinds.index(kind)]
        for name, found in runs.items():
            panel.semilogy(found.steps, [max(e, 1e-12) for e in found.excess], label=f"{name}, {found.step_size:g}")
        panel.set_title(f"{kind}, noise {noise:g}", fontsize=10)
        panel.set_xlabel("steps of theta")
        panel.legend(fontsize=7, frameon=False)
    figure.supylabel("(loss - least) / (first - least)", fontsize=10)
    figure.savefig(path, dpi=100)


def main() -> None:
    small = {"STEPS": 20, "UNKNOWNS": 6, "PARAMETERS": 4, "CONSTRAINTS": 2, "OPTIMUM_STEPS": 200, "STEP_SIZES": (0.03,)}
    figure = {"default": None, "help": "where to draw (default docs/stochastic_bilevel.png on record)"}
    kind = {"choices": KINDS, "help": "one of them alone"}
    options = arguments(__doc__ or "", quick=small, figure=figure, kind=kind)
    table = Table(
        "stochastic_bilevel",
        "Bilevel stochastic gradients",
        "python benchmarks/stochastic_bilevel.py --record",
        f"`lr.StochasticDescent` on quadratic bilevel problems of {UNKNOWNS} unknowns and {PARAMETERS} parameters, "
        f"free, under {CONSTRAINTS} linear equalities and under as many inequalities, without noise and with Gaussian "
        f"noise in all gradients; {STEPS} steps from 0. Each method has its best step size of "
        f"{', '.join(f'{s:g}' for s in STEP_SIZES)}, with decay 1/√k under noise. BSG-1 takes one lower-level step, "
        f"the others up to {INCREASING}, more where the loss stalls. The numbers: excess of the exact loss over the "
        f"least one, relative to that at the start, mean over the last {BEST_OF:.0%} of the steps.",
        order=53,
        notes=["The least loss is that of gradient descent with exact hypergradients from the same start."],
    )
    curves: dict[tuple[str, float], dict[str, Run]] = {}
    for kind in KINDS if options.kind is None else [options.kind]:
        best = Quadratic(kind, 0.0).optimum()
        for noise in NOISES:
            case = Quadratic(kind, noise)
            print(f"{time.process_time():6.1f} s: {kind}, noise {noise:g}", file=sys.stderr, flush=True)
            runs = curves[kind, noise] = {name: best_run(case, name, best) for name in METHODS}
            for name, found in runs.items():
                row = {"constraints": kind, "noise": f"{noise:g}", "method": name, "step size": f"{found.step_size:g}"}
                row |= {"excess of the loss": f"{found.final:.2e}", "lower-level steps at last": found.lower_steps}
                table.rows.append(row | {"ms per step": 1e3 * found.seconds / STEPS})
                if name != "BSG-1":
                    table.tracked[f"{kind}, noise {noise:g}, {name}: excess"] = found.final
    path = options.figure or (ROOT / "docs" / "stochastic_bilevel.png" if options.record else None)
    if path is not None:
        draw(curves, Path(path))
        table.notes.insert(0, "![excess of the loss by steps](stochastic_bilevel.png)")
    finish(table, options)


if __name__ == "__main__":
    main()
