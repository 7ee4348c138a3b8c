"""The logarithm of the hyperbolic cosine."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from learnreg.linear.samples import sum_samples
from learnreg.potentials.base import OUTWARD, nearest
from learnreg.potentials.proximal import SmoothedElementwise

__all__ = ["LogCosh"]


class LogCosh(SmoothedElementwise):
    """l v log cosh(t/v); |f'''| <= 0.7699 l/v².

    Parameters
    ----------
    smoothing: v > 0, in units of the responses; a tensor holds one for each channel, a parameter is learned.
    weight: l > 0, likewise; 1 by default.

    Raises
    ------
    ConfigError: numbers that are not positive and finite.

    Examples
    --------
    >>> f = lr.LogCosh(smoothing=0.1)
    >>> round(float(f.grad(torch.tensor([5.0]))), 3)  # the weight, far from 0
    1.0
    """

    def density(self, t: Tensor) -> Tensor:
        u = t / self.smoothing
        return self.weight * self.smoothing * (u + F.softplus(-2.0 * u, threshold=60.0) - math.log(2.0))

    def grad(self, t: Tensor) -> Tensor:
        return self.weight * torch.tanh(t / self.smoothing)

    def second(self, t: Tensor) -> Tensor:
        decay = torch.exp(-2.0 * (t / self.smoothing).abs())
        return self.curvature_limit * 4.0 * decay / (1.0 + decay) ** 2

    @property
    def analytic_width(self) -> Tensor | float:
        """tanh has poles at t = ±iπv/2."""
        return 0.5 * math.pi * self.smoothing

    def continued(self, t: Tensor) -> Tensor:
        u = t / self.smoothing
        u = torch.where(u.real < 0, -u, u)  # even, and exp(-2u) does not overflow
        return sum_samples(self.weight * self.smoothing * (u + torch.log(1.0 + torch.exp(-2.0 * u)) - math.log(2.0)))

    def continued_derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        slope = torch.tanh(t / self.smoothing)
        return self.weight * slope, self.curvature_limit * (1.0 - slope * slope)

    def smoothing_sensitivity(self, t: Tensor, radius: Tensor | float) -> Tensor | float:
        return 1.0 + 2.0 * (t.abs() + radius) / self.smoothing

    def third_bound(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """|f'''| = 2 (l/v²) tanh u / cosh² u, u = |t|/v, rises up to tanh² u = 1/3 and falls beyond."""
        at = nearest(t.abs(), radius, math.atanh(1.0 / math.sqrt(3.0)) * self.smoothing)
        return 2.0 / self.smoothing * torch.tanh(at / self.smoothing) * self.second(at) * (1.0 + OUTWARD)
