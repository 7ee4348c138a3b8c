"""The Neumann series of the inverse Hessian on the adjoint equation: recurrent backpropagation.

    X_{k+1} = X_k + s (rhs - H X_k),    from 0: X_k = s sum_{j<k} (I - s H)^j rhs

Source: Almeida (1987) and Pineda (1987), recurrent backpropagation; truncated: Liao et al. (2018); Lorraine, Vicol and
Duvenaud (2020), T1-T2.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from learnreg.linear.samples import norm_samples
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.instance import Instance
from learnreg.solvers.base import OWNED, AdjointSolver, Report, SolverState

__all__ = ["Neumann", "NeumannState"]


@dataclass(frozen=True)
class NeumannState(SolverState):
    """X, its residual r = rhs - H X, and memory for responses. size: s."""

    X: Tensor
    r: Tensor
    size: float
    memory: Tensor = field(metadata=OWNED)


class Neumann(AdjointSolver[NeumannState]):
    """The Neumann series, a step for each term; ``max_steps`` truncates it. The errors fall by (L - mu)/(L + mu), or
    without a modulus mu by 1 - lambda/L for the eigenvalue lambda, in each step; L, a bound of the Hessian's norm, has
    to be known.

    Step size 2/(L + mu), and 1/L without a modulus, as recurrent backpropagation through gradient steps has it.

    Parameters
    ----------
    check_every: steps from one look at the residuals, which waits for the device, to the next.

    Examples
    --------
    >>> problem = lr.LowerLevelProblem(lr.operators.Identity((1, 8, 8)), lr.regularizers.FieldsOfExperts(2, 3))
    >>> b, loss = torch.rand(1, 1, 8, 8), lr.SquaredError(torch.zeros(1, 1, 8, 8))
    >>> lr.hypergradient(problem, b, loss, method=lr.Implicit(lr.solvers.Neumann()), tolerance=0.1).certified
    True
    """

    name = "neumann"
    patience = 1000  # condition numbers up to 20,000 let the residual fall by 10 % within as many steps

    def __init__(self, check_every: int = 10) -> None:
        self.check_every = check_every

    def obstacle(self, instance: Instance) -> str:
        known = math.isfinite(instance.gradient_lipschitz())
        return "" if known else "no bound of the Hessian's norm is known, which the step size rests on"

    def init(self, equation: AdjointEquation, X: Tensor) -> NeumannState:
        instance, X, memory = equation.instance, equation.project(X), torch.empty_like(equation.at_response)
        L, mu = instance.gradient_lipschitz(), max(instance.strong_convexity, 0.0)
        r = equation.residual(X, memory)
        return NeumannState(X, r, 2.0 / (L + mu) if mu > 0 else 1.0 / L, memory)

    def step(self, equation: AdjointEquation, state: NeumannState) -> NeumannState:
        X = torch.add(state.X, state.r, alpha=state.size)
        return NeumannState(X, equation.rhs - equation.hessian(X, state.memory), state.size, state.memory)

    def recurring(self, state: NeumannState) -> Hashable:
        return ()

    def report(self, equation: AdjointEquation, state: NeumannState) -> Report:
        residual, mu = norm_samples(state.r), equation.instance.strong_convexity
        bound = residual / mu if mu > 0 else torch.full_like(residual, torch.inf)
        return Report(state.X, residual, bound, torch.zeros_like(residual))
