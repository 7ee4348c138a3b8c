"""Lemma V: an interval for the loss at the exact solution, whose width is of second order in the errors of x and X.

For any x and X, with d = x^ - x, r = ∇E(x), rho = H(x) X + ∇ell(x), Hbar = M + K^T Dbar K and Dbar the mean of f''
between x and x^: Hbar d = -r, so that

    <∇ell(x), d> = <rho, d> - <X, H d> = <X, r> + <rho, d> + <K X, (Dbar - D) K d>,
    |ell(x^) - ell(x) - <X, r>| <= ‖rho‖ e + ½ L_ell e² + |<K X, (Dbar - D) K d>|.

|Dbar_i - D_i| <= ½ kappa_i |K_i d|, kappa_i a bound of f''' on the interval of response i (a mean over the way from x
to x^), and sum_i omega_i |K_i d|² <= 1 for every mean omega of lo_i/e_en² and 1/(‖K‖ e)² (Lemma 1), so the last term is
at most ½ max_i kappa_i |K_i X| / omega_i; where that is infinite, ‖Delta K X‖ ‖K‖ e. The interval of the loss by the
error of x alone, ‖∇ell‖ e wide, holds, too, and is the one where a constraint binds: there r does not vanish at x^.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from learnreg.certificates.assumptions import missing_state_assumption
from learnreg.certificates.interval import response_radius
from learnreg.certificates.state import energy_error, rounding_floor, state_residual
from learnreg.linear.samples import expand, inner_samples, norm_samples
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.pairing import Responses, evaluate_pairing, sum_gradients
from learnreg.lower_level.point import Point

__all__ = ["LossEnclosure", "enclose_loss"]

_NEGLIGIBLE = 1e-3
"""Share of the width by the error of x alone below which a term is good enough."""


@dataclass(frozen=True)
class LossEnclosure:
    """The hypergradient formed at a point, without a bound, and the loss at the exact solution.

    lower, upper: contain it, a *rigorous bound* if ``certified``, infinite where there is none. state_part,
    adjoint_part: halves of the width that fall with the square of the error of x, and with it times the residual of X.
    first_order: the interval comes from the error of x alone, and falls with that. error: of x, 2-norm, (batch,).
    """

    gradient: dict[str, Tensor]
    lower: float
    upper: float
    state_part: float
    adjoint_part: float
    first_order: bool
    certified: bool
    error: Tensor


@torch.no_grad()
def enclose_loss(point: Point) -> LossEnclosure:
    """By Lemma V, in float64; the point's instance is in float64. Costs 4 applications, 6 with learnable operators."""
    x = point.instance.box.exactly(point.x).double()
    point = replace(point, x=x, X=point.X.double())
    instance, loss = point.instance, point.loss
    parts = [_enclose_part(part) for part, _ in point.parts()]
    gradient, e = sum_gradients([p.gradient for p in parts]), torch.cat([p.error for p in parts])
    certified = missing_state_assumption(instance, x) is None and loss.computes_in(x) == torch.float64
    certified = certified and instance.strong_convexity > 0
    change = loss.gradient_change(x, e) if certified else None
    if change is None or not bool(torch.isfinite(e).all()):
        lower, upper = loss.interval(x, e) if certified else (-math.inf, math.inf)
        return LossEnclosure(gradient, lower, upper, math.inf, math.inf, True, certified and lower > -math.inf, e)
    value = float(loss.value(x))
    state_part = float((torch.cat([p.bent for p in parts]) + 0.5 * change * e).sum())
    adjoint_part = float((torch.cat([p.adjoint_norm for p in parts]) * e).sum())
    correction = float(torch.cat([p.correction for p in parts]).sum())
    half = (state_part + adjoint_part) * (1.0 + 1e-12) + 1e-13 * (abs(value) + abs(correction))
    low, high = loss.interval(x, e)
    first_order = not (math.isfinite(half) and 2.0 * half < high - low)
    if not first_order:
        low, high = max(low, value + correction - half), min(high, value + correction + half)
    return LossEnclosure(gradient, low, high, state_part, adjoint_part, first_order, low <= high, e)


@dataclass(frozen=True)
class _Part:
    """Of some samples: the gradient; the error e of x, <X, r>, ‖rho‖ and the bound of the term in f''' with what
    rounding hides in <X, r>, (batch,) each."""

    gradient: dict[str, Tensor]
    error: Tensor
    correction: Tensor
    adjoint_norm: Tensor
    bent: Tensor


