"""How far x is from the lower-level solution: residual bounds, all in 2-norms per sample, shape (batch,).

Notation: F(x, y) = (∇g(x) + K^T y, -K x + ∇f*(y)) is the saddle residual (r_x, r_y), mu the modulus of g.
Every function here returns a *rigorous bound* up to the rounding of its arguments, which ``rounding_floor`` bounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.linear.operator import LinearOperator
from learnreg.linear.samples import norm_samples, sum_samples
from learnreg.lower_level.fused_total_variation import FusedTotalVariation
from learnreg.lower_level.instance import Instance

__all__ = [
    "DualAnswer",
    "StateBound",
    "dual_answer",
    "energy_error",
    "gap_bound",
    "primal_bound",
    "rounding_floor",
    "saddle_bound",
    "smallest_bound",
    "state_residual",
]


@dataclass(frozen=True)
class StateBound:
    """The smallest valid error bound of x (2-norm, (batch,), infinite without a modulus), the norm of the reduced
    energy gradient, the rounding floor of that norm, and the dual point y = f'(K x), whose dtype may be that of t."""

    bound: Tensor
    residual: Tensor
    floor: Tensor
    y: Tensor


def smallest_bound(instance: Instance, x: Tensor, t: Tensor | None = None) -> StateBound:
    """Judge x by the primal form, and with a dual pull-back t by the saddle residual and the duality gap, too, in the
    precision of the instance; x and t may have less. Costs 2 applications, 3 with t, for which potentials without
    conjugates have no use."""
    potential, mu, dtype = instance.potential, instance.strong_convexity, instance.q.dtype
    t = None if potential.prox_obstacle() else t
    fused = None if t is None or mu <= 0 else FusedTotalVariation.of(instance, x, t)
    if fused is not None and t is not None:
        return _fused_bound(fused, x, t, mu)
    x, t = x.to(dtype), None if t is None else t.to(dtype)
    response = instance.apply(x)
    y = potential.grad_into(response, torch.empty_like(response))
    own_pullback = instance.adjoint(y)
    gradient = state_residual(instance, x, own_pullback)
    floor = rounding_floor(instance, x, own_pullback, y=y) + potential.hidden_rounding(x)
    residual = sum_samples(gradient * gradient).sqrt()
    if mu <= 0:
        return StateBound(torch.full_like(residual, torch.inf), residual, floor, y)
    bound = (residual + floor) / mu
    if t is not None:
        pullback = instance.adjoint(potential.grad_into(t, torch.empty_like(t)))
        r_x = sum_samples(state_residual(instance, x, pullback) ** 2)
        distance, r_y = instance.proximal.distances(response, t)
        bound = torch.minimum(bound, saddle_bound(r_x, r_y, mu) + floor / mu)
        gap = distance + instance.quadratic.excess(x, instance.q - pullback, instance.box)
        bound = torch.minimum(bound, gap_bound(gap, mu) + floor / mu)
    return StateBound(bound, residual, floor, y)


def _fused_bound(fused: FusedTotalVariation, x: Tensor, t: Tensor, mu: float) -> StateBound:
    """The same by a kernel; without a constraint the primal part of the gap is r_x² / (2 d)."""
    y, (distance, r_y, r_x, *squares, reduced, own) = fused.judge(x, t)
    dtype = fused.instance.q.dtype
    floor = _floor(dtype, *squares[:2], own)
    saddle, gap = saddle_bound(r_x, r_y, mu), gap_bound(distance + 0.5 * r_x / fused.diagonal, mu)
    bound = torch.minimum(torch.minimum(saddle, gap) + floor / mu, (reduced.sqrt() + floor) / mu)
    return StateBound(bound.to(dtype), reduced.sqrt().to(dtype), floor.to(dtype), y)


@dataclass(frozen=True)
class DualAnswer:
    """x = argmin g + <K^T y, .> for a dual point y, with its error bound (2-norm), an equivalent of the residual (the
    modulus times the saddle bound) and the rounding floor, (batch,) each."""

    x: Tensor
    bound: Tensor
    residual: Tensor
    floor: Tensor


