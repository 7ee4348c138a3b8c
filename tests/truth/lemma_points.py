"""Points near the solutions of small random problems, and dense matrices to hold the lemmas against."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import cast

import registry
import torch
from torch import Tensor, nn
from truth import dense as dense_truth

import learnreg as lr
from learnreg.certificates.interval import response_budget, response_radius
from learnreg.certificates.resolvent import Perturbation
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.convolutions.padding import Boundary
from learnreg.linear.operator import LinearOperator
from learnreg.lower_level.instance import Instance
from learnreg.operators import Blur, Identity
from learnreg.potentials.base import Potential
from learnreg.potentials.curvature import CurvatureInterval
from learnreg.regularizers import AnalysisOperator

SHAPE = (1, 5, 6)
PIXELS = 30
ROUNDING = 1.0 + 1e-9
BOUNDARIES: tuple[Boundary, ...] = ("valid", "zero", "circular", "reflect")


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def log_uniform(generator: torch.Generator, low: float, high: float) -> float:
    return math.exp(uniform(generator, math.log(low), math.log(high)))


def at_most(truth: Tensor | float, bound: Tensor | float, slack: float = 0.0) -> None:
    truth, bound = (torch.as_tensor(value, dtype=torch.float64) for value in (truth, bound))
    assert bool((truth <= bound * ROUNDING + slack).all()), f"{truth} > {bound}"


@dataclass
class Point:
    """A problem with one sample, a point x near its solution x^, X near the adjoint state X^ at x^, and what the lemmas
    assume: radius e and the matrices."""

    problem: lr.LowerLevelProblem
    b: Tensor
    instance: Instance
    dense: dense_truth.Dense
    loss: lr.UpperLoss
    exact_x: Tensor
    exact_X: Tensor
    x: Tensor
    X: Tensor

    @property
    def mu(self) -> float:
        return self.instance.strong_convexity

    @property
    def L(self) -> float:
        return self.instance.analysis.norm_bound()

    @property
    def potential(self) -> Potential:
        return self.instance.potential

    def image(self, flat: Tensor) -> Tensor:
        return flat.reshape(-1, *self.problem.operator.domain_shape)

    def responses(self, flat: Tensor) -> Tensor:
        return self.instance.apply(self.image(flat))

    def residual_norm(self) -> Tensor:
        return self.dense.gradient(self.x).norm(dim=1)

    def interval(self, e: Tensor) -> CurvatureInterval:
        t = self.responses(self.x)
        return self.potential.curvature_interval(t, response_radius(self.instance, e, t))

    def bent(self, e: Tensor, energy: Tensor) -> Perturbation:
        interval = self.interval(e)
        V = self.responses(self.X)
        size = self.potential.size(V)
        return Perturbation.of(copy_of(interval), size, response_budget(e, energy, self.L), self.L, self.mu)

    def mean_curvature(self) -> Tensor:
        """Dbar = the mean of f'' between x^ and x, by Gauss-Legendre points, (1, m, m)."""
        nodes, weights = gauss_legendre()
        total = torch.zeros(self.dense.K.shape[0], self.dense.K.shape[0], dtype=torch.float64)
        for node, weight in zip(nodes, weights, strict=True):
            at = self.exact_x + node * (self.x - self.exact_x)
            total += weight * curvature_matrix(self.dense, at)
        return total


def copy_of(interval: CurvatureInterval) -> CurvatureInterval:
    """A copy that ``Perturbation.of`` may overwrite."""
    return replace(interval, **{f.name: getattr(interval, f.name).clone() for f in fields(interval)})


def gauss_legendre(points: int = 60) -> tuple[list[float], list[float]]:
    """On [0, 1], by the eigenvalues of the Jacobi matrix."""
    k = torch.arange(1, points, dtype=torch.float64)
    off = k / (4.0 * k * k - 1.0).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return (0.5 * (values + 1.0)).tolist(), (vectors[0] ** 2).tolist()


def curvature_matrix(dense: dense_truth.Dense, x: Tensor) -> Tensor:
    """f''(K x) as an (m, m) matrix."""
    t = (x @ dense.K.T).reshape(1, *dense.range_shape)
    second = dense_truth.derivatives(dense.kind, t, dense.weight, dense.smoothing)[2]
    if second.dim() == t.dim():
        return torch.diag(second.expand_as(t).flatten())
    channels, pixels = t.shape[1], t[0, 0].numel()
    blocks = second.reshape(channels, channels, pixels)
    full = torch.zeros(channels, pixels, channels, pixels, dtype=torch.float64)
    index = torch.arange(pixels)
    full[:, index, :, index] = blocks.permute(2, 0, 1)
    return full.reshape(channels * pixels, channels * pixels)


KINDS: dict[str, Callable[[torch.Generator, float, float], tuple[LinearOperator, Potential]]] = {
    "pseudo-huber": lambda g, nu, l: (_bank(g), lr.PseudoHuber(nu, l)),
    "log-cosh": lambda g, nu, l: (_bank(g), lr.LogCosh(nu, l)),
    "isotropic": lambda g, nu, l: (_bank(g), registry.POTENTIALS["IsotropicPseudoHuber"](nu, l)),
}


def _bank(generator: torch.Generator) -> FilterBank:
    boundary = BOUNDARIES[int(torch.randint(4, (), generator=generator))]
    return FilterBank(nn.Parameter(0.7 * normal(generator, 3, 3, 2)), SHAPE, boundary)


def draw_point(generator: torch.Generator, kind: str, distance: float) -> Point:
    nu, weight = log_uniform(generator, 1e-2, 0.3), log_uniform(generator, 0.05, 1.0)
    operator, potential = KINDS[kind](generator, nu, weight)
    blur = Blur(normal(generator, 2, 2) / 2, SHAPE)
    problem = lr.LowerLevelProblem(
        blur if float(torch.rand((), generator=generator)) < 0.5 else Identity(SHAPE),
        AnalysisOperator(operator, potential).double(),
        ridge=log_uniform(generator, 1e-2, 0.3),
    )
    x_true = torch.rand(1, *SHAPE, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        b = problem.operator(x_true) + 0.1 * normal(generator, 1, *SHAPE)
    loss = lr.SquaredError(x_true)
    truth = dense_truth.truth_of(problem, b, loss)
    assert truth.usable
    d, D = (normal(generator, 1, PIXELS) for _ in range(2))
    x = truth.x + distance * d / d.norm()
    X = truth.X + distance * D / D.norm()
    return Point(problem, b, problem.instance(b), dense_truth.Dense(problem, b), loss, truth.x, truth.X, x, X)


@dataclass
class Pixel:
    """One pixel, M = 1, one response K = k, a linear loss of this slope."""

    problem: lr.LowerLevelProblem
    b: Tensor
    loss: lr.UpperLoss
    truth: dense_truth.Truth


def one_pixel(
    k: float, potential: Potential, b: float, slope: float = 1.0, learned: str = "", **options: object
) -> Pixel:
    shape = (1, 1, 1)
    bank = FilterBank(nn.Parameter(torch.full(shape, k, dtype=torch.float64)), shape)
    operator = cast(LinearOperator, options.pop("operator", Identity(shape)))
    problem = lr.LowerLevelProblem(operator, AnalysisOperator(bank, potential).double(), **options)  # type: ignore[arg-type]
    for name, p in problem.regularizer.named_parameters():
        p.requires_grad_(name == learned)
    measured = torch.full((1, *operator.range_shape), b, dtype=torch.float64)
    loss = lr.UpperLoss(lambda x: slope * x.sum(), 0.0)
    return Pixel(problem, measured, loss, dense_truth.truth_of(problem, measured, loss))
