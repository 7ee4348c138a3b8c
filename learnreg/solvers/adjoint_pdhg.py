"""The piggyback iteration with a frozen linearisation: over-relaxed PDHG on the adjoint saddle point.

Source: Chambolle and Pock (2021); Bogensperger, Chambolle and Pock (2022). The proximal maps of the lower level are
replaced by their derivatives at its solution.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from learnreg.errors import AssumptionError
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.fused_total_variation import FusedTotalVariation
from learnreg.lower_level.instance import Instance
from learnreg.solvers.base import OWNED, AdjointSolver, Report
from learnreg.solvers.pdhg import (
    BalancedState,
    StepSizes,
    balanced_tau,
    initial_tau,
    optimal_tau,
    proximal_obstacle,
    scaled_movement,
)

__all__ = ["AdjointPDHG", "AdjointPDHGState"]


@dataclass(frozen=True)
class AdjointPDHGState(BalancedState):
    """Relaxed iterates X, Y, and the prox outputs X_hat, Y_hat. ``step`` overwrites Y and Y_hat, and may overwrite X
    and X_hat."""

    X: Tensor = field(metadata=OWNED)
    Y: Tensor = field(metadata=OWNED)
    X_hat: Tensor = field(metadata=OWNED)
    Y_hat: Tensor = field(metadata=OWNED)


def adjoint_primal_step(
    equation: AdjointEquation, X: Tensor, pullback: Tensor, tau: Tensor, sizes: StepSizes
) -> Tensor:
    """X - tau (K^T Y + ∂_x ell), then the derivative of prox_{tau g}: the data term's curvature, zero on active
    pixels."""
    quadratic = equation.instance.quadratic
    if sizes.metric is not None:
        return X - sizes.metric.step(quadratic(X) - equation.rhs + pullback, sizes.level(tau))
    return equation.project(quadratic.primal_step(X, pullback, equation.rhs, sizes.tau(tau, X)))


class AdjointPDHG(AdjointSolver[AdjointPDHGState]):
    """Piggyback on a frozen linearisation; the same rules of step sizes as the lower level's PDHG. The answer is the
    prox output, whose residual is smaller than that of the minimiser for the dual iterate, as measured.

    Parameters
    ----------
    check_every: steps from one look at the residuals, which waits for the device, to the next.

    Examples
    --------
    >>> problem = lr.LowerLevelProblem(lr.operators.Identity((1, 8, 8)), lr.regularizers.FieldsOfExperts(2, 3))
    >>> b, loss = torch.rand(1, 1, 8, 8), lr.SquaredError(torch.zeros(1, 1, 8, 8))
    >>> lr.hypergradient(problem, b, loss, method=lr.Implicit(lr.solvers.AdjointPDHG()), tolerance=0.1).certified
    True
    """

    name = "piggyback"
    report_applications = 2

    def __init__(self, check_every: int = 10) -> None:
        self.check_every = check_every

    def obstacle(self, instance: Instance) -> str:
        return proximal_obstacle(instance)

    def init(self, equation: AdjointEquation, X: Tensor) -> AdjointPDHGState:
        instance = equation.instance
        if not instance.potential.convex:
            raise AssumptionError("the piggyback iteration does not handle weakly convex regularizers; use 'cg'.")
        sizes = StepSizes.of(instance)
        X = equation.project(X).clone()
        Y = equation.bend_(instance.apply(X))
        first = initial_tau(instance, sizes) if sizes.metric is None else optimal_tau(instance, sizes)
        tau = torch.full((X.shape[0],), first, dtype=X.dtype, device=X.device)
        return AdjointPDHGState(sizes, tau, 0, X, Y, X.clone(), Y.clone())

    def step(self, equation: AdjointEquation, state: AdjointPDHGState) -> AdjointPDHGState:
        instance, sizes = equation.instance, state.sizes
        fused = self._fused_steps(equation, state, 1)
        if fused is not None:
            return fused
        sigma = sizes.sigma(state.tau, state.Y)
        X_hat = adjoint_primal_step(equation, state.X, instance.adjoint(state.Y), state.tau, sizes)
        response = instance.apply(torch.lerp(state.X, X_hat, 2.0), state.Y_hat)
        equation.instance.proximal.adjoint_dual_step_(equation.at_response, response, state.Y, sigma, sizes.relaxation)
        X = torch.lerp(state.X, X_hat, sizes.relaxation)
        return replace(state, X=X, X_hat=X_hat, steps=state.steps + 1)

    def steps(self, equation: AdjointEquation, state: AdjointPDHGState, count: int) -> AdjointPDHGState:
        fused = self._fused_steps(equation, state, count)
        return super().steps(equation, state, count) if fused is None else fused

    def _fused_steps(self, equation: AdjointEquation, state: AdjointPDHGState, count: int) -> AdjointPDHGState | None:
        """All of them by one kernel, where it fits."""
        tensors = (state.X, state.X_hat, state.Y, state.Y_hat, equation.at_response, equation.rhs, state.tau)
        fused = FusedTotalVariation.of(equation.instance, *tensors)
        if fused is None:
            return None
        fused.adjoint_steps(*tensors, (state.sizes.norm, state.sizes.relaxation, count))
        return replace(state, steps=state.steps + count)

    def adapt(self, equation: AdjointEquation, state: AdjointPDHGState) -> AdjointPDHGState:
        ahead_Y = torch.sub(state.Y, state.Y_hat, out=state.Y_hat)
        checks = state.steps // self.check_every
        movement = scaled_movement(state.sizes, state.X - state.X_hat, ahead_Y)
        return replace(state, tau=balanced_tau(state.sizes, state.tau, *movement, checks))

    def recurring(self, state: AdjointPDHGState) -> Hashable:
        return ()

    def report(self, equation: AdjointEquation, state: AdjointPDHGState) -> Report:
        mu = equation.instance.strong_convexity
        residual = equation.residual_norm(state.X_hat)
        bound = residual / mu if mu > 0 else torch.full_like(residual, torch.inf)
        return Report(state.X_hat, residual, bound, torch.zeros_like(residual))
