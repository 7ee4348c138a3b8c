"""The isotropic potential: a pseudo-Huber function of the length of each group of responses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learnreg.kernels.blocks import planes
from learnreg.potentials.base import OUTWARD, WARM_PROX_STEPS, Smoothed
from learnreg.potentials.proximal import Grouped
from learnreg.potentials.pseudo_huber import PseudoHuber, newton_constants, newton_pull_back

__all__ = ["IsotropicPseudoHuber"]


class IsotropicPseudoHuber(Smoothed, Grouped):
    """l (sqrt(|t|² + v²) - v) of the Euclidean length of each group of channels (axis 1): isotropic, rotation
    invariant.

    The Hessian of a group is I l/s on the tangent and l v²/s³ along t, s = sqrt(|t|² + v²).
    """

    def _length(self, t: Tensor) -> Tensor:
        return (t * t).sum(1, keepdim=True).sqrt()

    def _scale(self, t: Tensor) -> Tensor:
        return torch.sqrt((t * t).sum(1, keepdim=True) + self.smoothing**2)

    def density(self, t: Tensor) -> Tensor:
        square = (t * t).sum(1, keepdim=True)
        return self.weight * square / (torch.sqrt(square + self.smoothing**2) + self.smoothing)

    def grad(self, t: Tensor) -> Tensor:
        return self.weight * t / self._scale(t)

    def second(self, t: Tensor) -> Tensor:
        """The larger eigenvalue l/s, per group."""
        return self.weight / self._scale(t)

    def second_diagonal(self, t: Tensor) -> Tensor:
        """l (1 - t_c²/s²)/s for each component t_c of a group."""
        s = self._scale(t)
        return self.weight / s * (1.0 - (t / s) ** 2)

    def hess_vec(self, t: Tensor, v: Tensor) -> Tensor:
        s = self._scale(t)
        return (self.weight / s) * (v - t * ((t * v).sum(1, keepdim=True) / (s * s)))

    def _with_eigenvalues(self, t: Tensor, v: Tensor, radial: Tensor, tangential: Tensor) -> Tensor:
        direction = t / self._length(t).clamp_min(torch.finfo(t.dtype).tiny)
        return tangential * v + (radial - tangential) * direction * (direction * v).sum(1, keepdim=True)

    def divergence(self, r: Tensor, t: Tensor) -> Tensor:
        """l (nu² |e|² + |t|² |e_t|²) / (s_t (s_r s_t + <r, t> + nu²)) with e = r - t and its part e_t orthogonal to t:
        the same without cancellation."""
        f, dtype, r, t = self.to(torch.float64), t.dtype, r.double(), t.double()
        e, length, s_t, square = r - t, self._length(t), f._scale(t), f.smoothing**2
        direction = t / length.clamp_min(torch.finfo(torch.float64).tiny)
        turned = length * (e - direction * (direction * e).sum(1, keepdim=True))
        above = square * (e * e).sum(1, keepdim=True) + (turned * turned).sum(1, keepdim=True)
        below = f._scale(r) * s_t + (r * t).sum(1, keepdim=True) + square
        return (f.weight * above / (s_t * below.clamp_min(square))).to(dtype)

    def grad_into(self, t: Tensor, out: Tensor) -> Tensor:
        for f, t_, out_ in self.blocks(t, out):
            torch.mul(t_, (t_ * t_).sum(1, keepdim=True).add_(f.smoothing**2).rsqrt_().mul_(f.weight), out=out_)
        return out

    def dual_step_(
        self, v: Tensor, y: Tensor, t: Tensor, sigma: Tensor, relaxation: float, newton_steps: int = WARM_PROX_STEPS
    ) -> None:
        """The proximal map shortens each group, so that Newton's method runs on lengths."""
        tiny = torch.finfo(t.dtype).tiny
        for v_, y_, t_, *rest in planes(v, y, t, *newton_constants(self.weight, self.smoothing, t, sigma), whole=True):
            length, T = ((u * u).sum(1, keepdim=True).sqrt_() for u in (v_, t_))
            newton_pull_back(length, T, newton_steps, *rest)
            square, weight = rest[:2]
            T.div_(length.clamp_min_(tiny))
            torch.mul(v_, T, out=t_)
            slope = torch.addcmul(square, T.mul_(length), T).rsqrt_().mul_(T).div_(length).mul_(weight)
            y_.mul_(1.0 - relaxation).addcmul_(v_, slope, value=relaxation)

    def prox(self, v: Tensor, step: Tensor | float, start: Tensor | None = None) -> Tensor:
        length = self._length(v)
        guess = (
            None if start is None else (start * v).sum(1, keepdim=True) / length.clamp_min(torch.finfo(v.dtype).tiny)
        )
        radial = PseudoHuber(self.smoothing, self.weight).prox(length, step, guess)
        return v * (radial / length.clamp_min(torch.finfo(v.dtype).tiny))

    def prox_jvp(self, t: Tensor, step: Tensor | float, v: Tensor) -> Tensor:
        s = self._scale(t)
        radial, tangential = self.weight * self.smoothing**2 / s**3, self.weight / s
        return self._with_eigenvalues(t, v, 1.0 / (1.0 + step * radial), 1.0 / (1.0 + step * tangential))

    def dual_prox_jvp(self, t: Tensor, sigma: Tensor | float, v: Tensor) -> Tensor:
        s = self._scale(t)
        radial, tangential = self.weight * self.smoothing**2 / s**3, self.weight / s
        return self._with_eigenvalues(t, v, radial / (sigma + radial), tangential / (sigma + tangential))

    def curvature_bounds(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        length = self._length(t)
        far = (length + radius) * (1.0 + OUTWARD)
        near = ((length - radius) * (1.0 - OUTWARD)).clamp_min(0.0)
        low = self.weight * self.smoothing**2 / (self.smoothing**2 + far * far) ** 1.5
        high = self.weight / torch.sqrt(self.smoothing**2 + near * near)
        return low * (1.0 - OUTWARD), high * (1.0 + OUTWARD)

    def curvature_change(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """min(eigenvalue bound, radius times the largest third derivative on the ball)."""
        low, high = self.curvature_bounds(t, radius)
        s = self._scale(t)
        by_eigenvalues = torch.maximum(high - self.weight * self.smoothing**2 / s**3, self.weight / s - low)
        change = torch.minimum(by_eigenvalues, self.third_bound(t, radius) * radius)
        return change * (1.0 + OUTWARD) + self.weight / s * OUTWARD

    def third_bound(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """With p = |t|/s: (l/v²) 3p(1-p²)² up to p = 1/sqrt(3) (largest at 1/sqrt(5)), (l/v²)(2/sqrt(3))(1-p²)
        beyond."""
        length = self._length(t)
        near = ((length - radius) * (1.0 - OUTWARD)).clamp_min(0.0)
        far = (length + radius) * (1.0 + OUTWARD)
        p_near = near / torch.sqrt(near * near + self.smoothing**2)
        p_far = far / torch.sqrt(far * far + self.smoothing**2)
        peak = torch.full_like(p_near, 1.0 / math.sqrt(5.0))
        at = torch.minimum(torch.maximum(p_near, peak), p_far)
        inner = 3.0 * at * (1.0 - at * at) ** 2
        outer_start = p_near.clamp_min(1.0 / math.sqrt(3.0))
        outer = (2.0 / math.sqrt(3.0)) * (1.0 - outer_start * outer_start)
        inner = torch.where(p_near <= 1.0 / math.sqrt(3.0), inner, torch.zeros_like(inner))
        outer = torch.where(p_far >= 1.0 / math.sqrt(3.0), outer, torch.zeros_like(outer))
        return torch.maximum(inner, outer) * (self.weight / self.smoothing**2) * (1.0 + OUTWARD)
