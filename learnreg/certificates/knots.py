"""Parameters of spline potentials: the logarithms of f'' at the knots, and of the depths of concave parts.

s_j = c_j ∂f'/∂c_j has the sign of t, never falls in t, and sum_j s_j = s, how f' moves with the weight: f' itself for
convex splines. So for every response |(s_j(t))_j| <= |s(t)| and |(s_j(t') - s_j(t))_j| <= |s(t') - s(t)|, Euclidean
norms over j: all knots together change no more than the weight. Depths: ``WeaklyConvexSpline.depth_excess``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learnreg.certificates.groups import largest_eigenvalue
from learnreg.lower_level.instance import Instance
from learnreg.potentials.spline import Spline
from learnreg.potentials.weakly_convex_spline import WeaklyConvexSpline

__all__ = ["channel_shape", "knots_norm", "spline_of", "weakly_convex_spline_of"]


def spline_of(instance: Instance) -> Spline:
    """The potential whose knots are learned."""
    assert isinstance(instance.potential, Spline), "the role log_curvature is that of Spline potentials"
    return instance.potential


def weakly_convex_spline_of(instance: Instance) -> WeaklyConvexSpline:
    """The potential whose depths are learned."""
    assert isinstance(instance.potential, WeaklyConvexSpline), "the role log_depth is that of WeaklyConvexSpline"
    return instance.potential


def channel_shape(coefficients: Tensor) -> tuple[int, ...]:
    """The responses that share their coefficients (1 or n, knots), as the shape of a parameter."""
    channels = coefficients.shape[0]
    return () if channels == 1 else (channels, 1, 1)


def knots_norm(gradients: Tensor, apart: bool) -> Tensor:
    """sup over p of ‖(<s_jg, p_g>)_jg‖ / ‖p‖ for s (m, batch, n, ...), over knots j and groups g of responses that
    share them, which are channels (``apart``) or all, (batch,). *Rigorous bound.*"""
    parts = gradients.transpose(0, 1)  # (batch, m, n, ...)
    S = parts.flatten(3).transpose(1, 2) if apart else parts.flatten(2)[:, None]  # (batch, groups, m, responses)
    gram = largest_eigenvalue(S @ S.transpose(-1, -2))
    result: Tensor = gram.clamp_min(0.0).amax(1).sqrt() * (1.0 + 1e-10)
    return torch.where(torch.isfinite(result), result, torch.inf)
