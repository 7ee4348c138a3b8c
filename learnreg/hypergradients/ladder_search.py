"""The search by the cheapest bound that meets the tolerance: go where it should, judge once.

A judgement by Frobenius norms costs what a few iterations cost, and bounds fall faster than the error of the state. So
the first run aims at a point that should satisfy the tolerance at once, as accurate as most problems need it, or as the
last call on these samples did: the method leads to where Newton's method contracts, which goes on in float64. Where
that does not do, corrections follow as in ``sharp_search``, and the sharp bound where the cheap one stays too large.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from learnreg.certificates.judgement import Verdict
from learnreg.hypergradients.base import Goal
from learnreg.hypergradients.sharp_search import SharpSearch
from learnreg.linear.samples import norm_samples
from learnreg.lower_level.point import Point
from learnreg.result import Hypergradient, Status
from learnreg.solvers.newton_correction import approach_state, correct_adjoint

__all__ = ["LadderSearch"]

_STATE, _ADJOINT = 1e-5, 4e-3
"""For a relative tolerance of 1: error of the state relative to the image, and residual of the adjoint equation
relative to its right-hand side and to the modulus in units of ‖M‖. About the median of what problems need."""

_REACHABLE = 48.0
"""Norms of residuals in units of rounding of the data that solvers reach: twice what ``rounding_floor`` expects."""

_GUESS = 1e-2
"""What an absolute tolerance may be of the gradient, before that is known."""

_HAND_OVER, _ROUGH, _FORCING = 1e-4, 0.1, 0.03
"""Relative accuracies of the state and of the adjoint state from where Newton's method goes on, and to which relative
residual its first step goes."""

_SHARE, _LEAST_ROOM, _MOST_ROOM, _POWER = 0.4, 0.1, 4.0, 0.7
"""Share of the tolerance that the next call's state, and its adjoint state, should take; how far that is believed; and
the power of its share that the error of the state follows."""

_TINY = torch.finfo(torch.float64).tiny


class LadderSearch(SharpSearch):
    """Frobenius norms first, then the sharp bound."""

    def first_goal(self, point: Point) -> Goal:
        """What the method should reach of it, in the precision of the data."""
        self.wanted, (size, slope) = self._wanted(point), _units(point)
        reached = torch.maximum(self._reachable(self.instance.q.dtype), _HAND_OVER * size)
        self.beyond = self.instance.strong_convexity > 0 and bool((self.wanted.state < reached).any())
        adjoint = torch.maximum(self.wanted.adjoint, _ROUGH * slope) if self.beyond else self.wanted.adjoint
        return Goal(torch.maximum(self.wanted.state, reached), adjoint)

    def _wanted(self, point: Point) -> Goal:
        """What should satisfy the tolerance."""
        size, slope = _units(point)
        known = self.request.absolute_tolerance == 0.0  # else the size of the gradient decides
        asked = min(max(self.request.tolerance, 0.0 if known else _GUESS), 1.0)
        state, adjoint = self.accuracy or self._usual()
        exact = _REACHABLE * torch.finfo(torch.float64).eps
        return Goal(
            torch.maximum(state * asked * size, self._reachable(torch.float64)),
            (max(adjoint * asked, exact) * slope).clamp_min(_TINY),
        )

    def _usual(self) -> tuple[float, float]:
        mu = self.instance.strong_convexity
        return _STATE, _ADJOINT * (mu / max(mu, self.instance.quadratic.norm()) if mu > 0 else 1.0)

    def _reachable(self, dtype: torch.dtype) -> Tensor:
        """Errors of the state that rounding leaves, (batch,)."""
        lost = _REACHABLE * torch.finfo(dtype).eps * norm_samples(self.exact_instance.q)
        mu = self.instance.strong_convexity
        return lost / mu if mu > 0 else torch.zeros_like(lost)

    def certified(self, verdict: Verdict, status: Status) -> Hypergradient:
        found = super().certified(verdict, status)
        if status is not Status.CONVERGED or not 0 < verdict.norm < math.inf:
            return found
        target, (size, slope) = self.target(verdict), _units(verdict.point)
        asked = min(target / verdict.norm, 1.0)
        state = float((verdict.state_error / size).max()) / asked * _room(verdict.state_share / target) ** _POWER
        adjoint = float((verdict.adjoint_residual / slope.clamp_min(_TINY)).max()) / asked
        adjoint = adjoint * _room(verdict.adjoint_share / target)
        return replace(found, accuracy=(state, adjoint)) if 0 < state * adjoint < math.inf else found

    def polished(self, point: Point) -> Point:
        """Closer to what is wanted, by Newton steps in float64, if they contract."""
        if not self.beyond or self.out_of_steps():
            return point
        residual = self.wanted.state * self.instance.strong_convexity
        left, exact = self.request.steps_left(self.state_steps), self.exact_instance
        step = approach_state(exact, point.x.double(), residual, _FORCING, left, self.request.newton_steps)
        self.state_steps += step.steps
        if not step.contracted:
            return point
        point = point.on(exact).at(step.point, point.X.double())
        slope = norm_samples(point.loss_gradient)
        rounding = 0.5 * _REACHABLE * torch.finfo(torch.float64).eps * slope
        instance = self.arithmetic(self.wanted.adjoint, rounding)
        left = self.request.steps_left(self.adjoint_steps)
        solved = correct_adjoint(point.on(instance), self.wanted.adjoint.to(instance.q), left)
        self.adjoint_steps += solved.steps
        return point.at(point.x, solved.point.double())


def _units(point: Point) -> tuple[Tensor, Tensor]:
    """Norms of the image and of the right-hand side of the adjoint equation, (batch,) each."""
    return norm_samples(point.x.double()).clamp_min(1e-6), norm_samples(point.loss_gradient.double())


def _room(share: float) -> float:
    return min(max(_SHARE / max(share, 1e-300), _LEAST_ROOM), _MOST_ROOM)