def dual_answer(instance: Instance, t: Tensor, memory: Tensor) -> DualAnswer:
    """The image that belongs to the dual point y = f'(t), for a diagonal M, judged by the saddle residual (whose primal
    part vanishes) and by the duality gap, which is the Bregman distance f(Kx) - f(t) - <y, Kx - t> here. Costs 2
    applications; may overwrite ``memory``, of the shape of t."""
    potential, mu = instance.potential, instance.strong_convexity
    fused = FusedTotalVariation.of(instance, t)
    if fused is not None:
        x, sums = fused.dual_answer(t)
        floor = _floor(x.dtype, *sums[3:]).to(x.dtype)
        gap, r_y, r_x = sums[:3].to(x.dtype)
    else:
        pullback = instance.adjoint(potential.grad_into(t, memory))
        x = instance.box.prox(instance.quadratic.minimiser(instance.q - pullback))
        gap, r_y = instance.proximal.distances(instance.apply(x, memory), t)
        r_x = sum_samples(state_residual(instance, x, pullback) ** 2)
        floor = rounding_floor(instance, x, pullback)
    saddle = saddle_bound(r_x, r_y, mu)
    return DualAnswer(x, torch.minimum(saddle, gap_bound(gap, mu)) + floor / mu, mu * saddle, floor)


def state_residual(instance: Instance, x: Tensor, pullback: Tensor) -> Tensor:
    """The reduced residual ∇E(x) = M x - q + K^T pullback; at a box bound only its inadmissible part counts."""
    return instance.box.reduced_gradient(x, instance.quadratic(x) - instance.q + pullback)


def primal_bound(residual: Tensor, mu: float) -> Tensor:
    """‖x - x^‖ <= ‖∇E(x)‖ / mu for a mu-strongly convex energy (infinite for mu = 0)."""
    return (
        sum_samples(residual * residual).sqrt() / mu
        if mu > 0
        else torch.full_like(residual.flatten(1)[:, 0], torch.inf)
    )


def energy_error(residual: Tensor, e: Tensor, mu: float) -> Tensor:
    """‖√Dbar K (x - x^)‖ <= sqrt(‖r‖ e - mu e²), at most ‖r‖/(2√mu), r the reduced gradient and Dbar the mean of f''
    between x^ and x (Lemma 1, from the inner product of Hbar (x - x^) = r with x - x^), for any bound e of
    ‖x - x^‖."""
    farthest = torch.minimum(e, residual / (2.0 * mu))
    return (residual * farthest - mu * farthest**2).clamp_min(0.0).sqrt() * (1.0 + 1e-12)


def saddle_bound(r_x: Tensor, r_y: Tensor, mu: float) -> Tensor:
    """‖x - x^‖ <= (‖r_x‖ + sqrt(‖r_x‖² + mu ‖r_y‖²_{1/mu_f*})) / (2 mu), strong monotonicity of F, sharper for x
    alone. Takes the squares of these norms, (batch,) each."""
    return (r_x.sqrt() + (r_x + mu * r_y).sqrt()) / (2.0 * mu)


def gap_bound(gap: Tensor, mu: float) -> Tensor:
    """½ mu ‖x - x^‖² <= P(x) - D(y), formed from terms that are not negative, lest rounding rule their difference."""
    return (2.0 * gap.clamp_min(0.0) / mu).sqrt()


def rounding_floor(
    instance: Instance, x: Tensor, pullback: Tensor, rhs: Tensor | None = None, y: Tensor | None = None
) -> Tensor:
    """What rounding may hide in a residual M x - q + pullback (rhs instead of q, if given), (batch,):
    8 eps (‖M x‖ + ‖q‖ + ‖pullback‖), eps that of the dtype or of an operator that computes in less.

    A first-order model of rounding rather than a worst-case bound: sums of n terms err by about eps sqrt(n), and the
    factor 8 covers the operators here. Where y = f'(Kx) is large although K^T y is small, as that of filters in pairs
    ±w, its own rounding counts, too: 4 eps ‖K‖ times the size of its terms, or what bounds it without ``y``.
    """
    terms = (instance.quadratic(x), instance.q if rhs is None else rhs, pullback)
    least = max(_unit_roundoff(instance.forward), _unit_roundoff(instance.analysis))
    floor = _floor(x.dtype, *(sum_samples(t * t) for t in terms), least=least)
    largest = instance.potential.gradient_limit if rhs is None else 0.0
    if largest == 0.0:
        return floor
    places = math.prod(instance.analysis.range_shape[1:])
    size = largest * math.sqrt(places) if y is None else norm_samples(instance.potential.term_size(y))
    return floor + 4.0 * torch.finfo(x.dtype).eps * instance.analysis.norm_bound() * size


def _floor(dtype: torch.dtype, *squares: Tensor, least: float = 0.0) -> Tensor:
    """The rounding floor from the squares of its norms."""
    return 8.0 * max(torch.finfo(dtype).eps, least) * torch.stack([s.sqrt() for s in squares]).sum(0)


def _unit_roundoff(operator: LinearOperator) -> float:
    """The largest of the operator and its parts."""
    return max(part.unit_roundoff for part in operator.modules() if isinstance(part, LinearOperator))
