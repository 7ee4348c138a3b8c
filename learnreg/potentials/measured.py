"""Potentials of measured responses t = A x, each sample with measurements b of its own: what data terms that are not
quadratic add to the saddle form, A being one more block of K.

On the constraint t lies in [lower, upper]. Beyond, each is continued by its quadratic at the nearer end: twice
continuously differentiable, with the same solutions, and with a curvature that stays bounded. The convex part ½ floor
t² is left to the quadratic part of the energy: it is what the constraint makes strongly convex.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar, Self

import torch
from torch import Tensor

from learnreg.kernels.numbers import number_like
from learnreg.linear.operator import LinearOperator
from learnreg.linear.parameter_groups import Density, ParameterGroup, shape_of
from learnreg.linear.samples import norm_samples
from learnreg.potentials.base import OUTWARD, WARM_PROX_STEPS, Number
from learnreg.potentials.proximal import Elementwise

__all__ = ["KullbackLeibler", "Measured", "ShiftedPseudoHuber", "TransmissionLikelihood"]

_PROX_STEPS = 60


class Measured(Elementwise):
    """D(t; b) - ½ floor t², a sum over responses.

    Parameters
    ----------
    b: measurements (batch, *range). lower, upper: what t is known to be between, and floor <= D'' there; numbers that
        broadcast against b. numbers: those of ``parameter_names``, which broadcast likewise; learned as they are.
    """

    number_names = ()
    parameter_names: ClassVar[tuple[str, ...]]
    constant_names: ClassVar[tuple[str, ...]] = ()
    weight: Number = 1.0

    def __init__(
        self, b: Tensor, lower: Number = -torch.inf, upper: Number = torch.inf, floor: Number = 0.0, **numbers: Number
    ) -> None:
        self.b, self.lower, self.upper, self.floor = b, lower, upper, floor
        for name in (*self.parameter_names, *self.constant_names):
            setattr(self, name, numbers[name])

    def numbers(self) -> dict[str, Number]:
        """All that the function is made of, the measurements included."""
        own = (*self.parameter_names, *self.constant_names)
        return {name: getattr(self, name) for name in ("b", "lower", "upper", "floor", *own)}

    def select(self, index: Tensor | slice) -> Self:
        """The function of some samples."""
        dims, numbers = self.b.dim(), self.numbers()
        own = {n: v[index] for n, v in numbers.items() if isinstance(v, Tensor) and v.dim() == dims and len(v) > 1}
        return self.with_numbers(**{**numbers, **own, "b": self.b[index]})

    def scaled(self, factor: Tensor) -> Self:
        raise NotImplementedError("a data term has no weight; the regularizer's is what balances them")

    def within(self, lower: Tensor, upper: Tensor) -> Self:
        """For t between these: with the curvature that it has there at least, where that is positive everywhere, as
        the floor."""
        own = self.to(self.b.dtype).detached()
        lower, upper = own.inside(lower.to(self.b)), upper.to(self.b)
        floor = torch.minimum(own._bend(lower), own._bend(upper)) * (1.0 - 1e-12)
        return self.with_numbers(lower=lower, upper=upper, floor=floor) if bool((floor > 0).all()) else self

    # ---- the function on [lower, upper] ------------------------------------------------------------------------------

    @abstractmethod
    def _value(self, u: Tensor) -> Tensor:
        """D(u)."""

    @abstractmethod
    def _slope(self, u: Tensor) -> Tensor:
        """D'(u)."""

    @abstractmethod
    def _bend(self, u: Tensor) -> Tensor:
        """D''(u)."""

    @abstractmethod
    def _peak(self) -> Tensor:
        """Where D'' is largest, to broadcast against b: it falls with the distance from there."""

    @abstractmethod
    def _largest_third(self, near: Tensor, far: Tensor) -> Tensor:
        """Bound of |D'''| between two points."""

    @abstractmethod
    def _size(self, u: Tensor) -> Tensor:
        """Of the terms that D(u) is summed from."""

    @abstractmethod
    def term_size(self, y: Tensor) -> Tensor: ...

    @property
    def gradient_limit(self) -> float:  # type: ignore[override]
        """The size of the terms of f' where the measurements are met, all responses together as if in one channel: what
        rounding is judged by."""
        size = norm_samples(self.term_size(torch.zeros_like(self.b)).detach()).max()
        return float(size) / math.sqrt(math.prod(self.b.shape[2:]))

    def inside(self, t: Tensor) -> Tensor:
        """The point of [lower, upper] nearest to t."""
        lower, upper = (number_like(end, t) for end in (self.lower, self.upper))
        return torch.clamp(t, lower, upper)

    def span(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        """The interval around t, rounded outwards, on [lower, upper]."""
        reach = radius + OUTWARD * (t.abs() + radius)
        return self.inside(t - reach), self.inside(t + reach)

    # ---- the contract of potentials ----------------------------------------------------------------------------------

    def density(self, t: Tensor) -> Tensor:
        u = self.inside(t)
        beyond = t - u
        return self._value(u) + beyond * (self._slope(u) + 0.5 * self._bend(u) * beyond) - 0.5 * self.floor * (t * t)

    def grad(self, t: Tensor) -> Tensor:
        u = self.inside(t)
        return self._slope(u) + self._bend(u) * (t - u) - self.floor * t

    def second(self, t: Tensor) -> Tensor:
        return self._bend(self.inside(t)) - self.floor

    def majorant(self, t: Tensor) -> Tensor:
        return self.second(t)

    def _ends(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        """The least and the largest D'' on the interval, rounded outwards."""
        near, far = self.span(t, radius)
        at = torch.minimum(torch.maximum(self._peak().to(t), near), far)
        low = torch.minimum(self._bend(near), self._bend(far))
        return low * (1.0 - OUTWARD), self._bend(at) * (1.0 + OUTWARD)

    def curvature_bounds(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        low, high = self._ends(t, radius)
        return (low - self.floor).clamp_min(0.0), (high - self.floor).clamp_min(0.0)

    def curvature_change(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """The smaller of what the ends say, and the third derivative over the radius."""
        by_third = self.third_bound(t, radius) * radius + self._bend(self.inside(t)) * OUTWARD
        return torch.minimum(super().curvature_change(t, radius) + self.floor * OUTWARD, by_third)

    def third_bound(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """D'' is constant beyond the ends."""
        return self._largest_third(*self.span(t, radius)) * (1.0 + OUTWARD)

    @property
    def curvature_limit(self) -> Tensor:
        """The largest over all measurements."""
        return (self._bend(self.inside(self._peak().expand_as(self.b))) - self.floor).amax()

    def stiffness(self, operator: LinearOperator) -> float:
        return float(self.curvature_limit) * operator.norm_bound() ** 2

    def prox_obstacle(self) -> str:
        return "leaves curvature to the quadratic part" if torch.as_tensor(self.floor).any() else ""

    def prox(self, v: Tensor, step: Tensor | float, start: Tensor | None = None) -> Tensor:
        """Newton's method on t + step f'(t) = v, which rises, kept between bounds by bisection."""
        t = v if start is None else start
        slack = (step * self.grad(v)).abs()  # the root is between v and v - step f'(v)
        low, high = v - slack, v + slack
        t = torch.minimum(torch.maximum(t, low), high)
        for _ in range(WARM_PROX_STEPS if start is not None else _PROX_STEPS):
            excess = t + step * self.grad(t) - v
            low, high = torch.where(excess < 0, t, low), torch.where(excess > 0, t, high)
            t = t - excess / (1.0 + step * self.second(t))
            t = torch.where((t < low) | (t > high), 0.5 * (low + high), t)
        return t

    def divergence(self, r: Tensor, t: Tensor) -> Tensor:
        f, dtype, r, t = self.to(torch.float64), t.dtype, r.double(), t.double()
        moved = f.grad(t) * (r - t)
        sizes = f._size(f.inside(r)) + f._size(f.inside(t)) + moved.abs() + f._bend(f.inside(t)) * (t * t + r * r)
        distance = f.density(r) - f.density(t) - moved
        return (distance + 8.0 * torch.finfo(torch.float64).eps * sizes).to(dtype)

    # ---- its parameters ----------------------------------------------------------------------------------------------

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """Its numbers themselves: |ds/dt| <= factor D'' = factor (f'' + floor)."""
        return tuple(self._group(name) for name in self.parameter_names)

    def _group(self, name: str) -> Density:
        def density(t: Tensor) -> Tensor:
            u = self.inside(t)
            s, slope = self._sensitivity(name, u)
            return s + slope * (t - u)

        def steepest(t: Tensor, radius: Tensor | float) -> Tensor:
            return self._ends(t, radius)[1] * self._factor(name, *self.span(t, radius))

        def factor(t: Tensor, radius: Tensor | float) -> Tensor:
            low, _ = self.curvature_bounds(t, radius)
            # |ds/dt| <= q D'' <= q f'' (1 + floor / f''), which is infinite where f'' may vanish and D'' does not
            more = torch.where(torch.as_tensor(self.floor).to(t) > 0, self.floor / low, torch.zeros_like(low))
            return self._factor(name, *self.span(t, radius)) * (1.0 + more) * (1.0 + OUTWARD)

        shape = shape_of(getattr(self, name))
        return Density(name, shape, density, factor=factor, steepest=steepest)

    @abstractmethod
    def _sensitivity(self, name: str, u: Tensor) -> tuple[Tensor, Tensor]:
        """∂D'/∂parameter at u and its derivative in u."""

    @abstractmethod
    def _factor(self, name: str, near: Tensor, far: Tensor) -> Tensor:
        """A bound of |∂D''/∂parameter| / D'' between two points."""


class KullbackLeibler(Measured):
    """t + s - b log(t + s) for counts b >= 0 over a background s > 0, t >= 0."""

    parameter_names = ("background",)
    background: Number

    def _value(self, u: Tensor) -> Tensor:
        return u + self.background - torch.xlogy(self.b, u + self.background)

    def _slope(self, u: Tensor) -> Tensor:
        return 1.0 - self.b / (u + self.background)

    def _bend(self, u: Tensor) -> Tensor:
        return self.b / (u + self.background) ** 2

    def _peak(self) -> Tensor:
        return torch.zeros_like(self.b)

    def _largest_third(self, near: Tensor, far: Tensor) -> Tensor:
        return 2.0 * self.b / (near + self.background) ** 3

    def _size(self, u: Tensor) -> Tensor:
        return u + self.background + self.b * (u + self.background).log().abs()

    def term_size(self, y: Tensor) -> Tensor:
        return 1.0 + (1.0 - y).abs()

    def _sensitivity(self, name: str, u: Tensor) -> tuple[Tensor, Tensor]:
        total = u + self.background
        bend = self.b / total**2
        return bend, -2.0 * bend / total

    def _factor(self, name: str, near: Tensor, far: Tensor) -> Tensor:
        return 2.0 / (near + self.background)

    def prox(self, v: Tensor, step: Tensor | float, start: Tensor | None = None) -> Tensor:
        """u² - (v + s - step) u - step b = 0 for u = t + s, without cancellation; below 0 that of the quadratic."""
        half = 0.5 * (v + self.background - step)
        product = step * self.b
        root = torch.sqrt(half * half + product)
        u = torch.where(half > 0, half + root, product / (root - half).clamp_min(torch.finfo(v.dtype).tiny))
        t = u - self.background
        slope, bend = 1.0 - self.b / self.background, self.b / torch.as_tensor(self.background) ** 2
        return torch.where(v > step * slope, t.clamp_min(0.0), (v - step * slope) / (1.0 + step * bend))


class TransmissionLikelihood(Measured):
    """(exp(m r)/(N m²)) [N exp(-m t) + b m t] for counts b of N photons, m the attenuation, t >= 0: D'' is
    exp(-m (t - r)), 1 at the reference r."""

    parameter_names = ("photons", "attenuation")
    constant_names = ("reference",)
    photons: Number
    attenuation: Number
    reference: Number

    def _left(self, u: Tensor) -> Tensor:
        """The share of the photons that is left, times exp(m r)."""
        return torch.exp(self.attenuation * (self.reference - u))

    def _counted(self) -> Tensor:
        """That which was counted."""
        return torch.exp(torch.as_tensor(self.attenuation * self.reference)) * (self.b / self.photons)

    def _value(self, u: Tensor) -> Tensor:
        return (self._left(u) / self.attenuation + self._counted() * u) / self.attenuation

    def _slope(self, u: Tensor) -> Tensor:
        return (self._counted() - self._left(u)) / self.attenuation

    def _bend(self, u: Tensor) -> Tensor:
        return self._left(u)

    def _peak(self) -> Tensor:
        return torch.zeros_like(self.b)

    def _largest_third(self, near: Tensor, far: Tensor) -> Tensor:
        return self.attenuation * self._left(near)

    def _size(self, u: Tensor) -> Tensor:
        return self._value(u)

    def term_size(self, y: Tensor) -> Tensor:
        """What was counted, what is left, and for the rounding of t and r what D'' makes of them."""
        m, counted = self.attenuation, self._counted()
        left = (counted - m * y).clamp_min(0.0)
        far = 2.0 * torch.as_tensor(self.reference).abs() * left + torch.xlogy(left, left).abs() / m
        return (counted + left) / m + far

    def _sensitivity(self, name: str, u: Tensor) -> tuple[Tensor, Tensor]:
        m, r, counted = self.attenuation, self.reference, self._counted()
        if name == "photons":
            return -counted / (self.photons * m), torch.zeros_like(u)
        left = self._left(u)
        return (r * counted + (u - r) * left - (counted - left) / m) / m, (r - u) * left

    def _factor(self, name: str, near: Tensor, far: Tensor) -> Tensor:
        if name == "photons":
            return torch.zeros_like(far)
        return torch.maximum((near - self.reference).abs(), (far - self.reference).abs())


class ShiftedPseudoHuber(Measured):
    """sqrt((t - b)² + s²) - s."""

    parameter_names = ("smoothing",)
    smoothing: Number

    def _value(self, u: Tensor) -> Tensor:
        r = u - self.b
        return r * r / (torch.sqrt(r * r + self.smoothing**2) + self.smoothing)

    def _slope(self, u: Tensor) -> Tensor:
        r = u - self.b
        return r * torch.rsqrt(r * r + self.smoothing**2)

    def _bend(self, u: Tensor) -> Tensor:
        r = u - self.b
        return self.smoothing**2 * (r * r + self.smoothing**2) ** -1.5

    def _peak(self) -> Tensor:
        return self.b

    def _largest_third(self, near: Tensor, far: Tensor) -> Tensor:
        """3 s² |r| / (r² + s²)^(5/2) rises up to |r| = s/2 and falls beyond."""
        near, far = near - self.b, far - self.b
        least = torch.where(near * far <= 0, 0.0, torch.minimum(near.abs(), far.abs()))
        peak = torch.as_tensor(0.5 * self.smoothing).to(least)
        at = torch.minimum(torch.maximum(least, peak), torch.maximum(near.abs(), far.abs()))
        return 3.0 * self.smoothing**2 * at * (at * at + self.smoothing**2) ** -2.5

    def _size(self, u: Tensor) -> Tensor:
        return u.abs() + self.b.abs() + self.smoothing

    def term_size(self, y: Tensor) -> Tensor:
        """With the rounding of t - b where f'' multiplies it."""
        bend = (1.0 - y * y).clamp_min(0.0) ** 1.5 / self.smoothing
        return y.abs() + 2.0 * bend * (self.b.abs() + self.smoothing)

    def _sensitivity(self, name: str, u: Tensor) -> tuple[Tensor, Tensor]:
        r, s = u - self.b, self.smoothing
        square = r * r + s * s
        return -r * s * square**-1.5, s * (2.0 * r * r - s * s) * square**-2.5

    def _factor(self, name: str, near: Tensor, far: Tensor) -> Tensor:
        return torch.ones_like(far) * (2.0 / self.smoothing)
