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

import torch
from torch import Tensor

from learnreg.certificates.interval import CurvatureInterval
from learnreg.linear.samples import expand, sum_samples

__all__ = ["Perturbation", "adjoint_bound", "sharp_adjoint_bound", "sharp_energy_bound"]

_THRESHOLDS, _FALL = 5, 0.25
_ROUND_UP = 1.0 + 1e-12


@dataclass(frozen=True)
class Perturbation:
    """Gamma V for every curvature on an interval. All bounds are *rigorous*, (batch,).

    alone, together: bounds of each |Gamma_i V_i|, and of it over the share of the budget that its entry takes.
    scaled_alone, scaled_together: the same for D^-½ Gamma V, infinite where f'' may vanish and V does not.
    """

    alone: Tensor
    together: Tensor
    scaled_alone: Tensor
    scaled_together: Tensor
    operator_norm: float
    mu: float

    @classmethod
    def of(
        cls, interval: CurvatureInterval, size: Tensor, budget: Tensor, operator_norm: float, mu: float
    ) -> Perturbation:
        """For V of this size, elementwise or per group, and omega of ``response_budget``. Overwrites the interval's
        tensors but ``high``, and keeps their memory, which is most of what a judgement takes."""
        still = size == 0
        slope = interval.third.mul_(size).masked_fill_(still, 0.0)
        scaled_together = interval.low.clamp_min_(0.0).mul_(budget).rsqrt_().mul_(slope).masked_fill_(slope == 0, 0.0)
        scaled_alone = interval.ratio.mul_(size).masked_fill_(still, 0.0)
        return cls(
            interval.change.mul_(size), slope.div_(budget.sqrt()), scaled_alone, scaled_together, operator_norm, mu
        )

    def norm(self) -> Tensor:
        """‖Gamma V‖."""
        return _joint(self.alone, self.together)

    def push(self) -> Tensor:
        """‖H^-1 K^T Gamma V‖: the smallest of (‖K‖/mu) ‖Gamma V‖, ‖D^-½ Gamma V‖/(2√mu), and the sum of both where
        each entry takes the smaller one."""
        return self._best(self.operator_norm / self.mu, 1.0 / (2.0 * math.sqrt(self.mu)))

    def energy_push(self) -> Tensor:
        """‖√D K H^-1 K^T Gamma V‖, likewise from (‖K‖/(2√mu)) ‖Gamma V‖ and ‖D^-½ Gamma V‖."""
        return self._best(self.operator_norm / (2.0 * math.sqrt(self.mu)), 1.0)

    def _best(self, on_plain: float, on_scaled: float) -> Tensor:
        first = on_plain * self.together < on_scaled * self.scaled_together
        split = on_plain * _joint(self.alone, self.together, first)
        split = split + on_scaled * _joint(self.scaled_alone, self.scaled_together, ~first)
        plain = on_plain * _joint(self.alone, self.together)
        scaled = on_scaled * _joint(self.scaled_alone, self.scaled_together)
        return torch.minimum(torch.minimum(plain, scaled), split)


def _joint(alone: Tensor, together: Tensor, where: Tensor | None = None) -> Tensor:
    """The smallest bound of a vector g, supported on ``where``, whose entries obey |g_i| <= alone_i, and of which every
    part S has a norm of at most max_S together: entries above a threshold count by the first, the others by the
    second."""
    square = alone * alone
    if where is not None:
        square, together = square.masked_fill_(~where, 0.0), together.masked_fill(~where, 0.0)
    best = sum_samples(square).sqrt()
    threshold = torch.where(torch.isfinite(together), together, 0.0).flatten(1).amax(1)
    for _ in range(_THRESHOLDS):
        above = torch.where(together > expand(threshold, together), square, 0.0)
        best = torch.minimum(best, (sum_samples(above) + threshold**2).sqrt())
        threshold = _FALL * threshold
    return best * _ROUND_UP


# ---- Lemma 3: how far X is from the exact adjoint state; residual: ‖rho‖ + ‖∇ell(x^) - ∇ell(x)‖ ------------------


def adjoint_bound(residual: Tensor, change_norm: Tensor, operator_norm: float, mu: float) -> Tensor:
    """‖X - X^‖ <= (residual + ‖K‖ ‖Delta K X‖) / mu, by norms alone."""
    return (residual + operator_norm * change_norm) / mu


def sharp_adjoint_bound(residual: Tensor, bent: Perturbation) -> Tensor:
    """‖X - X^‖ <= residual/mu + ‖H^^-1 K^T Gamma K X‖."""
    return residual / bent.mu + bent.push()


def sharp_energy_bound(residual: Tensor, bent: Perturbation) -> Tensor:
    """‖√D^ K (X - X^)‖ <= residual/(2√mu) + ‖√D^ K H^^-1 K^T Gamma K X‖, D^ = f''(K x^)."""
    return residual / (2.0 * math.sqrt(bent.mu)) + bent.energy_push()
