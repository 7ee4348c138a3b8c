"""Where the responses of the exact solution may be: each within its own interval, all together within a budget."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.linear.samples import expand
from learnreg.lower_level.instance import Instance

__all__ = ["Budget", "response_budget", "response_radius"]

_ENERGY_SHARE = 0.9


def response_radius(instance: Instance, error: Tensor, t: Tensor) -> Tensor:
    """|K_i x - K_i x^| <= ‖k_i‖ e for errors e (batch,): broadcasts against t, or its groups."""
    return instance.potential.reach(instance.analysis) * expand(error, t)


@dataclass(frozen=True)
class Budget:
    """Weights omega = on_low low + on_all, with sum_i omega_i |K_i (x - x^)|² <= 1, low being the smallest f'' of each
    response or group; (batch,) each."""

    on_low: Tensor
    on_all: Tensor

    def weights(self, low: Tensor) -> Tensor:
        return expand(self.on_low, low) * low + expand(self.on_all, low)


def response_budget(e: Tensor, energy_error: Tensor, operator_norm: float) -> Budget:
    """From ‖K (x - x^)‖ <= ‖K‖ e and ‖√Dbar K (x - x^)‖ <= e_en, Dbar >= low, in fixed shares. *Rigorous.*"""
    tiny = torch.finfo(e.dtype).tiny ** 0.25
    energy, plain = (1.0 / norm.clamp_min(tiny) ** 2 for norm in (energy_error, operator_norm * e))
    return Budget(_ENERGY_SHARE * energy, (1.0 - _ENERGY_SHARE) * plain)
