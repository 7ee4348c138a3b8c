"""Lower levels with an l1-norm: is the sign pattern of a computed solution that of the exact one, and near it; and how
far are state, dual point and hypergradient from theirs (Lemmas L2 and L3).

All numbers are *rigorous bounds* per sample, (batch,), up to the first-order model of rounding of ``state``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.certificates.assumptions import missing_assumption
from learnreg.certificates.data_parameters import data_groups
from learnreg.certificates.fenchel import FenchelGap, pullback_floor
from learnreg.certificates.groups import GroupBound, group_norm
from learnreg.certificates.judgement import Verdict, gradient_norm
from learnreg.certificates.obstacle import Hindrance, Obstacle
from learnreg.certificates.state import rounding_floor
from learnreg.linear.parameter_groups import Pairing, ParameterGroup, shape_of
from learnreg.linear.samples import norm_samples
from learnreg.lower_level.pairing import Responses, SignedDuals, evaluate_pairing
from learnreg.lower_level.point import Point
from learnreg.lower_level.sign_pattern import ReducedSystem

__all__ = ["judge_pattern"]

_MARGIN, _ROUNDING, _RESPONSE = 1e-12, 1e-13, 8.0
"""Of weights and row norms; of the gradient's terms; and of responses in units of eps ‖k_i‖ ‖x‖."""


@dataclass(frozen=True)
class _Errors:
    """Those of x and y, or of X and Y, (batch,), and the residual they follow from."""

    x: Tensor
    y: Tensor
    residual: Tensor


@torch.no_grad()
def judge_pattern(point: Point, duals: SignedDuals, systems: Sequence[ReducedSystem], y: Tensor) -> Verdict:
    """The hypergradient of a sign pattern at x and X, its dual points and its reduced systems, with its error bound: an
    infinite one where the pattern is not certified, an *estimate* where something else is the hindrance. ``y``: another
    dual point, to bound the error of x by then. The point's instance is in float64."""
    instance, loss, x, mu = point.instance, point.loss, point.x, point.instance.strong_convexity
    gradient, responses = evaluate_pairing(point, duals)
    state = _errors(point, x, duals.y, -instance.q, systems)
    undecided = _undecided(point, duals, systems, responses, state) if mu > 0 else None
    hindrance = undecided or missing_assumption(point.frozen, instance, loss, x)
    if undecided is None and mu > 0:
        e, change = state.x, loss.gradient_change(x, state.x)
        adjoint = _errors(point, point.X, duals.Y, point.loss_gradient, systems, 0.0 if change is None else change)
        E, bound = adjoint.x, _gradient_bound(point, duals, responses, state, adjoint, gradient)
    else:
        adjoint = _errors(point, point.X, duals.Y, point.loss_gradient, systems)
        e = torch.minimum(*(FenchelGap.of(instance, x, _inside(point, v)).bound(mu) for v in (duals.y, y)))
        E, bound = torch.full_like(e, math.inf), math.inf
    return Verdict(
        point=point,
        gradient=gradient,
        error_bound=bound,
        hindrance=hindrance,
        loss=float(loss.value(x)),
        loss_interval=(-math.inf, math.inf) if hindrance and hindrance.obstacle.hides_loss else loss.interval(x, e),
        state_error=e,
        adjoint_error=E,
        state_residual=state.residual,
        adjoint_residual=adjoint.residual,
        state_share=bound,
        adjoint_share=0.0,
        radius=torch.full_like(e, math.inf),
        rung="sharp",
        floors=(torch.zeros_like(e), torch.zeros_like(e)),
    )


def _inside(point: Point, y: Tensor) -> Tensor:
    return point.instance.nonsmooth.dual_prox(y)


def _errors(
    point: Point, x: Tensor, y: Tensor, rhs: Tensor, systems: Sequence[ReducedSystem], change: Tensor | float = 0.0
) -> _Errors:
    """From the residuals of (1), M x + K^T y + rhs, where rhs may be wrong by ``change``, and K_B x: with sigma below
    the singular values of K_B the part of the error across its kernel is at most ‖K_B x‖/sigma, that on it follows from
    M >= mu, and that of y_B from K_B^T dy = r_1 - M dx."""
    instance = point.instance
    pullback, response = instance.adjoint(y), instance.apply(x)
    first = norm_samples(instance.quadratic(x) + rhs + pullback) + change
    first = first + rounding_floor(instance, x, pullback, rhs) + pullback_floor(instance, y)
    rows, eps = [s.dense.row_norms[s.basis].norm() for s in systems], torch.finfo(x.dtype).eps
    second = [t.flatten()[s.basis].norm() for t, s in zip(response, systems, strict=True)]
    hidden = _RESPONSE * eps * torch.stack(rows) * norm_samples(x)
    smallest = x.new_tensor([s.smallest for s in systems]).clamp_min(0.0)
    across = (torch.stack(second) + hidden) / smallest
    size, mu = instance.quadratic.norm(), instance.strong_convexity
    e = across + (first + size * across) / mu if mu > 0 else torch.full_like(first, math.inf)
    return _Errors(e * (1.0 + _MARGIN), (first + size * e) / smallest * (1.0 + _MARGIN), first)


