"""The contract of a lower-level solver: init, a pure step, and a report; the loop around them is in ``loop.py``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, Protocol, Self, TypeVar

from torch import Tensor

from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.constraints import FreePixels
from learnreg.lower_level.instance import Instance

__all__ = [
    "OWNED",
    "AdjointSolver",
    "Iteration",
    "Report",
    "Selectable",
    "Solver",
    "SolverState",
    "front_rows",
    "select_samples",
]

OWNED = {"owned": True}
"""Metadata of a state's field for a response-sized tensor that belongs to the state alone."""


@dataclass(frozen=True)
class SolverState:
    """Base of solver states: every tensor (and every tensor in a tuple) has the batch as its first axis."""


StateT = TypeVar("StateT", bound=SolverState)


class Selectable(Protocol):
    """A batched problem that can be restricted to some samples."""

    def select(self, index: Tensor) -> Self: ...


ProblemT = TypeVar("ProblemT", bound=Selectable)


def select_samples(state: StateT, index: Tensor) -> StateT:
    """The state restricted to some samples, in ascending order. Owned tensors keep their memory: the rows of these
    samples are swapped to its front."""

    def pick(value: Any, keep_memory: bool) -> Any:
        if isinstance(value, Tensor):
            return front_rows(value, index) if keep_memory else value[index]
        if isinstance(value, SolverState):
            return select_samples(value, index)
        if isinstance(value, FreePixels):
            return value.select(index)
        if isinstance(value, tuple):
            return tuple(pick(v, keep_memory) for v in value)
        return value

    return replace(state, **{f.name: pick(getattr(state, f.name), "owned" in f.metadata) for f in fields(state)})


def front_rows(tensor: Tensor, index: Tensor) -> Tensor:
    """A view of these rows (ascending), after swapping each with one at the front."""
    for row, source in enumerate(index.tolist()):
        if row != source:
            kept = tensor[row].clone()
            tensor[row].copy_(tensor[source])
            tensor[source].copy_(kept)
            del kept  # before the next row is cloned
    return tensor[: len(index)]


@dataclass(frozen=True)
class Report:
    """The answer a solver would give now.

    x: the point. residual: norm of the reduced energy gradient there, or an equivalent, (batch,): monitors convergence.
    bound: error bound of x, 2-norm, (batch,), infinite without a modulus. floor: the level below which rounding rules.
    t: pull-back of the dual iterate, for solvers that have one. indefinite: samples that met negative curvature, from
    which a linear iteration does not go on, (batch,).
    """

    x: Tensor
    residual: Tensor
    bound: Tensor
    floor: Tensor
    t: Tensor | None = None
    indefinite: Tensor | None = None


class Iteration(ABC, Generic[ProblemT, StateT]):
    """An iteration on a problem: ``init``, a ``step`` that never synchronises with the host and calls K and K^T once
    each, and a ``report`` at checks. The loop around it is in ``loop.py``.

    A state belongs to its iteration: ``step``, ``adapt`` and ``report`` may overwrite the response-sized tensors of the
    state they are given, which is not used again. ``report_applications``: what a report costs, about. ``patience``:
    steps without a 10 % lower residual after which a sample counts as stagnated.
    """

    name: str
    check_every: int = 10
    report_applications: int = 0
    patience: int = 150

    @abstractmethod
    def init(self, problem: ProblemT, x: Tensor) -> StateT:
        """The state that starts from x."""

    @abstractmethod
    def step(self, problem: ProblemT, state: StateT) -> StateT:
        """One iteration."""

    def steps(self, problem: ProblemT, state: StateT, count: int) -> StateT:
        """``count`` iterations."""
        for _ in range(count):
            state = self.step(problem, state)
        return state

    def recurring(self, state: StateT) -> Hashable:
        """What, besides the shapes of its tensors, decides which operations the next ``check_every`` steps are, all of
        whose numbers are in tensors; None where that is not known. Such blocks may be recorded and replayed."""
        return None

    @abstractmethod
    def report(self, problem: ProblemT, state: StateT) -> Report:
        """The current answer and its bound."""

    def adapt(self, problem: ProblemT, state: StateT) -> StateT:
        """Adjust step sizes at a check; nothing to do by default."""
        return state


class Solver(Iteration[Instance, StateT]):
    """An iteration on the lower-level problem."""

    def resume(self, instance: Instance, x: Tensor, t: Tensor | None) -> StateT:
        """The state that starts from x and, for solvers with a dual iterate, from the pull-back t of an earlier one,
        whose memory becomes the state's."""
        return self.init(instance, x)


class AdjointSolver(Iteration[AdjointEquation, StateT]):
    """An iteration on the adjoint equation."""

    def obstacle(self, instance: Instance) -> str:
        """Why it does not fit a problem; "" where it does."""
        return ""
