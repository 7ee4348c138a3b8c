"""The search for a hypergradient whose certificate meets the tolerance: what all kinds of it share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from learnreg.certificates.judgement import Enough, PointCertificate, Verdict, gradient_distance, judge
from learnreg.certificates.obstacle import Obstacle
from learnreg.errors import ShapeError
from learnreg.hypergradients.automatic import better_method
from learnreg.hypergradients.base import Goal, HypergradientMethod, Outcome
from learnreg.linear.arguments import check_batch, check_type
from learnreg.linear.normed import Normed
from learnreg.linear.samples import sum_samples
from learnreg.losses import UpperLoss, check_loss
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.point import Point
from learnreg.lower_level.problem import LowerLevelProblem, freeze
from learnreg.result import BoundKind, Brief, Hypergradient, Status, holds_globally
from learnreg.solvers.newton_correction import newton_correction
from learnreg.solvers.solve import initial_point

__all__ = ["LIMITED", "MAX_ROUNDS", "Request", "Search", "Start"]

LIMITED = (Status.PRECISION, Status.STAGNATED, Status.NOT_FINITE)
"""How a method ends that more steps in the same precision would not help."""

MAX_ROUNDS = 16
_ROUNDING_MARGIN = 4.0
_CORRECTION = 1e-2


@dataclass(frozen=True, repr=False)
class Start(Brief):
    """Where to start: the state and adjoint state of an earlier visit to the same samples, z and Z those of latent
    variables, where there are any and they are at hand. accuracy: what the earlier visit needed, and normed: an
    operator of it whose norm is known, see ``Hypergradient``.

    Parameters
    ----------
    x, X: images and adjoint states to begin at, (batch, *domain_shape).
    z, Z: latent variables of both, where the regularizer has them.

    Examples
    --------
    >>> A, R = lr.operators.Identity((1, 8, 8)), lr.regularizers.TotalVariation(0.1)
    >>> problem, b = lr.LowerLevelProblem(A, R), torch.zeros(1, 1, 8, 8)
    >>> hg = lr.hypergradient(problem, b + 1, lr.SquaredError(b), tolerance=0.1)
    >>> again = lr.hypergradient(problem, b + 1, lr.SquaredError(b), tolerance=0.1, start=lr.Start.after(hg))
    >>> again.certified
    True
    """

    x: Tensor
    X: Tensor
    z: Tensor | None = None
    Z: Tensor | None = None
    accuracy: tuple[float, float] | None = None
    normed: Normed | None = field(default=None, repr=False)

    @classmethod
    def after(cls, found: Hypergradient) -> Start:
        """Where a hypergradient ended, for a problem that is not far from its own."""
        return cls(found.x, found.X, accuracy=found.accuracy, normed=found.normed)

    @classmethod
    def of(cls, instance: Instance, v: Tensor, V: Tensor) -> Start:
        """From state and adjoint state in all variables of the instance."""
        latent = instance.latent
        return cls(latent.image(v), latent.image(V), latent.part(v), latent.part(V))

    def part(self, index: slice | int | Tensor, factor: float) -> Start:
        """That of some samples, or of one without its batch axis, adjoint states times a factor; in memory of its
        own."""
        z, Z = (None if v is None else v[index].clone() for v in (self.z, self.Z))
        return Start(self.x[index].clone(), factor * self.X[index], z, None if Z is None else factor * Z, self.accuracy)

    def in_all(self, instance: Instance) -> tuple[Tensor, Tensor]:
        """State and adjoint state in all variables of the instance, in its dtype; latent ones that are not at hand by a
        guess, and 0."""
        x, X = self.x.detach().to(instance.q), self.X.detach().to(instance.q)
        latent = instance.latent
        shape = (x.shape[0], latent.channels, *x.shape[2:])
        for name, v in (("z", self.z), ("Z", self.Z)):
            if latent.channels and v is not None and tuple(v.shape) != shape:
                raise ShapeError(f"start.{name}: got shape {tuple(v.shape)}, expected {shape}.")
        whole = instance.started(x) if self.z is None else latent.lift(x, self.z.to(x))
        return whole, latent.lift(X, None if self.Z is None else self.Z.to(X))


@dataclass(frozen=True)
class Request:
    """What is asked of a hypergradient: an error bound of at most max(tolerance ‖gradient‖, absolute_tolerance), by the
    first of the point bounds ``rungs`` that reaches it, cheapest first, within max_steps iterations of the state and as
    many of the adjoint state. newton_steps: corrections at most until the next judgement."""

    tolerance: float
    absolute_tolerance: float = 0.0
    max_steps: int | None = None
    rungs: tuple[PointCertificate, ...] = ("frobenius", "sharp")
    newton_steps: int = 12

    def enough(self, norm: float) -> float:
        """The error bound that is good enough for a gradient of this norm; none is for one that overflows."""
        return max(self.tolerance * norm, self.absolute_tolerance) if math.isfinite(norm) else 0.0

    def steps_left(self, steps: int) -> int | None:
        """After so many; at least one."""
        return None if self.max_steps is None else max(1, self.max_steps - steps)


class Search(ABC):
    """What every search for a certified hypergradient shares: problem, method and request, the steps so far, and how a
    result is made. method: None for the better one of each problem."""

    def __init__(
        self,
        problem: LowerLevelProblem | FrozenProblem,
        b: Tensor,
        loss: UpperLoss,
        method: HypergradientMethod | None,
        request: Request,
    ) -> None:
        check_loss(loss)
        self.frozen, self.b, self.request = freeze(problem), b, request
        self.instance = self.frozen.at(b)
        exact = b.dtype == torch.float64
        self.exact_instance = self.instance if exact else self.frozen.at(b.double(), self.instance.counter)
        self.loss = self.instance.latent.loss(loss)
        self.method = method
        self.working: Instance = self.instance
        self.state_steps = self.adjoint_steps = 0
        self.rung = 0
        self.accuracy: tuple[float, float] | None = None
        self.normed: Normed = self.instance.analysis

    def target(self, verdict: Verdict) -> float:
        """The error bound that is good enough for the gradient judged."""
        return self.request.enough(verdict.norm)

    @abstractmethod
    def first_goal(self, point: Point) -> Goal:
        """What the method's first run should reach."""

    @abstractmethod
    def follow(self, point: Point, outcome: Outcome, goal: Goal) -> Hypergradient:
        """Improve and judge from there, where a first run led."""

    # ---- one round -------------------------------------------------------------------------------------------------

    def begin(self, start: Start | None) -> Point:
        """Where the method starts."""
        if start is None:
            x = initial_point(self.instance, self.b)
            self.loss.examine(x)
            return Point(self.frozen, self.instance, self.b, self.loss, x, torch.zeros_like(x))
        check_type(start, Start, "start", "lr.Start(x, X)")
        self.accuracy = start.accuracy
        if start.normed not in (None, self.normed) and self.normed.take_norm_near(start.normed):
            self.normed = start.normed
        for name, image in (("start.x", start.x), ("start.X", start.X)):
            self.frozen.operator.check_domain(image, name)
            check_batch(image, self.b.shape[0], name)
        point = Point(self.frozen, self.instance, self.b, self.loss, *start.in_all(self.instance), warm=True)
        self.loss.examine(point.x)
        return point

    def improve(self, point: Point, goal: Goal, method: HypergradientMethod | None = None) -> tuple[Point, Outcome]:
        """Where the method, or another one, leads from there within the steps that are left, and what it returned."""
        begin = point.on(self.working)
        left = (self.request.steps_left(self.state_steps), self.request.steps_left(self.adjoint_steps))
        method = method or self.method or better_method(begin.instance, begin.warm)
        outcome = method.run(begin, goal.within(self.working.q.dtype, *left))
        self.state_steps += outcome.state_steps
        self.adjoint_steps += outcome.adjoint_steps
        return outcome.after(begin), outcome

    def judge(self, point: Point, outlook: Enough | None = None, moved: Tensor | float = 0.0) -> Verdict:
        """By the certificate requested, in float64."""
        at = replace(point, instance=self.exact_instance)
        return judge(at, self.request.rungs[self.rung], outlook=outlook, moved=moved)

    @property
    def last_rung(self) -> bool:
        return self.rung + 1 == len(self.request.rungs)

    def climb(self) -> bool:
        """Judge by the next rung from now on; False on the last one."""
        if self.last_rung:
            return False
        self.rung += 1
        return True

    def arithmetic(self, residual: Tensor, floor: Tensor) -> Instance:
        """The instance in the precision of b where its rounding leaves residuals of these norms alone, else in float64,
        which may hide ``floor`` of them; (batch,) each."""
        coarser = torch.finfo(self.instance.q.dtype).eps / torch.finfo(torch.float64).eps
        fine = bool((residual > _ROUNDING_MARGIN * coarser * floor).all())
        return self.instance if fine else self.exact_instance

    def out_of_steps(self) -> bool:
        """Whether the limit is reached."""
        limit = self.request.max_steps
        return limit is not None and max(self.state_steps, self.adjoint_steps) >= limit

    # ---- results ---------------------------------------------------------------------------------------------------

    def certified(self, verdict: Verdict, status: Status) -> Hypergradient:
        """The gradient of the verdict with its bound."""
        if verdict.kind == "estimate" and status is Status.CONVERGED:
            status = Status.ESTIMATED
        return self.result(verdict, verdict.error_bound, verdict.kind, status, verdict.reason)

    def estimate(
        self, verdict: Verdict, target: Callable[[Verdict], float], status: Status | None = None
    ) -> Hypergradient:
        """No bound exists: correct by Newton steps until the correction, which estimates the error, meets the target.
        ``status``: what to say where it does not."""
        point, error, reason = verdict.point, math.inf, verdict.reason
        if verdict.hindrance and verdict.hindrance.obstacle.asks_for_ball:
            down = verdict.hindrance.obstacle is Obstacle.CURVES_DOWN
            ended = Status.INDEFINITE if down else status or Status.STAGNATED
            return self.result(verdict, math.inf, "none", ended, reason)
        for _ in range(MAX_ROUNDS):
            moved = newton_correction(point, min(_CORRECTION, 0.1 * self.request.tolerance))
            if moved is None:
                return self.result(verdict, math.inf, "none", Status.INDEFINITE, reason)
            point = moved
            corrected = self.judge(point)
            difference = gradient_distance(corrected.gradient, verdict.gradient)
            stalled = difference > 0.5 * error
            error, verdict = difference, corrected
            if error <= target(verdict):
                return self.result(verdict, error, "estimate", Status.ESTIMATED, reason)
            if stalled or self.out_of_steps():
                break
        kind: BoundKind = "estimate" if math.isfinite(error) else "none"
        fallback = Status.MAX_STEPS if self.out_of_steps() else Status.STAGNATED
        return self.result(verdict, error, kind, status or fallback, reason)

    def result(
        self, verdict: Verdict, error_bound: float, kind: BoundKind, status: Status, reason: str = ""
    ) -> Hypergradient:
        """What is returned of a verdict, in the precision of b."""
        dtype, point = self.b.dtype, verdict.point
        x, X = self.instance.box.inside(point.x, dtype), point.X.to(dtype)
        state_moved, adjoint_moved = (sum_samples((new - old) ** 2).sqrt() for new, old in ((x, point.x), (X, point.X)))
        radius = (verdict.radius - state_moved).clamp_min(0.0)
        return Hypergradient(
            gradient=verdict.gradient,
            error_bound=error_bound,
            certified=holds_globally(kind, radius) and math.isfinite(error_bound),
            bound_kind=kind,
            reason=reason,
            loss=verdict.loss,
            loss_interval=verdict.loss_interval,
            x=self.instance.latent.image(x),
            X=self.instance.latent.image(X),
            state_error_bound=verdict.state_error + state_moved,
            adjoint_error_bound=verdict.adjoint_error + adjoint_moved,
            status=status,
            steps=max(self.state_steps, self.adjoint_steps),
            operator_applications=self.instance.counter.applications,
            corrected_gradient=verdict.gradient,
            corrected_error_bound=error_bound,
            rung=verdict.rung if kind == "rigorous" and math.isfinite(error_bound) else "",
            normed=self.normed if self.normed.tells_norms_nearby else None,
            certified_scope=self.frozen.minimiser,
            radius=radius,
        )
