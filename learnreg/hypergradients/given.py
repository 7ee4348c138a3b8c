"""A given gradient, judged by a certified one at a better point (Lemma 5 of the certificate).

From any x and X Newton steps lead to (x', X'), whose gradient has an error bound B' there (Lemmas 1 to 4). So any
gradient g is within ‖g - G(x', X')‖ + B' of the exact one, x within ‖x - x'‖ + e' and X within ‖X - X'‖ + E'.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from learnreg.certificates.judgement import Verdict, gradient_distance, gradient_norm, judge
from learnreg.hypergradients.base import Goal, HypergradientMethod, Outcome
from learnreg.hypergradients.implicit import Implicit
from learnreg.hypergradients.search import Request, Search
from learnreg.hypergradients.sharp_search import refine
from learnreg.linear.samples import norm_samples, sum_samples
from learnreg.lower_level.point import Point
from learnreg.result import BoundKind, Hypergradient, Status
from learnreg.solvers.newton_correction import correct_adjoint, extended_adjoint

__all__ = ["Given", "adds_little", "judge_given", "of_own_gradient", "with_adjoint"]

_SHARE = 0.02
"""Share of the distance to the corrected gradient that its own bound may add."""

_SMALLEST = 1e-10
"""Relative accuracy of the corrected gradient beyond which no more corrections are made."""

_ADJOINT = 1e-3
"""Relative residual of the adjoint state where none is given."""

_ASKED_AGAIN, _IDLE, _AIM, _LEAST_TIGHTER, _LEAST_GAIN = 8, 2, 0.3, 1e-4, 0.5
"""How often a method's gradient is asked for again, and how often in a row without getting better by the last factor;
the share of the tolerance that it then aims at, and how much tighter the goal gets at most, and at least."""

Gradient = dict[str, Tensor]


@dataclass(frozen=True)
class Given:
    """verdict: of the given x, X and gradient. kind: what its bounds are. corrected: of the better point they were
    compared with, and corrected_error, the bound or estimate of its gradient's error. status: how its search ended."""

    verdict: Verdict
    kind: BoundKind
    corrected: Verdict
    corrected_error: float
    status: Status


def adds_little(given: Gradient, verdict: Verdict) -> float:
    """The error bound of a corrected gradient that adds little to its distance from the given one."""
    return max(_SHARE * gradient_distance(given, verdict.gradient), _SMALLEST * verdict.norm)


def _decides(given: Gradient, request: Request, verdict: Verdict) -> float:
    """The error bound of a corrected gradient that shows the given one to meet the request, or that adds little to its
    distance and meets the request itself."""
    spare = request.enough(gradient_norm(given)) - gradient_distance(given, verdict.gradient)
    return max(spare, min(adds_little(given, verdict), request.enough(verdict.norm)))


def with_adjoint(point: Point, max_steps: int | None = None) -> Point:
    """The point with an adjoint state that is good enough to go on from."""
    size = sum_samples(point.loss_gradient**2).sqrt()
    return point.at(point.x, correct_adjoint(point, _ADJOINT * size, max_steps).point)


def judge_given(
    search: Search, plain: Verdict, gradient: Gradient, target: Callable[[Verdict], float], corrections: bool = True
) -> Given:
    """Lemma 5 for a gradient that came with the point of ``plain``. ``target``: the error bound of the corrected
    gradient that is small enough. Without ``corrections`` only the point itself judges it."""
    final, status = plain, Status.CONVERGED
    if plain.certifiable and corrections:
        goal = Goal(plain.state_error, plain.adjoint_residual)
        start = replace(plain.point, warm=True)
        final, status = refine(search, start, plain, goal, target, Implicit())
    if final.hindrance and final.hindrance.obstacle.asks_for_ball:
        none = replace(plain, gradient=gradient, hindrance=final.hindrance, error_bound=math.inf)
        return Given(none, "none", final, math.inf, status)
    if final.hindrance:
        near = plain if gradient is plain.gradient else _nearer(search, plain.point)
        return _estimated(plain, gradient, search.estimate(near, target))
    at, after, radius = plain.point, final.point, plain.radius
    if at.instance.local and not _same_minimiser(plain, final):
        if plain.hindrance is None:  # final is about another minimiser
            own = replace(plain, gradient=gradient, error_bound=_bound(gradient, plain))
            return Given(own, own.kind, plain, plain.error_bound, status)
        way = norm_samples(at.x - after.x)
        final = search.judge(after, moved=way)
        if final.hindrance:
            none = replace(plain, gradient=gradient, error_bound=math.inf)
            return Given(none, "none", final, math.inf, status)
        radius = torch.maximum(radius, final.radius - way)
    state = torch.minimum(plain.state_error, norm_samples(at.x - after.x) + final.state_error)
    adjoint = torch.minimum(plain.adjoint_error, norm_samples(at.X - after.X) + final.adjoint_error)
    intervals = (at.loss.interval(at.x, state), final.loss_interval)
    verdict = replace(
        plain,
        gradient=gradient,
        error_bound=min(_bound(gradient, plain), _bound(gradient, final)),
        hindrance=None,
        loss_interval=(max(low for low, _ in intervals), min(high for _, high in intervals)),
        state_error=state,
        adjoint_error=adjoint,
        failure=plain.failure + final.failure,
        radius=radius,
    )
    return Given(verdict, verdict.kind, final, final.error_bound, status)


