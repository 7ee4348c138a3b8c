"""The square, the potential of Tikhonov regularization."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learnreg.linear.samples import sum_samples
from learnreg.potentials.base import Number, check_positive
from learnreg.potentials.proximal import Elementwise

__all__ = ["Square"]


class Square(Elementwise):
    """½ l t²; it has no smoothing, since it has no kink.

    Parameters
    ----------
    weight: l > 0.

    Raises
    ------
    ConfigError: weights that are not positive and finite.

    Examples
    --------
    >>> float(lr.Square(weight=2.0).density(torch.tensor([3.0])))
    9.0
    """

    quadratic = True

    def __init__(self, weight: Number = 1.0) -> None:
        check_positive(self, weight=weight)
        self.weight = weight

    @property
    def curvature_limit(self) -> Number:
        return self.weight

    def density(self, t: Tensor) -> Tensor:
        return 0.5 * self.weight * (t * t)

    def grad(self, t: Tensor) -> Tensor:
        return self.weight * t

    def second(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t) + self.weight

    def prox(self, v: Tensor, step: Tensor | float, start: Tensor | None = None) -> Tensor:
        return v / (1.0 + step * self.weight)

    def majorant(self, t: Tensor) -> Tensor:
        return self.second(t)

    def divergence(self, r: Tensor, t: Tensor) -> Tensor:
        return self.density(r - t)

    @property
    def analytic_width(self) -> float:
        return math.inf

    def continued(self, t: Tensor) -> Tensor:
        return sum_samples(self.density(t))

    def continued_derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.grad(t), self.second(t)

    def third_bound(self, t: Tensor, radius: Tensor | float) -> Tensor:
        return torch.zeros_like(t)
