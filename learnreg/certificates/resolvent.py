"""Lemma 0: what a perturbation of the curvature does to the solution of the linearised system.

H = M + K^T D K with M >= mu, D >= 0 diagonal (blockwise, for groups). With U = [K^T √D, √(M - mu)], H = mu + U U^T, so
that singular values s of U give

    ‖H^-1‖ <= 1/mu,   ‖H^-1 K^T √D‖ <= max s/(mu + s²) = 1/(2√mu),   ‖√D K H^-1 K^T √D‖ <= 1.

A perturbation Gamma V of curvature, |Gamma_i| <= |D_i - f''(t_i)|, is bounded in two ways: entry by entry, |Gamma_i| <=
Delta_i on its interval, and all at once, |Gamma_i| <= kappa_i |dt_i| with sum_i omega_i |dt_i|² <= 1, so that
‖(c_i Gamma_i V_i)‖ <= max_i c_i kappa_i |V_i| / √omega_i. No response has its whole interval for itself: the second is
smaller by up to the root of the number of pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from learnreg.certificates.interval import CurvatureInterval
from learnreg.convex import sum_samples
from learnreg.problem import expand

__all__ = ["Perturbation"]

_THRESHOLDS, _FALL = 5, 0.25
_ROUND_UP = 1.0 + 1e-12


@dataclass(frozen=True)
class Perturbation:
    """Gamma V for every curvature on an interval.

    size: |V|, elementwise, or per group. budget: omega of ``response_budget``. All bounds are *rigorous*, (batch,).
    """

    interval: CurvatureInterval
    size: Tensor
    budget: Tensor
    operator_norm: float
    mu: float

    def norm(self) -> Tensor:
        """‖Gamma V‖."""
        return _joint(*self._plain)

    def push(self) -> Tensor:
        """‖H^-1 K^T Gamma V‖: the smallest of (‖K‖/mu) ‖Gamma V‖, ‖D^-½ Gamma V‖/(2√mu), and the sum of both where
        each entry takes the smaller one."""
        return self._best(self.operator_norm / self.mu, 1.0 / (2.0 * math.sqrt(self.mu)))

    def energy_push(self) -> Tensor:
        """‖√D K H^-1 K^T Gamma V‖, likewise from (‖K‖/(2√mu)) ‖Gamma V‖ and ‖D^-½ Gamma V‖."""
        return self._best(self.operator_norm / (2.0 * math.sqrt(self.mu)), 1.0)

    def _best(self, on_plain: float, on_scaled: float) -> Tensor:
        plain = [on_plain * part for part in self._plain]
        scaled = [on_scaled * part for part in self._scaled]
        first = plain[1] < scaled[1]
        split = _joint(*_where(first, plain)) + _joint(*_where(~first, scaled))
        return torch.minimum(torch.minimum(_joint(*plain), _joint(*scaled)), split)

    @cached_property
    def _plain(self) -> tuple[Tensor, Tensor]:
        """(entry by entry, all at once) for Gamma V."""
        return self.interval.change * self.size, self.slope / self.budget.sqrt()

    @cached_property
    def _scaled(self) -> tuple[Tensor, Tensor]:
        """The same for D^-½ Gamma V; infinite where f'' may vanish and V does not."""
        root = (self.budget * self.interval.low.clamp_min(0.0)).sqrt()
        joint = torch.where(self.slope > 0, self.slope / root, 0.0)
        return torch.where(self.size > 0, self.interval.ratio * self.size, 0.0), joint

    @cached_property
    def slope(self) -> Tensor:
        """kappa |V|."""
        return torch.where(self.size > 0, self.interval.third * self.size, 0.0)


def _where(mask: Tensor, parts: list[Tensor]) -> list[Tensor]:
    return [torch.where(mask, part, 0.0) for part in parts]


def _joint(alone: Tensor, together: Tensor) -> Tensor:
    """The smallest bound of a vector g whose entries obey |g_i| <= alone_i, and of which every part S has a norm of at
    most max_S together: entries above a threshold count by the first, the others by the second."""
    square = alone * alone
    best = sum_samples(square).sqrt()
    threshold = torch.where(torch.isfinite(together), together, 0.0).flatten(1).amax(1)
    for _ in range(_THRESHOLDS):
        above = torch.where(together > expand(threshold, together), square, 0.0)
        best = torch.minimum(best, (sum_samples(above) + threshold**2).sqrt())
        threshold = _FALL * threshold
    return best * _ROUND_UP
