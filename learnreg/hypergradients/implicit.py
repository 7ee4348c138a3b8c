"""State first, then the adjoint equation at it: by conjugate gradients, or by a piggyback iteration with a frozen
linearisation."""

from __future__ import annotations

from typing import Any, Literal

import torch

from learnreg.errors import ConfigError
from learnreg.hypergradients.base import Goal, HypergradientMethod, Outcome
from learnreg.linear.samples import sum_samples
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.point import Point
from learnreg.result import Status
from learnreg.solvers.adjoint_pdhg import AdjointPDHG
from learnreg.solvers.base import AdjointSolver
from learnreg.solvers.conjugate_gradient import ConjugateGradient
from learnreg.solvers.loop import iterate
from learnreg.solvers.preconditioner import can_precondition
from learnreg.solvers.solve import SolverName, check_proximal, make_solver, run_state_solver

__all__ = ["Implicit", "improve_sequentially"]


AdjointSolverName = Literal["auto", "cg", "piggyback"]
_ILL_CONDITIONED, _LOOSE = 1000.0, 3e-3


def make_adjoint_solver(name: AdjointSolverName, instance: Instance, warm: bool, relative: float) -> AdjointSolver[Any]:
    """The adjoint solver of that name. "auto", by operator applications (docs/benchmarks.md): conjugate gradients where
    they have a preconditioner; else the piggyback iteration from a cold start on ill-conditioned problems at loose
    relative residuals, conjugate gradients otherwise."""
    if name == "auto":
        obstacle = instance.potential.prox_obstacle() or can_precondition(instance) or warm
        fits = not (obstacle or instance.latent.channels) and instance.quadratic.is_diagonal
        fits = fits and instance.strong_convexity > 0
        hard = fits and relative >= _LOOSE and instance.condition_bound() >= _ILL_CONDITIONED
        name = "piggyback" if hard else "cg"
    if name == "piggyback":
        check_proximal(instance, "adjoint_solver='piggyback'", "'auto' or 'cg'")
    return AdjointPDHG() if name == "piggyback" else ConjugateGradient()


def improve_sequentially(
    state_solver: SolverName, adjoint_solver: AdjointSolverName, start: Point, goal: Goal
) -> Outcome:
    """Improve x with a lower-level solver, then X with an adjoint solver at the new x."""
    instance = start.instance
    solver = make_solver(state_solver, instance, start.warm)
    state = run_state_solver(solver, instance, start.x, goal.state, goal.max_state_steps, start.t)
    slope = start.loss.gradient(state.x)
    equation = AdjointEquation.at(instance, state.x, instance.apply(state.x), slope)
    never = torch.zeros_like(goal.adjoint)
    size = sum_samples(equation.rhs**2).sqrt().clamp_min(torch.finfo(never.dtype).tiny)
    chosen = make_adjoint_solver(adjoint_solver, instance, start.warm, float((goal.adjoint / size).min()))
    adjoint = iterate(chosen, equation, start.X, goal.adjoint, never, goal.max_adjoint_steps)
    status = state.status if state.status is not Status.CONVERGED else adjoint.status
    return Outcome(state.x, adjoint.x, status=status, state_steps=state.steps, adjoint_steps=adjoint.steps, t=state.t)


class Implicit(HypergradientMethod):
    """Implicit differentiation: a lower-level solver for the state, a linear solver for the adjoint equation.

    Parameters
    ----------
    state_solver: "auto", "pdhg", "lbfgs" or "newton-cg".
    adjoint_solver: "auto", "cg" or "piggyback" (the same iteration as :class:`Piggyback`'s, sequential).

    Raises
    ------
    ConfigError: an unknown solver.
    """

    name = "implicit"

    def __init__(self, state_solver: SolverName = "auto", adjoint_solver: AdjointSolverName = "auto") -> None:
        if adjoint_solver not in ("auto", "cg", "piggyback"):
            raise ConfigError(f"Implicit(adjoint_solver={adjoint_solver!r}): expected 'auto', 'cg' or 'piggyback'.")
        self.state_solver, self.adjoint_solver = state_solver, adjoint_solver

    def run(self, start: Point, goal: Goal) -> Outcome:
        return improve_sequentially(self.state_solver, self.adjoint_solver, start, goal)
