"""Limited-memory BFGS with a line search on cached responses (Nocedal, 1980; Liu and Nocedal, 1989).

The energy is a quadratic plus f(Kx). With t = Kx and v = Kp cached, the energy along x + alpha p costs elementwise work
only, so an iteration needs one K (for v) and one K^T (for the gradient), whatever the line search does.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from learnreg.certificates.state import primal_bound, rounding_floor
from learnreg.errors import AssumptionError
from learnreg.kernels.blocks import sum_blocks
from learnreg.linear.samples import expand, inner_samples
from learnreg.lower_level.instance import Instance
from learnreg.solvers.base import OWNED, Report, Solver, SolverState
from learnreg.solvers.preconditioner import SpectralPreconditioner, can_precondition

__all__ = ["LBFGS", "LBFGSState", "inverse_curvature", "pair_scale", "two_loop_direction"]


@dataclass(frozen=True)
class LBFGSState(SolverState):
    """x, its responses t = Kx, the gradient of the quadratic part, the pull-back K^T f'(t), memory for responses, the
    preconditioner (None: the identity), steps so far, and the pairs. ``step`` overwrites t and the memory."""

    x: Tensor
    t: Tensor = field(metadata=OWNED)
    data_grad: Tensor
    pullback: Tensor
    memory: Tensor = field(metadata=OWNED)
    preconditioner: SpectralPreconditioner | None = None
    steps: int = 0
    s: tuple[Tensor, ...] = ()
    d: tuple[Tensor, ...] = ()
    inverse_curvature: tuple[Tensor, ...] = ()


class LBFGS(Solver[LBFGSState]):
    """L-BFGS without constraints, each sample of the batch on its own.

    Parameters
    ----------
    check_every: steps from one look at the residuals, which waits for the device, to the next.
    memory: number of pairs kept.
    precondition: where the Hessian is of a kind that ``SpectralPreconditioner`` knows.

    Examples
    --------
    >>> A, R = lr.operators.Identity((1, 8, 8)), lr.regularizers.TotalVariation(0.1)
    >>> problem, b = lr.LowerLevelProblem(A, R), torch.zeros(1, 1, 8, 8)
    >>> lr.solve(problem, b, tolerance=1e-3, solver=lr.solvers.LBFGS()).certified
    True
    """

    name = "lbfgs"

    def __init__(self, memory: int = 10, check_every: int = 5, precondition: bool = True) -> None:
        self.memory, self.check_every, self.precondition = memory, check_every, precondition

    def init(self, instance: Instance, x: Tensor) -> LBFGSState:
        if instance.box.constrains:
            raise AssumptionError("LBFGS does not handle constraints; use ProjectedLBFGS, as solver='lbfgs' does.")
        t = instance.apply(x)
        memory = instance.potential.grad_into(t, torch.empty_like(t))
        data_grad, pullback = instance.quadratic(x) - instance.q, instance.adjoint(memory)
        return LBFGSState(x, t, data_grad, pullback, memory, self._preconditioner(instance, t, memory))

    def adapt(self, instance: Instance, state: LBFGSState) -> LBFGSState:
        """Renew the preconditioner after 1, 2, 4, 8 ... checks: the curvature moves less and less."""
        checks = state.steps // self.check_every
        if state.preconditioner is None or checks & (checks - 1):
            return state
        return replace(state, preconditioner=self._preconditioner(instance, state.t, state.memory))

    def _preconditioner(self, instance: Instance, t: Tensor, memory: Tensor) -> SpectralPreconditioner | None:
        if not (self.precondition and can_precondition(instance)):
            return None
        for f, t_, memory_ in instance.potential.blocks(t, memory):
            memory_.copy_(f.majorant(t_))
        return SpectralPreconditioner.of(instance, memory)

    def step(self, instance: Instance, state: LBFGSState) -> LBFGSState:
        grad = state.data_grad + state.pullback
        precondition = state.preconditioner or (lambda r: r)
        scale = torch.ones_like(grad.flatten(1)[:, 0])
        if state.s:
            scale = pair_scale(state.d[-1], state.inverse_curvature[-1], precondition, scale)
        p = two_loop_direction(grad, state.s, state.d, state.inverse_curvature, precondition, scale)
        v, m_p = instance.apply(p, state.memory), instance.quadratic(p)
        alpha = self._step_length(instance, state, grad, p, v, m_p)
        step = expand(alpha, p)
        for f, t_, v_, step_ in instance.potential.blocks(state.t, v, expand(alpha, v)):
            f.grad_into(t_.addcmul_(step_, v_), v_)
        x, data_grad = torch.addcmul(state.x, step, p), torch.addcmul(state.data_grad, step, m_p)
        pullback = instance.adjoint(v)
        s, d = step * p, data_grad + pullback - grad
        return LBFGSState(
            x,
            state.t,
            data_grad,
            pullback,
            v,
            state.preconditioner,
            state.steps + 1,
            (*state.s, s)[-self.memory :],
            (*state.d, d)[-self.memory :],
            (*state.inverse_curvature, inverse_curvature(s, d))[-self.memory :],
        )

    def recurring(self, state: LBFGSState) -> Hashable:
        """Nothing, once all pairs are there."""
        return () if len(state.s) == self.memory else None

    def _step_length(
        self, instance: Instance, state: LBFGSState, grad: Tensor, p: Tensor, v: Tensor, m_p: Tensor
    ) -> Tensor:
        """alpha = 1 where the slope there is at most half the initial one in size, else one secant step on the slope;
        a first step minimises the parabola above the energy."""
        data_slope, data_curvature = inner_samples(state.data_grad, p), inner_samples(p, m_p)
        start = inner_samples(grad, p)
        if not state.s:
            bends = ((inner_samples(v_, f.majorant(t_) * v_),) for f, t_, v_ in instance.potential.blocks(state.t, v))
            curvature = data_curvature + sum_blocks(bends, p.shape[0])[0]
            first = -start / curvature.clamp_min(torch.finfo(p.dtype).tiny)
        else:
            first = torch.ones_like(start)
        at_first = self._slope(instance, state, first, v, data_slope, data_curvature)
        secant = start / (start - at_first) * first
        rising = at_first > start
        secant = torch.where(rising, secant.clamp(min=0.05 * first, max=10.0 * first), 10.0 * first)
        return torch.where(at_first.abs() <= 0.5 * start.abs(), first, secant)

    def _slope(
        self, instance: Instance, state: LBFGSState, alpha: Tensor, v: Tensor, data_slope: Tensor, curvature: Tensor
    ) -> Tensor:
        return data_slope + alpha * curvature + instance.potential.slope(state.t, v, expand(alpha, v))

    def report(self, instance: Instance, state: LBFGSState) -> Report:
        grad = state.data_grad + state.pullback
        floor = rounding_floor(instance, state.x, state.pullback)
        residual = inner_samples(grad, grad).sqrt()
        bound = primal_bound(grad, instance.strong_convexity)
        return Report(state.x, residual, bound, floor)


def two_loop_direction(
    grad: Tensor,
    s: tuple[Tensor, ...],
    d: tuple[Tensor, ...],
    inverse_curvatures: tuple[Tensor, ...],
    precondition: Callable[[Tensor], Tensor],
    scale: Tensor,
) -> Tensor:
    """-H grad by the two-loop recursion over the pairs (s, d), from ``scale`` (batch,) times the preconditioner; the
    gradient where that is no descent direction. An inverse curvature of 0 leaves a pair out."""
    q = -grad
    alphas = []
    for s_k, d_k, rho in zip(reversed(s), reversed(d), reversed(inverse_curvatures), strict=True):
        a = rho * inner_samples(s_k, q)
        q = torch.addcmul(q, expand(a, q), d_k, value=-1.0)
        alphas.append(a)
    q = precondition(q)
    q = q * expand(scale, q)
    for s_k, d_k, rho, a in zip(s, d, inverse_curvatures, reversed(alphas), strict=True):
        b = rho * inner_samples(d_k, q)
        q = torch.addcmul(q, expand(a - b, q), s_k)
    descent = expand(inner_samples(q, grad) < 0, q)
    return torch.where(descent, q, -grad)


def pair_scale(d: Tensor, inverse_curvature: Tensor, precondition: Callable[[Tensor], Tensor], old: Tensor) -> Tensor:
    """The factor (batch,) that makes the preconditioner fit a pair, <s, d>/<d, P d>; ``old`` where the pair is left
    out."""
    scale = 1.0 / (inverse_curvature * inner_samples(d, precondition(d))).clamp_min(1e-30)
    return torch.where(inverse_curvature > 0, scale, old)


def inverse_curvature(s: Tensor, d: Tensor) -> Tensor:
    """1/<s, d>, (batch,); 0 where it is not positive."""
    curvature = inner_samples(s, d)
    usable = curvature > 1e-30
    return torch.where(usable, 1.0 / torch.where(usable, curvature, torch.ones_like(curvature)), 0.0)
