"""The contract of a hypergradient method: from a point to better iterates, or to a gradient of its own; certificates
judge whatever it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from learnreg.lower_level.instance import Instance
from learnreg.lower_level.pairing import pairing_gradient
from learnreg.lower_level.point import Point
from learnreg.result import Status

__all__ = ["Evaluation", "Goal", "HypergradientMethod", "Outcome", "evaluate"]


@dataclass(frozen=True)
class Goal:
    """What a method should reach and within which limits.

    state: 2-norm error bound of x, (batch,); infinite where x is good enough. adjoint: norm of the adjoint equation's
    residual, (batch,). max_state_steps, max_adjoint_steps: None for as many as help.
    """

    state: Tensor
    adjoint: Tensor
    max_state_steps: int | None = None
    max_adjoint_steps: int | None = None

    def times(self, factor: float) -> Goal:
        """Smaller, or larger, accuracies."""
        return replace(self, state=factor * self.state, adjoint=factor * self.adjoint)

    def within_reach(self, adjoint: Tensor) -> Goal:
        """No looser than the residuals of the adjoint equation that were reached, (batch,)."""
        return replace(self, adjoint=torch.minimum(self.adjoint, adjoint.to(self.adjoint)))

    def within(self, dtype: torch.dtype, state_steps: int | None, adjoint_steps: int | None) -> Goal:
        """The same accuracies in a precision, with these limits."""
        return Goal(self.state.to(dtype), self.adjoint.to(dtype), state_steps, adjoint_steps)


@dataclass(frozen=True)
class Outcome:
    """What a method found.

    x: the state. X: the adjoint state, of methods that have one. gradient: by parameter name, of methods that return
    one; the others leave it to x and X. t: dual pull-back that belongs to x, from solvers that have one.
    """

    x: Tensor
    X: Tensor | None = None
    gradient: dict[str, Tensor] | None = None
    status: Status = Status.CONVERGED
    state_steps: int = 0
    adjoint_steps: int = 0
    t: Tensor | None = None

    def after(self, start: Point) -> Point:
        """The point it led to, in its precision; without an adjoint state that of the start."""
        start = start.on(start.instance.to(self.x.dtype))
        X = start.X if self.X is None else self.X
        return replace(start, x=self.x, X=X, t=self.t, warm=self.t is None)


class HypergradientMethod(ABC):
    """How x and the gradient are computed. Whatever a method does is judged by the certificate from what it returns: a
    gradient of its own by its distance to a certified one (Lemma 5).

    Of methods that return a gradient, improves: it gets better as the goal gets tighter, and so is asked for again
    until the tolerance is met; miss: what to say where that is not enough. adaptive: whether more accurate states may
    be asked of it at all, as training and certified descent do.
    """

    name: str
    improves: ClassVar[bool] = False
    miss: ClassVar[Status] = Status.TOO_FEW_STEPS
    adaptive: ClassVar[bool] = True

    @abstractmethod
    def run(self, start: Point, goal: Goal) -> Outcome:
        """Go on from ``start`` until the goal is met or its limits are reached."""

    def fits(self, instance: Instance) -> bool:
        """Whether the method is defined for this problem."""
        return True

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


@dataclass(frozen=True)
class Evaluation:
    """The hypergradient as a method computes it, the point it led to, and what it returned."""

    gradient: dict[str, Tensor]
    point: Point
    outcome: Outcome


@torch.no_grad()
def evaluate(method: HypergradientMethod, start: Point, goal: Goal) -> Evaluation:
    """State, adjoint state and hypergradient of a batch, without a bound; at the x of the start where the goal asks
    nothing of it."""
    outcome = method.run(start, goal)
    point = outcome.after(start)
    if bool(torch.isinf(goal.state).all()):
        point = start.at(start.x, point.X)
    gradient = pairing_gradient(point) if outcome.gradient is None else outcome.gradient
    return Evaluation(gradient, point.on(start.instance), outcome)
