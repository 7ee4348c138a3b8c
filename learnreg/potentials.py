"""Potentials: the functions that regularizers apply to filter responses, convex, or with a bounded concavity.

Each carries a weight l and a smoothing v, numbers or tensors that broadcast against responses without their batch axis
(per channel: (n, 1, 1)). Constants (l/v bounds f''; strong convexity of the conjugate v/l) hold per channel.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from learnreg.blocks import planes, sum_blocks
from learnreg.channels import ChannelKernels, as_rows
from learnreg.concavity import WeaklyConvexFunction
from learnreg.convex import dual_point, inner_samples, sum_samples
from learnreg.errors import ConfigError
from learnreg.pull_back import newton_constants, newton_pull_back

__all__ = ["OUTWARD", "WARM_PROX_STEPS", "Huber", "LogCosh", "Potential", "PseudoHuber"]

_PROX_STEPS = 12
WARM_PROX_STEPS = 3
OUTWARD = 1e-13
"""Relative outward rounding of interval ends: above the rounding of the few operations that form them in float64."""


class Potential(WeaklyConvexFunction):
    """A smooth even potential l·phi(t; v) with f''(t) largest at 0 and non-increasing in |t|.

    A subclass where f'' rises and falls overrides prox, curvature_limit, majorant and the intervals; one where f'' may
    be negative overrides concavity, too.

    Parameters
    ----------
    smoothing: v > 0, in the units of the responses.
    weight: l > 0.
    """

    def __init__(self, smoothing: float | Tensor, weight: float | Tensor = 1.0) -> None:
        for name, value in (("smoothing", smoothing), ("weight", weight)):
            if isinstance(value, (int, float)) and not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{type(self).__name__}({name}={value!r}): expected a positive finite number.")
        self.smoothing, self.weight = smoothing, weight

    def with_parameters(self, weight: float | Tensor, smoothing: float | Tensor) -> Self:
        """The same potential with other parameters."""
        return type(self)(smoothing, weight)

    def detached(self) -> Self:
        """The same potential, its parameters cut from the autograd graph."""
        return self.with_parameters(_detach(self.weight), _detach(self.smoothing))

    def to(self, dtype: torch.dtype) -> Self:
        """The same potential with its parameters in another dtype."""
        return self.with_parameters(_cast(self.weight, dtype), _cast(self.smoothing, dtype))

    def scaled(self, factor: Tensor) -> Self:
        """The potential times a positive number, in float64."""
        weight = torch.as_tensor(self.weight, dtype=torch.float64, device=factor.device)
        return self.with_parameters(weight * factor.double(), self.smoothing)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(smoothing={self.smoothing!r}, weight={self.weight!r})"

    # ---- what a potential defines ----------------------------------------------------------------------------------

    @abstractmethod
    def density(self, t: Tensor) -> Tensor:
        """l·phi(t), elementwise."""

    def smoothing_gradient(self, t: Tensor) -> Tensor:
        """v ∂f'(t)/∂v: how f' moves with the logarithm of the smoothing; -f''(t) t for f(t) = l v h(t/v), as here."""
        return -self.hess_vec(t, t)

    def smoothing_sensitivity(self, t: Tensor, radius: Tensor | float) -> Tensor | float:
        """A factor q with |d/dt (v df'/dv)| <= q (f'' + rho) on the interval around t, rho the concavity. *Rigorous
        bound.*"""
        return 2.0

    def smoothing_slope(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """The largest |d/dt (v df'/dv)| on the interval around t. *Rigorous bound.*"""
        return self.smoothing_sensitivity(t, radius) * self.curvature_bounds(t, radius)[1]

    # ---- derived ---------------------------------------------------------------------------------------------------

    @property
    def curvature_limit(self) -> Tensor | float:
        """The largest f'', l/v, per channel: the gradient's Lipschitz constant."""
        return self.weight / self.smoothing

    @property
    def conjugate_strong_convexity(self) -> Tensor | float:
        """v/l, per channel: the modulus of f*."""
        return self.smoothing / self.weight

    def value(self, t: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return sum_samples(self.density(t))
        return sum_blocks(((sum_samples(f.density(t_)),) for f, t_ in self.blocks(t)), t.shape[0])[0]

    def hess_vec(self, t: Tensor, v: Tensor) -> Tensor:
        return self.second(t) * v

    def majorant(self, t: Tensor) -> Tensor:
        """The curvature of the parabola that touches f at t and lies above it: f'(t)/t, since f'' is non-increasing in
        |t|; for groups, the same of their lengths. Preconditioners and first steps take it; bounds do not."""
        if self.grouped:
            return self.second(t).expand_as(t)
        return torch.where(t == 0, self.curvature_limit, self.grad(t) / t)

    def second_diagonal(self, t: Tensor) -> Tensor:
        """The diagonal of the Hessian at t, in the shape of t."""
        return self.second(t)

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

    def grad_and_second(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """f'(t) and f''(t), elementwise, sharing what they have in common."""
        return self.grad(t), self.second(t)

    def divergence(self, r: Tensor, t: Tensor) -> Tensor:
        """The Bregman distance f(r) - f(t) - <f'(t), r - t>, elementwise (per group, for groups), plus what rounding
        may have cancelled: a density l·phi(t; v) <= l |t| is computed from terms of the size of l (|t| + v)."""
        f, dtype, r, t = self.to(torch.float64), t.dtype, r.double(), t.double()
        inner, sizes = f.grad(t) * (r - t), f.weight * (r.abs() + t.abs() + f.smoothing)
        if self.grouped:
            inner, sizes = inner.sum(1, keepdim=True), sizes.sum(1, keepdim=True)
        distance = f.density(r) - f.density(t) - inner
        return (distance + 4.0 * torch.finfo(torch.float64).eps * sizes).to(dtype)

    def distances(self, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The sums per sample, (batch,), of the divergence from t to r, and of |r - t|² l/v, the square of the norm
        that belongs to the dual modulus."""
        blocks = self.blocks(r, t)
        sums = (
            (sum_samples(f.divergence(r_, t_)), sum_samples((r_ - t_).square_() / f.conjugate_strong_convexity))
            for f, r_, t_ in blocks
        )
        distance, apart = sum_blocks(sums, r.shape[0])
        return distance, apart

    def slope(self, t: Tensor, v: Tensor, step: Tensor) -> Tensor:
        """<f'(t + step v), v> per sample, (batch,); step (batch, 1, ...)."""
        slopes = (
            (inner_samples(f.grad(torch.addcmul(t_, step_, v_)), v_),) for f, t_, v_, step_ in self.blocks(t, v, step)
        )
        return sum_blocks(slopes, t.shape[0])[0]

    def blocks(self, t: Tensor, *others: Tensor) -> Iterator[tuple[Any, ...]]:
        """(potential, t, *others) of every block of responses that fits in a cache; parameters and others, which
        broadcast against t, restricted alike. Blocks of a sample follow each other."""
        parameters = (torch.as_tensor(p, dtype=t.dtype, device=t.device) for p in (self.weight, self.smoothing))
        for t_, weight, smoothing, *rest in planes(t, *parameters, *others, whole=self.grouped):
            yield self.with_parameters(weight, smoothing), t_, *rest

    # ---- in the memory of the arguments: what iterations call ------------------------------------------------------

    def grad_into(self, t: Tensor, out: Tensor) -> Tensor:
        """f'(t) in the memory of ``out``, which is not t."""
        return out.copy_(self.grad(t))

    def second_into(self, t: Tensor, out: Tensor) -> Tensor:
        """f''(t), elementwise, in the memory of ``out``, block by block."""
        for f, t_, out_ in self.blocks(t, out):
            out_.copy_(f.second(t_))
        return out

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

    def prox_jvp(self, t: Tensor, step: Tensor | float, v: Tensor) -> Tensor:
        return v / (1.0 + step * self.second(t))

    def dual_prox_jvp(self, t: Tensor, sigma: Tensor | float, v: Tensor) -> Tensor:
        """Derivative of prox_{sigma f*} at the point with pull-back t: f''(t) (sigma + f''(t))^-1 v."""
        second = self.second(t)
        return second / (sigma + second) * v

    def curvature_bounds(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        size = t.abs()
        low = self.second((size + radius) * (1.0 + OUTWARD))
        high = self.second(((size - radius) * (1.0 - OUTWARD)).clamp_min(0.0))
        return low * (1.0 - OUTWARD), high * (1.0 + OUTWARD)

    def curvature_change(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """Bound of ‖f''(t') - f''(t)‖ for |t' - t| <= radius, elementwise (per group, for groups). *Rigorous bound.*"""
        low, high = self.curvature_bounds(t, radius)
        second = self.second(t)
        return torch.maximum(high - second, second - low) + second * OUTWARD

    def third_bound(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """Bound of ‖f''(t') - f''(t)‖ / |t' - t| for |t' - t| <= radius, elementwise (per group, for groups); infinite
        where none is known, as by default. *Rigorous bound.*"""
        return torch.full_like(self.second(t), math.inf)


class PseudoHuber(Potential):
    """l (sqrt(t² + v²) - v); |f'''| <= 0.8587 l/v²."""

    def density(self, t: Tensor) -> Tensor:
        return self.weight * (t * t) / (torch.sqrt(t * t + self.smoothing**2) + self.smoothing)

    def grad(self, t: Tensor) -> Tensor:
        inverse = self._inverse_scale(t)
        if torch.is_grad_enabled():
            return self.weight * t * inverse
        return inverse.mul_(t).mul_(self.weight)

    def second(self, t: Tensor) -> Tensor:
        inverse = self._inverse_scale(t)
        curvature = self.weight * self.smoothing**2
        if torch.is_grad_enabled():
            return curvature * (inverse * inverse * inverse)
        return (inverse * inverse).mul_(inverse).mul_(curvature)

    def grad_and_second(self, t: Tensor) -> tuple[Tensor, Tensor]:
        inverse = self._inverse_scale(t)
        grad = self.weight * t * inverse
        return grad, (self.weight * self.smoothing**2) * (inverse * inverse * inverse)

    def _kernels(self, *responses: Tensor, step: Tensor | float = 1.0) -> ChannelKernels | None:
        return ChannelKernels.of("pseudo_huber", responses, self.weight, self.smoothing, step)

    def distances(self, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        fast = self._kernels(r, t)
        if fast is None:
            return super().distances(r, t)
        sums = torch.empty(r.shape[0], r.shape[1], 2, dtype=torch.float64)
        fast.kernels.distances(as_rows(r), as_rows(t), *fast.constants[:2], sums.view(-1, 2).numpy())
        distance, apart = sums.sum(1).to(r.dtype).unbind(1)
        return distance, apart

    def slope(self, t: Tensor, v: Tensor, step: Tensor) -> Tensor:
        fast = self._kernels(t, v, step=step)
        if fast is None:
            return super().slope(t, v, step)
        sums = torch.empty(t.shape[0], t.shape[1], dtype=torch.float64)
        fast.kernels.slope(as_rows(t), as_rows(v), *fast.constants, sums.view(-1).numpy())
        return sums.sum(1).to(t.dtype)

    def second_into(self, t: Tensor, out: Tensor) -> Tensor:
        fast = self._kernels(t, out)
        if fast is None:
            return super().second_into(t, out)
        fast.kernels.second(as_rows(t), *fast.constants[:2], as_rows(out))
        return out

    def grad_into(self, t: Tensor, out: Tensor) -> Tensor:
        fast = self._kernels(t, out)
        if fast is not None:
            fast.kernels.grad(as_rows(t), *fast.constants[:2], as_rows(out))
            return out
        square = torch.as_tensor(self.smoothing, dtype=t.dtype, device=t.device) ** 2
        return torch.addcmul(square, t, t, out=out).rsqrt_().mul_(t).mul_(self.weight)

    def dual_step_(
        self, v: Tensor, y: Tensor, t: Tensor, sigma: Tensor, relaxation: float, newton_steps: int = WARM_PROX_STEPS
    ) -> None:
        """Blocks that fit in the cache go through all operations before the next block starts."""
        fast = self._kernels(v, y, t, step=sigma)
        if fast is not None:
            rows = (as_rows(v), as_rows(y), as_rows(t))
            fast.kernels.dual_step(*rows, *fast.constants, relaxation, newton_steps)
            return
        constants = newton_constants(self.weight, self.smoothing, t, sigma)
        for v_, y_, t_, *rest in planes(v, y, t, *constants):
            newton_pull_back(v_.abs(), t_.abs_(), newton_steps, *rest)
            square, weight = rest[:2]
            t_.mul_(v_.sign_())
            y_hat = torch.addcmul(square, t_, t_).rsqrt_().mul_(t_)
            y_.mul_(1.0 - relaxation).addcmul_(y_hat, weight, value=relaxation)

    def third_bound(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """|f'''| = 3 l v² |t| / (t² + v²)^(5/2) rises up to |t| = v/2 and falls beyond."""
        at = _nearest(t.abs(), radius, 0.5 * self.smoothing)
        square = torch.as_tensor(self.smoothing, dtype=t.dtype, device=t.device) ** 2
        return at.mul_(torch.addcmul(square, at, at).pow_(-2.5)).mul_(3.0 * self.weight * square * (1.0 + OUTWARD))

    def _inverse_scale(self, t: Tensor) -> Tensor:
        """1/sqrt(t² + v²), in place where autograd does not look: these passes over the responses are what iterations
        spend most of their time on."""
        square = torch.as_tensor(self.smoothing, dtype=t.dtype, device=t.device) ** 2
        if torch.is_grad_enabled():
            return torch.rsqrt(t * t + square)
        return torch.addcmul(square, t, t).rsqrt_()

    def divergence(self, r: Tensor, t: Tensor) -> Tensor:
        """l nu² (r - t)² / (s_t (s_r s_t + r t + nu²)) with s = sqrt(.² + nu²): the same without cancellation."""
        square = torch.as_tensor(self.smoothing, dtype=t.dtype, device=t.device) ** 2
        s_t = torch.addcmul(square, t, t).sqrt()
        sizes = torch.addcmul(square, r, r).sqrt() * s_t
        return self.weight * square * (r - t) ** 2 / (s_t * torch.maximum(sizes + r * t + square, square))


class LogCosh(Potential):
    """l v log cosh(t/v); |f'''| <= 0.7699 l/v²."""

    def density(self, t: Tensor) -> Tensor:
        u = t / self.smoothing
        return self.weight * self.smoothing * (u + F.softplus(-2.0 * u, threshold=60.0) - math.log(2.0))

    def grad(self, t: Tensor) -> Tensor:
        return self.weight * torch.tanh(t / self.smoothing)

    def second(self, t: Tensor) -> Tensor:
        decay = torch.exp(-2.0 * (t / self.smoothing).abs())
        return self.curvature_limit * 4.0 * decay / (1.0 + decay) ** 2

    def smoothing_sensitivity(self, t: Tensor, radius: Tensor | float) -> Tensor | float:
        return 1.0 + 2.0 * (t.abs() + radius) / self.smoothing

    def third_bound(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """|f'''| = 2 (l/v²) tanh u / cosh² u, u = |t|/v, rises up to tanh² u = 1/3 and falls beyond."""
        at = _nearest(t.abs(), radius, math.atanh(1.0 / math.sqrt(3.0)) * self.smoothing)
        return 2.0 / self.smoothing * torch.tanh(at / self.smoothing) * self.second(at) * (1.0 + OUTWARD)


class Huber(Potential):
    """l t²/(2v) for |t| <= v, l(|t| - v/2) beyond: once differentiable, f'' jumps at |t| = v."""

    def density(self, t: Tensor) -> Tensor:
        size = t.abs()
        inside = t * t / (2.0 * self.smoothing)
        return self.weight * torch.where(size <= self.smoothing, inside, size - 0.5 * self.smoothing)

    def grad(self, t: Tensor) -> Tensor:
        return self.weight * (t / self.smoothing).clamp(-1.0, 1.0)

    def second(self, t: Tensor) -> Tensor:
        limit = torch.as_tensor(self.curvature_limit, dtype=t.dtype, device=t.device)
        return torch.where(t.abs() <= self.smoothing, limit, torch.zeros_like(limit))

    def prox(self, v: Tensor, step: Tensor | float, start: Tensor | None = None) -> Tensor:
        inside = v / (1.0 + step * self.curvature_limit)
        outside = v - step * self.weight * v.sign()
        return torch.where(inside.abs() <= self.smoothing, inside, outside)

    def kink_excluded(self, t: Tensor, radius: Tensor | float) -> Tensor:
        size = t.abs()
        inside = size + radius < self.smoothing * (1.0 - OUTWARD)
        outside = size - radius > self.smoothing * (1.0 + OUTWARD)
        return (inside | outside).flatten(1).all(1)

    def smoothing_sensitivity(self, t: Tensor, radius: Tensor | float) -> Tensor | float:
        return 1.0

    def third_bound(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """0 on either side of a kink, and nothing across one."""
        size = t.abs()
        inside = size + radius < self.smoothing * (1.0 - OUTWARD)
        outside = size - radius > self.smoothing * (1.0 + OUTWARD)
        return torch.where(inside | outside, torch.zeros_like(size), torch.full_like(size, math.inf))


def _nearest(size: Tensor, radius: Tensor | float, peak: Tensor | float) -> Tensor:
    """The point of [size - radius, size + radius], rounded outwards, that is nearest to the peak of a function."""
    near = (size - radius).mul_(1.0 - OUTWARD).clamp_min_(0.0)
    at = torch.maximum(near, torch.as_tensor(peak, dtype=size.dtype, device=size.device))
    return torch.minimum(at, torch.add(size, radius, out=near).mul_(1.0 + OUTWARD), out=at)


def _detach(value: float | Tensor) -> float | Tensor:
    return value.detach() if isinstance(value, Tensor) else value


def _cast(value: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    return value.to(dtype) if isinstance(value, Tensor) else value
