"""L-BFGS for large images, which keeps as few images as it can.

Source: Liu and Nocedal (1989), as in ``lbfgs``. No responses are kept for the line search, which the next gradient
decides; and a preconditioner of one level, fixed at the start, where a gradient is dearer than its transforms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.certificates.state import primal_bound, rounding_floor
from learnreg.linear.samples import expand, inner_samples
from learnreg.lower_level.banded import BandedPotential
from learnreg.lower_level.instance import Instance
from learnreg.solvers.base import Report, Solver, SolverState
from learnreg.solvers.lbfgs import inverse_curvature, pair_scale, two_loop_direction
from learnreg.solvers.preconditioner import UniformPreconditioner

__all__ = ["BandedLBFGS", "BandedLBFGSState"]

_SHORTEST, _LONGEST = 0.1, 0.5
"""Factors by which a step that was too long is shortened."""

_GROWTH = 1.5
"""The most by which a step may be longer than the one before, with a preconditioner: made where the images are noisy,
it takes the curvature for too small, and whole steps fail until the pairs have told."""

_DEAR_COEFFICIENTS = 2000
"""Coefficients of a filter bank whose gradients cost several times as much as the FFTs of the image."""


@dataclass(frozen=True)
class BandedLBFGSState(SolverState):
    """x, the energy's gradient there, the length of the next step along the quasi-Newton direction (batch,), the
    preconditioner (None: a multiple of the identity), and the pairs with their inverse curvatures, 0 where a step was
    not taken."""

    x: Tensor
    grad: Tensor
    alpha: Tensor
    preconditioner: UniformPreconditioner | None = None
    s: tuple[Tensor, ...] = ()
    d: tuple[Tensor, ...] = ()
    inverse_curvature: tuple[Tensor, ...] = ()


class BandedLBFGS(Solver[BandedLBFGSState]):
    """L-BFGS without constraints on an instance whose potential is a :class:`BandedPotential`.

    A step tries one point, and keeps it unless the energy's slope there is more than half the one at the start in size;
    the next step then tries a shorter way.

    Parameters
    ----------
    memory: number of pairs kept, two images each.
    """

    name = "lbfgs"

    def __init__(self, memory: int = 3, check_every: int = 2) -> None:
        self.memory, self.check_every = memory, check_every

    def init(self, instance: Instance, x: Tensor) -> BandedLBFGSState:
        """The first step is the preconditioner's, or minimises the parabola above the energy."""
        f = instance.potential
        assert isinstance(f, BandedPotential)
        grad = _gradient(instance, x)
        preconditioner = _preconditioner(instance, f, x)
        if preconditioner is not None:
            return BandedLBFGSState(x, grad, torch.ones_like(inner_samples(grad, grad)), preconditioner)
        square = inner_samples(grad, grad)
        curvature = inner_samples(grad, instance.quadratic(grad)) + f.majorant_along(x, grad)
        instance.counter.applications += 2
        return BandedLBFGSState(x, grad, square / curvature.clamp_min(torch.finfo(x.dtype).tiny))

    def step(self, instance: Instance, state: BandedLBFGSState) -> BandedLBFGSState:
        p = self._direction(state)
        trial = torch.addcmul(state.x, expand(state.alpha, p), p)
        grad = _gradient(instance, trial)
        before, after = inner_samples(state.grad, p), inner_samples(grad, p)
        good = after <= 0.5 * before.abs()
        chosen = expand(good, p)
        secant = (before / (before - after)).nan_to_num(_LONGEST).clamp(_SHORTEST, _LONGEST)
        longest = _GROWTH * state.alpha if state.preconditioner else torch.ones_like(state.alpha)
        s = p.mul_(expand(torch.where(good, state.alpha, 0.0), p))
        d = torch.where(chosen, grad - state.grad, 0.0)
        pairs = ((*state.s, s), (*state.d, d), (*state.inverse_curvature, inverse_curvature(s, d)))
        return BandedLBFGSState(
            torch.where(chosen, trial, state.x),
            torch.where(chosen, grad, state.grad),
            torch.where(good, longest.clamp_max(1.0), state.alpha * secant),
            state.preconditioner,
            *(kept[-self.memory :] for kept in pairs),
        )

    def _direction(self, state: BandedLBFGSState) -> Tensor:
        precondition = state.preconditioner or _unchanged
        scale = torch.ones_like(state.alpha)
        if state.s:
            scale = pair_scale(state.d[-1], state.inverse_curvature[-1], precondition, scale)
        return two_loop_direction(state.grad, state.s, state.d, state.inverse_curvature, precondition, scale)

    def report(self, instance: Instance, state: BandedLBFGSState) -> Report:
        pullback = state.grad - (instance.quadratic(state.x) - instance.q)
        floor = rounding_floor(instance, state.x, pullback)
        residual = inner_samples(state.grad, state.grad).sqrt()
        return Report(state.x, residual, primal_bound(state.grad, instance.strong_convexity), floor)


def _unchanged(r: Tensor) -> Tensor:
    return r


def _preconditioner(instance: Instance, f: BandedPotential, x: Tensor) -> UniformPreconditioner | None:
    """Counts one application where there is one."""
    stencil = f.operator.stencil()
    if stencil is None or stencil.filters.numel() < _DEAR_COEFFICIENTS:
        return None
    instance.counter.applications += 1
    return UniformPreconditioner.of(instance, f.operator, f.mean_majorant(x))


def _gradient(instance: Instance, x: Tensor) -> Tensor:
    """∇E(x), as ``Instance.full_gradient`` has it, with one image less in memory while the bands are worked through;
    counts 2."""
    instance.counter.applications += 2
    pullback = instance.potential.grad(x)
    return instance.quadratic(x).sub_(instance.q).add_(pullback)
