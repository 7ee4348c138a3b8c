"""f'' over every response that the exact solution may have.

For weakly convex potentials, f'' >= -rho, all of it is about f'' + rho, and the quadratic part of the energy has lost
K^T rho K: the same energy, split into two convex parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.linear.samples import expand
from learnreg.lower_level.instance import Instance
from learnreg.potentials.base import Potential

__all__ = ["CurvatureInterval", "curvature_interval", "response_budget", "response_radius"]

_ENERGY_SHARE = 0.9


@dataclass(frozen=True)
class CurvatureInterval:
    """Bounds over the interval of some radius around each response t (a ball, for groups), *rigorous* and rounded
    outwards; f'' stands for f'' + rho.

    low, high: smallest and largest f''. change: Delta >= |f'' - f''(t)|. ratio: tau >= |f'' - f''(t)| / √f'', infinite
    where f'' may vanish. third: kappa >= |f''(t') - f''(t)| / |t' - t|. smooth: (batch,), no kink lies in any interval.
    """

    low: Tensor
    high: Tensor
    change: Tensor
    ratio: Tensor
    third: Tensor
    smooth: Tensor

    @property
    def high_max(self) -> Tensor:
        """The largest f'' of each sample, (batch,)."""
        return self.high.flatten(1).amax(1)


def response_radius(instance: Instance, error: Tensor, t: Tensor) -> Tensor:
    """|K_i x - K_i x^| <= ‖k_i‖ e for errors e (batch,): broadcasts against t, or its groups."""
    return instance.potential.reach(instance.analysis) * expand(error, t)


def response_budget(interval: CurvatureInterval, e: Tensor, energy_error: Tensor, operator_norm: float) -> Tensor:
    """Weights omega with sum_i omega_i |K_i (x - x^)|² <= 1, elementwise or per group: from ‖K (x - x^)‖ <= ‖K‖ e and
    ‖√Dbar K (x - x^)‖ <= e_en, Dbar >= low, in fixed shares. *Rigorous.*"""
    tiny = torch.finfo(e.dtype).tiny ** 0.25
    energy, plain = (
        1.0 / expand(norm, interval.low).clamp_min(tiny) ** 2 for norm in (energy_error, operator_norm * e)
    )
    return _ENERGY_SHARE * interval.low * energy + (1.0 - _ENERGY_SHARE) * plain


def curvature_interval(potential: Potential, t: Tensor, radius: Tensor) -> CurvatureInterval:
    """The interval of that radius around t."""
    low, high = potential.curvature_bounds(t, radius)
    change, second = potential.curvature_change(t, radius), potential.second(t)
    if not potential.convex:
        low, high, second = ((bound + potential.concavity).clamp_min_(0.0) for bound in (low, high, second))
    return CurvatureInterval(
        low=low,
        high=high,
        change=change,
        ratio=potential.curvature_ratio(second, low, high, change),
        third=potential.third_bound(t, radius),
        smooth=potential.kink_excluded(t, radius),
    )
