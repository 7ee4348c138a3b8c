"""A function of which the value alone is given, by somebody's torch module: derivatives by autograd, and for bounds
what is declared of it and held against probes.

It couples all entries of a sample, and has no proximal map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from learnreg.errors import ConfigError, LearnregError
from learnreg.linear.operator import LinearOperator
from learnreg.linear.parameter_groups import Density, OwnBound, ParameterBound, ParameterGroup, ResponseErrors
from learnreg.linear.samples import expand, inner_samples, norm_samples
from learnreg.losses import UpperLoss
from learnreg.potentials.base import Potential
from learnreg.potentials.value_derivatives import MOST_MEASURED, GivenFunction, cross_norm, hessian_norm
from learnreg.potentials.value_examination import Declared, probe, screen

__all__ = ["ValuePotential"]

_UNLUCKY = 4.0
"""The rounding of one evaluation may be so many times that of another."""


@dataclass(frozen=True)
class _Curve:
    """A point and the gradient there with its graph, for Hessian products."""

    point: Tensor
    gradient: Tensor


class ValuePotential(Potential):
    """f(x) = factor · R(x).

    Parameters
    ----------
    function: R.
    declared: what its author vouches for, of R itself.
    factor: > 0.
    """

    number_names = ()
    weight = 1.0
    foreign = True

    def __init__(self, function: GivenFunction, declared: Declared, factor: float | Tensor = 1.0) -> None:
        self.function, self.declared, self.factor = function, declared, factor
        self.has_modulus = declared.modulus is not None and declared.examined
        self._latest: tuple[Tensor, int, _Curve] | None = None
        self._others: dict[torch.dtype, ValuePotential] = {}

    def detached(self) -> Self:
        factor = self.factor.detach() if isinstance(self.factor, Tensor) else self.factor
        return type(self)(self.function.detached(), self.declared, factor)

    def to(self, dtype: torch.dtype) -> Self:
        factor = self.factor.to(dtype) if isinstance(self.factor, Tensor) else self.factor
        return type(self)(self.function.to(dtype), self.declared, factor)

    def scaled(self, factor: Tensor) -> Self:
        return type(self)(self.function, self.declared, self.factor * factor)

    def __repr__(self) -> str:
        return f"ValuePotential({self.declared.name})"

    @property
    def _size(self) -> float:
        return float(self.factor.detach()) if isinstance(self.factor, Tensor) else self.factor

    # ---- values ------------------------------------------------------------------------------------------------------

    def value(self, t: Tensor) -> Tensor:
        found = self.function.value(t)
        return found * (self.factor.to(found) if isinstance(self.factor, Tensor) else self.factor)

    def learned(self) -> list[Tensor]:
        """The parameters of R, as tensors that require a gradient."""
        return [t for t in self.function.tensors.values() if t.requires_grad]

    def grad(self, t: Tensor) -> Tensor:
        return self._curve(t, self._again(t)).gradient

    def hess_vec(self, t: Tensor, v: Tensor) -> Tensor:
        again = self._again(t) or (torch.is_grad_enabled() and v.requires_grad)
        at = self._curve(t, True) if again else self._at(t)
        if not at.gradient.requires_grad:
            return torch.zeros_like(v)
        with torch.enable_grad():
            (product,) = torch.autograd.grad(
                at.gradient, at.point, v, retain_graph=True, create_graph=again, materialize_grads=True
            )
        return product

    def _again(self, t: Tensor) -> bool:
        """Whether what is made of t will be differentiated."""
        own = isinstance(self.factor, Tensor) and self.factor.requires_grad
        return torch.is_grad_enabled() and (own or t.requires_grad or bool(self.learned()))

    def _curve(self, t: Tensor, again: bool) -> _Curve:
        with torch.inference_mode(False), torch.enable_grad():
            point = t if again and t.requires_grad else t.detach().clone().requires_grad_()
            value = self.value(point)
            if not value.requires_grad:
                raise ConfigError(
                    f"{self.declared.name}.value(x): the result is cut off from autograd; build it of torch operations."
                )
            (gradient,) = torch.autograd.grad(value.sum(), point, create_graph=again, materialize_grads=True)
        return _Curve(point, gradient)

    def _at(self, t: Tensor) -> _Curve:
        """The gradient with its graph at t, that of the latest point kept: iterations ask for many products there."""
        kept = self._latest
        if kept is not None and kept[0] is t and not t.is_inference() and kept[1] == t._version:
            return kept[2]
        self._latest = None
        found = self._curve(t, True)
        self._latest = None if t.is_inference() else (t, t._version, found)
        return found

    # ---- what solvers ask --------------------------------------------------------------------------------------------

    def majorant(self, t: Tensor) -> Tensor:
        """The curvature in the direction of the gradient."""
        with torch.no_grad():
            g = self.grad(t)
            bend = inner_samples(g, self.hess_vec(t, g)).clamp_min(0.0)
            size = inner_samples(g, g).clamp_min(torch.finfo(g.dtype).tiny)
            return expand(bend / size, t).expand_as(t)

    def second_diagonal(self, t: Tensor) -> Tensor:
        return self.majorant(t)

    # ---- bounds, of what is declared ---------------------------------------------------------------------------------

    def _constant(self, value: float | None) -> float:
        return math.inf if value is None else self._size * value

    def _everywhere(self, value: float | None, t: Tensor) -> Tensor:
        return expand(t.new_full((t.shape[0],), self._constant(value)), t)

    @property
    def curvature_limit(self) -> float:
        return self._constant(self.declared.gradient_lipschitz)

    @property
    def concavity(self) -> float:
        return self._size * max(0.0, -(self.declared.modulus or 0.0))

    def softness(self, operator: LinearOperator) -> float:
        """Of f itself, K x = x."""
        return -self._size * (self.declared.modulus or 0.0)

    def second(self, t: Tensor) -> Tensor:
        return self._everywhere(self.declared.gradient_lipschitz, t)

    def curvature_bounds(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        """The lower end is not above 0: f'' less the modulus, which ``softness`` gives to the energy, is between
        them, too. The upper one is declared, or that of the Hessian at t with what it changes within the radius."""
        high = self.second(t)
        if self.declared.gradient_lipschitz is None and self._few(t):
            high = expand(self._size * hessian_norm(self.function, t), t) + self.third_bound(t, radius) * radius
        return torch.full_like(high, -self.concavity), high

    def curvature_change(self, t: Tensor, radius: Tensor | float) -> Tensor:
        return self.third_bound(t, radius) * radius

    def third_bound(self, t: Tensor, radius: Tensor | float) -> Tensor:
        return self._everywhere(self.declared.hessian_lipschitz, t)

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """A factor of f, and all parameters of R as the group "value"."""
        modulus = torch.tensor(self._size * abs(self.declared.modulus or 0.0), dtype=torch.float64)
        return Density("log_factor", (), excess=modulus), OwnBound("value", self.parameter_bound)

    def parameter_bound(self, t: Tensor, V: Tensor, y: Tensor, Y: Tensor, errors: ResponseErrors) -> ParameterBound:
        """‖C(t) V - C(t^) V^‖ <= ‖C(t) - C(t^)‖ ‖V‖ + ‖C(t^)‖ ‖V - V^‖ for C = ∂_theta ∇f, the norm of which is
        declared, or follows from that at t."""
        changing, size = self._constant(self.declared.cross_lipschitz), norm_samples(V)
        if self.declared.cross_bound is None:
            here = self._size * cross_norm(self.function, t)
            steady = here + changing * errors.t
        else:
            here = steady = torch.full_like(size, self._constant(self.declared.cross_bound))
        return ParameterBound(changing * errors.t * size, steady, torch.zeros_like(size), here * size)

    def _few(self, t: Tensor) -> bool:
        """Whether second derivatives at a point of this shape are few enough to look at all of them."""
        return t[0].numel() <= MOST_MEASURED

    def _few_learned(self) -> bool:
        return sum(t.numel() for t in self.learned()) <= MOST_MEASURED

    # ---- examination -------------------------------------------------------------------------------------------------

    def screen(self, shape: tuple[int, ...], device: torch.device | None) -> None:
        if self.declared.examined:
            screen(self.function, self.declared.name, shape, device)

    def hidden_rounding(self, x: Tensor, v: Tensor | None = None) -> Tensor:
        """The difference between both precisions, in units of that of x, at two points, lest it be small by chance;
        where float32 does not hold the numbers or the function does not take it, the sizes at 0 and at x."""
        eps = torch.finfo(x.dtype).eps
        largest = x.new_zeros(len(x))
        with torch.no_grad():
            for point in (x, x * (1.0 + 2.0**-9)):
                fine = self._derivative(point, v, torch.float64)
                try:
                    coarse = self._derivative(point, v, torch.float32).double()
                except (LearnregError, RuntimeError):  # it holds tensors of its own, in float64
                    coarse = torch.full_like(fine, math.nan)
                difference = norm_samples(fine - coarse) / torch.finfo(torch.float32).eps
                own = 2.0 * norm_samples(fine)
                if v is None and not bool(torch.isfinite(difference).all()):
                    own = own + 8.0 * norm_samples(self._derivative(torch.zeros_like(x), None, torch.float64))
                largest = torch.maximum(largest, torch.where(torch.isfinite(difference), difference, own).to(x))
        return _UNLUCKY * eps * largest

    def _derivative(self, x: Tensor, v: Tensor | None, dtype: torch.dtype) -> Tensor:
        """∇f(x), or f''(x) v, computed in a precision."""
        if dtype not in self._others:
            self._others[dtype] = self.to(dtype).detached()
        other = self._others[dtype]
        return other.grad(x.to(dtype)) if v is None else other.hess_vec(x.to(dtype), v.to(dtype))

    def doubt(self, t: Tensor, gradients: bool) -> str:
        lacks = self.declared.lacks(gradients, self._few(t), self._few(t) or self._few_learned())
        if lacks:
            return lacks
        if not gradients and (dtype := UpperLoss(self.function.value).computes_in(t)) != t.dtype:
            return f"{self.declared.name}.value computes in {dtype} inside; let it compute in the dtype of x"
        probe(self.function, self.declared, t, gradients)
        return ""
