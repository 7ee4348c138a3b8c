"""State first, then the adjoint equation at it: by conjugate gradients, another linear solver, or a piggyback iteration
with a frozen linearisation."""

from __future__ import annotations

from typing import Any

import torch

from learnreg.errors import ConfigError
from learnreg.hypergradients.base import Goal, HypergradientMethod, Outcome
from learnreg.linear.arguments import check_type
from learnreg.linear.samples import sum_samples
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.point import Point
from learnreg.result import Status
from learnreg.solvers.base import AdjointSolver, Iteration, Solver
from learnreg.solvers.choice import (
    AdjointSolverName,
    SolverName,
    adjoint_obstacle,
    check_adjoint_solver,
    check_solver,
    make_adjoint_solver,
    make_solver,
)
from learnreg.solvers.loop import iterate
from learnreg.solvers.nystrom import Nystrom, check_rank
from learnreg.solvers.solve import run_state_solver

__all__ = ["Implicit", "chosen_method", "tightening"]


class Implicit(HypergradientMethod):
    """Implicit differentiation: a lower-level solver for the state, a linear solver for the adjoint equation.

    Parameters
    ----------
    solver: of the adjoint equation. "cg": conjugate gradients. "piggyback": the same iteration as :class:`Piggyback`'s,
        sequential. "minres": minimal residuals, which take indefinite equations, too. "neumann": the Neumann series,
        recurrent backpropagation. "nystrom": conjugate gradients from a Nyström estimate on. "auto": one of the first
        two, by what was measured. Or an adjoint solver of ``learnreg.solvers``.
    rank: of "nystrom"; None for its own choice.
    state_solver: "auto", "pdhg", "lbfgs" or "newton-cg", or a solver of ``learnreg.solvers``.

    Raises
    ------
    ConfigError: an unknown solver; a rank that is no positive integer, or of another solver.

    Examples
    --------
    >>> problem = lr.LowerLevelProblem(lr.operators.Identity((1, 8, 8)), lr.regularizers.FieldsOfExperts(2, 3))
    >>> b, loss = torch.rand(1, 1, 8, 8), lr.SquaredError(torch.zeros(1, 1, 8, 8))
    >>> lr.hypergradient(problem, b, loss, method=lr.Implicit("minres"), tolerance=0.1).certified
    True
    """

    name = "implicit"

    def __init__(
        self,
        solver: AdjointSolverName | AdjointSolver[Any] = "auto",
        rank: int | None = None,
        *,
        state_solver: SolverName | Solver[Any] = "auto",
    ) -> None:
        check_adjoint_solver(solver)
        if rank is not None:
            if solver != "nystrom":
                raise ConfigError(f"Implicit(rank={rank!r}): only solver='nystrom' has a rank, not {solver!r}.")
            solver = Nystrom(check_rank(rank, "Implicit"))
        self.solver, self.rank, self.state_solver = solver, rank, check_solver(state_solver, "Implicit")

    def fits(self, instance: Instance) -> bool:
        return not adjoint_obstacle(self.solver, instance)

    def run(self, start: Point, goal: Goal) -> Outcome:
        """Improve x with the lower-level solver, then X with the adjoint solver at the new x."""
        instance = start.instance
        solver = make_solver(self.state_solver, instance, start.warm)
        state = run_state_solver(solver, instance, start.x, goal.state, goal.max_state_steps, start.t)
        equation = AdjointEquation.at(instance, state.x, instance.apply(state.x), start.loss.gradient(state.x))
        never = torch.zeros_like(goal.adjoint)
        size = sum_samples(equation.rhs**2).sqrt().clamp_min(torch.finfo(never.dtype).tiny)
        chosen = make_adjoint_solver(self.solver, instance, start.warm, float((goal.adjoint / size).min()))
        adjoint = iterate(chosen, equation, start.X, goal.adjoint, never, goal.max_adjoint_steps)
        status = state.status if state.status is not Status.CONVERGED else adjoint.status
        return Outcome(state.x, adjoint.x, None, status, state.steps, adjoint.steps, state.t)

    def __repr__(self) -> str:
        parts = [] if self.solver == "auto" else [repr(_named(self.solver))]
        if self.rank is not None:
            parts.append(f"rank={self.rank}")
        if self.state_solver != "auto":
            parts.append(f"state_solver={_named(self.state_solver)!r}")
        return f"Implicit({', '.join(parts)})"


def _named(solver: str | Iteration[Any, Any]) -> str:
    return solver if isinstance(solver, str) else solver.name


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
    if not chosen.adaptive:
        raise ConfigError(
            f"{chosen!r}: states get more accurate here as the loss falls, which this method does not take; use "
            "lr.StochasticDescent, or another method."
        )
    return chosen
