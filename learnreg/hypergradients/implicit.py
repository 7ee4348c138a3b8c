"""State first, then the adjoint equation at it: by conjugate gradients, or by a piggyback iteration with a frozen
linearisation."""

from __future__ import annotations

from typing import Any

import torch

from learnreg.errors import ConfigError
from learnreg.hypergradients.base import Goal, HypergradientMethod, Outcome
from learnreg.linear.arguments import check_type
from learnreg.linear.samples import sum_samples
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.point import Point
from learnreg.result import Status
from learnreg.solvers.base import AdjointSolver, Solver
from learnreg.solvers.choice import AdjointSolverName, SolverName, make_adjoint_solver, make_solver
from learnreg.solvers.loop import iterate
from learnreg.solvers.solve import run_state_solver

__all__ = ["Implicit", "chosen_method", "tightening"]


class Implicit(HypergradientMethod):
    """Implicit differentiation: a lower-level solver for the state, a linear solver for the adjoint equation.

    Parameters
    ----------
    state_solver: "auto", "pdhg", "lbfgs" or "newton-cg".
    adjoint_solver: "auto", "cg" or "piggyback" (the same iteration as :class:`Piggyback`'s, sequential).
    Either may be a solver of ``learnreg.solvers`` instead of a name.

    Raises
    ------
    ConfigError: an unknown solver.
    """

    name = "implicit"

    def __init__(
        self,
        state_solver: SolverName | Solver[Any] = "auto",
        adjoint_solver: AdjointSolverName | AdjointSolver[Any] = "auto",
    ) -> None:
        known = isinstance(adjoint_solver, str) and adjoint_solver in ("auto", "cg", "piggyback")
        if not known and not isinstance(adjoint_solver, AdjointSolver):
            raise ConfigError(
                f"Implicit(adjoint_solver={adjoint_solver!r}): expected 'auto', 'cg', 'piggyback' or an object of "
                "learnreg.solvers."
            )
        if not isinstance(state_solver, (str, Solver)):
            raise ConfigError(
                f"Implicit(state_solver={state_solver!r}): expected a name or an object of learnreg.solvers."
            )
        self.state_solver, self.adjoint_solver = state_solver, adjoint_solver

    def run(self, start: Point, goal: Goal) -> Outcome:
        """Improve x with the lower-level solver, then X with the adjoint solver at the new x."""
        instance = start.instance
        solver = make_solver(self.state_solver, instance, start.warm)
        state = run_state_solver(solver, instance, start.x, goal.state, goal.max_state_steps, start.t)
        equation = AdjointEquation.at(instance, state.x, instance.apply(state.x), start.loss.gradient(state.x))
        never = torch.zeros_like(goal.adjoint)
        size = sum_samples(equation.rhs**2).sqrt().clamp_min(torch.finfo(never.dtype).tiny)
        chosen = make_adjoint_solver(self.adjoint_solver, instance, start.warm, float((goal.adjoint / size).min()))
        adjoint = iterate(chosen, equation, start.X, goal.adjoint, never, goal.max_adjoint_steps)
        status = state.status if state.status is not Status.CONVERGED else adjoint.status
        return Outcome(state.x, adjoint.x, None, status, state.steps, adjoint.steps, state.t)


def chosen_method(method: HypergradientMethod | None) -> HypergradientMethod:
    """The method, ``Implicit()`` for None.

    Raises
    ------
    ConfigError: something else.
    """
    chosen = Implicit() if method is None else method
    check_type(chosen, HypergradientMethod, "method", "lr.Implicit(), lr.Piggyback() or lr.Unrolled(steps=...)")
    return chosen


def tightening(method: HypergradientMethod | None) -> HypergradientMethod:
    """The method, for what asks it for more and more accurate states.

    Raises
    ------
    ConfigError: it is one of a few steps, of which more accuracy must not be asked; or something else.
    """
    chosen = chosen_method(method)
    if not chosen.tightens:
        raise ConfigError(
            f"{chosen!r}: states get more accurate here as the loss falls, which this method does not take; use "
            "lr.StochasticDescent, or another method."
        )
    return chosen
