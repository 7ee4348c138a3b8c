"""Judge (x, X) from any method: the gradient formed from exactly these iterates, and bounds on all that is reported.

Residuals are recomputed in float64 whatever the dtype of the solver, so that nothing a solver says is trusted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from learnreg.certificates.assumptions import (
    constraint_decided,
    missing_assumption,
    missing_state_assumption,
    unsettled,
)
from learnreg.certificates.ball import improbable
from learnreg.certificates.frobenius import FrobeniusBound
from learnreg.certificates.groups import GroupBound
from learnreg.certificates.obstacle import Hindrance, Obstacle
from learnreg.certificates.point_bound import PointBound, StateError
from learnreg.certificates.published import PublishedBound
from learnreg.certificates.sharp import SharpBound
from learnreg.certificates.standing import stand
from learnreg.certificates.state import rounding_floor, state_residual
from learnreg.linear.samples import sum_samples
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.blame import blame_operators
from learnreg.lower_level.pairing import evaluate_pairing, sum_gradients
from learnreg.lower_level.point import Point
from learnreg.result import BoundKind, Brief

__all__ = ["OUTLOOK", "RUNGS", "Enough", "PointCertificate", "Verdict", "gradient_distance", "gradient_norm", "judge"]

OUTLOOK = 1e-2
"""A share of the error of x in the outlook: bounds grow faster than the error far from the solution, about linearly
near it."""


PointCertificate = Literal["published", "frobenius", "sharp"]
RUNGS: tuple[PointCertificate, ...] = ("published", "frobenius", "sharp")
"""From the largest bound to the smallest."""


@dataclass(frozen=True, repr=False)
class Verdict(Brief):
    """Everything known about a point in float64. Bounds are infinite where there is a ``hindrance``.

    gradient: formed from exactly its x and X. error_bound: ‖gradient - exact‖_2 over all parameters. state_error,
    adjoint_error: bounds of ‖x - x^‖ and ‖X - X^‖, (batch,).

    state_share, adjoint_share: the parts of ``error_bound`` that come from the error of x and from the linear residual
    of X alone; they tell which tolerance to tighten. state_residual, adjoint_residual: norms per sample, (batch,).
    outlook: *estimates* of both shares if the error of x were ``OUTLOOK`` times as large and all else the same, or
    None. floors: what rounding may hide of both residuals, (batch,) each. rung: the bound that was taken. radius: of
    the ball around x in which the bounds' minimiser is the only one, (batch,): infinite where that is the global one.
    failure: the probability that a bound is none, 0 for rigorous ones.
    """

    point: Point
    gradient: dict[str, Tensor]
    error_bound: float
    hindrance: Hindrance | None
    loss: float
    loss_interval: tuple[float, float]
    state_error: Tensor
    adjoint_error: Tensor
    state_residual: Tensor
    adjoint_residual: Tensor
    state_share: float
    adjoint_share: float
    rung: PointCertificate
    floors: tuple[Tensor, Tensor]
    radius: Tensor
    failure: float = 0.0
    outlook: tuple[float, float] | None = None

    @property
    def norm(self) -> float:
        return gradient_norm(self.gradient)

    @property
    def reason(self) -> str:
        """Why there is no bound, or how likely it fails; empty if there is a rigorous one."""
        if self.hindrance is None:
            return improbable(self.failure)
        return self.hindrance.reason

    @property
    def kind(self) -> BoundKind:
        """What its bounds are."""
        return "none" if self.hindrance else "estimate" if self.failure > 0 else "rigorous"

    @property
    def certifiable(self) -> bool:
        """Whether there is a bound, or may be one at a more accurate point."""
        return self.hindrance is None or self.hindrance.curable

    def better(self, other: Verdict, factor: float = 1.0) -> bool:
        """Whether its bound is less than a factor of the other's; without bounds, whether its error of x is."""
        if math.isinf(self.error_bound) and math.isinf(other.error_bound):
            return float(self.state_error.max()) < factor * float(other.state_error.max())
        return self.error_bound < factor * other.error_bound


def gradient_norm(gradient: dict[str, Tensor]) -> float:
    """‖gradient‖_2 over all parameters, in float64."""
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradient.values()))


Enough = Callable[[float], float]
"""The error bound that is good enough for a gradient of this norm."""

_BOUNDS: dict[PointCertificate, type[PointBound]] = {
    "published": PublishedBound,
    "frobenius": FrobeniusBound,
    "sharp": SharpBound,
}
"""Term by term, each bound is smaller than the one before it."""


def gradient_distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """‖a - b‖_2 over all parameters, in float64."""
    return math.sqrt(sum(float((a[name].double() - b[name].double()).square().sum()) for name in a))


