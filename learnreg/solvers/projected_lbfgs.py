"""Limited-memory BFGS under box constraints: quasi-Newton on the free pixels, the step projected onto the box.

Source: Bertsekas (1982), two-metric projection; Kim, Sra and Dhillon (2010), the same with quasi-Newton directions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from learnreg.certificates.state import primal_bound, rounding_floor
from learnreg.linear.samples import expand, inner_samples
from learnreg.lower_level.instance import Instance
from learnreg.solvers.base import Report, Solver, SolverState
from learnreg.solvers.lbfgs import inverse_curvature, pair_scale, two_loop_direction
from learnreg.solvers.point import EvaluatedPoint, evaluate, where
from learnreg.solvers.preconditioner import Preconditioner, preconditioner_of

__all__ = ["ProjectedLBFGS", "ProjectedLBFGSState"]

_SHORTEST, _LONGEST = 0.1, 0.5
"""Factors by which a step that was too long is shortened."""


@dataclass(frozen=True)
class ProjectedLBFGSState(SolverState):
    """The point, the length of the next step along the quasi-Newton direction and the scale of the preconditioner,
    (batch,) each, the preconditioner (None: the identity), steps so far, and the pairs with their inverse curvatures, 0
    where a step was not taken."""

    point: EvaluatedPoint
    alpha: Tensor
    scale: Tensor
    preconditioner: Preconditioner | None
    steps: int = 0
    s: tuple[Tensor, ...] = ()
    d: tuple[Tensor, ...] = ()
    inverse_curvature: tuple[Tensor, ...] = ()


class ProjectedLBFGS(Solver[ProjectedLBFGSState]):
    """L-BFGS within a box, each sample of the batch on its own.

    A step tries one point, and keeps it unless the energy's slope there, along the way, is more than half the one at
    the start in size; the next step then tries a shorter way. So it costs one K and one K^T whatever happens.

    Parameters
    ----------
    check_every: steps from one look at the residuals, which waits for the device, to the next.
    memory: number of pairs kept, and those made since the latest check.
    precondition: where ``preconditioner_of`` knows one.

    Examples
    --------
    >>> A, R = lr.operators.Identity((1, 8, 8)), lr.regularizers.FieldsOfExperts(2, 3)
    >>> problem = lr.LowerLevelProblem(A, R, constraint=lr.Nonnegative())
    >>> lr.solve(problem, torch.ones(1, 1, 8, 8), solver=lr.solvers.ProjectedLBFGS(), tolerance=1e-3).certified
    True
    """

    name = "lbfgs"

    def __init__(self, memory: int = 10, check_every: int = 5, precondition: bool = True) -> None:
        self.memory, self.check_every, self.precondition = memory, check_every, precondition

    def init(self, instance: Instance, x: Tensor) -> ProjectedLBFGSState:
        point = evaluate(instance, instance.box.prox(x))
        preconditioner = self._preconditioner(instance, point)
        ones = torch.ones_like(point.grad.flatten(1)[:, 0])
        state = ProjectedLBFGSState(point, ones, ones, preconditioner)
        p = self._direction(instance, state)
        v = instance.apply(p)
        curvature = inner_samples(p, instance.quadratic(p))
        curvature += inner_samples(v, instance.potential.majorant(point.t) * v)
        slope = inner_samples(point.grad, p)
        return replace(state, alpha=-slope / curvature.clamp_min(torch.finfo(x.dtype).tiny))

    def adapt(self, instance: Instance, state: ProjectedLBFGSState) -> ProjectedLBFGSState:
        """Forget old pairs. Renew the preconditioner after 1, 2, 4, 8 ... checks: the curvature moves less and less."""
        state = self._forget(state)
        checks = state.steps // self.check_every
        if state.preconditioner is None or checks & (checks - 1):
            return state
        return replace(state, preconditioner=self._preconditioner(instance, state.point))

    def _preconditioner(self, instance: Instance, point: EvaluatedPoint) -> Preconditioner | None:
        if not self.precondition:
            return None
        return preconditioner_of(instance, lambda: instance.potential.majorant(point.t))

    def step(self, instance: Instance, state: ProjectedLBFGSState) -> ProjectedLBFGSState:
        start = state.point
        p = self._direction(instance, state)
        aim = torch.addcmul(start.x, expand(state.alpha, p), p)
        trial = evaluate(instance, instance.box.prox(aim))
        way = trial.x - start.x
        before, after = inner_samples(start.grad, way), inner_samples(trial.grad, way)
        good = (before <= 0) & (after <= 0.5 * before.abs())
        secant = (before / (before - after)).nan_to_num(_LONGEST).clamp(_SHORTEST, _LONGEST)
        alpha = torch.where(good, torch.ones_like(secant), state.alpha * secant)
        taken = expand(good, way)
        s, d = torch.where(taken, way, 0.0), torch.where(taken, trial.grad - start.grad, 0.0)
        weight = inverse_curvature(s, d)  # 0 leaves the pair out
        precondition = state.preconditioner or (lambda r: r)
        return replace(
            state,
            point=where(good, trial, start),
            alpha=alpha,
            scale=pair_scale(d, weight, precondition, state.scale),
            steps=state.steps + 1,
            s=(*state.s, s),
            d=(*state.d, d),
            inverse_curvature=(*state.inverse_curvature, weight),
        )

    def _forget(self, state: ProjectedLBFGSState) -> ProjectedLBFGSState:
        """The latest ``memory`` pairs of each sample that were taken: trials that are rejected cost no memory. At
        checks alone, where the host looks at the iterates anyway: moving pairs costs as much as using them."""
        if len(state.s) <= self.memory:
            return state
        weights = torch.stack(state.inverse_curvature)
        if bool((weights > 0).all()):
            kept = (pairs[-self.memory :] for pairs in (state.s, state.d, state.inverse_curvature))
        else:
            latest = (weights > 0).to(torch.int8).argsort(dim=0, stable=True)[-self.memory :]
            samples = torch.arange(weights.shape[1], device=weights.device)
            stacks = (torch.stack(pairs) for pairs in (state.s, state.d, state.inverse_curvature))
            kept = (tuple(stack[index, samples] for index in latest) for stack in stacks)
        s, d, inverse_curvatures = kept
        return replace(state, s=s, d=d, inverse_curvature=inverse_curvatures)

    def _direction(self, instance: Instance, state: ProjectedLBFGSState) -> Tensor:
        """The quasi-Newton direction on the free pixels: to them gradient, preconditioner and direction are restricted,
        which keeps the inverse Hessian positive definite there. Restricting every pair, too, saves few steps or none,
        and costs more than all the rest."""
        grad = state.point.grad
        free = instance.box.free(state.point.x, grad)
        grad = free.restrict(grad)

        def precondition(r: Tensor) -> Tensor:
            return r if state.preconditioner is None else free.restrict(state.preconditioner(free.restrict(r)))

        pairs = (state.s, state.d, state.inverse_curvature)
        return free.restrict(two_loop_direction(grad, *pairs, precondition, state.scale))

    def report(self, instance: Instance, state: ProjectedLBFGSState) -> Report:
        point, grad = state.point, instance.box.reduced_gradient(state.point.x, state.point.grad)
        floor = rounding_floor(instance, point.x, point.pullback)
        residual = inner_samples(grad, grad).sqrt()
        return Report(point.x, residual, primal_bound(grad, instance.strong_convexity), floor)
