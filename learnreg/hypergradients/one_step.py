"""One-step differentiation: the state as accurately as asked, and the derivative of one gradient step there.

    x_+ = P(x - s ∇E(x; theta)),    gradient = <∂_theta x_+, ∇ell(x_+)>    with x held fixed

which is unrolling of the last step alone, or the first term of the Neumann series of the adjoint equation: the adjoint
state -s P' ∇ell(x_+) is off by at most (1 - mu/L) of its norm, s = 1/L, whatever the accuracy of x.

Source: Bolte, Pauwels and Vaiter, One-step differentiation of iterative algorithms, NeurIPS 2023, algorithm 3 and
proposition 2; as Jacobian-free backpropagation: Fung et al., AAAI 2022.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from learnreg.hypergradients.base import Goal, HypergradientMethod, Outcome
from learnreg.hypergradients.gradient_steps import GradientSteps
from learnreg.hypergradients.unrolled import check_smooth, reverse
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.point import Point
from learnreg.result import Status
from learnreg.solvers.base import Solver
from learnreg.solvers.choice import SolverName, check_solver, make_solver
from learnreg.solvers.solve import run_state_solver

__all__ = ["OneStep"]


class OneStep(HypergradientMethod):
    """One-step differentiation, also called Jacobian-free: the derivative of a gradient step at the solution.

    Parameters
    ----------
    state_solver: "auto", "pdhg", "lbfgs" or "newton-cg", or a solver of ``learnreg.solvers``.

    It costs one Hessian product and no linear solve. Its error does not vanish with that of the state: relative to the
    adjoint state it is at most 1 - mu/L, small only where the Hessian is well-conditioned. ``error_bound`` bounds it,
    and ``Status.METHOD_ERROR`` says that it exceeds the tolerance.

    Raises
    ------
    ConfigError: an unknown solver; later, latent variables, or a Hessian without a known bound.

    Examples
    --------
    >>> problem = lr.LowerLevelProblem(lr.operators.Identity((1, 8, 8)), lr.regularizers.FieldsOfExperts(2, 3))
    >>> b, loss = torch.rand(1, 1, 8, 8), lr.SquaredError(torch.zeros(1, 1, 8, 8))
    >>> hg = lr.hypergradient(problem, b, loss, method=lr.OneStep(), tolerance=0.1)
    >>> hg.certified, hg.status.name  # the bound holds, and says how little one step is worth
    (True, 'METHOD_ERROR')
    """

    name = "one-step"
    miss = Status.METHOD_ERROR

    def __init__(self, state_solver: SolverName | Solver[Any] = "auto") -> None:
        self.state_solver = check_solver(state_solver, "OneStep")

    def fits(self, instance: Instance) -> bool:
        return not instance.latent.channels and math.isfinite(instance.gradient_lipschitz())

    @torch.no_grad()
    def run(self, start: Point, goal: Goal) -> Outcome:
        instance, limit = start.instance, goal.max_state_steps
        check_smooth(self, instance)
        solver = make_solver(self.state_solver, instance, start.warm)
        before = None if limit is None else limit - 1
        state = run_state_solver(solver, instance, start.x, goal.state, before, start.t)
        steps = GradientSteps.of(instance, 1)
        found = reverse(start, steps, steps.backwards(steps.start(state.x), 0, 1, None))
        return replace(found, status=state.status, state_steps=state.steps + 1)
