"""Newton's method whose linear systems are solved by preconditioned conjugate gradients.

One ``step`` is one CG iteration; the Newton update happens at a check, for the samples whose linear residual is below
the forcing term (Eisenstat and Walker, 1996, choice 2). K d is accumulated beside d, so that without a constraint the
line search works on cached responses and the update costs one K^T. With a box, the linear system is that of the pixels
that are not held at a bound by their gradient, and the step is projected (Bertsekas, 1982): the active set changes by
any number of pixels at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from learnreg.certificates.state import primal_bound, rounding_floor
from learnreg.linear.samples import expand, inner_samples
from learnreg.lower_level.constraints import FreePixels
from learnreg.lower_level.instance import Instance
from learnreg.solvers.base import Report, Solver, SolverState
from learnreg.solvers.point import EvaluatedPoint, evaluate, where
from learnreg.solvers.preconditioner import Preconditioner, preconditioner_of

__all__ = ["NewtonCG", "NewtonCGState"]

_LARGEST_FORCING = 0.1
_SMALLEST_FORCING = 1e-3
_LINE_SEARCH_TRIALS = 40


@dataclass(frozen=True)
class NewtonCGState(SolverState):
    """The point, and the pixels that are free to move; CG on H(x) d = -grad:
    d, v = K d, residual r, direction p, ‖r‖², <r, Pr>, the preconditioner P (None: the identity)."""

    point: EvaluatedPoint
    free: FreePixels
    d: Tensor
    v: Tensor
    r: Tensor
    p: Tensor
    rr: Tensor
    rz: Tensor
    preconditioner: Preconditioner | None
    grad_norm: Tensor
    forcing: Tensor
    inner: Tensor


class NewtonCG(Solver[NewtonCGState]):
    """Truncated Newton; fast at high accuracy and high condition numbers once it is near the solution.

    Parameters
    ----------
    check_every: steps from one look at the residuals, which waits for the device, to the next.
    max_inner: conjugate-gradient steps at most for a Newton step.
    precondition: where ``preconditioner_of`` knows one.

    Examples
    --------
    >>> A, R = lr.operators.Identity((1, 8, 8)), lr.regularizers.TotalVariation(0.1)
    >>> problem, b = lr.LowerLevelProblem(A, R), torch.zeros(1, 1, 8, 8)
    >>> lr.solve(problem, b, tolerance=1e-3, solver=lr.solvers.NewtonCG()).certified
    True
    """

    name = "newton-cg"
    patience = 750  # several Newton steps: far from the solution they lower the energy rather than its gradient

    def __init__(self, check_every: int = 5, max_inner: int = 500, precondition: bool = True) -> None:
        self.check_every, self.max_inner, self.precondition = check_every, max_inner, precondition

    def init(self, instance: Instance, x: Tensor) -> NewtonCGState:
        point = evaluate(instance, instance.box.prox(x))
        preconditioner = self._preconditioner(instance, point.t)
        grad = point.grad
        free = instance.box.free(point.x, grad)
        r = free.restrict(-grad)
        z = free.restrict(r if preconditioner is None else preconditioner(r))
        rr = inner_samples(r, r)
        return NewtonCGState(
            point=point,
            free=free,
            d=torch.zeros_like(x),
            v=torch.zeros_like(point.t),
            r=r,
            p=z,
            rr=rr,
            rz=inner_samples(r, z),
            preconditioner=preconditioner,
            grad_norm=rr.sqrt(),
            forcing=torch.full_like(rr, _LARGEST_FORCING),
            inner=torch.zeros_like(rr),
        )

    def _preconditioner(self, instance: Instance, t: Tensor) -> Preconditioner | None:
        if not self.precondition:
            return None
        return preconditioner_of(instance, lambda: instance.potential.second_diagonal(t))

    def step(self, instance: Instance, state: NewtonCGState) -> NewtonCGState:
        v_p = instance.apply(state.p)
        h_p = instance.quadratic(state.p) + instance.adjoint(instance.potential.hess_vec(state.point.t, v_p))
        curvature = inner_samples(state.p, h_p)
        usable = (curvature > 0) & (state.rz > 0)
        alpha = torch.where(usable, state.rz / torch.where(usable, curvature, 1.0), 0.0)
        downwards = (curvature < 0) & (state.rz > 0)  # ends the system: its first direction leads down, too
        alpha = torch.where(downwards & (state.inner == 0), 1.0, alpha)
        step = expand(alpha, state.p)
        r = torch.addcmul(state.r, step, state.free.restrict(h_p), value=-1.0)
        z = state.free.restrict(r if state.preconditioner is None else state.preconditioner(r))
        rz = inner_samples(r, z)
        beta = torch.where(usable, rz / torch.where(usable, state.rz, 1.0), 0.0)
        return replace(
            state,
            d=torch.addcmul(state.d, step, state.p),
            v=torch.addcmul(state.v, expand(alpha, v_p), v_p),
            r=r,
            p=torch.addcmul(z, expand(beta, r), state.p),
            rr=inner_samples(r, r),
            rz=rz,
            inner=torch.where(downwards, float(self.max_inner), state.inner + 1),
        )

    def adapt(self, instance: Instance, state: NewtonCGState) -> NewtonCGState:
        """Take the Newton step of the samples whose linear system is solved well enough."""
        ready = (state.rr.sqrt() <= state.forcing * state.grad_norm) | (state.inner >= self.max_inner)
        if not bool(ready.any()):
            return state
        move = self._move_in_box if instance.box.constrains else self._move
        point = move(instance, state, ready)
        grad = point.grad
        free = instance.box.free(point.x, grad)
        restarted = free.restrict(-grad)
        norm = inner_samples(restarted, restarted).sqrt()
        ratio = norm / state.grad_norm.clamp_min(torch.finfo(norm.dtype).tiny)
        forcing = (0.9 * ratio**2).clamp(_SMALLEST_FORCING, _LARGEST_FORCING)
        preconditioner = self._preconditioner(instance, point.t)

        def renewed(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(expand(ready, new), new, old)

        if preconditioner is not None and state.preconditioner is not None:
            preconditioner = preconditioner.where(ready, state.preconditioner)  # the others go on with their system
        r = renewed(restarted, state.r)
        free = free.where(ready, state.free)
        z = free.restrict(r if preconditioner is None else preconditioner(r))
        return NewtonCGState(
            point=point,
            free=free,
            d=renewed(torch.zeros_like(state.d), state.d),
            v=renewed(torch.zeros_like(state.v), state.v),
            r=r,
            p=renewed(z, state.p),
            rr=inner_samples(r, r),
            rz=inner_samples(r, z),
            preconditioner=preconditioner,
            grad_norm=torch.where(ready, norm, state.grad_norm),
            forcing=torch.where(ready, forcing, state.forcing),
            inner=torch.where(ready, 0.0, state.inner),
        )

    def _move(self, instance: Instance, state: NewtonCGState, ready: Tensor) -> EvaluatedPoint:
        """The point after the step of the samples that are ready, on cached responses."""
        point, alpha = state.point, torch.where(ready, self._step_length(instance, state), 0.0)
        m_d = instance.quadratic(state.d)
        t = torch.addcmul(point.t, expand(alpha, state.v), state.v)
        pullback = instance.adjoint(instance.potential.grad(t))
        return EvaluatedPoint(
            torch.addcmul(point.x, expand(alpha, state.d), state.d),
            t,
            torch.addcmul(point.data_grad, expand(alpha, m_d), m_d),
            torch.where(expand(ready, pullback), pullback, point.pullback),
        )

    def _step_length(self, instance: Instance, state: NewtonCGState) -> Tensor:
        """alpha in (0, 1] with a slope at most half the initial one in size, by regula falsi from 1 (slopes along d are
        increasing, so the bracket [0, 1] holds whenever the slope at 1 is positive)."""
        data_slope = inner_samples(state.point.data_grad, state.d)
        curvature = inner_samples(state.d, instance.quadratic(state.d))

        def slope(alpha: Tensor) -> Tensor:
            gradient = instance.potential.grad(torch.addcmul(state.point.t, expand(alpha, state.point.t), state.v))
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

    def _move_in_box(self, instance: Instance, state: NewtonCGState, ready: Tensor) -> EvaluatedPoint:
        """The projected step of the samples that are ready, shortened until the energy's slope at its end, along the
        way that was made, is at most half the one at its start in size."""
        start = state.point
        grad, found = start.grad, start
        alpha, waiting = torch.ones_like(state.rr), ready
        for _ in range(_LINE_SEARCH_TRIALS):
            x = instance.box.prox(torch.addcmul(state.point.x, expand(alpha, state.d), state.d))
            trial = evaluate(instance, x)
            way = x - state.point.x
            before, after = inner_samples(grad, way), inner_samples(trial.grad, way)
            good = waiting & (before <= 0) & (after <= 0.5 * before.abs())
            found = where(good, trial, found)
            waiting = waiting & ~good
            if not bool(waiting.any()):
                break
            alpha = torch.where(waiting, alpha * (before / (before - after)).nan_to_num(0.5).clamp(0.1, 0.5), alpha)
        return found

    def report(self, instance: Instance, state: NewtonCGState) -> Report:
        point, grad = state.point, instance.box.reduced_gradient(state.point.x, state.point.grad)
        floor = rounding_floor(instance, point.x, point.pullback)
        bound = primal_bound(grad, instance.strong_convexity)
        residual = inner_samples(grad, grad).sqrt()
        dead = ~torch.isfinite(state.rr)  # the linear iteration, from which no step will come
        return Report(point.x, torch.where(dead, state.rr, residual), bound, floor)
