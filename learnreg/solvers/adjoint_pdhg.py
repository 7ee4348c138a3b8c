"""The piggyback iteration with a frozen linearisation: over-relaxed PDHG on the adjoint saddle point.

Source: Chambolle and Pock (2021); Bogensperger, Chambolle and Pock (2022). The proximal maps of the lower level are
replaced by their derivatives at its solution.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from learnreg.errors import AssumptionError
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.solvers.base import OWNED, AdjointSolver, Report, SolverState
from learnreg.solvers.pdhg import StepSizes, balanced_tau, initial_tau, scaled_movement

__all__ = ["AdjointPDHG", "AdjointPDHGState"]


@dataclass(frozen=True)
class AdjointPDHGState(SolverState):
    """Relaxed iterates X, Y, the prox outputs X_hat, Y_hat, and tau per sample. ``step`` overwrites Y and Y_hat."""

    X: Tensor
    Y: Tensor = field(metadata=OWNED)
    X_hat: Tensor
    Y_hat: Tensor = field(metadata=OWNED)
    tau: Tensor
    steps: int
    sizes: StepSizes


def adjoint_primal_step(
    equation: AdjointEquation, X: Tensor, pullback: Tensor, tau: Tensor, sizes: StepSizes
) -> Tensor:
    """X - tau (K^T Y + ∂_x ell), then the derivative of prox_{tau g}: the data term's curvature, zero on active
    pixels."""
    quadratic = equation.instance.quadratic
    return equation.project(quadratic.primal_step(X, pullback, equation.rhs, sizes.tau(tau, X)))


class AdjointPDHG(AdjointSolver[AdjointPDHGState]):
    """Piggyback on a frozen linearisation; the same step sizes rules as the lower level's PDHG."""

    name = "piggyback"
    report_applications = 3

    def __init__(self, check_every: int = 10) -> None:
        self.check_every = check_every

    def init(self, equation: AdjointEquation, X: Tensor) -> AdjointPDHGState:
        instance = equation.instance
        if not instance.potential.convex:
            raise AssumptionError("the piggyback iteration does not handle weakly convex regularizers; use 'cg'.")
        sizes = StepSizes.of(instance)
        X = equation.project(X)
        Y = equation.bend_(instance.apply(X))
        tau = torch.full((X.shape[0],), initial_tau(instance, sizes), dtype=X.dtype, device=X.device)
        return AdjointPDHGState(X, Y, X, Y.clone(), tau, 0, sizes)

    def step(self, equation: AdjointEquation, state: AdjointPDHGState) -> AdjointPDHGState:
        instance, sizes = equation.instance, state.sizes
        sigma = sizes.sigma(state.tau, state.Y)
        X_hat = adjoint_primal_step(equation, state.X, instance.adjoint(state.Y), state.tau, sizes)
        response = instance.apply(torch.lerp(state.X, X_hat, 2.0), state.Y_hat)
        equation.instance.proximal.adjoint_dual_step_(equation.at_response, response, state.Y, sigma, sizes.relaxation)
        X = torch.lerp(state.X, X_hat, sizes.relaxation)
        return replace(state, X=X, X_hat=X_hat, steps=state.steps + 1)

    def adapt(self, equation: AdjointEquation, state: AdjointPDHGState) -> AdjointPDHGState:
        ahead_Y = torch.sub(state.Y, state.Y_hat, out=state.Y_hat)
        checks = state.steps // self.check_every
        movement = scaled_movement(state.sizes, state.X - state.X_hat, ahead_Y)
        return replace(state, tau=balanced_tau(state.sizes, state.tau, *movement, checks))

    def report(self, equation: AdjointEquation, state: AdjointPDHGState) -> Report:
        instance, mu = equation.instance, equation.instance.strong_convexity
        X = state.X_hat
        if instance.quadratic.is_diagonal and mu > 0:
            X = equation.project(instance.quadratic.minimiser(equation.rhs - instance.adjoint(state.Y_hat)))
        residual = equation.residual_norm(X)
        bound = residual / mu if mu > 0 else torch.full_like(residual, torch.inf)
        return Report(X, residual, bound, torch.zeros_like(residual))
