"""The contract of potentials: the functions that regularizers apply to filter responses, convex, or with a bounded
concavity.

What a potential couples decides its type: ``Elementwise`` and ``Grouped`` ones have proximal maps, one of all responses
of a sample, as here, has none. Numbers such as a weight are floats, or tensors that broadcast against responses without
their batch axis (per channel: (n, 1, 1)).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from learnreg.errors import AssumptionError
from learnreg.kernels.numbers import number_like
from learnreg.linear.arguments import real_number
from learnreg.linear.examination import is_own_class
from learnreg.linear.operator import LinearOperator
from learnreg.linear.parameter_groups import Density, ParameterGroup, shape_of
from learnreg.linear.samples import expand, inner_samples, norm_samples
from learnreg.potentials.curvature import CurvatureFloor, CurvatureInterval
from learnreg.potentials.function import Function
from learnreg.result import brief

__all__ = ["OUTWARD", "WARM_PROX_STEPS", "Potential", "Smoothed", "nearest", "weighted_square"]

WARM_PROX_STEPS = 3

OUTWARD = 1e-13
"""Relative outward rounding of interval ends: above the rounding of the few operations that form them in float64."""

Number = float | Tensor


def weighted_square(operator: LinearOperator, weights: Number) -> float:
    """Bound of ‖√weights K‖² for non-negative weights of the channels of K, or of their groups, (n, 1, 1), or one for
    all."""
    weights = torch.as_tensor(weights, dtype=torch.float64).detach()
    norm = operator.channel_norm(weights)
    return float(weights.max()) * operator.norm_bound() ** 2 if norm is None else norm**2


class Potential(Function):
    """A function of all responses of a sample, of weight l, with what solvers and certificates ask of it.

    Bounds are for each place: the sample here, a response or a group of them in subclasses. gradient_limit: a bound of
    |f'| at one place, all channels together, where f' does not vanish with K^T f'; 0 elsewhere. cheap_lines: values
    along a line of responses cost much less than a step of a solver. foreign: somebody else's function is in it, which
    is examined (``screen``, ``doubt``). has_modulus: the concavity is a bound, not a guess. quadratic: f(t) is
    ½ <t, W t> with a fixed W. differentiable: f has a gradient everywhere; of one that has none dual points stand where
    others have pull-backs.
    """

    number_names: ClassVar[tuple[str, ...]] = ("weight",)
    """The positive numbers that regularizers learn through their logarithms, by the constructor's keywords."""

    weight: Number
    gradient_limit: float = 0.0
    cheap_lines: bool = False
    foreign: bool = False
    has_modulus: bool = True
    quadratic: bool = False
    differentiable: bool = True

    # ---- its numbers -------------------------------------------------------------------------------------------------

    def numbers(self) -> dict[str, Number]:
        """Those of ``number_names``."""
        return {name: getattr(self, name) for name in self.number_names}

    @classmethod
    def of(cls, **numbers: Number) -> Self:
        """A potential with those of the numbers that it has."""
        return cls(**{name: numbers[name] for name in cls.number_names})

    def with_numbers(self, **numbers: Number) -> Self:
        """The same potential with some of ``numbers`` exchanged."""
        return type(self)(**{**self.numbers(), **numbers})

    def detached(self) -> Self:
        """The same potential, its parameters cut from the autograd graph."""
        return self.with_numbers(**{name: _detach(value) for name, value in self.numbers().items()})

    def to(self, dtype: torch.dtype) -> Self:
        """The same potential with its parameters in another dtype."""
        return self.with_numbers(**{name: _cast(value, dtype) for name, value in self.numbers().items()})

    def scaled(self, factor: Tensor) -> Self:
        """The potential times a positive number, in float64."""
        weight = torch.as_tensor(self.weight, dtype=torch.float64, device=factor.device)
        return self.with_numbers(weight=weight * factor.double())

    def select(self, index: Tensor | slice) -> Self:
        """The potential of some samples: itself, where no number differs from sample to sample."""
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={brief(value)}' for name, value in self.numbers().items())})"

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """How f' moves with the logarithms of the weight and of a factor of all of f."""
        return self.weight_group(), Density("log_factor", (), excess=self.concavity)

    def weight_group(self) -> Density:
        """That of the weight: f' itself, unless a part of f has no weight."""
        return Density("log_weight", shape_of(self.weight), excess=self.concavity)

    @property
    def scale(self) -> Number:
        """Responses of this size are where f bends; 1 where no size is special."""
        return 1.0

    def smoother(self, factor: float) -> Self | None:
        """The potential whose scale is this factor larger, for solvers that approach a nearly kinked one; None where f
        has no kink to approach."""
        return None

    # ---- what it couples ---------------------------------------------------------------------------------------------

    def gather(self, t: Tensor) -> Tensor:
        """Sums over each place, which broadcast against t."""
        return expand(t.flatten(1).sum(1), t)

    def size(self, v: Tensor) -> Tensor:
        """The length of v at each place."""
        return expand(norm_samples(v), v)

    def reach(self, operator: LinearOperator) -> Tensor | float:
        """Bound of the norm of the operator's rows of each place, a number or to broadcast against responses without
        their batch axis. *Rigorous bound.*"""
        return operator.norm_bound()

    def prox_obstacle(self) -> str:
        """Why there are no proximal maps of every step and no conjugate, which primal-dual iterations rest on; "" where
        there are, and f is a ``ProximalPotential``."""
        return "couples all responses of an image"

    # ---- in the complex plane ----------------------------------------------------------------------------------------

    @property
    def analytic_width(self) -> Number:
        """f has a holomorphic continuation to |Im t| below this, which ``continued`` and ``continued_derivatives``
        evaluate, elementwise; 0 where none is known."""
        return 0.0

    def continued(self, t: Tensor) -> Tensor:
        """f at complex responses, (batch,), differentiable in its numbers."""
        raise AssumptionError(f"{type(self).__name__} has no holomorphic continuation.")

    def continued_derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """f' and the diagonal of f'' at complex responses."""
        raise AssumptionError(f"{type(self).__name__} has no holomorphic continuation.")

    # ---- curvature ---------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def curvature_limit(self) -> Number:
        """The largest |f''|, per channel: the gradient's Lipschitz constant."""

    @property
    def concavity(self) -> Number:
        """rho >= 0 with f'' >= -rho everywhere, per channel; 0 for convex functions. *Rigorous bound.*"""
        return 0.0

    @property
    def convex(self) -> bool:
        """Whether the concavity is 0."""
        rho = self.concavity
        return not bool((rho > 0).any()) if isinstance(rho, Tensor) else not rho > 0

    def softness(self, operator: LinearOperator) -> float:
        """lambda with f(K x) + lambda/2 ‖x‖² convex for this K: ‖√rho K‖², less where f is known to be strongly convex
        in x. *Rigorous bound.*"""
        return 0.0 if self.convex else weighted_square(operator, self.concavity)

    def stiffness(self, operator: LinearOperator) -> float:
        """Bound of the norm of K^T f'' K everywhere, from the largest curvature of each channel. *Rigorous bound.*"""
        return weighted_square(operator, self.curvature_limit)

    # ---- somebody else's ---------------------------------------------------------------------------------------------

    def screen(self, shape: tuple[int, ...], device: torch.device | None) -> None:
        """Raise ConfigError or ShapeError where a foreign function breaks its contract on responses of this shape."""

    def hidden_rounding(self, x: Tensor, v: Tensor | None = None) -> Tensor | float:
        """What rounding may hide in ∇f(x), or in f''(x) v, of a foreign function of the image itself, whose terms may
        be larger than their sum, (batch,): a model from other precisions, no bound."""
        return 0.0

    def term_size(self, y: Tensor) -> Tensor:
        """The size of the terms that y = f'(t) was summed from, whose rounding it has."""
        return y

    def doubt(self, t: Tensor, gradients: bool) -> str:
        """What bounds lack of a foreign function at t, or with ``gradients`` bounds of hypergradients, a sentence; ""
        where they have all. ConfigError where what is declared of it is contradicted near t."""
        return ""

    @abstractmethod
    def second(self, t: Tensor) -> Tensor:
        """A bound of the largest eigenvalue of f''(t) at each place."""

    @abstractmethod
    def second_diagonal(self, t: Tensor) -> Tensor:
        """The diagonal of the Hessian at t, in the shape of t."""

    @abstractmethod
    def majorant(self, t: Tensor) -> Tensor:
        """The curvature of a parabola that touches f at t and lies above it, about: preconditioners and first steps
        take it, bounds do not."""

    def curvature_interval(self, t: Tensor, radius: Tensor | float) -> CurvatureInterval:
        """All that is known of f'' on the interval of that radius around t, or the ball, for groups."""
        low, high = self.curvature_bounds(t, radius)
        change, second = self.curvature_change(t, radius), self.second(t)
        if not self.convex:
            low, high, second = ((bound + self.concavity).clamp_min_(0.0) for bound in (low, high, second))
        third, ratio = self.third_bound(t, radius), self.curvature_ratio(second, low, high, change)
        if not is_own_class(type(self)):  # bounds overwrite an interval: what another class returned may be its own
            own = (number.clone(memory_format=torch.contiguous_format) for number in (low, high, change, ratio, third))
            low, high, change, ratio, third = own
        return CurvatureInterval(low, high, change, ratio, third, self.kink_excluded(t, radius))

    def curvature_floor(self, t: Tensor, radius: Tensor | float) -> CurvatureFloor:
        """What f'' is at least over the same, for groups as matrices where they say more than numbers. *Rigorous.*"""
        return CurvatureFloor(self.curvature_bounds(t, radius)[0])

    def curvature_size(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """Bound of ‖f''‖ over the same. *Rigorous bound.*"""
        low, high = self.curvature_bounds(t, radius)
        return high if self.convex else torch.maximum(low.abs(), high.abs())

    def curvature_change(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """Bound of ‖f''(t') - f''(t)‖ for |t' - t| <= radius at each place. *Rigorous bound.*"""
        low, high = self.curvature_bounds(t, radius)
        second = self.second(t)
        return torch.maximum(high - second, second - low) + second * OUTWARD

    def curvature_ratio(self, second: Tensor, low: Tensor, high: Tensor, change: Tensor) -> Tensor:
        """Bound of |f''(t) - D|/√D over low <= D <= high, infinite where D may vanish, given f''(t) and the bound
        ``change`` of the numerator: change/√low, since matrices need not commute with f''(t). *Rigorous bound.*"""
        root = low.clamp_min(0.0).sqrt()
        return torch.where(root > 0, change / root, torch.where(change > 0, torch.inf, 0.0)) * (1.0 + 1e-12)

    def third_bound(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """Bound of ‖f''(t') - f''(t)‖ / |t' - t| for |t' - t| <= radius at each place; infinite where none is known, as
        by default. *Rigorous bound.*"""
        return torch.full_like(self.second(t), math.inf)

    def bending_size(self, v: Tensor, t: Tensor, radius: Tensor | float) -> Tensor:
        """What bounds |(f''(t') - f''(t)) v| when ``curvature_change`` at this radius, or ``third_bound`` and |t' - t|,
        multiply it: the size of v, unless the function knows better. *Rigorous bound.*"""
        return self.size(v)

    # ---- what iterations call ----------------------------------------------------------------------------------------

    def blocks(self, t: Tensor, *others: Tensor) -> Iterator[tuple[Any, ...]]:
        """(potential, t, *others) of every block of responses that fits in a cache; parameters and others, which
        broadcast against t, restricted alike. Blocks of a sample follow each other; one block where nothing
        separates."""
        yield self, t, *others

    def slope(self, t: Tensor, v: Tensor, step: Tensor) -> Tensor:
        """<f'(t + step v), v> per sample, (batch,); step (batch, 1, ...)."""
        return inner_samples(self.grad(torch.addcmul(t, step, v)), v)

    def grad_into(self, t: Tensor, out: Tensor) -> Tensor:
        """f'(t) in the memory of ``out``, which is not t."""
        return out.copy_(self.grad(t))

    def linearised(self, t: Tensor) -> Tensor:
        """What ``bent`` asks of t: t itself, unless f'' is at hand for each response."""
        return t

    def bent(self, at: Tensor, v: Tensor) -> Tensor:
        """f''(t) v for at = linearised(t)."""
        return self.hess_vec(at, v)

    def bent_(self, at: Tensor, v: Tensor) -> Tensor:
        """The same in the memory of v."""
        return v.copy_(self.bent(at, v))

    def bent_diagonal(self, at: Tensor) -> Tensor:
        """The diagonal of f''(t), in the shape of t."""
        return self.second_diagonal(at)


class Smoothed(Potential):
    """A potential l·phi(t; v) with a smoothing, f(t) = l v h(t/v) unless it says otherwise: l/v bounds f''.

    Parameters
    ----------
    smoothing: v > 0, in the units of the responses.
    weight: l > 0.
    """

    number_names = ("weight", "smoothing")

    def __init__(self, smoothing: Number, weight: Number = 1.0) -> None:
        check_positive(self, smoothing=smoothing, weight=weight)
        self.smoothing, self.weight = smoothing, weight

    def with_numbers(self, **numbers: Number) -> Self:
        return self.with_parameters(**{**self.numbers(), **numbers})

    def with_parameters(self, weight: Number, smoothing: Number) -> Self:
        """The same potential with other parameters."""
        return type(self)(smoothing, weight)

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """With the logarithm of the smoothing."""
        smoothing = Density(
            "log_smoothing",
            shape_of(self.smoothing),
            self.smoothing_gradient,
            factor=self.smoothing_sensitivity,
            steepest=self.smoothing_slope,
        )
        return (*super().parameter_groups(), smoothing)

    @property
    def scale(self) -> Number:
        return self.smoothing

    def smoother(self, factor: float) -> Self | None:
        return self.with_numbers(smoothing=factor * self.smoothing)

    @property
    def curvature_limit(self) -> Number:
        return self.weight / self.smoothing

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


def check_positive(potential: Potential, **numbers: Number) -> None:
    """ConfigError unless these arguments of a potential are positive and finite; tensors are not looked at."""
    for name, value in numbers.items():
        if not isinstance(value, Tensor):
            real_number(value, f"{type(potential).__name__}({name})", above=0.0)


def nearest(size: Tensor, radius: Tensor | float, peak: Tensor | float) -> Tensor:
    """The point of [size - radius, size + radius], rounded outwards, that is nearest to the peak of a function."""
    near = (size - radius).mul_(1.0 - OUTWARD).clamp_min_(0.0)
    at = torch.maximum(near, number_like(peak, size))
    return torch.minimum(at, torch.add(size, radius, out=near).mul_(1.0 + OUTWARD), out=at)


def _detach(value: Number) -> Number:
    return value.detach() if isinstance(value, Tensor) else value


def _cast(value: Number, dtype: torch.dtype) -> Number:
    return value.to(dtype) if isinstance(value, Tensor) else value
