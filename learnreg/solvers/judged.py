"""How far the point where a solver ended is from the minimiser: bounds in float64 of what is returned."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from learnreg.certificates.assumptions import missing_state_assumption
from learnreg.certificates.ball import improbable
from learnreg.certificates.fenchel import dual_state_bound
from learnreg.certificates.obstacle import Obstacle
from learnreg.certificates.standing import stand
from learnreg.certificates.state import smallest_bound
from learnreg.linear.samples import sum_samples
from learnreg.lower_level.banded import BandedPotential
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.instance import Instance
from learnreg.result import BoundKind, Status
from learnreg.solvers.newton_correction import correct_state

__all__ = ["Judged", "judge"]


@dataclass(frozen=True)
class Judged:
    """x as it is returned, with y = f'(K x) and the bound (float64) or estimate of its root-mean-square error; the
    radius of the ball where bounds are about the minimiser in it, (batch,)."""

    x: Tensor
    y: Tensor
    bound: Tensor
    kind: BoundKind
    reason: str
    by_bands: bool
    radius: Tensor | None = None
    definite: bool = True

    def hopeless(self, ended: Status) -> bool:
        """Whether trying again would not help: there is no minimum near, or no bound tells how far a solver that
        stagnated is from it."""
        if self.radius is not None and (self.kind == "none" or bool(self.radius.any())):
            return False  # a ball may be found nearer to the minimiser
        return not self.definite or (self.kind == "estimate" and ended is Status.STAGNATED)

    def ball_radius(self, dtype: torch.dtype) -> Tensor:
        """Rounded down; infinite where the bound is about the global minimiser."""
        if self.radius is None:
            return torch.full_like(self.bound, math.inf, dtype=dtype)
        return self.radius.to(dtype) * (1.0 - 2.0 * torch.finfo(dtype).eps)

    def dual(self, frozen: FrozenProblem) -> Tensor | Callable[[], Tensor]:
        """y, or by bands, where no response is kept, what computes it."""
        return partial(_dual_point, frozen, self.x) if self.by_bands else self.y


def judge(
    instance: Instance, x: Tensor, t: Tensor | None, dtype: torch.dtype, scale: float, certify: bool = True
) -> Judged:
    """Bound the error of x, rounded to ``dtype``, in float64; estimate it alone if not ``certify``."""
    exact = instance.box.exactly(x)
    returned = instance.box.inside(exact, dtype)
    moved = 0.0 if returned is exact else sum_samples((returned.double() - exact) ** 2).sqrt()
    hindrance = missing_state_assumption(instance, exact.double())
    by_bands = isinstance(instance.potential, BandedPotential)
    if hindrance is None and not certify and instance.potential.differentiable and not by_bands:
        hindrance = Obstacle.NOT_ASKED.met()
    if hindrance is None and instance.local and not by_bands:
        return _judge_locally(instance, exact.double(), returned, moved, scale)
    bounds, duals = [], []
    for part, index in instance.parts():
        state_bound = smallest_bound if part.potential.differentiable else dual_state_bound
        judged = state_bound(part, exact[index], None if t is None else t[index])
        bounds.append(judged.bound)
        duals.append(judged.y.to(dtype))
    bound = (torch.cat(bounds) + moved) / scale
    bound = torch.where(torch.isnan(bound), math.inf, bound)
    y = duals[0] if len(duals) == 1 else torch.cat(duals)
    if not instance.potential.differentiable and hindrance is not None:
        return Judged(returned, y, torch.full_like(bound, math.inf), "none", hindrance.reason, by_bands)
    if hindrance is None:
        return Judged(returned, y, bound, "rigorous", "", by_bands)
    estimate, definite = _estimated_error(instance, returned, scale)
    estimate = torch.where(torch.isnan(estimate), math.inf, estimate)
    radius = torch.zeros_like(estimate) if instance.local else None
    return Judged(returned, y, estimate, "estimate", hindrance.reason, by_bands, radius, definite)


def _judge_locally(instance: Instance, x: Tensor, returned: Tensor, moved: Tensor | float, scale: float) -> Judged:
    """The same about the minimiser in a ball; x in float64, and how far it was moved, (batch,)."""
    room, standings, known, duals = torch.zeros_like(instance.q.double().flatten(1)[:, 0]) + moved, [], [], []
    for part, index in instance.parts():
        state = smallest_bound(part, x[index])
        standings.append(stand(part, x[index], part.apply(x[index]), state.residual + state.floor, room[index], False))
        known.append(state.bound if part.strong_convexity > 0 else torch.full_like(state.bound, math.inf))
        duals.append(state.y.to(returned.dtype))
    bound = (torch.minimum(torch.cat([standing.error for standing in standings]), torch.cat(known)) + room) / scale
    radius = (torch.cat([standing.radius for standing in standings]) - room).clamp_min(0.0)
    hindrance = next((standing.hindrance for standing in standings if standing.hindrance), None)
    failure = sum(standing.failure for standing in standings)
    kind: BoundKind = "none" if hindrance else "estimate" if failure else "rigorous"
    reason = hindrance.reason if hindrance else improbable(failure)
    definite = hindrance is None or hindrance.obstacle is not Obstacle.CURVES_DOWN
    return Judged(returned, torch.cat(duals), bound, kind, reason, False, radius, definite)


@torch.no_grad()
def _dual_point(frozen: FrozenProblem, x: Tensor) -> Tensor:
    """f'(K x), for an x without latent variables."""
    return frozen.potential(x.dtype).grad(frozen.fixed.operator(x))


def _estimated_error(instance: Instance, x: Tensor, scale: float) -> tuple[Tensor, bool]:
    """That of a Newton step, infinite where the energy curves downwards; and whether it does not."""
    step = correct_state(instance, x.double(), x.new_full((instance.batch,), 0.1).double())
    error = 1.1 * sum_samples((x.double() - step.point) ** 2).sqrt() / scale
    return error if step.definite else torch.full_like(error, math.inf), step.definite
