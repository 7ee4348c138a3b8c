"""Parameters of spline potentials: the logarithms of f'' at the knots.

s_j = c_j ∂f'/∂c_j has the sign of t, never falls in t, and sum_j s_j = f'. So for every response |(s_j(t))_j| <=
|f'(t)| and |(s_j(t') - s_j(t))_j| <= |f'(t') - f'(t)|, Euclidean norms over j: all knots together change no more than
the weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learnreg.certificates.gram import largest_eigenvalue
from learnreg.problem import Instance
from learnreg.spline import Spline

__all__ = ["knot_shape", "knots_norm", "spline_of"]


def spline_of(instance: Instance) -> Spline:
    """The potential whose knots are learned."""
    assert isinstance(instance.potential, Spline), "the role log_curvature is that of Spline potentials"
    return instance.potential


def knot_shape(spline: Spline) -> tuple[int, ...]:
    """The responses that share their knots, as the shape of a parameter."""
    channels = spline.coefficients.shape[0]
    return () if channels == 1 else (channels, 1, 1)


def knots_norm(spline: Spline, t: Tensor) -> Tensor:
    """sup over p of ‖(<s_jg(t), p_g>)_jg‖ / ‖p‖, over knots j and groups g of responses that share them, (batch,).
    *Rigorous bound.*"""
    parts = spline.coefficient_gradients(t).transpose(0, 1)  # (batch, m, n, ...)
    apart = spline.coefficients.shape[0] > 1
    S = parts.flatten(3).transpose(1, 2) if apart else parts.flatten(2)[:, None]  # (batch, groups, m, responses)
    gram = largest_eigenvalue(S @ S.transpose(-1, -2))
    result: Tensor = gram.clamp_min(0.0).amax(1).sqrt() * (1.0 + 1e-10)
    return torch.where(torch.isfinite(result), result, torch.inf)
