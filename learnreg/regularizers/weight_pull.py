"""How far the adjoint of x -> M(x) and the gradient in M's parameters move with the image: what bounds of
hypergradients through a chain rest on.

Majorising weights, w = B^T h'(B u), u_i = f_i((K x)_i) at places i. With r = h''(B u) B p, place by place, z = B^T r,

    (∂M/∂x)^T p = K^T q,  q_i = z_i f_i'(t_i),     ∂_theta <M, p> = C(x, q) + sum_i z_i ∂_theta f_i(t_i) + ...,

C(u, q) = ∂_theta <K_theta u, q>; and of the scales, by their logarithms, sum_j a(v_j) (B p)_j with v = B u / s and a(v)
= v/(1 + v)². Where a response moves by at most rho_i, |f_i'| is at most F_i and f_i'' at most hi_i, u moves by at most
F_i rho_i, and |h''|, |h'''| and the bound 1/(1 + v)² of |a'| fall as B u rises. The norms of B and of its adjoint are
at most 1. f_i(0) = 0 whatever theta is, so that |∂_theta f_i(t)| is at most |t| times the largest |∂_theta f_i'| on the
way from 0.

All numbers are *rigorous bounds* per sample, (batch,), of changes for every x' within e of x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from learnreg.certificates.groups import group_norm
from learnreg.linear.parameter_groups import Density, LinearCost, OwnBound, Pairing, ParameterGroup
from learnreg.linear.samples import expand, norm_samples
from learnreg.lower_level.chain import PullChange
from learnreg.lower_level.saddle_terms import SaddleTerms
from learnreg.potentials.proximal import ProximalPotential

__all__ = ["MajorisingPull", "Moved", "Window"]

Moved = Callable[[Tensor], Tensor]
"""From factors a >= 0 of the places to a bound of ‖(a_i (p'_i - p_i))‖, (batch,)."""

_ROUNDING = 1e-13
"""Of sums, relative to the size of their terms."""


@dataclass(frozen=True)
class Window:
    """B, its adjoint, and the side of its kernel; 1 where both leave everything as it is."""

    gathered: Callable[[Tensor], Tensor]
    spread: Callable[[Tensor], Tensor]
    side: int


class MajorisingPull:
    """Of w = B^T h'(B f(K x)), for ``PullChange``.

    Parameters
    ----------
    t: K x. e: how far other images are, (batch,). p, moved: what weights are multiplied by, and how far that moves.
    scales: s, to broadcast against places.
    """

    def __init__(
        self, terms: SaddleTerms, x: Tensor, t: Tensor, e: Tensor, p: Tensor, moved: Moved, scales: Tensor, B: Window
    ) -> None:
        f, K = terms.potential, terms.operator
        assert isinstance(f, ProximalPotential)
        self.f, self.K, self.x, self.t, self.p, self.B = f, K, x, t, p, B
        self.e, self.moved, self.scales = e, moved, scales
        self.drift = K.norm_bound() * e * (1.0 + 1e-12)
        """Of ‖t' - t‖."""
        self.rho = f.reach(K) * expand(e, t)
        self.slope = f.size(f.grad(t))
        self.high = f.curvature_bounds(t, self.rho)[1]
        self.steep = self.slope + self.high * self.rho
        self.u = f.density(t).clamp_min(0.0)
        shift = self.steep * self.rho
        lowest, highest = (B.gathered(end) for end in ((self.u - shift).clamp_min(0.0), self.u + shift))
        self.v = B.gathered(self.u) / scales
        self.weight, self.farthest = 1.0 / (1.0 + lowest / scales), highest / scales
        self.bend, self.bow = self.weight**2 / scales, 2.0 * self.weight**3 / scales**2  # |h''|, |h'''|
        self.Bp = B.gathered(p).abs()
        self.r = self.Bp / (scales * (1.0 + self.v) ** 2)
        self.z = B.spread(-B.gathered(p) / (scales * (1.0 + self.v) ** 2)).abs()

    # ---- norms of what moves -----------------------------------------------------------------------------------------

    def along(self, factors: Tensor) -> Tensor:
        """‖(a_i |t'_i - t_i|)‖."""
        return torch.minimum(norm_samples(factors * self.rho), _largest(factors) * self.drift)

    def raised(self, factors: Tensor) -> Tensor:
        """‖a (B u' - B u)‖."""
        if self.B.side == 1:
            return self.along(factors * self.steep)
        return _largest(factors) * self.along(self.steep)

    def gathered(self, factors: Tensor) -> Tensor:
        """‖a (B p' - B p)‖."""
        return self.moved(factors) if self.B.side == 1 else _largest(factors) * self.moved(torch.ones_like(self.p))

    @cached_property
    def all_moved(self) -> Tensor:
        """‖p' - p‖."""
        return self.moved(torch.ones_like(self.p))

    @cached_property
    def r_moved(self) -> Tensor:
        """‖r' - r‖, and so of z."""
        return self.gathered(self.bend) + self.raised(self.bow * self.Bp)

    @cached_property
    def q_moved(self) -> Tensor:
        """‖q' - q‖."""
        if self.B.side == 1:
            change = self.moved(self.bend * self.steep) + self.along(self.bow * self.steep**2 * self.Bp)
        else:
            change = _largest(self.steep) * self.r_moved
        return change + self.along(self.z * self.high)

    @cached_property
    def q_norm(self) -> Tensor:
        return norm_samples(self.z * self.slope)

    # ---- what a chain asks for ---------------------------------------------------------------------------------------

    def change(self) -> PullChange:
        K = self.K
        lipschitz = max((group.lipschitz for group in K.parameter_groups()), default=0.0)
        terms = self.p.abs() + self.z * (self.u + self.f.size(self.t) * self.slope)
        size = lipschitz * norm_samples(self.x) * self.q_norm + terms.flatten(1).sum(1)
        pulled = K.norm_bound() * (self.q_moved + _ROUNDING * self.q_norm)
        own = [self._of_scales(), *([] if self.B.side == 1 else [self._of_kernel()])]
        return PullChange(pulled, tuple(own), self.of_group, size)

    def of_group(self, group: ParameterGroup) -> Tensor | None:
        return group.judged(self)

    def of_operator(self, group: Pairing) -> Tensor | None:
        moved = self.q_norm * self.e + (norm_samples(self.x) + self.e) * self.q_moved
        return group.lipschitz * moved

    def of_density(self, group: Density) -> Tensor | None:
        """sum_i z_i ∂_theta f_i(t_i)."""
        if group.share is not None or not self.starts_at_zero:
            return None
        length = self.f.size(self.t) + self.rho
        size = self.f.size(group.size(self.t, self.f.grad(self.t)))
        near, far = (
            size + group.largest_slope(self.t, reach, self.f.curvature_bounds(self.t, reach)[1]) * reach
            for reach in (self.rho, length)  # the second one reaches from t to 0
        )
        most = length * far  # of ∂_theta f
        if self.B.side == 1:
            through_r = group_norm(self.bend * most, group.shape) * self.all_moved
            through_r = through_r + group_norm(self.bow * self.steep * self.Bp * most, group.shape) * self.drift
        else:
            through_r = group_norm(most, group.shape) * self.r_moved
        return through_r + group_norm(self.z * near, group.shape) * self.drift

    def of_own(self, group: OwnBound) -> Tensor | None:
        return None

    def of_cost(self, group: LinearCost) -> Tensor | None:
        return None

    @cached_property
    def starts_at_zero(self) -> bool:
        """Whether ∂_theta f(0) = 0."""
        with torch.enable_grad():
            numbers = {
                name: torch.as_tensor(number).detach().to(self.t).requires_grad_()
                for name, number in self.f.numbers().items()
            }
            at_zero = self.f.with_numbers(**numbers).density(torch.zeros_like(self.t[:1]))
            found = torch.autograd.grad(at_zero.sum(), list(numbers.values()), allow_unused=True)
        return all(g is None or not bool(g.any()) for g in found)

    def _of_scales(self) -> Tensor:
        shape = (self.v.shape[1], *(1,) * (self.v.dim() - 2))
        most = self.farthest.clamp(max=0.25)  # v/(1 + v)² is less than both
        moved = group_norm(most, shape) * self.all_moved
        fall = self.weight**2 / self.scales * self.Bp
        if self.B.side == 1:
            return moved + group_norm(fall * self.steep, shape) * self.drift
        return moved + group_norm(fall, shape) * self.along(self.steep)

    def _of_kernel(self) -> Tensor:
        """C(p, h'(B u)) + C(u, r), ‖C(a, b)‖ <= side ‖a‖ ‖b‖; the Jacobian of the softmax has a norm below 1."""
        p, dp, du, dh = norm_samples(self.p), self.all_moved, self.along(self.steep), self.raised(self.bend)
        first = dp * norm_samples(self.weight) + p * dh
        channels = self.v.shape[1] // self.u.shape[1]  # of which all gather the same u
        u = norm_samples(self.u) * math.sqrt(channels)
        second = math.sqrt(channels) * du * norm_samples(self.r) + (u + math.sqrt(channels) * du) * self.r_moved
        return self.B.side * (first + second)


def _largest(t: Tensor) -> Tensor:
    """Of each sample, (batch,)."""
    return t.flatten(1).amax(1)
