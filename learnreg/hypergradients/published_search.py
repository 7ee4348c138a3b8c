"""The search for the published certificate: rounds of improve and judge."""

from __future__ import annotations

import math

import torch

from learnreg.certificates.judgement import Verdict
from learnreg.hypergradients.base import Goal, Outcome
from learnreg.hypergradients.search import LIMITED, MAX_ROUNDS, Search
from learnreg.linear.samples import sum_samples
from learnreg.lower_level.point import Point
from learnreg.result import Hypergradient, Status

__all__ = ["PublishedSearch"]


class PublishedSearch(Search):
    """Rounds of improve and judge; each tightens what the certificate, one point bound, says limits it."""

    def follow(self, point: Point, outcome: Outcome, goal: Goal) -> Hypergradient:
        best: Verdict | None = None
        status = Status.STAGNATED
        for count in range(MAX_ROUNDS):
            if count:
                point, outcome = self.improve(point, goal)
            verdict = self.judge(point)
            if not verdict.certifiable:
                return self.estimate(verdict, self.target)
            previous = math.inf if best is None else best.error_bound
            if best is None or verdict.better(best):
                best = verdict
            if best.error_bound <= self.target(best):
                return self.certified(best, Status.CONVERGED)
            if self.out_of_steps():
                status = Status.MAX_STEPS
                break
            limited = outcome.status in LIMITED
            if self.working.q.dtype != torch.float64 and (limited or verdict.error_bound > 0.5 * previous):
                self.working = self.exact_instance
            elif limited and verdict.error_bound > 0.5 * previous:
                status = outcome.status
                break
            goal = self._tighter(goal, verdict, limited)
        assert best is not None
        if best.hindrance:
            return self.estimate(best, self.target, status)
        return self.certified(best, status)

    def first_goal(self, point: Point) -> Goal:
        """A first guess: relative to the image and to the loss gradient, a tenth of the tolerance asked for."""
        share = 0.1 * min(self.request.tolerance, 1.0)
        size = sum_samples(point.x.double() ** 2).sqrt().clamp_min(1e-6)
        slope = sum_samples(point.loss_gradient.double() ** 2).sqrt()
        return Goal(share * size, (share * slope).clamp_min(torch.finfo(torch.float64).tiny))

    def _tighter(self, goal: Goal, verdict: Verdict, limited: bool) -> Goal:
        """What was achieved, divided by what the bound still lacks, at least by 3 and at most by 10^4. A solver that
        believes it met its goal must get a smaller one; one that rounding limited need not."""
        target = self.target(verdict)
        state_factor = _shrink(0.4 * target, verdict.state_share)
        adjoint_factor = _shrink(0.4 * target, verdict.adjoint_share)
        state, adjoint = verdict.state_error * state_factor, verdict.adjoint_residual * adjoint_factor
        if self.instance.strong_convexity <= 0:
            state = goal.state * state_factor
        if not limited:
            state = torch.minimum(state, 0.5 * goal.state if state_factor < 1 else goal.state)
            adjoint = torch.minimum(adjoint, 0.5 * goal.adjoint if adjoint_factor < 1 else goal.adjoint)
        return Goal(state, adjoint)


def _shrink(wanted: float, share: float) -> float:
    if not math.isfinite(share):
        return 1e-2
    return min(max(wanted / share, 1e-4), 0.33) if share > wanted else 1.0
