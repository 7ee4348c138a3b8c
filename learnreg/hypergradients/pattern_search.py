"""The search where f is an l1-norm: the sign pattern, to rounding, and its certificate."""

from __future__ import annotations

import math

import torch

from learnreg.certificates.sign_pattern import judge_pattern
from learnreg.errors import ConfigError
from learnreg.hypergradients.base import Goal, HypergradientMethod, Outcome
from learnreg.hypergradients.closed_form import ClosedForm
from learnreg.hypergradients.search import Request, Search
from learnreg.hypergradients.sign_pattern import SignedStates, signed_states
from learnreg.losses import UpperLoss
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.point import Point
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.result import Hypergradient, Status

__all__ = ["PatternSearch"]


class PatternSearch(Search):
    """One run of ``ClosedForm``, whatever the tolerance: its error is that of rounding, or unknown."""

    found: SignedStates

    def __init__(
        self,
        problem: LowerLevelProblem | FrozenProblem,
        b: torch.Tensor,
        loss: UpperLoss,
        method: HypergradientMethod | None,
        request: Request,
    ) -> None:
        super().__init__(problem, b, loss, method or ClosedForm(), request)
        if not isinstance(self.method, ClosedForm):
            raise ConfigError(
                f"{self.method!r}: AbsoluteValue has no derivative at 0; use lr.ClosedForm(), or lr.PseudoHuber with a "
                "small smoothing."
            )
        self.method.check(self.exact_instance)

    def first_goal(self, point: Point) -> Goal:
        whatever = self.instance.q.new_full((self.instance.batch,), math.inf)
        return Goal(whatever, whatever)

    def improve(self, point: Point, goal: Goal, method: HypergradientMethod | None = None) -> tuple[Point, Outcome]:
        limited = Goal(goal.state, goal.adjoint, self.request.max_steps, self.request.max_steps)
        self.found = signed_states(point.on(self.exact_instance), limited)
        self.state_steps += self.found.steps
        at = self.found.point
        return at, Outcome(at.x, at.X, None, self.found.status, self.found.steps)

    def follow(self, point: Point, outcome: Outcome, goal: Goal) -> Hypergradient:
        verdict = judge_pattern(point, self.found.duals, self.found.systems, self.found.y)
        if not self.request.rungs:
            return self.result(verdict, math.inf, "none", Status.ESTIMATED, "no certificate was asked for")
        reached = verdict.error_bound <= self.target(verdict)
        if verdict.hindrance is None:
            return self.certified(verdict, Status.CONVERGED if reached else Status.PRECISION)
        if math.isfinite(verdict.error_bound):
            ended = Status.ESTIMATED if reached else Status.PRECISION
            return self.result(verdict, verdict.error_bound, "estimate", ended, verdict.reason)
        ended = outcome.status if outcome.status is not Status.CONVERGED else Status.STAGNATED
        return self.result(verdict, math.inf, "none", ended, verdict.reason)