def _undecided(
    point: Point, duals: SignedDuals, systems: Sequence[ReducedSystem], responses: Responses, state: _Errors
) -> Hindrance | None:
    """Why the pattern may not be that of the solution, and of the solutions nearby; None if it is (Lemma L2)."""
    eps, learned = torch.finfo(point.x.dtype).eps, _operator_learned(point)
    for i, system in enumerate(systems):
        if len(system.rest) and (learned or not system.dependent()):
            why = "the operator is learned" if learned else "rounding leaves it open whether exactly"
            return _met(f"{len(system.rest)} vanishing responses depend on the others, and {why}")
        if not system.smallest > 0:
            return _met("vanishing responses are nearly dependent")
        weight, rows = system.dense.weight * (1.0 - _MARGIN), system.dense.row_norms * (1.0 + _MARGIN)
        signs, y, t = duals.signs[i].flatten(), duals.y[i].flatten(), responses.t[i].flatten()
        error = torch.zeros_like(y)
        error[system.basis] = state.y[i]
        reach = rows * (state.x[i] + _RESPONSE * eps * point.x[i].norm())
        open_ = torch.where(system.zero, ~(y.abs() + error < weight), ~(signs * t > reach))
        if bool(open_.any()):
            return _met(
                f"{int(open_.sum())} responses are as near 0 as their dual points are to the weight, where the "
                "solution may have no derivative"
            )
    return None


def _met(sentence: str) -> Hindrance:
    return Obstacle.SIGN_PATTERN.met(sentence=sentence)


def _learned(point: Point) -> list[ParameterGroup]:
    """The groups of operator and potential that learnable parameters belong to."""
    roles = point.frozen.parameter_roles()
    named = {roles.get(n) for n, p in point.frozen.regularizer.named_parameters() if p.requires_grad}
    return [group for group in point.instance.parameter_groups() if group.name in named]


def _operator_learned(point: Point) -> bool:
    """Whether it has learnable parameters, as far as anything says."""
    roles = point.frozen.parameter_roles()
    unknown = any(p.requires_grad and n not in roles for n, p in point.frozen.regularizer.named_parameters())
    return unknown or any(group.part == "operator" for group in _learned(point))


def _gradient_bound(
    point: Point,
    duals: SignedDuals,
    responses: Responses,
    state: _Errors,
    adjoint: _Errors,
    gradient: dict[str, Tensor],
) -> float:
    """Norms of all terms of C(X, y) + C(x, Y) - C(X^, y^) - C(x^, Y^), the root of the sum of squares over the groups,
    and rounding (Lemma L3)."""
    instance, jacobian = point.instance, point.frozen.jacobian_bounds
    x, X, y, Y = (norm_samples(v) for v in (point.x, point.X, duals.y, duals.Y))
    e, E, L = state.x, adjoint.x, instance.analysis.norm_bound()
    pairing = X * state.y + y * E + E * state.y + x * adjoint.y + Y * e + e * adjoint.y
    weighted = torch.as_tensor(instance.potential.weight) * duals.signs
    none = torch.zeros_like(e)
    raw = [
        (
            GroupBound.by_norm(group.lipschitz * pairing, none)
            if isinstance(group, Pairing)
            else GroupBound.by_norm(none, L * group_norm(weighted, _shape(point, group)))
        ).scaled(jacobian.get(group.name, 1.0))
        for group in _learned(point)
    ]
    largest = instance.quadratic.largest_weight
    groups = raw + data_groups(point.frozen, point.x, point.X, responses, e, largest)
    total = math.sqrt(sum(float(group.at(E, none).sum()) ** 2 for group in groups))
    slopes = [L, 1.0, *(group.lipschitz for group in instance.analysis.parameter_groups())]
    size = max(slopes) * (x * Y + X * y + X * norm_samples(weighted))
    if responses.residual is not None and responses.forward_X is not None:
        residual, forward_X = norm_samples(responses.residual), norm_samples(responses.forward_X)
        size = size + max(1.0, largest) * (residual + 2.0 * instance.forward.norm_bound() * x) * (forward_X + X)
    rounding = _ROUNDING * float((size + x * X).sum()) * max([1.0, *jacobian.values()])
    rounding += sum(2.0 * torch.finfo(g.dtype).eps * gradient_norm({"": g}) for g in gradient.values())
    return (total + rounding) * (1.0 + _MARGIN)


def _shape(point: Point, group: ParameterGroup) -> tuple[int, ...]:
    """Of a parameter of the potential: its weight, or a factor of all of it."""
    return shape_of(point.instance.potential.weight) if group.name == "log_weight" else ()
