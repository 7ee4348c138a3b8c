"""Potentials that are sums over places, and so have proximal maps: over responses, or over groups of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from learnreg.kernels.blocks import planes, sum_blocks
from learnreg.kernels.numbers import number_like
from learnreg.kernels.rows import ChannelKernels, as_rows
from learnreg.linear.operator import LinearOperator
from learnreg.linear.samples import inner_samples, sum_samples
from learnreg.potentials.base import OUTWARD, WARM_PROX_STEPS, Number, Potential, Smoothed
from learnreg.potentials.function import Proximal, dual_point

__all__ = ["Elementwise", "Grouped", "ProximalPotential", "SmoothedElementwise"]

_PROX_STEPS = 12


class ProximalPotential(Potential, Proximal):
    """A potential with proximal maps: of every step, where it is convex."""

    cheap_lines = True
    whole_planes = False
    """Whether blocks keep all channels of a place together."""

    def prox_obstacle(self) -> str:
        return "" if self.convex else "is weakly convex"

    @property
    def conjugate_strong_convexity(self) -> Number:
        """The modulus of f*, per channel."""
        return 1.0 / self.curvature_limit

    @abstractmethod
    def density(self, t: Tensor) -> Tensor:
        """f at each place."""

    @abstractmethod
    def divergence(self, r: Tensor, t: Tensor) -> Tensor:
        """The Bregman distance f(r) - f(t) - <f'(t), r - t> at each place, plus what rounding may have cancelled."""

    @abstractmethod
    def dual_prox_jvp(self, t: Tensor, sigma: Tensor | float, v: Tensor) -> Tensor:
        """Derivative of prox_{sigma f*} at the point with pull-back t: f''(t) (sigma + f''(t))^-1 v."""

    def value(self, t: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return sum_samples(self.density(t))
        return sum_blocks(((sum_samples(f.density(t_)),) for f, t_ in self.blocks(t)), t.shape[0])[0]

    def distances(self, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The sums per sample, (batch,), of the divergence from t to r, and of |r - t|² over the modulus of f*, the
        square of the norm that belongs to it."""
        blocks = self.blocks(r, t)
        sums = (
            (sum_samples(f.divergence(r_, t_)), sum_samples((r_ - t_).square_() / f.conjugate_strong_convexity))
            for f, r_, t_ in blocks
        )
        distance, apart = sum_blocks(sums, r.shape[0])
        return distance, apart

    def slope(self, t: Tensor, v: Tensor, step: Tensor) -> Tensor:
        slopes = (
            (inner_samples(f.grad(torch.addcmul(t_, step_, v_)), v_),) for f, t_, v_, step_ in self.blocks(t, v, step)
        )
        return sum_blocks(slopes, t.shape[0])[0]

    def blocks(self, t: Tensor, *others: Tensor) -> Iterator[tuple[Any, ...]]:
        numbers = {name: number_like(p, t) for name, p in self.numbers().items()}
        for t_, *rest in planes(t, *numbers.values(), *others, whole=self.whole_planes):
            own = dict(zip(numbers, rest, strict=False))
            yield self.with_numbers(**own), t_, *rest[len(own) :]

    def dual_step_(
        self, v: Tensor, y: Tensor, t: Tensor, sigma: Tensor, relaxation: float, newton_steps: int = WARM_PROX_STEPS
    ) -> None:
        """The dual half of an over-relaxed PDHG step, overwriting v, y and t: t becomes the pull-back of
        prox_{sigma f*}(v), found from the old one, and y moves to y + relaxation (f'(t) - y).

        ``newton_steps``: at most so many where the proximal map iterates.
        """
        y_hat, pullback = dual_point(self, v, sigma, t)
        t.copy_(pullback)
        y.lerp_(y_hat, relaxation)

    def adjoint_dual_step_(self, at: Tensor, response: Tensor, Y: Tensor, sigma: Tensor, relaxation: float) -> None:
        """The derivative of the dual half at = linearised(t), overwriting the response K X_bar and Y: V = Dprox_{sigma
        f*} · (Y + sigma K X_bar), and Y + relaxation (V - Y)."""
        V = torch.addcmul(Y, sigma, response, out=response)
        V.copy_(self.dual_prox_jvp(at, sigma, V))
        Y.lerp_(V, relaxation)


class Grouped(ProximalPotential):
    """A sum over groups of responses, the channels (axis 1) of each place; f'' is a matrix for each group."""

    whole_planes = True

    def gather(self, t: Tensor) -> Tensor:
        return t.sum(1, keepdim=True)

    def size(self, v: Tensor) -> Tensor:
        return (v * v).sum(1, keepdim=True).sqrt()

    def reach(self, operator: LinearOperator) -> Tensor | float:
        rows = operator.row_norms(True)
        whole = isinstance(rows, Tensor) and rows.dim() == len(operator.range_shape) and rows.shape[0] > 1
        return rows.amax(0, keepdim=True) if whole and isinstance(rows, Tensor) else rows

    def majorant(self, t: Tensor) -> Tensor:
        return self.second(t).expand_as(t)


class Elementwise(ProximalPotential):
    """A sum over responses, f'' a number for each.

    An even f with f'' largest at 0 and non-increasing in |t|; a subclass where f'' rises and falls overrides
    curvature_limit, majorant and the intervals; one where f'' may be negative overrides concavity, too. even: as here;
    of one that is not there is no function of a modulus.
    """

    even: bool = True

    @abstractmethod
    def second(self, t: Tensor) -> Tensor:
        """f''(t), elementwise."""

    def second_into(self, t: Tensor, out: Tensor) -> Tensor:
        """f''(t), elementwise, in the memory of ``out``, block by block."""
        for f, t_, out_ in self.blocks(t, out):
            out_.copy_(f.second(t_))
        return out

    def grad_and_second(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """f'(t) and f''(t), elementwise, sharing what they have in common."""
        return self.grad(t), self.second(t)

    def hess_vec(self, t: Tensor, v: Tensor) -> Tensor:
        return self.second(t) * v

    def second_diagonal(self, t: Tensor) -> Tensor:
        return self.second(t)

    def majorant(self, t: Tensor) -> Tensor:
        """f'(t)/t, since f'' is non-increasing in |t|."""
        return torch.where(t == 0, self.curvature_limit, self.grad_into(t, torch.empty_like(t)) / t)

    def gather(self, t: Tensor) -> Tensor:
        return t

    def size(self, v: Tensor) -> Tensor:
        return v.abs()

    def reach(self, operator: LinearOperator) -> Tensor | float:
        return operator.row_norms(False)

    def linearised(self, t: Tensor) -> Tensor:
        """f''(t)."""
        return self.second_into(t, torch.empty_like(t))

    def bent(self, at: Tensor, v: Tensor) -> Tensor:
        return at * v

    def bent_(self, at: Tensor, v: Tensor) -> Tensor:
        return v.mul_(at)

    def bent_diagonal(self, at: Tensor) -> Tensor:
        return at

    def prox_jvp(self, t: Tensor, step: Tensor | float, v: Tensor) -> Tensor:
        return v / (1.0 + step * self.second(t))

    def dual_prox_jvp(self, t: Tensor, sigma: Tensor | float, v: Tensor) -> Tensor:
        second = self.second(t)
        return second / (sigma + second) * v

    def adjoint_dual_step_(self, at: Tensor, response: Tensor, Y: Tensor, sigma: Tensor, relaxation: float) -> None:
        fused = ChannelKernels.of("pseudo_huber", (response, Y, at), sigma)
        if fused is not None:
            rows = (as_rows(t) for t in (response, Y, at))
            fused.kernels.adjoint_dual_step(*rows, *fused.constants, relaxation)
            return
        for V, Y_, curvature, sigma_ in planes(response, Y, at, sigma):
            V.mul_(sigma_).add_(Y_).mul_((sigma_ + curvature).reciprocal_().mul_(curvature))
            Y_.lerp_(V, relaxation)

    def curvature_bounds(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        size = t.abs()
        low = self.second((size + radius) * (1.0 + OUTWARD))
        high = self.second(((size - radius) * (1.0 - OUTWARD)).clamp_min(0.0))
        return low * (1.0 - OUTWARD), high * (1.0 + OUTWARD)

    def curvature_ratio(self, second: Tensor, low: Tensor, high: Tensor, change: Tensor) -> Tensor:
        """Both (f''(t) - D)/√D and (D - f''(t))/√D are monotone in D, so that the ends of the interval decide."""
        root, below = low.clamp_min(0.0).sqrt(), (second - low).clamp_min(0.0)
        ratio = torch.where(root > 0, below / root, torch.where(below > 0, torch.inf, 0.0))
        above = (high - second).clamp_min(0.0) / high.clamp_min(torch.finfo(high.dtype).tiny).sqrt()
        return torch.maximum(ratio, above) * (1.0 + 1e-12)


class SmoothedElementwise(Smoothed, Elementwise):
    """An elementwise potential with a smoothing that grows linearly: |f'| <= l."""

    def prox(self, v: Tensor, step: Tensor | float, start: Tensor | None = None) -> Tensor:
        """Newton's method on t + step f'(t) = v, which is concave on each side of 0: from a lower bound of |t| it rises
        monotonically to the root, quadratically, so that twelve steps reach rounding.

        ``start``: a guess, such as the result for a nearby v; then three steps have to do.
        """
        size = v.abs()
        low = torch.maximum(size - step * self.weight, size / (1.0 + step * self.curvature_limit))
        steps, t = _PROX_STEPS, low
        if start is not None:
            steps, t = WARM_PROX_STEPS, torch.minimum(torch.maximum(start * v.sign(), low), size)
        for _ in range(steps):
            grad, second = self.grad_and_second(t)
            t = t - (t + step * grad - size) / (1.0 + step * second)
            t = torch.minimum(torch.maximum(t, low), size)
        return t * v.sign()

    def divergence(self, r: Tensor, t: Tensor) -> Tensor:
        """By differences: a density l·phi(t; v) <= l |t| is computed from terms of the size of l (|t| + v)."""
        f, dtype, r, t = self.to(torch.float64), t.dtype, r.double(), t.double()
        sizes = f.weight * (r.abs() + t.abs() + f.smoothing)
        distance = f.density(r) - f.density(t) - f.grad(t) * (r - t)
        return (distance + 4.0 * torch.finfo(torch.float64).eps * sizes).to(dtype)
