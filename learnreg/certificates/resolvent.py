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
from typing import Self

import torch
from torch import Tensor

from learnreg.certificates.interval import Budget
from learnreg.certificates.octaves import Octaves
from learnreg.potentials.curvature import CurvatureInterval

__all__ = ["Perturbation", "adjoint_bound", "sharp_adjoint_bound", "sharp_energy_bound"]


@dataclass(frozen=True)
class Perturbation:
    """Gamma V for every curvature on an interval. All bounds are *rigorous*, (batch,).

    alone, together: bounds of each |Gamma_i V_i|, and of it over the share of the budget that its entry takes. octaves:
    the same, and of D^-½ Gamma V (infinite where f'' may vanish and V does not), as far as norms need them.
    """

    alone: Tensor
    together: Tensor
    octaves: Octaves
    operator_norm: float
    mu: float

    @classmethod
    def of(cls, interval: CurvatureInterval, size: Tensor, budget: Budget, operator_norm: float, mu: float) -> Self:
        """For V of this size, elementwise or per group. Overwrites the interval's tensors but ``high`` and ``low``, and
        keeps their memory, which is most of what a judgement takes."""
        by_scale = [on_scaled / on_plain for on_plain, on_scaled in _prices(operator_norm, mu)]
        limits = (by_scale[0] ** 2, by_scale[1] ** 2)
        octaves = Octaves.spread(interval, size, budget.on_low, budget.on_all, limits)
        return cls(interval.change, interval.third, octaves, operator_norm, mu)

    def norm(self) -> Tensor:
        """‖Gamma V‖."""
        return self.octaves.joint(scaled=False)

    def push(self) -> Tensor:
        """‖H^-1 K^T Gamma V‖: the smallest of (‖K‖/mu) ‖Gamma V‖, ‖D^-½ Gamma V‖/(2√mu), and the sum of both where
        each entry takes the smaller one."""
        return self._best(0)

    def energy_push(self) -> Tensor:
        """‖√D K H^-1 K^T Gamma V‖, likewise from (‖K‖/(2√mu)) ‖Gamma V‖ and ‖D^-½ Gamma V‖."""
        return self._best(1)

    def _best(self, which: int) -> Tensor:
        """An entry takes the plain bound where √low is below the quotient of the prices, as the scaled one is the plain
        one over √low: in the first classes."""
        on_plain, on_scaled = _prices(self.operator_norm, self.mu)[which]
        flat, steep = slice(0, which + 1), slice(which + 1, None)
        split = on_plain * self.octaves.joint(False, flat) + on_scaled * self.octaves.joint(True, steep)
        whole = torch.minimum(on_plain * self.octaves.joint(False), on_scaled * self.octaves.joint(True))
        return torch.minimum(whole, split)


def _prices(operator_norm: float, mu: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """What Lemma 0 charges for a plain and for a scaled perturbation, in the 2-norm and in the energy norm."""
    root = 2.0 * math.sqrt(mu)
    return (operator_norm / mu, 1.0 / root), (operator_norm / root, 1.0)


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