@torch.no_grad()
def judge(
    point: Point,
    certificate: PointCertificate = "published",
    state_error: Tensor | None = None,
    outlook: Enough | None = None,
    moved: Tensor | float = 0.0,
) -> Verdict:
    """Form the hypergradient at a point in float64 and bound its error there: at the point, but for latent variables
    that are known to be 0 exactly, where the active set hangs on them.

    Costs 4 applications, 6 with learnable operators, and 1 to 2 more for the sharp bound. The point's instance is in
    float64. The batch goes through in parts, so that the memory for responses stays bounded; only what couples its
    samples, the loss, sees all of it. ``state_error``: a rigorous bound of ‖x - x^‖ that is known already, (batch,).
    ``outlook``: estimate the shares nearer to the solution, too, where bounds exceed this function of the gradient's
    norm. ``moved``: how far from the point another one is, (batch,), that is to have a ball of a minimiser, too.
    """
    instance, loss = point.instance, point.loss
    x = instance.box.exactly(point.x).double()
    point = replace(point, x=x, X=point.X.double())
    hindrance = missing_assumption(point.frozen, instance, loss, x)
    known = x.new_full((instance.batch,), math.inf) if state_error is None else state_error.double()
    kind = None if hindrance else _BOUNDS[certificate]
    room = torch.zeros_like(known) + moved
    parts = [_judge_part(part, known[index], kind, outlook, room[index]) for part, index in point.parts()]
    if any(p.unsettled is not None for p in parts):
        x, X = x.clone(), point.X.clone()
        for p, (_, index) in zip(parts, instance.parts(), strict=True):
            if p.unsettled is not None:
                x[index].masked_fill_(p.unsettled, 0.0)
                X[index].masked_fill_(p.unsettled, 0.0)
        return judge(replace(point, x=x, X=X), certificate, state_error, outlook, moved)
    e, state_norm = torch.cat([p.e for p in parts]), torch.cat([p.state_norm for p in parts])
    adjoint_norm, radius = torch.cat([p.adjoint_norm for p in parts]), torch.cat([p.radius for p in parts])
    if instance.local and hindrance and missing_state_assumption(instance, x):  # what balls rest on, too
        e, radius = torch.full_like(e, math.inf), torch.zeros_like(radius)
    if not bool(torch.isfinite(state_norm + adjoint_norm).all()):
        blame_operators(instance, x)
        e = torch.where(torch.isnan(e), math.inf, e)
    hindrance = hindrance or next((p.hindrance for p in parts if p.hindrance), None)
    bounds = _unbounded(e) if hindrance else _bounds(point, parts, e, adjoint_norm)
    return Verdict(
        point=point,
        gradient=sum_gradients([p.gradient for p in parts]),
        error_bound=bounds.error if math.isfinite(bounds.error) else math.inf,
        hindrance=hindrance,
        loss=float(loss.value(x)),
        loss_interval=(-math.inf, math.inf) if hindrance and hindrance.obstacle.hides_loss else loss.interval(x, e),
        state_error=e,
        adjoint_error=bounds.adjoint_error,
        state_residual=state_norm,
        adjoint_residual=adjoint_norm,
        state_share=bounds.state_share,
        adjoint_share=bounds.adjoint_share,
        rung=certificate,
        floors=(torch.cat([p.floors[0] for p in parts]), torch.cat([p.floors[1] for p in parts])),
        radius=radius,
        failure=sum(p.failure for p in parts),
        outlook=bounds.outlook,
    )


@dataclass(frozen=True)
class _Bounds:
    """What the parts of a batch say together, see :class:`Verdict`."""

    error: float
    adjoint_error: Tensor
    state_share: float
    adjoint_share: float
    outlook: tuple[float, float] | None = None


def _unbounded(e: Tensor) -> _Bounds:
    return _Bounds(math.inf, torch.full_like(e, math.inf), math.inf, math.inf)


def _bounds(point: Point, parts: list[_Part], e: Tensor, adjoint_norm: Tensor) -> _Bounds:
    """For errors e of x and residual norms of X, (batch,)."""
    # the gradient of each part is rounded to the dtype of the parameters, and so is their sum
    rounding = sum(torch.finfo(g.dtype).eps * gradient_norm({"": g}) for p in parts for g in p.gradient.values())
    rounding += 1e-13 * sum(p.magnitude for p in parts) if parts[0].gradient else 0.0
    change = point.loss.gradient_change(point.x, e)
    assert change is not None  # missing_assumption() has seen to it
    bounds = [p.errors for p in parts if p.errors is not None]
    total, E = _total(bounds, adjoint_norm + change)
    without, _ = _total(bounds, change)
    nearer = [p.nearer for p in parts if p.nearer is not None]
    shares: tuple[float, float] | None = None
    if len(nearer) == len(parts):
        near, _ = _total(nearer, OUTLOOK * change)
        shares = (near, _total(nearer, adjoint_norm + OUTLOOK * change)[0] - near)
    return _Bounds(total + rounding, E, without + rounding, total - without, shares)


