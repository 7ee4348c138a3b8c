"""How far X is from the adjoint state at the exact solution. 2-norms per sample, shape (batch,). *Rigorous bounds.*"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.convex import sum_samples
from learnreg.potentials import Potential
from learnreg.problem import expand

__all__ = ["CurvatureInterval", "adjoint_bound", "curvature_interval"]


@dataclass(frozen=True)
class CurvatureInterval:
    """f'' over every response the exact solution may have: the largest value, its square-root-free maximum per sample,
    the norm of the change applied to V = KX, and whether no kink lies in any interval."""

    high: Tensor
    high_max: Tensor
    change_norm: Tensor
    smooth: Tensor
    sensitivity: Tensor


def curvature_interval(
    potential: Potential, t: Tensor, V: Tensor, row_norms: Tensor | float, error: Tensor
) -> CurvatureInterval:
    """|K_i x - K_i x^| <= ‖k_i‖ e, so f'' is bounded on that interval around t_i (on a ball, for groups)."""
    radius = row_norms * expand(error, t)
    if potential.grouped:
        radius = radius.amax(1, keepdim=True) if radius.shape[1] > 1 else radius
    _, high = potential.curvature_bounds(t, radius)
    change = potential.apply_change(potential.curvature_change(t, radius), V)
    factor = potential.smoothing_sensitivity(t, radius)
    return CurvatureInterval(
        high=high,
        high_max=high.flatten(1).amax(1),
        change_norm=sum_samples(change * change).sqrt(),
        smooth=potential.kink_excluded(t, radius),
        sensitivity=torch.as_tensor(factor, dtype=t.dtype, device=t.device),
    )


def adjoint_bound(
    residual_norm: Tensor, loss_change: Tensor, change_norm: Tensor, operator_norm: float, mu: float
) -> Tensor:
    """‖X - X^‖ <= (‖H(x) X + ∇ell(x)‖ + ‖∇ell(x^) - ∇ell(x)‖ + ‖K‖ ‖Delta K X‖) / mu.

    From H^ (X - X^) = rho + (∇ell(x^) - ∇ell(x)) + K^T Gamma K X with |Gamma| <= Delta and H^ >= mu.
    """
    return (residual_norm + loss_change + operator_norm * change_norm) / mu
