"""The Field of Experts whose hypergradient the benchmarks compute, and its float64 reference in plain torch.

Run as a script, it compares the reference with finite differences.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from harness import arguments
from torch import Tensor

import learnreg as lr
from learnreg.datasets import BSDS500, natural_images
from learnreg.hypergradients.base import Goal, evaluate
from learnreg.hypergradients.implicit import Implicit
from learnreg.lower_level.point import Point
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts

__all__ = ["DATA_OPTION", "FoeProblem", "Reference", "Theta", "curvature", "energy", "load"]

Theta = dict[str, Tensor]

FILTERS, SIZE, SIDE, COUNT = 48, 7, 96, 4
SMOOTHING, WEIGHT, SIGMA = 0.002, 0.0081, 25 / 255
DATA_OPTION = {"default": os.environ.get("LEARNREG_DATA"), "help": "folder that holds BSDS500/data/images/train"}


def energy(theta: Theta, b: Tensor, x: Tensor) -> Tensor:
    """½‖x - b‖² + sum_c l_c sum_i (sqrt(t² + v_c²) - v_c), t = w_c * x, summed over the batch."""
    t = F.conv2d(x, theta["filters"][:, None])
    weight = theta["log_weights"].exp()[:, None, None]
    smoothing = theta["log_smoothing"].exp()[:, None, None]
    return 0.5 * ((x - b) ** 2).sum() + (weight * ((t * t + smoothing**2).sqrt() - smoothing)).sum()


def upper_loss(x: Tensor, x_true: Tensor) -> Tensor:
    """½‖x - x_true‖², (batch,); the upper level takes the mean."""
    return 0.5 * ((x - x_true) ** 2).flatten(1).sum(1)


def curvature(theta: Theta, b: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """∇²E(x) v by double backward."""
    x = x.detach().requires_grad_()
    (grad,) = torch.autograd.grad(energy(theta, b, x), x, create_graph=True)
    return torch.autograd.grad((grad * v).sum(), x)[0]


@dataclass(frozen=True)
class Reference:
    """Solution, adjoint state and hypergradient in float64, with the relative residuals of both equations."""

    x: Tensor
    X: Tensor
    gradient: Theta
    residuals: tuple[float, float]

    @cached_property
    def norm(self) -> float:
        return math.sqrt(sum(float(g.square().sum()) for g in self.gradient.values()))

    def error(self, gradient: Theta) -> float:
        """‖gradient - reference‖ / ‖reference‖ over all parameters."""
        squares = (float((gradient[name].double() - g).square().sum()) for name, g in self.gradient.items())
        return math.sqrt(sum(squares)) / self.norm


@dataclass(frozen=True)
class FoeProblem:
    """Noisy images b (batch, 1, 96, 96), clean ones, and the parameters, all float32. source: of the images."""

    b: Tensor
    x_true: Tensor
    theta: Theta
    source: str

    @property
    def response_bytes(self) -> int:
        """Bytes of one float32 tensor of filter responses of the batch."""
        return 4 * self.b.shape[0] * FILTERS * (SIDE - SIZE + 1) ** 2

    def problem(self, dtype: torch.dtype = torch.float32) -> lr.LowerLevelProblem:
        theta = {name: p.to(dtype) for name, p in self.theta.items()}
        regularizer = FieldsOfExperts.from_arrays(theta["filters"], torch.ones(FILTERS), torch.ones(FILTERS))
        regularizer.load_state_dict(theta)
        return lr.LowerLevelProblem(Identity((1, SIDE, SIDE)), regularizer)

    def reference(self) -> Reference:
        """Newton-CG and conjugate gradients of learnreg in float64; residuals and hypergradient by plain autograd."""
        theta = {name: p.double().requires_grad_() for name, p in self.theta.items()}
        b, loss = self.b.double(), lr.SquaredError(self.x_true.double())
        size, slope = b.flatten(1).norm(dim=1), loss.gradient(b).flatten(1).norm(dim=1)
        with torch.no_grad():
            near = lr.solve(self.problem(), self.b, 1e-5).x.double()
            start = Point.of(self.problem(torch.float64), b, loss, near, torch.zeros_like(b))
            found = evaluate(Implicit(state_solver="newton-cg"), start, Goal(1e-12 * size, 1e-12 * slope)).point
        x = found.x.requires_grad_()
        (grad,) = torch.autograd.grad(energy(theta, b, x), x, create_graph=True)
        pairing = torch.autograd.grad((grad * found.X).sum(), list(theta.values()))
        rhs = -loss.gradient(x.detach())
        adjoint_residual = (curvature(theta, b, x, found.X) - rhs).detach()
        residuals = float(grad.detach().norm() / b.norm()), float(adjoint_residual.norm() / rhs.norm())
        return Reference(x.detach(), found.X, dict(zip(theta, pairing, strict=True)), residuals)

    def condition(self, x: Tensor, steps: int = 100) -> float:
        """Largest eigenvalue of ∇²E(x) over the batch by power iteration; the smallest is at least 1."""
        theta = {name: p.to(x) for name, p in self.theta.items()}
        filters = theta["filters"][:, None]
        square = (2.0 * theta["log_smoothing"]).exp()[:, None, None]
        second = theta["log_weights"].exp()[:, None, None] * square / (F.conv2d(x, filters) ** 2 + square) ** 1.5
        v = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)
        size = v
        for _ in range(steps):
            h = v + F.conv_transpose2d(second * F.conv2d(v, filters), filters)
            size = h.flatten(1).norm(dim=1)[:, None, None, None]
            v = h / size
        return float(size.max())


def load(data: str | None) -> FoeProblem:
    """Crops of the first four BSDS500 training images, or of the photographs scikit-image installs."""
    if data is not None and Path(data, "BSDS500").is_dir():
        dataset, source = BSDS500(data, ("train",)), "BSDS500 train"
        images = [dataset[i] for i in range(COUNT)]
    else:
        images, source = list(natural_images("train").values())[:COUNT], "scikit-image"
    x_true = torch.stack([image[:, 100 : 100 + SIDE, 100 : 100 + SIDE] for image in images]).float()
    noise = torch.randn(x_true.shape, generator=torch.Generator().manual_seed(0))
    weights, smoothing = torch.full((FILTERS,), WEIGHT), torch.full((FILTERS,), SMOOTHING)
    filters = FieldsOfExperts(filters=FILTERS, size=SIZE).filters
    regularizer = FieldsOfExperts.from_arrays(filters, weights, smoothing)
    theta = {name: p.detach().clone() for name, p in regularizer.named_parameters()}
    return FoeProblem(x_true + SIGMA * noise, x_true, theta, source)


def _compare_with_differences(foe: FoeProblem) -> None:
    """Central differences of the upper-level loss in a few parameters, each from two solutions in float64."""
    reference, b, x_true = foe.reference(), foe.b.double(), foe.x_true.double()
    entries = [("filters", (0, 0, 0)), ("filters", (20, 3, 4)), ("log_weights", (5,)), ("log_smoothing", (30,))]
    for name, index in entries:
        losses, step = [], 5e-6 if name == "filters" else 1e-4
        for sign in (1, -1):
            problem = foe.problem(torch.float64)
            with torch.no_grad():
                problem.learnable()[name][index] += sign * step
            x = lr.solve(problem, b, 1e-12, solver="newton-cg", start=reference.x).x
            losses.append(float(upper_loss(x, x_true).mean()))
        difference, exact = (losses[0] - losses[1]) / (2 * step), float(reference.gradient[name][index])
        print(f"{name}{list(index)}: reference {exact:.8e}, central difference {difference:.8e}")
    print(f"relative residuals {reference.residuals[0]:.1e} and {reference.residuals[1]:.1e}")


if __name__ == "__main__":
    _compare_with_differences(load(arguments(__doc__ or "", data=DATA_OPTION).data))
