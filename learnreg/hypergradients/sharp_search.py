"""The search for the sharp certificate: the method's iterates, corrected by Newton steps (Lemma 5).

A first run of the method leads into the region where Newton's method contracts, or is repeated until it does. What the
judgement says of errors there tells how accurate the state and the adjoint state have to be. Where the corrections lead
is judged afresh, so that a step that did not pay is dropped and costs time alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.certificates.judgement import OUTLOOK, Verdict
from learnreg.hypergradients.base import Goal, HypergradientMethod, Outcome
from learnreg.hypergradients.search import LIMITED, Search
from learnreg.linear.samples import sum_samples
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.point import Point
from learnreg.result import Hypergradient, Status
from learnreg.solvers.newton_correction import approach_state, correct_adjoint

__all__ = ["SharpSearch", "refine"]

_MAX_ROUNDS, _MAX_IDLE_ROUNDS, _MAX_IDLE_BELOW, _PROGRESS = 24, 6, 2, 0.9
_FIRST_ADJOINT = 0.1
_FIRST_FORCING, _LARGEST_FORCING = 0.03, 0.1
_CONTRACTION, _MET = 0.5, 1.05
_STATE_SHARE, _SHARE, _SMALLEST_FACTOR = 0.42, 0.93, 1e-8
"""Shares of the tolerance that the state may take, and both states; the least that a residual shrinks by at once."""

_ILL_CONDITIONED = 1000.0
_NEAR, _NEARER = 1e-3, 1e-4
"""Relative accuracy of the first state: within it Newton's method contracts on most problems, and on ill-conditioned
ones, where a step that fails is expensive."""


@dataclass(frozen=True)
class _Position:
    """Where the search stands: a point, what is known of it, the relative residual of the next Newton step, how the
    method that led there ended, whether rounding keeps the state from getting any better, and whether the precision of
    the data kept a correction from its goal."""

    point: Point
    verdict: Verdict
    forcing: float
    ended: Status = Status.CONVERGED
    state_final: bool = False
    exact: bool = False


class SharpSearch(Search):
    """Newton corrections of the state until its share of the bound is small, then the adjoint equation there."""

    def first_goal(self, point: Point) -> Goal:
        """A state from which Newton's method should contract, and an adjoint state good enough to weigh errors."""
        near = _NEARER if self.instance.condition_bound() >= _ILL_CONDITIONED else _NEAR
        size = sum_samples(point.x.double() ** 2).sqrt().clamp_min(1e-6)
        slope = sum_samples(point.loss_gradient.double() ** 2).sqrt()
        loose = (_FIRST_ADJOINT * slope).clamp_min(torch.finfo(torch.float64).tiny)
        return Goal(near * size, loose)

    def polished(self, point: Point) -> Point:
        """Where to judge for the first time, from where the method led."""
        return point

    def follow(self, point: Point, outcome: Outcome, goal: Goal) -> Hypergradient:
        point = self.polished(point)
        verdict = self.judge(point, self.request.enough)
        if not verdict.certifiable:
            return self.estimate(verdict, self.target)
        best, status = refine(self, point, verdict, goal, self.target)
        if best.hindrance:
            return self.estimate(best, self.target, None if status is Status.CONVERGED else status)
        return self.certified(best, status)


def refine(
    search: Search,
    point: Point,
    verdict: Verdict,
    goal: Goal,
    target: Callable[[Verdict], float],
    method: HypergradientMethod | None = None,
) -> tuple[Verdict, Status]:
    """Corrections until the bound meets the target of its verdict: the best verdict and how it ended. ``goal``: what
    the point was computed to. ``method``: what goes on where they fail, the one of the search by default."""
    best, status = _descend(search, _Position(point, verdict, _FIRST_FORCING), goal, target, method)
    while status not in (Status.CONVERGED, Status.MAX_STEPS) and search.climb():
        verdict = search.judge(best.point)
        best, status = _descend(search, _Position(verdict.point, verdict, _FIRST_FORCING), goal, target, method)
    return best, status


def _descend(
    search: Search,
    at: _Position,
    goal: Goal,
    target: Callable[[Verdict], float],
    method: HypergradientMethod | None,
) -> tuple[Verdict, Status]:
    """On one rung."""
    best, status, idle = at.verdict, Status.STAGNATED, 0
    for _ in range(_MAX_ROUNDS):
        if best.error_bound <= target(best):
            return best, Status.CONVERGED
        if search.out_of_steps():
            return best, Status.MAX_STEPS
        moved = _correct(search, at, target)
        if moved is None:
            goal = Goal(0.1 * torch.minimum(goal.state, at.verdict.state_error), goal.adjoint)
            moved = _go_on(search, at, goal, method)
            status = moved.ended
        elif at.state_final and not moved.verdict.better(best, _PROGRESS):
            break
        idle = 0 if moved.verdict.better(best, _PROGRESS) else idle + 1
        at = moved
        if at.verdict.better(best):
            best = at.verdict
        if idle >= (_MAX_IDLE_ROUNDS if search.last_rung else _MAX_IDLE_BELOW):
            break
    return best, Status.STAGNATED if status is Status.CONVERGED else status