@dataclass(frozen=True)
class _Errors:
    """The errors of X for a vanishing residual in both norms, the largest quotient of these norms, (batch,) each, the
    modulus that they rest on, and the bound of each parameter group."""

    adjoint: Tensor
    energy: Tensor
    stiffness: Tensor
    mu: float
    groups: list[GroupBound]

    @classmethod
    def of(cls, bound: PointBound) -> _Errors:
        return cls(bound.adjoint_error(), bound.energy_adjoint_error(), bound.stiffness, bound.mu, bound.groups())


def _total(parts: list[_Errors], residual: Tensor) -> tuple[float, Tensor]:
    """Root of the sum of squares over the parameter groups, each summed over the batch, and ‖X - X^‖ (batch,), for
    residuals of the adjoint equation (batch,)."""
    sums, first, found = [0.0] * len(parts[0].groups), 0, []
    for part in parts:
        rho = residual[first : first + part.adjoint.shape[0]]
        first += part.adjoint.shape[0]
        E = part.adjoint + rho / part.mu
        E_energy = torch.minimum(part.energy + rho / (2.0 * math.sqrt(part.mu)), part.stiffness * E)
        found.append(E)
        sums = [s + float(group.at(E, E_energy).sum()) for s, group in zip(sums, part.groups, strict=True)]
    return math.sqrt(sum(s * s for s in sums)) * (1.0 + 1e-12), torch.cat(found)


@dataclass(frozen=True)
class _Part:
    """What the bound needs of some samples, per sample: residual norms, the error e of x, what the bound says, what
    it would say nearer to the solution, and where latent variables should be 0 before it can say anything."""

    gradient: dict[str, Tensor]
    state_norm: Tensor
    e: Tensor
    adjoint_norm: Tensor
    hindrance: Hindrance | None
    errors: _Errors | None
    magnitude: float
    floors: tuple[Tensor, Tensor]
    radius: Tensor
    failure: float = 0.0
    nearer: _Errors | None = None
    unsettled: Tensor | None = None


def _judge_part(
    point: Point, known_error: Tensor, kind: type[PointBound] | None, outlook: Enough | None, moved: Tensor
) -> _Part:
    instance, x, X = point.instance, point.x, point.X
    gradient, responses = evaluate_pairing(point)
    pullback = instance.adjoint(responses.y)
    residual = state_residual(instance, x, pullback)
    hidden = instance.potential.hidden_rounding
    floor = rounding_floor(instance, x, pullback, y=responses.y) + hidden(x)
    state_norm = sum_samples(residual**2).sqrt() + floor
    equation = AdjointEquation.at(instance, x, responses.t, point.loss_gradient)
    bent = instance.adjoint(responses.Y)
    adjoint_residual = equation.project(instance.quadratic(X) + bent) - equation.rhs
    adjoint_floor = rounding_floor(instance, X, bent, point.loss_gradient) + hidden(x, X)
    adjoint_norm, floors = sum_samples(adjoint_residual**2).sqrt() + adjoint_floor, (floor, adjoint_floor)
    rounded = torch.finfo(point.b.dtype).eps if point.b.dtype != torch.float64 else 0.0  # where results return x
    standing = stand(instance, x, responses.t, state_norm, moved + rounded * sum_samples(x * x).sqrt())
    e, radius = torch.minimum(standing.error, known_error), standing.radius
    if kind is None or standing.split is None:
        return _Part(gradient, state_norm, e, adjoint_norm, standing.hindrance, None, 0.0, floors, radius)
    held, state = equation.free.held_norm(X), StateError(state_norm, e, standing.split)
    bound = kind(point.frozen, instance, x, X, responses, state, pullback, held)
    hindrance, off_zero = None, None
    longest = instance.analysis.norm_bound() * (1.0 + 1e-9) * sum_samples(x * x).sqrt()
    if not bool((sum_samples(responses.t * responses.t).sqrt() <= longest).all()):
        hindrance = Obstacle.STALE_NORM.met(operator="analysis")
    elif not bool(bound.smooth.all()):
        hindrance = Obstacle.KINK.met()
    elif not constraint_decided(instance, x, responses.t, state_norm, e, bound.largest_curvature):
        hindrance = Obstacle.ACTIVE_SET.met()
        off_zero = unsettled(instance, x, responses.t, e)
    errors, magnitude, nearer = _Errors.of(bound), bound.magnitude(), None
    if outlook is not None and _total([errors], adjoint_norm)[0] > outlook(gradient_norm(gradient)):
        del bound  # before the intervals of another one
        near = kind(point.frozen, instance, x, X, responses, state.times(OUTLOOK), pullback, held)
        nearer = _Errors.of(near)
    return _Part(
        gradient=gradient,
        state_norm=state_norm,
        e=e,
        adjoint_norm=adjoint_norm,
        hindrance=hindrance,
        errors=errors,
        magnitude=magnitude,
        floors=floors,
        radius=radius,
        failure=standing.failure,
        nearer=nearer,
        unsettled=off_zero,
    )
