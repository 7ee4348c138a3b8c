"""Functions of the length of each group of responses, isotropic: what potentials of complex images see is a modulus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from learnreg.errors import ConfigError
from learnreg.linear.parameter_groups import Density, ParameterGroup
from learnreg.linear.samples import inner_samples
from learnreg.potentials.base import OUTWARD, WARM_PROX_STEPS, Number, Potential, Smoothed
from learnreg.potentials.curvature import CurvatureFloor
from learnreg.potentials.isotropic import IsotropicPseudoHuber
from learnreg.potentials.proximal import Grouped, SmoothedElementwise
from learnreg.potentials.pseudo_huber import PseudoHuber
from learnreg.potentials.square import Square

__all__ = ["Modulus", "of_modulus"]

_TURNS = 0.5
"""Sine of the angle by which the direction of a group may turn in a ball that is too large to speak of directions."""


def of_modulus(potential: Potential, who: str) -> Potential:
    """The potential of groups of responses that is this one of their length.

    Raises
    ------
    ConfigError: there is none.
    """
    if type(potential) is PseudoHuber:
        return IsotropicPseudoHuber(potential.smoothing, potential.weight)
    if type(potential) is Square:  # the square of a length is the sum of those of its components
        return potential
    if isinstance(potential, SmoothedElementwise) and potential.even:
        return Modulus(potential)
    kind = type(potential).__name__
    raise ConfigError(
        f"{who}: {kind} has no form for a modulus, which takes an even function with a smoothing; take "
        "lr.PseudoHuber with a small smoothing, or coupling='separate' or 'joint'."
    )


class Modulus(Smoothed, Grouped):
    """phi(|t|) of the Euclidean length of each group of channels (axis 1): isotropic, rotation invariant.

    The Hessian of a group is phi''(r) along t and g(r) = phi'(r)/r on the tangent, the mean of phi'' from 0 to r = |t|,
    and never negative.

    Parameters
    ----------
    profile: phi, even, phi' >= 0 for t >= 0; its numbers are for groups.
    """

    def __init__(self, profile: SmoothedElementwise) -> None:
        self.profile, self.smoothing, self.weight = profile, profile.smoothing, profile.weight

    def with_parameters(self, weight: Number, smoothing: Number) -> Self:
        return type(self)(self.profile.with_parameters(weight, smoothing))

    def detached(self) -> Self:
        return type(self)(self.profile.detached())

    def to(self, dtype: torch.dtype) -> Self:
        return type(self)(self.profile.to(dtype))

    def scaled(self, factor: Tensor) -> Self:
        return type(self)(self.profile.scaled(factor))

    def blocks(self, t: Tensor, *others: Tensor) -> Iterator[tuple[Any, ...]]:
        yield self, t, *others

    def __repr__(self) -> str:
        return f"Modulus({self.profile!r})"

    @property
    def curvature_limit(self) -> Number:
        return self.profile.curvature_limit

    @property
    def concavity(self) -> Number:
        return self.profile.concavity

    # ---- values ------------------------------------------------------------------------------------------------------

    def density(self, t: Tensor) -> Tensor:
        square = (t * t).sum(1)
        at_zero = 0.5 * self.profile.second(torch.zeros_like(square)) * square
        return torch.where(square > 0, self.profile.density(_root(square)), at_zero)[:, None]

    def grad(self, t: Tensor) -> Tensor:
        return t * self._tangential((t * t).sum(1))[:, None]

    def second(self, t: Tensor) -> Tensor:
        """The larger eigenvalue, per group."""
        return torch.maximum(*self._eigenvalues(t))[:, None]

    def second_diagonal(self, t: Tensor) -> Tensor:
        radial, tangential = (value[:, None] for value in self._eigenvalues(t))
        return tangential + (radial - tangential) * _direction(t) ** 2

    def hess_vec(self, t: Tensor, v: Tensor) -> Tensor:
        return _with_eigenvalues(t, v, *self._eigenvalues(t))

    def majorant(self, t: Tensor) -> Tensor:
        return self.profile.majorant(_length(t))[:, None].expand_as(t)

    def _tangential(self, square: Tensor) -> Tensor:
        """g at lengths with this square; differentiable where they are 0, too."""
        length = _root(square)
        at_zero = self.profile.second(torch.zeros_like(square))
        return torch.where(square > 0, self.profile.grad(length) / length, at_zero)

    def _eigenvalues(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if not torch.is_grad_enabled():
            length = _length(t)
            radial, slope = (f(length, torch.empty_like(length)) for f in (self.profile.second_into, self._slope_into))
            return radial, torch.where(length > 0, slope, radial)
        square = (t * t).sum(1)
        at_zero = self.profile.second(torch.zeros_like(square))
        return torch.where(square > 0, self.profile.second(_root(square)), at_zero), self._tangential(square)

    def _slope_into(self, length: Tensor, out: Tensor) -> Tensor:
        """phi'(r)/r, where r is not 0."""
        return self.profile.grad_into(length, out).div_(length.clamp_min(torch.finfo(out.dtype).tiny))

    def divergence(self, r: Tensor, t: Tensor) -> Tensor:
        """That of the lengths, and phi'(|t|) (|r| - <r, t>/|t|): the second is formed from the part of r that is
        orthogonal to t, without cancellation."""
        f, dtype, r, t = self.to(torch.float64), t.dtype, r.double(), t.double()
        size_r, size_t, direction = _length(r), _length(t), _direction(t)
        along = (r * direction).sum(1)
        across = ((r - along[:, None] * direction) ** 2).sum(1)
        tiny = torch.finfo(torch.float64).tiny
        turned = torch.where(along > 0, across / (size_r + along).clamp_min(tiny), size_r - along)
        found = f.profile.divergence(size_r, size_t) + f.profile.grad(size_t) * turned.clamp_min(0.0)
        return found.to(dtype)[:, None]

    # ---- what iterations call, by what the profile has compiled ------------------------------------------------------

    def grad_into(self, t: Tensor, out: Tensor) -> Tensor:
        length = _length(t)
        return torch.mul(t, self._slope_into(length, torch.empty_like(length))[:, None], out=out)

    def slope(self, t: Tensor, v: Tensor, step: Tensor) -> Tensor:
        moved = torch.addcmul(t, step, v)
        return inner_samples(self.grad_into(moved, torch.empty_like(moved)), v)

    def dual_step_(
        self, v: Tensor, y: Tensor, t: Tensor, sigma: Tensor, relaxation: float, newton_steps: int = WARM_PROX_STEPS
    ) -> None:
        """The proximal map shortens each group."""
        length, shorter = _length(v), _length(t)
        slope, scratch = torch.zeros_like(length), length.clone()
        step = sigma.amax(1) if sigma.dim() == v.dim() else sigma
        self.profile.dual_step_(scratch, slope, shorter, step, 1.0, newton_steps)
        size = length.clamp_min_(torch.finfo(v.dtype).tiny)
        torch.mul(v, shorter.div_(size)[:, None], out=t)
        y.mul_(1.0 - relaxation).addcmul_(v, slope.div_(size)[:, None], value=relaxation)

    # ---- proximal maps -----------------------------------------------------------------------------------------------

    def prox(self, v: Tensor, step: Tensor | float, start: Tensor | None = None) -> Tensor:
        length, step = _length(v), _flat(step, v)
        guess = None if start is None else (start * _direction(v)).sum(1)
        shorter = self.profile.prox(length, step, guess) / length.clamp_min(torch.finfo(v.dtype).tiny)
        return v * shorter[:, None]

    def prox_jvp(self, t: Tensor, step: Tensor | float, v: Tensor) -> Tensor:
        step = _flat(step, t)
        return _with_eigenvalues(t, v, *(1.0 / (1.0 + step * value) for value in self._eigenvalues(t)))

    def dual_prox_jvp(self, t: Tensor, sigma: Tensor | float, v: Tensor) -> Tensor:
        sigma = _flat(sigma, t)
        return _with_eigenvalues(t, v, *(value / (sigma + value) for value in self._eigenvalues(t)))

    # ---- curvature in balls ------------------------------------------------------------------------------------------

    def curvature_bounds(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        """Of phi'', and of g: for s >= near, s g(s) = near g(near) + the integral of phi'' from there."""
        length, radius = _length(t), _flat(radius, t)
        low, high = self.profile.curvature_bounds(length, radius)
        tangential = self._tangential(_near(length, radius) ** 2)
        margin = 4.0 * OUTWARD * self.curvature_limit  # g is a mean of what may have cancelled
        return torch.minimum(low, tangential - margin)[:, None], torch.maximum(high, tangential + margin)[:, None]

    def curvature_floor(self, t: Tensor, radius: Tensor | float) -> CurvatureFloor:
        """a I - (a - b) nu nu^T, with b <= phi'' and a <= g on the ball and nu the direction there, whose angle with
        that of t has a sine of at most radius/|t|: nu nu^T is at most that sine times I above n n^T, n = t/|t|."""
        length, radius = _length(t), _flat(radius, t)
        near, far = _near(length, radius), (length + radius) * (1.0 + OUTWARD)
        radial, _ = self.profile.curvature_bounds(length, radius)
        nearest = tangential = self._tangential(near**2)
        risen = (near * tangential + (far - near) * torch.minimum(radial, tangential)) / far.clamp_min(
            torch.finfo(t.dtype).tiny
        )
        margin = 4.0 * OUTWARD * self.curvature_limit  # g is a mean of what may have cancelled
        tangential = torch.where(far > 0, torch.minimum(risen, tangential), tangential) - margin
        gap = (tangential - radial).clamp_min(0.0)
        sine = torch.where(length > 0, radius / length.clamp_min(torch.finfo(t.dtype).tiny), 1.0) + OUTWARD
        turns = ~(sine <= _TURNS)  # then numbers say as much
        low = torch.where(turns, torch.minimum(radial, nearest - margin), tangential - gap * sine)
        dip = torch.where(turns, 0.0, gap).sqrt()
        return CurvatureFloor(low[:, None], dip[:, None] * _direction(t))

    def curvature_change(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """min(eigenvalue bound, radius times the largest third derivative on the ball)."""
        low, high = self.curvature_bounds(t, radius)
        values = torch.stack(self._eigenvalues(t))[:, :, None]
        by_eigenvalues = torch.maximum(high - values.amin(0), values.amax(0) - low)
        if isinstance(radius, Tensor) and radius.dim() == t.dim():
            radius = radius.amax(1, keepdim=True)
        by_slope = self.third_bound(t, radius) * radius
        change = torch.where(by_slope < by_eigenvalues, by_slope, by_eigenvalues)  # a slope may be infinite times 0
        return change * (1.0 + OUTWARD) + values.abs().amax(0) * OUTWARD

    def third_bound(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """The third derivative is phi''' in t thrice and g' in t once and the tangent twice, so that the largest value
        on unit vectors, which is its norm as that of a symmetric form (Banach), is at most max over c in [0, 1] of
        a c³ + 3 b c (1 - c²), a >= |phi'''| and b >= |g'| on the ball.

        s² g'(s) is the integral of u phi'''(u): |g'| <= max(|g'(near)|, a/2), and |g'(near)| <= max |phi'''|/2 below.
        """
        length, radius = _length(t), _flat(radius, t)
        near = _near(length, radius)
        a = self.profile.third_bound(length, radius)
        below = 0.5 * self.profile.third_bound(0.5 * near, 0.5 * near)
        radial, tangential = self.profile.second(near), self._tangential(near**2)
        rounding = 10.0 * torch.finfo(t.dtype).eps * torch.maximum(radial.abs(), tangential)
        apart = ((radial - tangential).abs() + rounding) / near.clamp_min(torch.finfo(t.dtype).tiny)
        b = 3.0 * torch.maximum(0.5 * a, torch.minimum(below, apart))
        inner = b * (2.0 / 3.0) * (b / (3.0 * (b - a)).clamp_min(torch.finfo(t.dtype).tiny)).sqrt()
        found = torch.where(a <= (2.0 / 3.0) * b, torch.maximum(inner, a), a)
        return torch.where(torch.isfinite(b), found, torch.inf)[:, None] * (1.0 + OUTWARD)

    def kink_excluded(self, t: Tensor, radius: Tensor | float) -> Tensor:
        return self.profile.kink_excluded(_length(t), _flat(radius, t))

    # ---- parameters --------------------------------------------------------------------------------------------------

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """Those of the profile: s(t) = q(|t|) t/|t| has the slope q' along t and q/|t|, the mean of q' from 0 on, on
        the tangent. What is said of |q'| on all of it holds of both, sums over several parameters included."""
        return tuple(self._of_lengths(group) for group in self.profile.parameter_groups())

    def smoothing_gradient(self, t: Tensor) -> Tensor:
        return self.profile.smoothing_gradient(_length(t))[:, None] * _direction(t)

    def smoothing_sensitivity(self, t: Tensor, radius: Tensor | float) -> Tensor | float:
        return _up_to_the_farthest(self.profile.smoothing_sensitivity, t, radius)

    def _of_lengths(self, group: ParameterGroup) -> ParameterGroup:
        assert isinstance(group, Density)
        density, factor, steepest, several = group.density, group.factor, group.steepest, group.several
        return replace(
            group,
            density=None if density is None else lambda t: density(_length(t))[:, None] * _direction(t),
            factor=None if factor is None else lambda t, radius: _up_to_the_farthest(factor, t, radius),
            steepest=None if steepest is None else lambda t, radius: _steepest(steepest, density, t, radius),
            several=None if several is None else lambda t: several(_length(t))[:, :, None] * _direction(t),
        )


def _length(t: Tensor) -> Tensor:
    """Of each group, without the axis of its members."""
    return (t * t).sum(1).sqrt()


def _root(square: Tensor) -> Tensor:
    """The root, or 1 for 0, where it has no derivative."""
    return torch.where(square > 0, square, 1.0).sqrt()


def _direction(t: Tensor) -> Tensor:
    """t/|t|, or 0."""
    return t / (t * t).sum(1, keepdim=True).sqrt().clamp_min(torch.finfo(t.dtype).tiny)


def _flat(value: Tensor | float, t: Tensor) -> Tensor | float:
    """What broadcasts against groups with their axis of members, without it: the largest, where members have their
    own."""
    return value.amax(1) if isinstance(value, Tensor) and value.dim() == t.dim() else value


def _near(length: Tensor, radius: Tensor | float) -> Tensor:
    """The shortest length in the ball, rounded outwards."""
    return ((length - radius) * (1.0 - OUTWARD)).clamp_min(0.0)


def _with_eigenvalues(t: Tensor, v: Tensor, radial: Tensor, tangential: Tensor) -> Tensor:
    direction = _direction(t)
    along = (direction * v).sum(1, keepdim=True)
    return tangential[:, None] * v + (radial - tangential)[:, None] * direction * along


def _up_to_the_farthest(
    factor: Callable[[Tensor, Tensor | float], Tensor | float], t: Tensor, radius: Tensor | float
) -> Tensor | float:
    """The factor that holds for every length from 0 to the longest in the ball."""
    half = 0.5 * (_length(t) + _flat(radius, t)) * (1.0 + OUTWARD)
    found = factor(half, half)
    return found[:, None] if isinstance(found, Tensor) else found


def _steepest(
    steepest: Callable[[Tensor, Tensor | float], Tensor],
    density: Callable[[Tensor], Tensor] | None,
    t: Tensor,
    radius: Tensor | float,
) -> Tensor:
    """The largest |q'| on the lengths in the ball, and |q|/r of the shortest."""
    length, radius = _length(t), _flat(radius, t)
    slope, near = steepest(length, radius), _near(length, radius)
    if density is not None:
        tangential = density(near).abs() / near.clamp_min(torch.finfo(t.dtype).tiny)
        slope = torch.maximum(slope, torch.where(near > 0, tangential, 0.0))
    return slope[:, None] * (1.0 + OUTWARD)