def _enclose_part(point: Point) -> _Part:
    instance, x, X = point.instance, point.x, point.X
    gradient, responses = evaluate_pairing(point)
    pullback, bent = instance.adjoint(responses.y), instance.adjoint(responses.Y)
    residual = state_residual(instance, x, pullback)
    floor = _rounding(instance, x, pullback, responses.y)
    state_norm = norm_samples(residual) + floor
    mu = instance.strong_convexity
    e = state_norm / mu if mu > 0 else torch.full_like(state_norm, math.inf)
    slope = point.loss_gradient
    adjoint_floor = rounding_floor(instance, X, bent, slope) + instance.potential.hidden_rounding(x, X)
    adjoint_norm = norm_samples(instance.quadratic(X) + bent + slope) + adjoint_floor
    bending = _bending(point, responses, state_norm, e) + floor * norm_samples(X)
    return _Part(gradient, e, inner_samples(X, residual), adjoint_norm, bending)


def _rounding(instance: Instance, x: Tensor, pullback: Tensor, y: Tensor) -> Tensor:
    """The rounding floor of ∇E(x), (batch,), with the Frobenius norm of K in place of its 2-norm, which would have to
    be found at every theta."""
    rows = torch.as_tensor(instance.potential.reach(instance.analysis)).to(y)
    frobenius = float(rows.expand(y.shape[1:]).square().sum().sqrt())
    floor = rounding_floor(instance, x, pullback, instance.q) + instance.potential.hidden_rounding(x)
    return floor + 4.0 * torch.finfo(y.dtype).eps * frobenius * norm_samples(y)


def _bending(point: Point, responses: Responses, state_norm: Tensor, e: Tensor) -> Tensor:
    """Bound of |<K X, (Dbar - D) K d>|, (batch,); infinite where none is known. ‖K‖, which has to be found at every
    theta, is asked for only where the bound without it is no small one."""
    instance = point.instance
    potential, mu = instance.potential, instance.strong_convexity
    t, none = responses.t, torch.full_like(e, math.inf)
    if instance.box.constrains or mu <= 0 or not bool(torch.isfinite(e).all()):
        return none
    if potential.foreign and potential.doubt(t, gradients=True):
        return none
    radius = response_radius(instance, e, t)
    if not bool(potential.kink_excluded(t, radius).all()):
        return none
    low, _ = potential.curvature_bounds(t, radius)
    if not potential.convex:
        low = low + potential.concavity
    size, third = potential.bending_size(responses.V, t, radius), potential.third_bound(t, radius)
    energy = energy_error(state_norm, e, mu)
    slope = torch.where(size == 0, 0.0, third * size)
    bound = 0.5 * energy**2 * torch.where(slope == 0, 0.0, slope / low.clamp_min(0.0)).flatten(1).amax(1)
    if bool((bound <= _NEGLIGIBLE * norm_samples(point.loss_gradient) * e).all()):
        return bound * (1.0 + 1e-12)
    if not _knows_norm(instance, point.x, t):
        return torch.where(torch.isnan(bound), math.inf, bound) * (1.0 + 1e-12)
    plain = instance.analysis.norm_bound() * e
    for share in (0.5, 0.0):
        weights = share * low.clamp_min(0.0) / _expanded(energy**2, low) + (1.0 - share) / _expanded(plain**2, low)
        bound = _least(bound, 0.5 * torch.where(slope == 0, 0.0, slope / weights).flatten(1).amax(1))
    if not bool(torch.isfinite(bound).all()):
        change = torch.where(size == 0, 0.0, potential.curvature_change(t, radius) * size)
        bound = _least(bound, norm_samples(change) * plain)
    return torch.where(torch.isnan(bound), math.inf, bound) * (1.0 + 1e-12)


def _knows_norm(instance: Instance, x: Tensor, t: Tensor) -> bool:
    """Whether a bound of ‖K‖ is at hand that may not fail, and that t = K x does not contradict."""
    longest = instance.analysis.norm_bound() * (1.0 + 1e-9) * norm_samples(x)
    return instance.analysis.norm_bound_kind != "probabilistic" and bool((norm_samples(t) <= longest).all())


def _expanded(values: Tensor, like: Tensor) -> Tensor:
    """Positive numbers per sample, to broadcast."""
    return expand(values.clamp_min(torch.finfo(values.dtype).tiny ** 0.5), like)


def _least(a: Tensor, b: Tensor) -> Tensor:
    """The smaller one, where it is a number."""
    return torch.where(b < a, b, torch.where(torch.isnan(a), b, a))
