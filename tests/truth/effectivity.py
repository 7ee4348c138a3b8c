"""How close the bounds of given hypergradients are to their true errors, on random images and phantoms."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import learnreg as lr
from learnreg.certificates.judgement import gradient_distance, judge
from learnreg.datasets import ellipse_phantom
from learnreg.linear.operator import LinearOperator
from learnreg.lower_level.point import Point
from learnreg.operators import ParallelBeam2D
from learnreg.regularizers import FieldsOfExperts
from learnreg.solvers.newton_correction import correct_adjoint

SIDE, SIGMA, STATE_ERROR, ADJOINT = 20, 25 / 255, 1e-3, 1e-2
SHAPE = (1, SIDE, SIDE)
SCAN_SIDE, VIEWS, SCAN_WEIGHT, SCAN_NOISE = 32, 20, 1e-3, 0.01


@dataclass(frozen=True)
class Setting:
    """A forward operator, the smoothing and the sum of the weights of the filters, and the ridge. ``noise``: standard
    deviation, relative to the mean measurement for a scan."""

    name: str
    operator: LinearOperator
    smoothing: float
    ridge: float = 0.0
    weight: float = 0.5
    noise: float = SIGMA
    scan: bool = False

    def measured(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A random image and its noisy measurement."""
        if self.scan:
            x_true = ellipse_phantom(int(torch.randint(2**20, (), generator=generator)), SCAN_SIDE)[None].double()
        else:
            x_true = draw_image(generator)
        b: Tensor = self.operator(x_true)
        noise = self.noise * (float(b.mean()) if self.scan else 1.0)
        return x_true, b + noise * torch.randn(b.shape, generator=generator, dtype=b.dtype)


def draw_image(generator: torch.Generator) -> Tensor:
    """A piecewise smooth image in [0, 1]: discs of random grey on a ramp, (1, 1, side, side)."""
    rows, cols = torch.meshgrid(*(torch.linspace(0, 1, SIDE, dtype=torch.float64),) * 2, indexing="ij")
    slope = torch.rand(2, generator=generator, dtype=torch.float64)
    image = 0.3 * (slope[0] * rows + slope[1] * cols)
    for _ in range(4):
        y, x, radius, grey = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        image = torch.where((rows - y) ** 2 + (cols - x) ** 2 < (0.1 + 0.3 * radius) ** 2, grey, image)
    return image[None, None]


def scans() -> Iterator[Setting]:
    """Computed tomography of phantoms."""
    A = ParallelBeam2D(SCAN_SIDE, VIEWS)
    for ridge in (1e-2, 1e-3):
        name = f"CT, {VIEWS} views, ridge {ridge:g}, smoothing 0.01"
        yield Setting(name, A, 1e-2, ridge, SCAN_WEIGHT, SCAN_NOISE, scan=True)


@torch.no_grad()
def iterates(problem: lr.LowerLevelProblem, b: Tensor, exact: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """States of the given relative error: one perturbed at random, one on the way of a solver."""
    size = STATE_ERROR * exact.norm()
    noise = torch.randn(exact.shape, generator=generator, dtype=exact.dtype)
    yield exact + size * noise / noise.norm()
    for steps in range(1, 400):
        x = lr.solve(problem, b, 1e-12, solver="lbfgs", max_steps=steps).x
        if float((x - exact).norm()) <= size:
            break
    yield exact + size * (x - exact) / (x - exact).norm()


@torch.no_grad()
def row(setting: Setting, images: int) -> dict[str, Any]:
    """Effectivities of one problem over all images and both kinds of iterates."""
    generator = torch.Generator().manual_seed(0)
    ratios: dict[str, list[float]] = {"published": [], "sharp": []}
    errors, counts, violations = [], [], 0
    for _ in range(images):
        potential = lr.PseudoHuber(setting.smoothing, setting.weight)
        regularizer = FieldsOfExperts(16, 5, potential, generator=generator).double()
        problem = lr.LowerLevelProblem(setting.operator, regularizer, ridge=setting.ridge)
        x_true, b = setting.measured(generator)
        loss = lr.SquaredError(x_true)
        exact = lr.solve(problem, b, 1e-13, solver="newton-cg").x
        point = Point.of(problem, b, loss, exact, torch.zeros_like(exact))
        X = correct_adjoint(point, torch.full((1,), 1e-15).double()).point
        truth = judge(point.at(exact, X)).gradient
        for x in iterates(problem, b, exact, generator):
            goal = ADJOINT * loss.gradient(x).flatten(1).norm(dim=1)
            near = correct_adjoint(point.at(x, torch.zeros_like(x)), goal).point
            for kind, found in ratios.items():
                judged = lr.certify(problem, b, loss, x, near, certificate=kind)  # type: ignore[arg-type]
                error = gradient_distance(judged.gradient, truth)
                violations += error > judged.gradient_error_bound
                found.append(judged.gradient_error_bound / error)
            errors.append(error / math.sqrt(sum(float(g.square().sum()) for g in truth.values())))
            counts.append(judged.operator_applications)
    entry = {
        "problem": setting.name,
        "condition bound": problem.instance(b).condition_bound(),
        "true relative error": _quantile(errors, 0.5),
        "published, median": _quantile(ratios["published"], 0.5),
        "sharp, median": _quantile(ratios["sharp"], 0.5),
        "sharp, 95 %": _quantile(ratios["sharp"], 0.95),
        "sharp, largest": max(ratios["sharp"]),
        "violations": violations,
        "applications": _quantile([float(c) for c in counts], 0.5),
    }
    print(entry, file=sys.stderr, flush=True)
    return entry


def _quantile(values: list[float], share: float) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(share))
