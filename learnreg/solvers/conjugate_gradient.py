"""Conjugate gradients on the adjoint equation."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from learnreg.adjoint import AdjointEquation
from learnreg.convex import inner_samples
from learnreg.problem import expand
from learnreg.solvers.base import OWNED, AdjointSolver, Report, SolverState

__all__ = ["CGState", "ConjugateGradient"]


@dataclass(frozen=True)
class CGState(SolverState):
    """Solution X, residual r = rhs - H X by recursion, direction p, ‖r‖², and memory for responses."""

    X: Tensor
    r: Tensor
    p: Tensor
    rr: Tensor
    memory: Tensor = field(metadata=OWNED)


class ConjugateGradient(AdjointSolver[CGState]):
    """CG; adapts to the spectrum. The recursion's residual only steers it: certificates recompute the true one."""

    name = "cg"

    def __init__(self, check_every: int = 5) -> None:
        self.check_every = check_every

    def init(self, equation: AdjointEquation, X: Tensor) -> CGState:
        X = equation.project(X)
        memory = torch.empty_like(equation.at_response)
        r = equation.rhs - equation.hessian(X, memory)
        return CGState(X, r, r, inner_samples(r, r), memory)

    def step(self, equation: AdjointEquation, state: CGState) -> CGState:
        h_p = equation.hessian(state.p, state.memory)
        curvature = inner_samples(state.p, h_p)
        usable = (curvature > 0) & (state.rr > 0)
        alpha = torch.where(usable, state.rr / torch.where(usable, curvature, 1.0), 0.0)
        step = expand(alpha, state.p)
        r = torch.addcmul(state.r, step, h_p, value=-1.0)
        rr = inner_samples(r, r)
        beta = torch.where(usable, rr / torch.where(usable, state.rr, 1.0), 0.0)
        p = torch.addcmul(r, expand(beta, r), state.p)
        return CGState(torch.addcmul(state.X, step, state.p), r, p, rr, state.memory)

    def report(self, equation: AdjointEquation, state: CGState) -> Report:
        residual = state.rr.sqrt()
        mu = equation.instance.strong_convexity
        bound = residual / mu if mu > 0 else torch.full_like(residual, torch.inf)
        return Report(state.X, residual, bound, torch.zeros_like(residual))
