"""How far x is from the lower-level solution: residual bounds, all in 2-norms per sample, shape (batch,).

Notation: F(x, y) = (∇g(x) + K^T y, -K x + ∇f*(y)) is the saddle residual (r_x, r_y), mu the modulus of g.
Every function here returns a *rigorous bound* up to the rounding of its arguments, which ``rounding_floor`` bounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.blocks import sum_blocks
from learnreg.convex import sum_samples
from learnreg.problem import Instance

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
    energy gradient, the rounding floor of that norm, the responses K x and the dual point y = f'(K x)."""

    bound: Tensor
    residual: Tensor
    floor: Tensor
    response: Tensor
    y: Tensor


def smallest_bound(
    instance: Instance, x: Tensor, t: Tensor | None = None, pullback: Tensor | None = None
) -> StateBound:
    """Judge x by the primal form, and with a dual pull-back t by the saddle residual and the duality gap, too.

    ``pullback`` is K^T f'(t), if it is known. Costs 2 applications, 3 with t.
    """
    potential, mu = instance.potential, instance.strong_convexity
    response = instance.apply(x)
    y = potential.grad(response)
    own_pullback = instance.adjoint(y)
    gradient = state_residual(instance, x, own_pullback)
    floor = rounding_floor(instance, x, own_pullback)
    residual = sum_samples(gradient * gradient).sqrt()
    if mu <= 0:
        return StateBound(torch.full_like(residual, torch.inf), residual, floor, response, y)
    bound = (residual + floor) / mu
    if t is not None:
        if pullback is None:
            pullback = instance.adjoint(potential.grad(t))
        r_x = state_residual(instance, x, pullback)
        dual_modulus = potential.conjugate_strong_convexity
        bound = torch.minimum(bound, saddle_bound(r_x, t - response, dual_modulus, mu) + floor / mu)
        if instance.diagonal is not None:
            # the minimiser of g + <K^T y, .> is exact for a diagonal M, so the dual value is one, too
            z = (instance.q - pullback) / instance.diagonal
            z = z if instance.box is None else instance.box.prox(z)
            dual = instance.data_energy(z) + sum_samples(z * pullback) - potential.conjugate_at_gradient(t)
            terms = (instance.quadratic(x) * x, instance.q * x, instance.quadratic(z) * z, instance.q * z, z * pullback)
            magnitude = 2.0 * instance.half_square + potential.value(response) + potential.value(t)
            magnitude = magnitude + sum(sum_samples(term.abs()) for term in terms)
            magnitude = magnitude + sum_samples((t * potential.grad(t)).abs())
            bound = torch.minimum(bound, gap_bound(instance.energy(x, response), dual, mu, magnitude))
    return StateBound(bound, residual, floor, response, y)


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
    applications; overwrites ``memory``, of the shape of t."""
    potential, mu = instance.potential, instance.strong_convexity
    assert instance.diagonal is not None
    pullback = instance.adjoint(potential.grad_into(t, memory))
    x = (instance.q - pullback) / instance.diagonal
    x = x if instance.box is None else instance.box.prox(x)
    response = instance.apply(x, memory)
    sums = (
        (sum_samples(f.divergence(r, p)), sum_samples((r - p).square_() / f.conjugate_strong_convexity))
        for f, r, p in potential.blocks(response, t)
    )
    gap, r_y = sum_blocks(sums, t.shape[0])
    r_x = sum_samples(state_residual(instance, x, pullback) ** 2)
    floor = rounding_floor(instance, x, pullback)
    saddle = (r_x.sqrt() + (r_x + mu * r_y).sqrt()) / (2.0 * mu)
    bound = torch.minimum(saddle, (2.0 * gap.clamp_min(0.0) / mu).sqrt()) + floor / mu
    return DualAnswer(x, bound, mu * saddle, floor)


def state_residual(instance: Instance, x: Tensor, pullback: Tensor) -> Tensor:
    """The reduced residual ∇E(x) = M x - q + K^T pullback; at a box bound only its inadmissible part counts."""
    grad = instance.quadratic(x) - instance.q + pullback
    return grad if instance.box is None else instance.box.reduced_gradient(x, grad)


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


def saddle_bound(r_x: Tensor, r_y: Tensor, dual_modulus: Tensor | float, mu: float) -> Tensor:
    """‖x - x^‖ <= (‖r_x‖ + sqrt(‖r_x‖² + mu ‖r_y‖²_{1/mu_f*})) / (2 mu), strong monotonicity of F, sharper for x
    alone."""
    primal = sum_samples(r_x * r_x)
    dual = sum_samples(r_y * r_y / dual_modulus)
    return (primal.sqrt() + (primal + mu * dual).sqrt()) / (2.0 * mu)


def gap_bound(primal_value: Tensor, dual_value: Tensor, mu: float, magnitude: Tensor) -> Tensor:
    """½ mu ‖x - x^‖² <= P(x) - D(y), widened by the rounding of the difference; ``magnitude`` is the sum of the
    absolute values of all terms that P and D add up, which may be far larger than either."""
    rounding = 32.0 * torch.finfo(primal_value.dtype).eps * magnitude
    return (2.0 * ((primal_value - dual_value).clamp_min(0.0) + rounding) / mu).sqrt()


def rounding_floor(instance: Instance, x: Tensor, pullback: Tensor, rhs: Tensor | None = None) -> Tensor:
    """What rounding may hide in a residual M x - q + pullback (rhs instead of q, if given), (batch,):
    8 eps (‖M x‖ + ‖q‖ + ‖pullback‖).

    A first-order model of rounding rather than a worst-case bound: sums of n terms err by about eps sqrt(n), and the
    factor 8 covers the operators here.
    """
    eps = 8.0 * torch.finfo(x.dtype).eps
    terms = (instance.quadratic(x), instance.q if rhs is None else rhs, pullback)
    return eps * sum((sum_samples(t * t).sqrt() for t in terms), torch.zeros_like(instance.half_square))