def _correct(search: Search, at: _Position, enough: Callable[[Verdict], float]) -> _Position | None:
    """Newton steps for the state if its share of the bound is too large, then the adjoint equation if they lead far
    enough; None if they neither contracted nor led to a bound that meets the target."""
    verdict, target, point = at.verdict, enough(at.verdict), at.verdict.point
    wanted = 1.0 if at.state_final else _state_factor(target, verdict)
    before, reached, aim = verdict.state_residual, True, wanted * verdict.state_residual
    if wanted < 1.0:
        left = search.request.steps_left(search.state_steps)
        instance = _instance(search, at, aim, verdict.floors[0])
        x, goal_of_state = point.x.to(instance.q), aim.to(instance.q)
        step = approach_state(instance, x, goal_of_state, at.forcing, left, search.request.newton_steps)
        search.state_steps += step.steps
        if not step.contracted:
            return None
        before, reached = step.before.to(aim), step.reached
        point = point.at(step.point.to(aim), point.X)
    goal = torch.full_like(aim, math.inf)
    if reached:
        target = max(target, 2.0 * verdict.state_share) if at.state_final else target
        goal = verdict.adjoint_residual * _adjoint_factor(target, verdict, wanted)
        instance = _instance(search, at, goal, verdict.floors[1])
        left = search.request.steps_left(search.adjoint_steps)
        solved = correct_adjoint(point.on(instance), goal.to(instance.q), left)
        search.adjoint_steps += solved.steps
        point = point.at(point.x, solved.point.to(aim))
    point = point.at(point.x, point.X)
    after = search.judge(point)
    near = bool((after.adjoint_residual <= _MET * goal).all())
    if reached:
        near = near and bool((after.state_residual <= _MET * aim).all())
    exact = at.exact or not near
    if wanted >= 1.0 or after.error_bound <= enough(after):
        return _Position(point, after, at.forcing, state_final=at.state_final, exact=exact)
    if not bool((after.state_residual <= torch.maximum(_CONTRACTION * verdict.state_residual, 2.0 * aim)).all()):
        return None
    ratio = float((after.state_residual / before.clamp_min(1e-300)).max())
    return _Position(point, after, min(max(ratio * ratio, _SMALLEST_FACTOR), _LARGEST_FORCING), exact=exact)


def _instance(search: Search, at: _Position, residual: Tensor, floor: Tensor) -> Instance:
    return search.exact_instance if at.exact else search.arithmetic(residual, floor)


def _go_on(search: Search, at: _Position, goal: Goal, method: HypergradientMethod | None) -> _Position:
    """The method again, from where it was; in float64 once rounding limits it."""
    exact = search.working is search.exact_instance
    point, outcome = search.improve(at.point, goal, method)
    verdict, limited = search.judge(point), outcome.status in LIMITED
    if limited:
        search.working = search.exact_instance
    gained = bool((verdict.state_residual <= _CONTRACTION * at.verdict.state_residual).all())
    return _Position(point, verdict, _FIRST_FORCING, outcome.status, state_final=limited and exact and not gained)


def _state_factor(target: float, verdict: Verdict) -> float:
    """What the residual of the state must shrink by for its share of the bound to leave room for the other; 1 if it
    does. Shares follow a power of the residual, at least the first, as far as the outlook goes, then the first."""
    share = verdict.state_share
    if share <= 0.5 * target:
        return 1.0
    wanted = _STATE_SHARE * target
    near = math.inf if verdict.outlook is None else verdict.outlook[0]
    if not math.isfinite(near):
        return max(wanted / share, _SMALLEST_FACTOR) if math.isfinite(share) else _FIRST_FORCING
    near = max(min(near, OUTLOOK * share), _SMALLEST_FACTOR * wanted)
    if wanted <= near or not math.isfinite(share):
        return min(max(OUTLOOK * wanted / near, _SMALLEST_FACTOR), OUTLOOK)
    return math.exp(math.log(OUTLOOK) * math.log(wanted / share) / math.log(near / share))


def _adjoint_factor(target: float, verdict: Verdict, state_factor: float) -> float:
    """The same for the adjoint state, once the residual of the state has shrunk by its factor."""
    share, state = verdict.adjoint_share, verdict.state_share
    if state_factor < 1.0:
        state = _STATE_SHARE * target
        if verdict.outlook is not None and state_factor <= OUTLOOK:
            share = verdict.outlook[1]
    if not math.isfinite(share):
        return _FIRST_FORCING
    wanted = max(_SHARE * target - state, 0.4 * target)
    return 1.0 if share <= wanted else max(wanted / share, _SMALLEST_FACTOR)
