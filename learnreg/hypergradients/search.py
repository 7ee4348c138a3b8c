"""Rounds of improve and judge until a hypergradient's certificate meets the tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from learnreg.certificates.judgement import Enough, PointCertificate, Verdict, gradient_distance, judge
from learnreg.errors import ShapeError
from learnreg.hypergradients.base import Accuracy, HypergradientMethod, Iterates
from learnreg.linear.samples import sum_samples
from learnreg.losses import UpperLoss
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.point import Point
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.result import BoundKind, Hypergradient, Status
from learnreg.solvers.newton_correction import newton_correction
from learnreg.solvers.solve import initial_point

__all__ = ["LIMITED", "Request", "Search", "Start"]

LIMITED = (Status.PRECISION, Status.STAGNATED, Status.NOT_FINITE)
"""How a method ends that more steps in the same precision would not help."""

_MAX_ROUNDS = 16
_CORRECTION = 1e-2


@dataclass(frozen=True)
class Start:
    """Where to start: the state and adjoint state of an earlier visit to the same samples, z and Z those of latent
    variables, where there are any and they are at hand."""

    x: Tensor
    X: Tensor
    z: Tensor | None = None
    Z: Tensor | None = None

    @classmethod
    def of(cls, instance: Instance, v: Tensor, V: Tensor) -> Start:
        """From state and adjoint state in all variables of the instance."""
        latent = instance.latent
        return cls(latent.image(v), latent.image(V), latent.part(v), latent.part(V))

    def part(self, index: slice | int, factor: float) -> Start:
        """That of some samples, or of one without its batch axis, adjoint states times a factor; in memory of its
        own."""
        z, Z = (None if v is None else v[index].clone() for v in (self.z, self.Z))
        return Start(self.x[index].clone(), factor * self.X[index], z, None if Z is None else factor * Z)

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
    point bound ``certificate``, within max_steps iterations of the state and as many of the adjoint state.
    newton_steps: corrections at most until the next judgement."""

    tolerance: float
    absolute_tolerance: float = 0.0
    max_steps: int | None = None
    certificate: PointCertificate = "auto"
    newton_steps: int = 12

    def enough(self, norm: float) -> float:
        """The error bound that is good enough for a gradient of this norm."""
        return max(self.tolerance * norm, self.absolute_tolerance)

    def steps_left(self, steps: int) -> int | None:
        """After so many; at least one."""
        return None if self.max_steps is None else max(1, self.max_steps - steps)


