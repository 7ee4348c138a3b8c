"""Newton's method whose linear systems are solved by conjugate gradients, with a line search on cached responses.

One ``step`` is one CG iteration; the Newton update happens at a check, for the samples whose linear residual is below
the forcing term (Eisenstat and Walker, 1996, choice 2). K d is accumulated beside d, so the update costs one K^T.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from learnreg.certificates.state import primal_bound, rounding_floor
from learnreg.convex import inner_samples
from learnreg.errors import AssumptionError
from learnreg.problem import Instance, expand
from learnreg.solvers.base import Report, Solver, SolverState

__all__ = ["NewtonCG", "NewtonCGState"]

_LARGEST_FORCING = 0.1
_SMALLEST_FORCING = 1e-3
_LINE_SEARCH_TRIALS = 40


@dataclass(frozen=True)
class NewtonCGState(SolverState):
    """Point x with responses t, gradient parts; CG on H(x) d = -grad: d, v = K d, residual r, direction p."""

    x: Tensor
    t: Tensor
    data_grad: Tensor
    pullback: Tensor
    d: Tensor
    v: Tensor
    r: Tensor
    p: Tensor
    rr: Tensor
    grad_norm: Tensor
    forcing: Tensor
    inner: Tensor


class NewtonCG(Solver[NewtonCGState]):
    """Truncated Newton; fast at high accuracy and high condition numbers once it is near the solution."""

    name = "newton-cg"

    def __init__(self, check_every: int = 5, max_inner: int = 500) -> None:
        self.check_every, self.max_inner = check_every, max_inner

    def init(self, instance: Instance, x: Tensor) -> NewtonCGState:
        if instance.box is not None:
            raise AssumptionError("Newton-CG does not handle constraints; use solver='pdhg'.")
        t = instance.apply(x)
        data_grad = instance.quadratic(x) - instance.q
        pullback = instance.adjoint(instance.potential.grad(t))
        r = -(data_grad + pullback)
        rr = inner_samples(r, r)
        zero_d, zero_v, count = torch.zeros_like(x), torch.zeros_like(t), torch.zeros_like(rr)
        forcing = torch.full_like(rr, _LARGEST_FORCING)
        return NewtonCGState(x, t, data_grad, pullback, zero_d, zero_v, r, r, rr, rr.sqrt(), forcing, count)

    def step(self, instance: Instance, state: NewtonCGState) -> NewtonCGState:
        v_p = instance.apply(state.p)
        h_p = instance.quadratic(state.p) + instance.adjoint(instance.potential.hess_vec(state.t, v_p))
        curvature = inner_samples(state.p, h_p)
        usable = (curvature > 0) & (state.rr > 0)
        alpha = torch.where(usable, state.rr / torch.where(usable, curvature, 1.0), 0.0)
        step = expand(alpha, state.p)
        r = torch.addcmul(state.r, step, h_p, value=-1.0)
        rr = inner_samples(r, r)
        beta = torch.where(usable, rr / torch.where(usable, state.rr, 1.0), 0.0)
        return replace(
            state,
            d=torch.addcmul(state.d, step, state.p),
            v=torch.addcmul(state.v, expand(alpha, v_p), v_p),
            r=r,
            p=torch.addcmul(r, expand(beta, r), state.p),
            rr=rr,
            inner=state.inner + 1,
        )

    def adapt(self, instance: Instance, state: NewtonCGState) -> NewtonCGState:
        """Take the Newton step of the samples whose linear system is solved well enough."""
        ready = (state.rr.sqrt() <= state.forcing * state.grad_norm) | (state.inner >= self.max_inner)
        if not bool(ready.any()):
            return state
        alpha = torch.where(ready, self._step_length(instance, state), 0.0)
        m_d = instance.quadratic(state.d)
        x = torch.addcmul(state.x, expand(alpha, state.d), state.d)
        t = torch.addcmul(state.t, expand(alpha, state.v), state.v)
        data_grad = torch.addcmul(state.data_grad, expand(alpha, m_d), m_d)
        pullback = instance.adjoint(instance.potential.grad(t))
        grad = data_grad + pullback
        norm = inner_samples(grad, grad).sqrt()
        ratio = norm / state.grad_norm.clamp_min(torch.finfo(norm.dtype).tiny)
        forcing = (0.9 * ratio**2).clamp(_SMALLEST_FORCING, _LARGEST_FORCING)

        def renewed(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(expand(ready, new), new, old)

        r = renewed(-grad, state.r)
        return NewtonCGState(
            x=x,
            t=t,
            data_grad=data_grad,
            pullback=renewed(pullback, state.pullback),
            d=renewed(torch.zeros_like(state.d), state.d),
            v=renewed(torch.zeros_like(state.v), state.v),
            r=r,
            p=renewed(r, state.p),
            rr=inner_samples(r, r),
            grad_norm=torch.where(ready, norm, state.grad_norm),
            forcing=torch.where(ready, forcing, state.forcing),
            inner=torch.where(ready, 0.0, state.inner),
        )

    def _step_length(self, instance: Instance, state: NewtonCGState) -> Tensor:
        """alpha in (0, 1] with a slope at most half the initial one in size, by regula falsi from 1 (slopes along d are
        increasing, so the bracket [0, 1] holds whenever the slope at 1 is positive)."""
        data_slope = inner_samples(state.data_grad, state.d)
        curvature = inner_samples(state.d, instance.quadratic(state.d))

        def slope(alpha: Tensor) -> Tensor:
            gradient = instance.potential.grad(torch.addcmul(state.t, expand(alpha, state.t), state.v))
            return data_slope + alpha * curvature + inner_samples(gradient, state.v)

        low, high = torch.zeros_like(data_slope), torch.ones_like(data_slope)
        slope_low = slope(low)
        target = 0.5 * slope_low.abs()
        alpha, current = high, slope(high)
        for _ in range(_LINE_SEARCH_TRIALS):
            done = current <= target
            if bool(done.all()):
                break
            slope_high = current
            trial = low + (alpha - low) * (slope_low / (slope_low - slope_high)).clamp(0.1, 0.5)
            alpha = torch.where(done, alpha, trial)
            current = torch.where(done, current, slope(alpha))
        return alpha

    def report(self, instance: Instance, state: NewtonCGState) -> Report:
        grad = state.data_grad + state.pullback
        floor = rounding_floor(instance, state.x, state.pullback)
        bound = primal_bound(grad, instance.strong_convexity)
        residual = inner_samples(grad, grad).sqrt()
        dead = ~torch.isfinite(state.rr)  # the linear iteration, from which no step will come
        return Report(state.x, torch.where(dead, state.rr, residual), bound, floor)
