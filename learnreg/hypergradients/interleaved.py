"""The published piggyback: x and X advance together, stacked in every operator call (which then counts 2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from learnreg.losses import UpperLoss
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.instance import Instance
from learnreg.solvers.adjoint_pdhg import AdjointPDHG, AdjointPDHGState, adjoint_primal_step
from learnreg.solvers.base import Iteration, Report, SolverState
from learnreg.solvers.pdhg import PDHG, PDHGState, primal_step

if TYPE_CHECKING:
    from learnreg.hypergradients.base import Goal

__all__ = ["InterleavedPDHG", "InterleavedProblem", "InterleavedState"]


@dataclass(frozen=True)
class InterleavedProblem:
    """Lower-level instance and loss, with the accuracies both residuals are measured in. ``x_all`` holds the whole
    batch, so that a loss that couples its samples can be differentiated while part of them iterates."""

    instance: Instance
    loss: UpperLoss
    x_all: Tensor
    X_start: Tensor
    index: Tensor
    state_residual: Tensor
    adjoint_residual: Tensor

    @classmethod
    def of(cls, instance: Instance, loss: UpperLoss, x: Tensor, X: Tensor, goal: Goal) -> InterleavedProblem:
        """The problem for a whole batch."""
        mu = instance.strong_convexity
        state = goal.state * (mu if mu > 0 else 1e-2)
        index = torch.arange(x.shape[0], device=x.device)
        return cls(instance, loss, x, X, index, state, goal.adjoint)

    def loss_gradient(self, x: Tensor) -> Tensor:
        """∂_x ell of the batch at the current x, rows of the active samples."""
        if x.shape[0] == self.x_all.shape[0]:
            return self.loss.gradient(x)
        return self.loss.gradient(self.x_all.index_copy(0, self.index, x))[self.index]

    def select(self, index: Tensor) -> InterleavedProblem:
        """The problem restricted to some samples; the others keep the x they have in ``x_all``."""
        return replace(
            self,
            instance=self.instance.select(index),
            X_start=self.X_start[index],
            index=self.index[index],
            state_residual=self.state_residual[index],
            adjoint_residual=self.adjoint_residual[index],
        )


@dataclass(frozen=True)
class InterleavedState(SolverState):
    """The two PDHG states."""

    lower: PDHGState
    adjoint: AdjointPDHGState


class InterleavedPDHG(Iteration[InterleavedProblem, InterleavedState]):
    """PDHG and its derivative with the same step sizes and relaxation; the answer is (batch, 2, *shape): x and X."""

    name = "piggyback-interleaved"
    report_applications = 6

    def __init__(self, check_every: int = 10) -> None:
        self.check_every = check_every
        self._lower, self._adjoint = PDHG(check_every), AdjointPDHG(check_every)

    def init(self, problem: InterleavedProblem, x: Tensor) -> InterleavedState:
        lower = self._lower.init(problem.instance, x)
        equation = AdjointEquation.at(problem.instance, lower.x, lower.t, problem.loss_gradient(lower.x))
        return InterleavedState(lower, self._adjoint.init(equation, problem.X_start))

    def step(self, problem: InterleavedProblem, state: InterleavedState) -> InterleavedState:
        instance, lower, adjoint = problem.instance, state.lower, state.adjoint
        sizes, batch = lower.sizes, lower.x.shape[0]
        sigma = sizes.sigma(lower.tau, lower.y)
        instance.counter.applications += 2  # two stacked calls count twice
        pullbacks = instance.adjoint(torch.cat([lower.y, adjoint.Y]))
        x_hat = primal_step(instance, lower.x, pullbacks[:batch], lower.tau, sizes)
        equation = AdjointEquation.at(instance, x_hat, lower.t, problem.loss_gradient(x_hat))
        X_hat = adjoint_primal_step(equation, adjoint.X, pullbacks[batch:], lower.tau, sizes)
        responses = instance.apply(torch.cat([2.0 * x_hat - lower.x, 2.0 * X_hat - adjoint.X]))
        v = torch.addcmul(lower.y, sigma, responses[:batch])
        instance.proximal.dual_step_(v, lower.y, lower.t, sigma, sizes.relaxation)
        V = torch.addcmul(adjoint.Y, sigma, responses[batch:])
        Y_hat = instance.proximal.dual_prox_jvp(lower.t, sigma, V)
        rho, steps = sizes.relaxation, lower.steps + 1
        lower = replace(lower, x=torch.lerp(lower.x, x_hat, rho), x_hat=x_hat, steps=steps)
        X, Y = torch.lerp(adjoint.X, X_hat, rho), torch.lerp(adjoint.Y, Y_hat, rho)
        return InterleavedState(lower, replace(adjoint, X=X, Y=Y, X_hat=X_hat, Y_hat=Y_hat, steps=steps))

    def adapt(self, problem: InterleavedProblem, state: InterleavedState) -> InterleavedState:
        lower = self._lower.adapt(problem.instance, state.lower)
        return InterleavedState(lower, replace(state.adjoint, tau=lower.tau))

    def report(self, problem: InterleavedProblem, state: InterleavedState) -> Report:
        lower = self._lower.report(problem.instance, state.lower)
        t = problem.instance.apply(lower.x)
        equation = AdjointEquation.at(problem.instance, lower.x, t, problem.loss_gradient(lower.x))
        adjoint = self._adjoint.report(equation, state.adjoint)
        small = torch.finfo(lower.residual.dtype).tiny
        share = torch.maximum(
            lower.residual / problem.state_residual.clamp_min(small),
            adjoint.residual / problem.adjoint_residual.clamp_min(small),
        )
        never = torch.full_like(share, torch.inf)
        return Report(torch.stack([lower.x, adjoint.x], 1), share, never, torch.zeros_like(share))
