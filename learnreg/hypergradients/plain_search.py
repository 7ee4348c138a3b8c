"""No certificate: the gradient at the first point that should do, as others compute it."""

from __future__ import annotations

import math

import torch

from learnreg.hypergradients.base import Goal, Outcome
from learnreg.hypergradients.search import Search
from learnreg.linear.samples import norm_samples
from learnreg.lower_level.pairing import pairing_gradient
from learnreg.lower_level.point import Point
from learnreg.result import Hypergradient, Status

__all__ = ["PlainSearch"]

_STATE, _ADJOINT = 1e-2, 0.3
"""Relative error of the state, and residual of the adjoint equation, for a relative tolerance of 1."""


class PlainSearch(Search):
    """One run of the method and the gradient it leads to, in the precision of the data."""

    def first_goal(self, point: Point) -> Goal:
        asked, tiny = min(self.request.tolerance, 1.0), torch.finfo(torch.float64).tiny
        size = norm_samples(point.x.double()).clamp_min(1e-6)
        slope = norm_samples(point.loss_gradient.double())
        return Goal(_STATE * asked * size, (_ADJOINT * asked * slope).clamp_min(tiny))

    def follow(self, point: Point, outcome: Outcome, goal: Goal) -> Hypergradient:
        gradient = pairing_gradient(point) if outcome.gradient is None else outcome.gradient
        unknown = torch.full((self.instance.batch,), math.inf, dtype=torch.float64)
        ended = self._as_far_as_known(outcome)
        latent, x = self.instance.latent, self.instance.box.inside(point.x, self.b.dtype)
        return Hypergradient(
            gradient={name: g.detach() for name, g in gradient.items()},
            error_bound=math.inf,
            certified=False,
            bound_kind="none",
            reason="no certificate was asked for",
            loss=float(self.loss.value(x)),
            loss_interval=(-math.inf, math.inf),
            x=latent.image(x),
            X=latent.image(point.X),
            state_error_bound=unknown,
            adjoint_error_bound=unknown,
            status=ended,
            steps=max(self.state_steps, self.adjoint_steps),
            operator_applications=self.instance.counter.applications,
            corrected_gradient=gradient,
            corrected_error_bound=math.inf,
            certified_scope=self.frozen.minimiser,
            radius=torch.zeros_like(unknown) if self.instance.local else unknown,
        )

    def _as_far_as_known(self, outcome: Outcome) -> Status:
        """How it ended; METHOD_ERROR of a method with an error that no accuracy removes."""
        if outcome.status is not Status.CONVERGED:
            return outcome.status
        fixed = self.method is not None and self.method.miss is Status.METHOD_ERROR and not self.method.improves
        return Status.METHOD_ERROR if fixed else Status.ESTIMATED
