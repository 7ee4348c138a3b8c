"""State first, then the adjoint equation at it: by conjugate gradients, or by a piggyback iteration with a frozen
linearisation."""

from __future__ import annotations

from typing import Any

import torch

from learnreg.adjoint import AdjointEquation
from learnreg.hypergradients.base import Accuracy, HypergradientMethod, Iterates
from learnreg.losses import UpperLoss
from learnreg.problem import Instance
from learnreg.result import Status
from learnreg.solvers.base import AdjointSolver
from learnreg.solvers.conjugate_gradient import ConjugateGradient
from learnreg.solvers.loop import iterate
from learnreg.solvers.solve import SolverName, make_solver, run_state_solver

__all__ = ["Implicit", "improve_sequentially"]


def improve_sequentially(
    state_solver: SolverName,
    adjoint_solver: AdjointSolver[Any],
    instance: Instance,
    loss: UpperLoss,
    start: Iterates,
    accuracy: Accuracy,
    max_state_steps: int | None,
    max_adjoint_steps: int | None,
) -> Iterates:
    """Improve x with a lower-level solver, then X with an adjoint solver at the new x."""
    solver = make_solver(state_solver, instance, start.warm)
    state = run_state_solver(solver, instance, start.x, accuracy.state, max_state_steps, start.t)
    equation = AdjointEquation.at(instance, state.x, instance.apply(state.x), loss.gradient(state.x))
    never = torch.zeros_like(accuracy.adjoint)
    adjoint = iterate(adjoint_solver, equation, start.X, accuracy.adjoint, never, max_adjoint_steps)
    status = state.status if state.status is not Status.CONVERGED else adjoint.status
    return Iterates(state.x, adjoint.x, status, state.steps, adjoint.steps, state.t, warm=state.t is None)


class Implicit(HypergradientMethod):
    """Implicit differentiation: a lower-level solver for the state, conjugate gradients for the adjoint.

    Parameters
    ----------
    state_solver: "auto", "pdhg", "lbfgs" or "newton-cg".
    """

    name = "implicit"

    def __init__(self, state_solver: SolverName = "auto") -> None:
        self.state_solver = state_solver

    def improve(
        self,
        instance: Instance,
        loss: UpperLoss,
        start: Iterates,
        accuracy: Accuracy,
        max_state_steps: int | None,
        max_adjoint_steps: int | None,
    ) -> Iterates:
        return improve_sequentially(
            self.state_solver,
            ConjugateGradient(),
            instance,
            loss,
            start,
            accuracy,
            max_state_steps,
            max_adjoint_steps,
        )
