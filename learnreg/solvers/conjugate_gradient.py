"""Preconditioned conjugate gradients on the adjoint equation."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from learnreg.linear.samples import expand, inner_samples
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.solvers.base import OWNED, AdjointSolver, Report, SolverState
from learnreg.solvers.preconditioner import preconditioned, preconditioner_of

__all__ = ["CGState", "ConjugateGradient"]

_INDEFINITE = {torch.float32: 1e-4, torch.float64: 1e-8}
"""Curvatures below 0 by more than these shares of the largest are no rounding."""


@dataclass(frozen=True)
class CGState(SolverState):
    """Solution X, residual r = rhs - H X by recursion, direction p, ‖r‖², <r, Pr>, the preconditioner P (None: the
    identity), memory for responses and, with smoothing, the smoothed solution and its residual. largest, lowest: of the
    curvatures met, (batch,), where nothing says that H is positive definite."""

    X: Tensor
    r: Tensor
    p: Tensor
    rr: Tensor
    rz: Tensor
    preconditioner: Callable[[Tensor], Tensor] | None
    memory: Tensor = field(metadata=OWNED)
    X_smooth: Tensor | None = None
    r_smooth: Tensor | None = None
    largest: Tensor | None = None
    lowest: Tensor | None = None


class ConjugateGradient(AdjointSolver[CGState]):
    """CG; adapts to the spectrum. The recursion's residual only steers it: certificates recompute the true one.

    Parameters
    ----------
    check_every: steps from one look at the residuals, which waits for the device, to the next.
    precondition: where ``preconditioner_of`` knows one.
    smooth: report the point of least residual on the segments between the point reported before and the iterates
        (minimal residual smoothing: Schönauer 1987; Zhou and Walker, SIAM J. Sci. Comput. 15, 1994). CG minimises the
        energy of the error; bounds see the norm of the residual, which this halves.

    Examples
    --------
    >>> problem = lr.LowerLevelProblem(lr.operators.Identity((1, 8, 8)), lr.regularizers.FieldsOfExperts(2, 3))
    >>> b, loss = torch.rand(1, 1, 8, 8), lr.SquaredError(torch.zeros(1, 1, 8, 8))
    >>> lr.hypergradient(problem, b, loss, method=lr.Implicit(lr.solvers.ConjugateGradient()), tolerance=0.1).certified
    True
    """

    name = "cg"
    patience = 1000  # residuals may stay above the first one for so long where H is ill-conditioned; errors fall

    def __init__(self, check_every: int = 5, precondition: bool = True, smooth: bool = False) -> None:
        self.check_every, self.precondition, self.smooth = check_every, precondition, smooth

    def init(self, equation: AdjointEquation, X: Tensor) -> CGState:
        preconditioner = None
        if self.precondition:
            preconditioner = preconditioner_of(equation.instance, equation.curvature_diagonal)
        return self._started(equation, equation.project(X), preconditioner)

    def _started(
        self, equation: AdjointEquation, X: Tensor, preconditioner: Callable[[Tensor], Tensor] | None
    ) -> CGState:
        """The state at X, which is 0 off the free pixels."""
        memory = torch.empty_like(equation.at_response)
        r = equation.residual(X, memory)
        z = preconditioned(equation, preconditioner, r)
        smoothed = (X, r) if self.smooth else (None, None)
        rr = inner_samples(r, r)
        met = (None, None) if equation.instance.strong_convexity > 0 else (torch.zeros_like(rr), torch.zeros_like(rr))
        return CGState(X, r, z, rr, inner_samples(r, z), preconditioner, memory, *smoothed, *met)

    def step(self, equation: AdjointEquation, state: CGState) -> CGState:
        h_p = equation.hessian(state.p, state.memory)
        curvature = inner_samples(state.p, h_p)
        usable = (curvature > 0) & (state.rz > 0)
        alpha = torch.where(usable, state.rz / torch.where(usable, curvature, 1.0), 0.0)
        step = expand(alpha, state.p)
        r = torch.addcmul(state.r, step, h_p, value=-1.0)
        z = preconditioned(equation, state.preconditioner, r)
        rz = inner_samples(r, z)
        beta = torch.where(usable, rz / torch.where(usable, state.rz, 1.0), 0.0)
        p = torch.addcmul(z, expand(beta, r), state.p)
        X = torch.addcmul(state.X, step, state.p)
        smoothed = _smoothed(state, X, r)
        met = _curvatures(state, curvature)
        return CGState(X, r, p, inner_samples(r, r), rz, state.preconditioner, state.memory, *smoothed, *met)

    def recurring(self, state: CGState) -> Hashable:
        return ()

    def report(self, equation: AdjointEquation, state: CGState) -> Report:
        X, residual = state.X, state.rr.sqrt()
        if state.X_smooth is not None and state.r_smooth is not None:
            X, residual = state.X_smooth, inner_samples(state.r_smooth, state.r_smooth).sqrt()
        mu = equation.instance.strong_convexity
        bound = residual / mu if mu > 0 else torch.full_like(residual, torch.inf)
        indefinite = None
        if state.lowest is not None and state.largest is not None:
            indefinite = state.lowest < -_INDEFINITE[residual.dtype] * state.largest
        return Report(X, residual, bound, torch.zeros_like(residual), indefinite=indefinite)


def _curvatures(state: CGState, curvature: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The largest and the lowest <p, H p> / ‖p‖² so far, the largest in size."""
    if state.largest is None or state.lowest is None:
        return None, None
    size = inner_samples(state.p, state.p)
    quotient = torch.where(size > 0, curvature / size.clamp_min(torch.finfo(size.dtype).tiny), 0.0)
    return torch.maximum(state.largest, quotient.abs()), torch.minimum(state.lowest, quotient)


def _smoothed(state: CGState, X: Tensor, r: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The point of least residual between the smoothed solution and X."""
    if state.X_smooth is None or state.r_smooth is None:
        return None, None
    change = r - state.r_smooth
    size = inner_samples(change, change)
    share = -inner_samples(state.r_smooth, change) / size.clamp_min(torch.finfo(size.dtype).tiny)
    share = expand(share, r)
    return torch.lerp(state.X_smooth, X, share), torch.addcmul(state.r_smooth, share, change)
