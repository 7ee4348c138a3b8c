"""How far the adjoint of x -> M(x) and the gradient in M's parameters move with the image, of weights that a network
computes: what bounds of hypergradients through a chain rest on.

w = sigmoid(l), l = W_2 h + c_2. With q = sigmoid'(l) p and g = W_2^T q, ∂_theta <M, p> is that of <W_2, .> at (h, q),
and of <h, g>.

Free weights have h = m(z), z = W_1 x + c_1, m = softplus: |m'| <= 1, m'' <= 1/4. sigmoid' is what the logit nearest to
0 allows, |sigmoid''| <= 1/(6 √3).

Weights of responses have h = sqrt(1 + u²) - 1 of the sizes u of v = K x / s, whose gradient in v has a length below 1
and a Jacobian of norm at most 1. So (∂M/∂x)^T p = K^T z with z = (v/sqrt(1 + u²)) g / s; for K's parameters ∂_theta <M,
p> = C(x, z), C(u, q) = ∂_theta <K_theta u, q>; and by log s it is -sum a(u) g with a(u) = u²/sqrt(1 + u²), |a'| < 1.09.

All numbers are *rigorous bounds* per sample, (batch,), of changes for every x' within e of x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.certificates.groups import group_norm
from learnreg.linear.parameter_groups import Pairing, ParameterGroup
from learnreg.linear.samples import expand, norm_samples
from learnreg.lower_level.chain import PullChange
from learnreg.regularizers.weight_pull import Moved

__all__ = ["FreePull", "ResponsePull"]

_ROUNDING = 1e-13
"""Of sums, relative to the size of their terms."""

_SIGMOID_BEND = 1.0 / (6.0 * math.sqrt(3.0))
_STEEPEST = 1.09
"""|a'|: at most 2 y - y³ for y = u/sqrt(1 + u²) in [0, 1]."""


@dataclass(frozen=True)
class FreePull:
    """Of w = sigmoid(W_2 softplus(W_1 x + c_1) + c_2).

    Parameters
    ----------
    logits, features, g: W_2 m(z) + c_2, m(z), and from q = sigmoid'(logits) p to W_2^T q. norms: of W_1 and W_2. size:
        side of their kernels.
    """

    x: Tensor
    logits: Tensor
    features: Tensor
    pulled: Callable[[Tensor], Tensor]
    norms: tuple[float, float]
    size: int

    def change(self, e: Tensor, p: Tensor, moved: Moved) -> PullChange:
        first, second = self.norms
        q, dq = _through_sigmoid(self.logits, first * second * e, p, moved)
        g = self.pulled(q)
        dg = second * dq
        ds = dg + 0.25 * _largest(g.abs()) * first * e
        x, features, s = norm_samples(self.x), norm_samples(self.features), norm_samples(g)
        root = math.sqrt(math.prod(p.shape[2:]))
        own = (
            self.size * (x * ds + e * (s + ds)),
            self.size * (features * dq + first * e * (norm_samples(q) + dq)),
            root * ds,
            root * dq,
        )
        rounding = _ROUNDING * first * second * norm_samples(p)
        magnitude = self.size * (x * s + features * norm_samples(p)) + root * (s + norm_samples(p))
        return PullChange(first * ds + rounding, own, lambda _: torch.zeros_like(e), magnitude)


@dataclass(frozen=True)
class ResponsePull:
    """Of w = sigmoid(W_2 (sqrt(1 + u²) - 1) + c_2), u = |K x| / s.

    Parameters
    ----------
    u: at each place. scales: s, to broadcast against it. logits, features, pulled: as above. norms: of K over s, and of
        W_2. size: side of its kernels. spread: what the gradient by s and by its exponents is of that by s. lipschitz:
        c with ‖C(u, q)‖ <= c ‖u‖ ‖q‖.
    """

    x: Tensor
    u: Tensor
    scales: Tensor
    logits: Tensor
    features: Tensor
    pulled: Callable[[Tensor], Tensor]
    norms: tuple[float, float]
    size: int
    spread: float
    lipschitz: float

    def change(self, e: Tensor, p: Tensor, moved: Moved) -> PullChange:
        first, second = self.norms
        q, dq = _through_sigmoid(self.logits, first * second * e, p, moved)
        g, dg = self.pulled(q), second * dq
        root = (1.0 + self.u**2).sqrt()
        dv = first * e  # of K x / s, and so of h and of its gradient
        dy = dg + _largest(g.abs()) * dv  # of z s
        y = self.u / root * g
        slope = self.u**2 / root
        shape = (self.logits.shape[1], *(1,) * (self.logits.dim() - 2))
        of_scales = group_norm(slope, shape) * dg + _STEEPEST * dv * (group_norm(g, shape) + dg)
        sites = math.sqrt(math.prod(p.shape[2:]))
        features, q_norm = norm_samples(self.features), norm_samples(q)
        own = (self.size * (features * dq + dv * (q_norm + dq)), sites * dq, self.spread * of_scales)
        z, least = norm_samples(y / self.scales), 1.0 / float(self.scales.min())
        x = norm_samples(self.x)

        def of_group(group: ParameterGroup) -> torch.Tensor | None:
            if not isinstance(group, Pairing):
                return torch.zeros_like(e)
            return group.lipschitz * (z * e + (x + e) * least * dy)

        rounding = _ROUNDING * first * second * norm_samples(p)
        magnitude = (self.size * features + sites) * norm_samples(p) + self.lipschitz * x * z
        magnitude = magnitude + self.spread * norm_samples(slope) * norm_samples(g)
        return PullChange(first * dy + rounding, own, of_group, magnitude)


def _through_sigmoid(logits: Tensor, reach: Tensor, p: Tensor, moved: Moved) -> tuple[Tensor, Tensor]:
    """q = sigmoid'(l) p, and how far it moves where logits do by ``reach``, all together."""
    nearest = (logits.abs() - expand(reach, logits)).clamp_min(0.0).sigmoid()
    steep, at = nearest * (1.0 - nearest), logits.sigmoid()
    return at * (1.0 - at) * p, moved(steep) + _SIGMOID_BEND * _largest(p.abs()) * reach


def _largest(t: Tensor) -> Tensor:
    """Of each sample, (batch,)."""
    return t.flatten(1).amax(1)
