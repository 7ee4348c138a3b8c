"""Lemma L: a ball around x in which the energy has exactly one critical point, a strict local minimiser, and how far x
is from it.

Let r be the gradient of E at x (the reduced one in a box), and ∇²E >= m > 0 in the ball of radius rho around x. If ‖r‖
< m rho, then E has exactly one critical point x* in the ball, and ‖x - x*‖ <= ‖r‖/m: E is m-strongly convex there, so
that <∇E(z), z - x> >= m rho² - ‖r‖ rho > 0 on the sphere, which keeps the minimiser over the closed ball inside.

f'' on the responses within ‖k_i‖ rho of those of x bounds the Hessian below. The ball is no larger than it has to be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from learnreg.certificates.interval import response_radius
from learnreg.certificates.lowest_curvature import LowestCurvature
from learnreg.certificates.obstacle import Hindrance, Obstacle
from learnreg.certificates.split import BallSplit
from learnreg.linear.samples import norm_samples
from learnreg.lower_level.instance import Instance
from learnreg.potentials.curvature import CurvatureFloor
from learnreg.potentials.proximal import Grouped

__all__ = ["Ball", "find_ball", "improbable"]

_ROOM, _TRIALS = 2.0, 4
"""The radius over the least one that a curvature allows; larger balls only lose."""

_ENOUGH = 0.5
"""Share of a Ritz value above which the bound by norms is as good as any."""


@dataclass(frozen=True)
class Ball:
    """What is known around x, (batch,) each. *Rigorous bounds*, but for a ``failure`` > 0, the probability that a
    curvature is too large.

    radius: 2-norm; 0 where there is no ball. curvature: m, 0 where there is none. error: bound of ‖x - x*‖, infinite
    where there is none. low: the smallest f'' of each response, or group of them, in the ball, with a batch axis;
    curvature is what follows from these numbers alone where the ball was asked for to split. hindrance: why some sample
    has no ball.
    """

    radius: Tensor
    curvature: Tensor
    error: Tensor
    low: Tensor
    failure: float
    hindrance: Hindrance | None

    def split(self, instance: Instance) -> BallSplit:
        """For what is judged within ``error`` of x; needs a ball for every sample."""
        known, rho = LowestCurvature(instance), instance.potential.concavity
        return BallSplit.of(self.low, self.curvature, known.by_norms(CurvatureFloor(self.low)), rho)


@torch.no_grad()
def find_ball(
    instance: Instance, x: Tensor, t: Tensor, residual: Tensor, moved: Tensor | float = 0.0, split: bool = True
) -> Ball:
    """A ball around each x in float64.

    Parameters
    ----------
    t: K x. residual: ‖r‖ with its rounding, (batch,). moved: how far from x the point lies that bounds are wanted of,
        (batch,): the ball leaves room for one around that point, smaller by this. split: whether the ball is one that
        ``Ball.split`` divides the energy on, which takes numbers; else matrices say how a group curves.
    """
    none, kind = torch.zeros_like(residual), instance.analysis.norm_bound_kind
    failure = instance.analysis.norm_failure_probability if kind == "probabilistic" else 0.0
    centre = _Centre(instance, x, t, residual, none + moved, split)
    floor = centre.floor(none)
    low = floor.least
    ball = Ball(none, none, torch.full_like(residual, math.inf), low.clone(), failure, None)
    places = low.shape == t.shape or isinstance(instance.potential, Grouped)
    if not places or instance.latent.channels:
        return replace(ball, hindrance=Obstacle.NO_SPLIT.met(why=_unfit(instance)))
    if not bool(torch.isfinite(residual).all() & torch.isfinite(low).all()):
        return replace(ball, hindrance=_hindrance(math.inf, math.inf))
    estimate = LowestCurvature(instance).estimate(floor)
    trial = estimate.clamp_min(0.0)
    for _ in range(_TRIALS):
        index = ((ball.curvature <= 0) & (trial > 0)).nonzero()[:, 0]
        if not len(index):
            break
        ball, found = _widened(ball, centre, estimate, trial, index)
        trial = torch.where(found < _ENOUGH * trial, found, torch.zeros_like(trial)).clamp_min(0.0)
    if bool((ball.curvature > 0).all()):
        return ball
    worst = int(torch.where(ball.curvature > 0, math.inf, estimate).argmin())
    return replace(ball, hindrance=_hindrance(float(estimate[worst]), float(residual[worst])))


@dataclass(frozen=True)
class _Centre:
    """Where balls are looked for; see ``find_ball``."""

    instance: Instance
    x: Tensor
    t: Tensor
    residual: Tensor
    moved: Tensor
    split: bool

    def select(self, index: Tensor) -> _Centre:
        """Of some samples."""
        return replace(
            self,
            instance=self.instance.select(index),
            x=self.x[index],
            t=self.t[index],
            residual=self.residual[index],
            moved=self.moved[index],
        )

    def floor(self, radius: Tensor) -> CurvatureFloor:
        """f'' on the responses of points within ``radius``, (batch,)."""
        reached = response_radius(self.instance, radius, self.t)
        if self.split:
            return CurvatureFloor(self.instance.potential.curvature_bounds(self.t, reached)[0])
        return self.instance.potential.curvature_floor(self.t, reached)


def _widened(ball: Ball, centre: _Centre, estimate: Tensor, trial: Tensor, index: Tensor) -> tuple[Ball, Tensor]:
    """With the balls of the samples ``index`` that hold a minimiser if they curve by ``trial``, and the curvatures
    found, (batch,)."""
    part, known = centre.select(index), torch.zeros_like(trial)
    smallest = part.residual / trial[index].clamp_min(torch.finfo(trial.dtype).tiny)
    rounding = 8.0 * torch.finfo(part.x.dtype).eps * norm_samples(part.x)
    radius = _ROOM * smallest + 2.0 * part.moved + rounding
    floor = part.floor(radius + rounding)
    curvature, failure = _curvature(part.instance, floor, estimate[index])
    holds = (part.residual < curvature * (radius - 2.0 * part.moved)) & (curvature > 0) & torch.isfinite(radius)
    chosen, at = index[holds], holds.nonzero()[:, 0]
    known[index] = curvature.clamp_min(0.0)
    grown = Ball(
        radius=ball.radius.index_copy(0, chosen, radius[at]),
        curvature=ball.curvature.index_copy(0, chosen, curvature[at]),
        error=ball.error.index_copy(0, chosen, (part.residual[at] / curvature[at]) * (1.0 + 1e-14)),
        low=ball.low.index_copy(0, chosen, floor.least[at]),
        failure=ball.failure + failure,
        hindrance=None,
    )
    return grown, known


def _curvature(part: Instance, floor: CurvatureFloor, estimate: Tensor) -> tuple[Tensor, float]:
    """The least of the Hessian for f'' >= floor, (batch,), by norms where that is enough."""
    lowest = LowestCurvature(part)
    by_norms = lowest.by_norms(floor)
    if by_norms >= _ENOUGH * float(estimate.max()):
        return torch.full_like(estimate, by_norms), 0.0
    found, failure = lowest.bound(floor, estimate)
    return found.clamp_min(by_norms), failure


def improbable(failure: float) -> str:
    """What to say of bounds that fail with this probability; "" for rigorous ones."""
    if failure <= 0:
        return ""
    return (
        f"the curvature in the ball is known from a random start alone, too large with a probability of {failure:.0e}"
    )


def _hindrance(estimate: float, residual: float) -> Hindrance:
    if not estimate > 0:
        return Obstacle.CURVES_DOWN.met(curvature=estimate)
    return Obstacle.NO_BALL.met(curvature=estimate, residual=residual)


def _unfit(instance: Instance) -> str:
    if instance.latent.channels:
        return "the regularizer has latent variables"
    return f"{type(instance.potential).__name__} couples responses"
