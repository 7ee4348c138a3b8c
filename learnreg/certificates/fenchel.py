"""How far x is from the solution where f has no gradient: by a dual point y with f*(y) finite (Lemma L1).

With the residual r = M x - q + K^T y, reduced by a constraint, and the Fenchel gap c = f(Kx) + f*(y) - <y, Kx> >= 0,

    mu ‖x - x^‖² <= ‖r‖ ‖x - x^‖ + c.

All bounds are *rigorous*, per sample, (batch,), up to the rounding of their arguments, which floors bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.certificates.state import StateBound, rounding_floor, state_residual
from learnreg.kernels.numbers import number_like
from learnreg.linear.samples import expand, norm_samples, sum_samples
from learnreg.lower_level.instance import Instance

__all__ = ["FenchelGap", "dual_state_bound", "pullback_floor"]

_ROUNDING = 8.0
"""Of a response, in units of eps ‖k_i‖ ‖x‖."""


@dataclass(frozen=True)
class FenchelGap:
    """‖r‖ and c of a pair of points, and what rounding may hide of each, (batch,)."""

    residual: Tensor
    gap: Tensor
    floor: Tensor
    gap_floor: Tensor

    @classmethod
    def of(cls, instance: Instance, x: Tensor, y: Tensor) -> FenchelGap:
        """For |y| <= weight. Costs 2 applications."""
        t, pullback = instance.apply(x), instance.adjoint(y)
        weight = number_like(instance.potential.weight, x)
        rows = number_like(instance.potential.reach(instance.analysis), x)
        hidden = _ROUNDING * torch.finfo(x.dtype).eps * rows * expand(norm_samples(x), t)
        # Where y is the gradient of f at t the share of a response vanishes exactly, and rounding has no say.
        settled = (y == weight * t.sign()) & (t.abs() > hidden)
        gap = torch.where(settled, 0.0, (weight * t.abs() - y * t).clamp_min(0.0))
        gap_floor = torch.where(settled, 0.0, 2.0 * weight * hidden)
        return cls(
            norm_samples(state_residual(instance, x, pullback)),
            sum_samples(gap),
            rounding_floor(instance, x, pullback) + pullback_floor(instance, y),
            sum_samples(gap_floor),
        )

    def bound(self, mu: float, rounding: bool = True) -> Tensor:
        """Of ‖x - x^‖; infinite without a modulus."""
        if mu <= 0:
            return torch.full_like(self.residual, torch.inf)
        r, c = (self.residual + self.floor, self.gap + self.gap_floor) if rounding else (self.residual, self.gap)
        return (r + (r * r + 4.0 * mu * c).sqrt()) / (2.0 * mu)


def pullback_floor(instance: Instance, y: Tensor) -> Tensor:
    """What rounding may hide in K^T y where it is far smaller than y, (batch,)."""
    return 4.0 * torch.finfo(y.dtype).eps * instance.analysis.norm_bound() * norm_samples(y)


def dual_state_bound(instance: Instance, x: Tensor, y: Tensor | None) -> StateBound:
    """That of x by y, in the precision of the instance; without one by 0. Costs 2 applications."""
    dtype = instance.q.dtype
    x = x.to(dtype)
    like = x.new_zeros(x.shape[0], *instance.analysis.range_shape)
    y = like if y is None else instance.nonsmooth.dual_prox(y.to(dtype))
    found = FenchelGap.of(instance, x, y)
    return StateBound(found.bound(instance.strong_convexity), found.residual, found.floor, y)
