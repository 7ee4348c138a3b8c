"""Piggyback: the primal-dual iteration and its derivative, side by side or one after the other.

Source: Chambolle and Pock (2021); Bogensperger, Chambolle and Pock (2022); Bogensperger, Ehrhardt, Pock, Salehi and
Wong (2025).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch

from learnreg.hypergradients.base import Goal, HypergradientMethod, Outcome
from learnreg.hypergradients.implicit import Implicit
from learnreg.hypergradients.interleaved import InterleavedPDHG, InterleavedProblem
from learnreg.linear.arguments import check_one_of
from learnreg.linear.samples import norm_samples
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.point import Point
from learnreg.solvers.choice import check_proximal
from learnreg.solvers.loop import iterate
from learnreg.solvers.preconditioner import can_precondition

__all__ = ["Piggyback"]

_ROUNDING = 0.3
"""Errors of float32 states near kinks over eps cond ‖x‖, as measured on lifted networks."""

_FURTHER = 0.1
"""Of the error asked for near kinks, where Newton's corrections have no preconditioner and a step costs them more than
one here: within it they take fewer (total variation of smoothing 1e-4 to 1e-6: 0.6 to 0.9 of the time, as measured)."""


class Piggyback(HypergradientMethod):
    """The piggyback iteration on over-relaxed PDHG; for weakly convex regularizers, whose conjugate has nothing to do
    with the lower level, L-BFGS for the state and conjugate gradients for its derivative.

    Parameters
    ----------
    mode: "sequential" (default: the state first, then its derivative with a frozen linearisation, each to its own
        tolerance; cheaper in total) or "interleaved" (x and X together in stacked operator calls, as published).

    Where float32 does not reach the accuracy asked for, "sequential" works in float64, and so do its results.

    Potentials without proximal maps (input-convex networks, weakly convex splines) have no primal-dual iteration. There
    "sequential" runs L-BFGS and, on the same frozen linearisation, conjugate gradients, and "interleaved" raises
    ConfigError. Data terms that are not squares leave the ridge alone to the primal step: "sequential" does the same.

    Raises
    ------
    ConfigError: another mode.

    Examples
    --------
    >>> problem = lr.LowerLevelProblem(lr.operators.Identity((1, 8, 8)), lr.regularizers.FieldsOfExperts(2, 3))
    >>> b, loss = torch.rand(1, 1, 8, 8), lr.SquaredError(torch.zeros(1, 1, 8, 8))
    >>> lr.hypergradient(problem, b, loss, method=lr.Piggyback(), tolerance=0.1).certified
    True
    """

    name = "piggyback"

    def __init__(self, mode: Literal["sequential", "interleaved"] = "sequential") -> None:
        check_one_of(mode, ("sequential", "interleaved"), "Piggyback(mode)")
        self.mode = mode

    def run(self, start: Point, goal: Goal) -> Outcome:
        instance = start.instance
        if self.mode == "sequential":
            if instance.potential.prox_obstacle() or instance.quadratic.is_ridge:
                return Implicit("cg", state_solver="lbfgs").run(start, goal)
            return Implicit("piggyback", state_solver="pdhg").run(*_precise_enough(start, goal))
        check_proximal(instance, "Piggyback(mode='interleaved')", "Piggyback() or Implicit()")
        problem = InterleavedProblem.of(instance, start.loss, start.x, start.X, goal)
        one = torch.ones_like(goal.state)
        result = iterate(InterleavedPDHG(), problem, start.x, one, torch.zeros_like(one), goal.max_state_steps)
        x, X = result.x.unbind(1)
        return Outcome(x, X, status=result.status, state_steps=result.steps, adjoint_steps=result.steps)

    def fits(self, instance: Instance) -> bool:
        return self.mode == "sequential" or not instance.potential.prox_obstacle()

    def __repr__(self) -> str:
        return f"Piggyback(mode={self.mode!r})"


def _precise_enough(start: Point, goal: Goal) -> tuple[Point, Goal]:
    """In float64 what float32 would not reach: its rounding keeps errors of x from getting much smaller than some share
    of eps cond ‖x‖. Near kinks primal-dual iterations stagnate there, for hundreds of steps, that end soon in
    float64."""
    instance, dtype = start.instance, start.instance.q.dtype
    condition, sought = instance.condition_bound(), bool(torch.isfinite(goal.state).all())
    if dtype == torch.float64 or not sought or not math.isfinite(condition):
        return start, goal
    floor = _ROUNDING * torch.finfo(dtype).eps * condition * norm_samples(start.x)
    if bool((floor < goal.state).all()):
        return start, goal
    exact = start.frozen.at(start.b.double(), instance.counter)
    goal = goal.within(torch.float64, goal.max_state_steps, goal.max_adjoint_steps)
    if not (can_precondition(instance) or instance.latent.channels):
        goal = replace(goal, state=_FURTHER * goal.state)
    return start.on(exact), goal
