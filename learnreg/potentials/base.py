"""The contract of potentials: the functions that regularizers apply to filter responses, convex, or with a bounded
concavity.

Each carries a weight l and a smoothing v, numbers or tensors that broadcast against responses without their batch axis
(per channel: (n, 1, 1)). Constants (l/v bounds f''; strong convexity of the conjugate v/l) hold per channel.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor

from learnreg.errors import ConfigError
from learnreg.kernels.blocks import planes, sum_blocks
from learnreg.linear.parameter_groups import Density, ParameterGroup, shape_of
from learnreg.linear.samples import inner_samples, sum_samples
from learnreg.potentials.convex_function import WeaklyConvexFunction, dual_point

__all__ = ["OUTWARD", "WARM_PROX_STEPS", "Potential", "nearest"]


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

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """How f' moves with the logarithms of the weight, of a factor of all of f, and of the smoothing."""
        return (
            self.weight_group(),
            Density("log_factor", (), excess=self.concavity),
            Density(
                "log_smoothing",
                shape_of(self.smoothing),
                self.smoothing_gradient,
                factor=self.smoothing_sensitivity,
                steepest=self.smoothing_slope,
            ),
        )

    def weight_group(self) -> Density:
        """That of the weight: f' itself, unless a part of f has no weight."""
        return Density("log_weight", shape_of(self.weight), excess=self.concavity)

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


def nearest(size: Tensor, radius: Tensor | float, peak: Tensor | float) -> Tensor:
    """The point of [size - radius, size + radius], rounded outwards, that is nearest to the peak of a function."""
    near = (size - radius).mul_(1.0 - OUTWARD).clamp_min_(0.0)
    at = torch.maximum(near, torch.as_tensor(peak, dtype=size.dtype, device=size.device))
    return torch.minimum(at, torch.add(size, radius, out=near).mul_(1.0 + OUTWARD), out=at)


def _detach(value: float | Tensor) -> float | Tensor:
    return value.detach() if isinstance(value, Tensor) else value


def _cast(value: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    return value.to(dtype) if isinstance(value, Tensor) else value
