"""Data terms that are not squares: random ones, and the truth about them, written out again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from truth.draw import DOUBLE, Draw
from truth.matrices import Dense

import learnreg as lr
from learnreg.linear.norms import dense_matrix
from learnreg.lower_level.data_terms import DataTerm

__all__ = ["FORMULAS", "DenseLikelihood", "counted", "dualised_term"]

Derivatives = tuple[Tensor, Tensor, Tensor]


def _poisson(t: Tensor, b: Tensor, s: Tensor) -> Derivatives:
    return t + s - b * torch.log(t + s), 1 - b / (t + s), b / (t + s) ** 2


def _transmission(t: Tensor, b: Tensor, N: Tensor, m: Tensor, r: float | Tensor) -> Derivatives:
    left, scale = N * torch.exp(-m * t), torch.exp(m * r)
    return scale * (left + b * m * t) / (N * m**2), scale * (b - left) / (N * m), scale * left / N


def _smoothed(t: Tensor, b: Tensor, s: Tensor) -> Derivatives:
    root = torch.sqrt((t - b) ** 2 + s**2)
    return root - s, (t - b) / root, s**2 / root**3


FORMULAS: dict[type, tuple[tuple[str, ...], Callable[..., Derivatives]]] = {
    lr.Poisson: (("background",), _poisson),
    lr.TransmissionPoisson: (("photons", "attenuation", "reference"), _transmission),
    lr.SmoothedL1: (("smoothing",), _smoothed),
}


class DenseLikelihood(Dense):
    """½ ridge ‖x‖² + sum_j D((A x)_j; b_j) + f(K x)."""

    def __init__(self, problem: lr.LowerLevelProblem, b: Tensor) -> None:
        super().__init__(problem, b)
        with torch.no_grad():
            self.A = dense_matrix(problem.operator, problem.operator.domain_shape)
        self.M, self.q = problem.ridge_value * torch.eye(self.A.shape[1], dtype=DOUBLE)[None], 0.0 * self.q
        names, self.term = FORMULAS[type(problem.data_term)]
        numbers = (getattr(problem.data_term, name).detach().double() for name in names)
        self.numbers = [n.expand(b.shape[1:]).flatten() for n in numbers]
        self.counts = self.b.flatten(1)

    def data(self, x: Tensor) -> Derivatives:
        return self.term(x @ self.A.T, self.counts, *self.numbers)

    def value(self, x: Tensor) -> Tensor:
        return super().value(x) + self.data(x)[0].sum(1)

    def gradient(self, x: Tensor) -> Tensor:
        return super().gradient(x) + self.data(x)[1] @ self.A

    def hessian(self, x: Tensor) -> Tensor:
        return super().hessian(x) + torch.einsum("mi,bm,mj->bij", self.A, self.data(x)[2], self.A)

    def apply_hessian(self, x: Tensor, v: Tensor) -> Tensor:
        return super().apply_hessian(x, v) + (self.data(x)[2] * (v @ self.A.T)) @ self.A

    def term_sizes(self, x: Tensor) -> Tensor:
        """Of what the gradient is the sum of: D' is a difference of terms, and t is rounded where D'' multiplies it."""
        _, slope, bend = self.data(x)
        moved = bend * (x.abs() @ self.A.abs().T + self.counts)
        return super().term_sizes(x) + ((1.0 + slope.abs() + 2.0 * moved) @ self.A.abs()).norm(dim=1)

    def solve(self, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if start is None:
            fitted, weights = (t.detach().flatten(1) for t in self.problem.data_term.linearised(self.b))  # type: ignore[attr-defined]
            gram = self.M + self.K.T @ self.K + torch.einsum("mi,bm,mj->bij", self.A, weights, self.A)
            start = torch.linalg.solve(gram, ((weights * fitted) @ self.A)[:, :, None])[:, :, 0]
        return super().solve(start)


def dualised_term(draw: Draw, shape: tuple[int, ...]) -> DataTerm:
    """One of the three, its numbers far apart, learned or not, one for all measurements or for each."""

    def number(low: float, high: float) -> Tensor:
        value = torch.tensor(draw.log_uniform(low, high), dtype=DOUBLE)
        if draw.chance(0.2):
            value = value * (0.5 + draw.rand(*shape))
        return nn.Parameter(value) if draw.chance(0.5) else value

    kind = draw.integer(0, 2)
    if kind == 0:
        return lr.Poisson(number(1e-4, 10.0))
    if kind == 1:
        return lr.TransmissionPoisson(number(3.0, 1e5), number(0.1, 5.0), 0.4 * draw.integer(0, 1))
    return lr.SmoothedL1(number(1e-3, 1.0))


def counted(draw: Draw, term: DataTerm, response: Tensor) -> Tensor:
    """Measurements of responses A x: few counts or many, some of them 0; residuals with outliers."""
    if isinstance(term, lr.Poisson):
        b = torch.poisson(draw.log_uniform(0.1, 1e3) * response.clamp_min(0.0), generator=draw.generator)
        return torch.where(draw.rand(*b.shape) < 0.1, 0.0, b)
    if isinstance(term, lr.TransmissionPoisson):
        mean = term.photons.detach() * torch.exp(-term.attenuation.detach() * response)  # type: ignore[operator]
        b = torch.poisson(mean.expand(response.shape), generator=draw.generator)
        return torch.where(draw.rand(*b.shape) < 0.1, 0.0, b)
    b = response + draw.log_uniform(1e-2, 0.3) * draw.normal(*response.shape)
    return torch.where(draw.rand(*b.shape) < 0.1, b + 3.0 * draw.normal(*b.shape), b)