def _same_minimiser(plain: Verdict, final: Verdict) -> bool:
    """Whether the ball around the given x contains the minimiser that the other point is close to, which then is that
    of both. Without it, a ball around the other point may be large enough for one around x."""
    way = norm_samples(plain.point.x - final.point.x) + final.state_error
    return plain.hindrance is None and bool((way <= plain.radius).all())


def _nearer(search: Search, point: Point) -> Verdict:
    """Where Newton's method contracts, from a point that need not be there."""
    return search.judge(search.improve(point, search.first_goal(point), Implicit())[0])


def _bound(gradient: Gradient, verdict: Verdict) -> float:
    """‖g - G‖ + B, with what the dtype of the given gradient rounds off."""
    if gradient is verdict.gradient:
        return verdict.error_bound
    rounding = sum(torch.finfo(g.dtype).eps * float(g.double().norm()) for g in gradient.values())
    return gradient_distance(gradient, verdict.gradient) * (1.0 + 1e-12) + rounding + verdict.error_bound


def _estimated(plain: Verdict, gradient: Gradient, found: Hypergradient) -> Given:
    """No bound exists: the distance to what Newton corrections lead to is an estimate."""
    at = plain.point
    x = at.instance.latent.extend(found.x.double())
    final = judge(at.at(x, extended_adjoint(at.instance, x, found.X.double())))
    bound = gradient_distance(gradient, final.gradient) + found.error_bound
    verdict = replace(
        plain,
        gradient=gradient,
        error_bound=bound,
        loss_interval=(-math.inf, math.inf),
        state_error=torch.minimum(plain.state_error, 1.1 * norm_samples(at.x - final.point.x)),
        adjoint_error=1.1 * norm_samples(at.X - final.point.X),
    )
    kind: BoundKind = "estimate" if math.isfinite(bound) else "none"
    return Given(verdict, kind, final, found.error_bound, found.status)


def of_own_gradient(
    search: Search, method: HypergradientMethod, point: Point, outcome: Outcome, goal: Goal
) -> Hypergradient:
    """The gradient that a method returned, with its bound, and the corrected one beside it; asked for again, more
    accurately, while that pays."""
    (best, reached), idle = _own_gradient(search, method, point, outcome), 0
    for _ in range(_ASKED_AGAIN if method.improves else 0):
        done = best.status.converged or outcome.status is not Status.CONVERGED or search.out_of_steps()
        if done or idle == _IDLE:
            break
        share = _AIM * search.request.enough(best.norm) / best.error_bound
        goal = goal.within_reach(reached).times(min(max(share, _LEAST_TIGHTER), _LEAST_GAIN))
        point, outcome = search.improve(point, goal, method)
        found, reached = _own_gradient(search, method, point, outcome)
        idle = 0 if found.error_bound < _LEAST_GAIN * best.error_bound else idle + 1
        best = found if found.status.converged or found.error_bound < best.error_bound else best
    steps = max(search.state_steps, search.adjoint_steps)
    return replace(best, steps=steps, operator_applications=search.instance.counter.applications)


def _own_gradient(
    search: Search, method: HypergradientMethod, point: Point, outcome: Outcome
) -> tuple[Hypergradient, Tensor]:
    """The gradient of one run, and the residual of its adjoint state, (batch,)."""
    assert outcome.gradient is not None
    gradient = {name: g.detach() for name, g in outcome.gradient.items()}
    plain = search.judge(with_adjoint(point.on(search.exact_instance)) if outcome.X is None else point)
    given = judge_given(search, plain, gradient, partial(_decides, gradient, search.request))
    enough = search.request.enough(gradient_norm(gradient))
    if given.verdict.error_bound <= enough:
        status = Status.CONVERGED if given.kind == "rigorous" else Status.ESTIMATED
    elif outcome.status is not Status.CONVERGED:
        status = outcome.status
    elif given.corrected_error <= enough or given.status.converged:
        status = method.miss
    else:
        status = given.status
    result = search.result(given.verdict, given.verdict.error_bound, given.kind, status, given.verdict.reason)
    low, high = result.loss_interval  # of the corrected point, too, and so may leave out the loss at x
    whole = replace(
        result,
        loss_interval=(min(low, result.loss), max(high, result.loss)),
        corrected_gradient=given.corrected.gradient,
        corrected_error_bound=given.corrected_error,
    )
    return whole, plain.adjoint_residual