class Search:
    """Rounds of improve and judge; each round tightens what the certificate, one point bound, says limits it."""

    def __init__(
        self,
        problem: LowerLevelProblem | FrozenProblem,
        b: Tensor,
        loss: UpperLoss,
        method: HypergradientMethod,
        request: Request,
    ) -> None:
        self.frozen, self.b, self.method, self.request = problem.frozen(), b, method, request
        self.instance = self.frozen.at(b)
        exact = b.dtype == torch.float64
        self.exact_instance = self.instance if exact else self.frozen.at(b.double(), self.instance.counter)
        self.loss = self.instance.latent.loss(loss)
        self.working: Instance = self.instance
        self.state_steps = self.adjoint_steps = 0

    def target(self, verdict: Verdict) -> float:
        """The error bound that is good enough for the gradient judged."""
        return self.request.enough(verdict.norm)

    def run(self, start: Start | None) -> Hypergradient:
        point = self._initial(start)
        accuracy = self._initial_accuracy(point)
        best: Verdict | None = None
        status = Status.STAGNATED
        for _ in range(_MAX_ROUNDS):
            point, ended = self._improve(point, accuracy)
            verdict = self._judge(point)
            if not verdict.certifiable:
                return self.estimate(verdict, self.target)
            previous = math.inf if best is None else best.error_bound
            if best is None or verdict.better(best):
                best = verdict
            if best.error_bound <= self.target(best):
                return self._certified(best, Status.CONVERGED)
            if self._out_of_steps():
                status = Status.MAX_STEPS
                break
            limited = ended in LIMITED
            if self.working.q.dtype != torch.float64 and (limited or verdict.error_bound > 0.5 * previous):
                self.working = self.exact_instance
            elif limited and verdict.error_bound > 0.5 * previous:
                status = ended
                break
            accuracy = self._tighter(accuracy, verdict, limited)
        assert best is not None
        if best.hindrance:
            return self.estimate(best, self.target, status)
        return self._certified(best, status)

    # ---- one round -------------------------------------------------------------------------------------------------

    def _initial(self, start: Start | None) -> Point:
        if start is None:
            x = initial_point(self.instance, self.b)
            return Point(self.frozen, self.instance, self.b, self.loss, x, torch.zeros_like(x))
        self.frozen.operator.check_domain(start.x, "start.x")
        self.frozen.operator.check_domain(start.X, "start.X")
        return Point(self.frozen, self.instance, self.b, self.loss, *start.in_all(self.instance), warm=True)

    def _initial_accuracy(self, point: Point) -> Accuracy:
        """A first guess: relative to the image and to the loss gradient, a tenth of the tolerance asked for."""
        share = 0.1 * min(self.request.tolerance, 1.0)
        size = sum_samples(point.x.double() ** 2).sqrt().clamp_min(1e-6)
        slope = sum_samples(point.loss_gradient.double() ** 2).sqrt()
        return Accuracy(share * size, (share * slope).clamp_min(torch.finfo(torch.float64).tiny))

    def _improve(self, point: Point, accuracy: Accuracy) -> tuple[Point, Status]:
        """Where the method leads from there, and how it ended."""
        dtype, begin = self.working.q.dtype, point.on(self.working)
        left = (self.request.steps_left(self.state_steps), self.request.steps_left(self.adjoint_steps))
        goal = Accuracy(accuracy.state.to(dtype), accuracy.adjoint.to(dtype))
        iterates = Iterates(begin.x, begin.X, t=begin.t, warm=begin.warm)
        improved = self.method.improve(self.working, self.loss, iterates, goal, *left)
        self.state_steps += improved.state_steps
        self.adjoint_steps += improved.adjoint_steps
        return replace(begin, x=improved.x, X=improved.X, t=improved.t, warm=improved.warm), improved.status

    def _judge(self, point: Point, outlook: Enough | None = None) -> Verdict:
        return judge(replace(point, instance=self.exact_instance), self.request.certificate, outlook=outlook)

    def _out_of_steps(self) -> bool:
        limit = self.request.max_steps
        return limit is not None and max(self.state_steps, self.adjoint_steps) >= limit

    def _tighter(self, accuracy: Accuracy, verdict: Verdict, limited: bool) -> Accuracy:
        """What was achieved, divided by what the bound still lacks, at least by 3 and at most by 10^4. A solver that
        believes it met its goal must get a smaller one; one that rounding limited need not."""
        target = self.target(verdict)
        state_factor = _shrink(0.4 * target, verdict.state_share)
        adjoint_factor = _shrink(0.4 * target, verdict.adjoint_share)
        state, adjoint = verdict.state_error * state_factor, verdict.adjoint_residual * adjoint_factor
        if self.instance.strong_convexity <= 0:
            state = accuracy.state * state_factor
        if not limited:
            state = torch.minimum(state, 0.5 * accuracy.state if state_factor < 1 else accuracy.state)
            adjoint = torch.minimum(adjoint, 0.5 * accuracy.adjoint if adjoint_factor < 1 else accuracy.adjoint)
        return Accuracy(state, adjoint)

    # ---- results ---------------------------------------------------------------------------------------------------

    def _certified(self, verdict: Verdict, status: Status) -> Hypergradient:
        return self._result(verdict, verdict.error_bound, "rigorous", status)

    def estimate(
        self, verdict: Verdict, target: Callable[[Verdict], float], status: Status | None = None
    ) -> Hypergradient:
        """No bound exists: correct by Newton steps until the correction, which estimates the error, meets the target.
        ``status``: what to say where it does not."""
        point, error, reason = verdict.point, math.inf, verdict.reason
        for _ in range(_MAX_ROUNDS):
            point = newton_correction(point, min(_CORRECTION, 0.1 * self.request.tolerance))
            corrected = self._judge(point)
            difference = gradient_distance(corrected.gradient, verdict.gradient)
            stalled = difference > 0.5 * error
            error, verdict = difference, corrected
            if error <= target(verdict):
                return self._result(verdict, error, "estimate", Status.ESTIMATED, reason)
            if stalled or self._out_of_steps():
                break
        kind: BoundKind = "estimate" if math.isfinite(error) else "none"
        fallback = Status.MAX_STEPS if self._out_of_steps() else Status.STAGNATED
        return self._result(verdict, error, kind, status or fallback, reason)

    def _result(
        self, verdict: Verdict, error_bound: float, kind: BoundKind, status: Status, reason: str = ""
    ) -> Hypergradient:
        dtype, point = self.b.dtype, verdict.point
        x, X = self.instance.box.inside(point.x, dtype), point.X.to(dtype)
        certified = kind == "rigorous" and math.isfinite(error_bound)
        state_moved, adjoint_moved = (sum_samples((new - old) ** 2).sqrt() for new, old in ((x, point.x), (X, point.X)))
        return Hypergradient(
            gradient=verdict.gradient,
            error_bound=error_bound,
            certified=certified,
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
        )


def _shrink(wanted: float, share: float) -> float:
    if not math.isfinite(share):
        return 1e-2
    return min(max(wanted / share, 1e-4), 0.33) if share > wanted else 1.0
