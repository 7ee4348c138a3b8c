"""Lemma 2: how far a Newton step leads, by the residual of its linear system and the curvature on its way."""

from __future__ import annotations

import torch
from torch import Tensor

from learnreg.certificates.interval import response_budget, response_radius
from learnreg.certificates.resolvent import Perturbation
from learnreg.certificates.state import energy_error
from learnreg.linear.samples import expand, sum_samples
from learnreg.lower_level.instance import Instance

__all__ = ["newton_bound"]

_SWEEPS = 6


def newton_bound(
    instance: Instance, t: Tensor, gradient_norm: Tensor, e: Tensor, d: Tensor, K_d: Tensor, residual_norm: Tensor
) -> Tensor:
    """‖x - x^ - d‖ <= ‖s‖/mu + ‖Hbar^-1 K^T Gamma K d‖ with s = ∇E(x) - H(x) d, for any d: (batch,). *Rigorous bound*
    without a constraint.

    Proof: x - x^ - d = Hbar^-1 (s - K^T Gamma K d), Hbar = M + K^T Dbar K with Dbar a mean of f'' between t^ and t. The
    radius of the interval is min(‖k_i‖ e, |K_i d| + ‖k_i‖ delta) with the delta of the sweep before.

    Parameters
    ----------
    t: K x. gradient_norm: ‖∇E(x)‖, (batch,). e: a bound of ‖x - x^‖, (batch,). d, K_d: the step and its responses.
    residual_norm: ‖s‖, freshly evaluated and with its rounding, (batch,).
    """
    potential, mu, L = instance.potential, instance.strong_convexity, instance.analysis.norm_bound()
    size = potential.size(K_d)
    norm_d = sum_samples(d * d).sqrt()
    best = e + norm_d
    whole = response_radius(instance, torch.ones_like(e), t)
    for _ in range(_SWEEPS):
        radius = torch.minimum(whole * expand(e, t), size + whole * expand(best, t))
        interval = potential.curvature_interval(t, radius)
        budget = response_budget(e, energy_error(gradient_norm, e, mu), L)
        delta = residual_norm / mu + Perturbation.of(interval, size, budget, L, mu).push()
        best = torch.minimum(best, delta)
        e = torch.minimum(e, norm_d + best)
    return best
