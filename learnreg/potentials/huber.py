"""Huber's function."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learnreg.kernels.numbers import number_like
from learnreg.potentials.base import OUTWARD
from learnreg.potentials.proximal import SmoothedElementwise

__all__ = ["Huber"]


class Huber(SmoothedElementwise):
    """l t²/(2v) for |t| <= v, l(|t| - v/2) beyond: once differentiable, f'' jumps at |t| = v.

    Parameters
    ----------
    smoothing: v > 0, in units of the responses; a tensor holds one for each channel, a parameter is learned.
    weight: l > 0, likewise; 1 by default.

    Raises
    ------
    ConfigError: numbers that are not positive and finite.

    Examples
    --------
    >>> f = lr.Huber(smoothing=0.1)
    >>> [round(float(value), 3) for value in f.density(torch.tensor([0.05, 1.0]))]
    [0.013, 0.95]
    """

    def density(self, t: Tensor) -> Tensor:
        size = t.abs()
        inside = t * t / (2.0 * self.smoothing)
        return self.weight * torch.where(size <= self.smoothing, inside, size - 0.5 * self.smoothing)

    def grad(self, t: Tensor) -> Tensor:
        return self.weight * (t / self.smoothing).clamp(-1.0, 1.0)

    def second(self, t: Tensor) -> Tensor:
        limit = number_like(self.curvature_limit, t)
        return torch.where(t.abs() <= self.smoothing, limit, torch.zeros_like(limit))

    def prox(self, v: Tensor, step: Tensor | float, start: Tensor | None = None) -> Tensor:
        inside = v / (1.0 + step * self.curvature_limit)
        outside = v - step * self.weight * v.sign()
        return torch.where(inside.abs() <= self.smoothing, inside, outside)

    def kink_excluded(self, t: Tensor, radius: Tensor | float) -> Tensor:
        size = t.abs()
        inside = size + radius < self.smoothing * (1.0 - OUTWARD)
        outside = size - radius > self.smoothing * (1.0 + OUTWARD)
        return (inside | outside).flatten(1).all(1)

    def smoothing_sensitivity(self, t: Tensor, radius: Tensor | float) -> Tensor | float:
        return 1.0

    def third_bound(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """0 on either side of a kink, and nothing across one."""
        size = t.abs()
        inside = size + radius < self.smoothing * (1.0 - OUTWARD)
        outside = size - radius > self.smoothing * (1.0 + OUTWARD)
        return torch.where(inside | outside, torch.zeros_like(size), torch.full_like(size, math.inf))
