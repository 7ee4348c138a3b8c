"""Rounds of improve and judge until a hypergradient's certificate meets the tolerance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.certificates.judgement import Enough, Judgement, PointCertificate, gradient_distance, judge
from learnreg.errors import ShapeError
from learnreg.hypergradients.base import Accuracy, HypergradientMethod, Iterates
from learnreg.linear.samples import sum_samples
from learnreg.losses import UpperLoss
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.latent import image_part, joint_loss, without_latent
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.result import BoundKind, Hypergradient, Status
from learnreg.solvers.newton_correction import newton_correction
from learnreg.solvers.solve import initial_point

__all__ = ["LIMITED", "Search", "Start"]

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
        x, X = image_part(v, instance.latent), image_part(V, instance.latent)
        return cls(x, X, instance.latent_part(v), instance.latent_part(V))

    def part(self, index: slice | int, factor: float) -> Start:
        """That of some samples, or of one without its batch axis, adjoint states times a factor; in memory of its
        own."""
        z, Z = (None if v is None else v[index].clone() for v in (self.z, self.Z))
        return Start(self.x[index].clone(), factor * self.X[index], z, None if Z is None else factor * Z)

    def in_all(self, instance: Instance) -> tuple[Tensor, Tensor]:
        """State and adjoint state in all variables of the instance, in its dtype; latent ones that are not at hand by a
        guess, and 0."""
        x, X = self.x.detach().to(instance.q), self.X.detach().to(instance.q)
        if instance.latent is None:
            return x, X
        shape = (x.shape[0], instance.latent.channels, *x.shape[2:])
        for name, v in (("z", self.z), ("Z", self.Z)):
            if v is not None and tuple(v.shape) != shape:
                raise ShapeError(f"start.{name}: got shape {tuple(v.shape)}, expected {shape}.")
        whole = instance.started(x) if self.z is None else instance.joined(x, self.z.to(x))
        return whole, without_latent(X, instance.latent) if self.Z is None else instance.joined(X, self.Z.to(X))


class Search:
    """Rounds of improve and judge; each round tightens what the certificate, one point bound, says limits it."""

    certificate: PointCertificate = "published"

    def __init__(
        self,
        problem: LowerLevelProblem | FrozenProblem,
        b: Tensor,
        loss: UpperLoss,
        method: HypergradientMethod,
        tolerance: float,
        absolute_tolerance: float,
        max_steps: int | None,
    ) -> None:
        self.frozen, self.b, self.loss, self.method = problem.frozen(), b, loss, method
        self.tolerance, self.absolute_tolerance, self.max_steps = tolerance, absolute_tolerance, max_steps
        self.instance = self.frozen.at(b)
        exact = b.dtype == torch.float64
        self.exact_instance = self.instance if exact else self.frozen.at(b.double(), self.instance.counter)
        self.loss = joint_loss(loss, self.instance.latent)
        self.working: Instance = self.instance
        self.state_steps = self.adjoint_steps = 0

    def target(self, judged: Judgement) -> float:
        """The error bound that is good enough for the gradient judged."""
        return self._enough(judged.norm)

    def _enough(self, norm: float) -> float:
        return max(self.tolerance * norm, self.absolute_tolerance)

    def run(self, start: Start | None) -> Hypergradient:
        iterates = self._initial(start)
        accuracy = self._initial_accuracy(iterates)
        best: Judgement | None = None
        status = Status.STAGNATED
        for _ in range(_MAX_ROUNDS):
            iterates = self._improve(iterates, accuracy)
            judged = self._judge(iterates)
            certifiable = not judged.reason or self._depends_on_accuracy(judged)
            if not certifiable:
                return self._estimate(judged, iterates)
            previous = math.inf if best is None else best.error_bound
            if best is None or judged.better(best):
                best = judged
            if best.error_bound <= self.target(best):
                return self._certified(best, Status.CONVERGED)
            if self._out_of_steps():
                status = Status.MAX_STEPS
                break
            limited = iterates.status in LIMITED
            if self.working.q.dtype != torch.float64 and (limited or judged.error_bound > 0.5 * previous):
                self.working = self.exact_instance
            elif limited and judged.error_bound > 0.5 * previous:
                status = iterates.status
                break
            accuracy = self._tighter(accuracy, judged, limited)
        assert best is not None
        if best.reason:
            return self._estimate(best, iterates, status)
        return self._certified(best, status)

    # ---- one round -------------------------------------------------------------------------------------------------

    def _initial(self, start: Start | None) -> Iterates:
        if start is None:
            x = initial_point(self.instance, self.b)
            return Iterates(x, torch.zeros_like(x))
        self.frozen.operator.check_domain(start.x, "start.x")
        self.frozen.operator.check_domain(start.X, "start.X")
        return Iterates(*start.in_all(self.instance), warm=True)

    def _initial_accuracy(self, iterates: Iterates) -> Accuracy:
        """A first guess: relative to the image and to the loss gradient, a tenth of the tolerance asked for."""
        share = 0.1 * min(self.tolerance, 1.0)
        size = sum_samples(iterates.x.double() ** 2).sqrt().clamp_min(1e-6)
        slope = sum_samples(self.loss.gradient(iterates.x).double() ** 2).sqrt()
        return Accuracy(share * size, (share * slope).clamp_min(torch.finfo(torch.float64).tiny))

    def _improve(self, iterates: Iterates, accuracy: Accuracy) -> Iterates:
        dtype = self.working.q.dtype
        left: tuple[int | None, int | None] = (None, None)
        if self.max_steps is not None:
            left = (max(1, self.max_steps - self.state_steps), max(1, self.max_steps - self.adjoint_steps))
        t = None if iterates.t is None else iterates.t.to(dtype)
        start = Iterates(iterates.x.to(dtype), iterates.X.to(dtype), t=t, warm=iterates.warm)
        goal = Accuracy(accuracy.state.to(dtype), accuracy.adjoint.to(dtype))
        improved = self.method.improve(self.working, self.loss, start, goal, *left)
        self.state_steps += improved.state_steps
        self.adjoint_steps += improved.adjoint_steps
        return improved

    def _judge(self, iterates: Iterates, outlook: Enough | None = None) -> Judgement:
        x, X = iterates.x, iterates.X
        return judge(self.frozen, self.exact_instance, self.b, self.loss, x, X, self.certificate, outlook=outlook)

    def _depends_on_accuracy(self, judged: Judgement) -> bool:
        return "solve more accurately" in judged.reason

    def _out_of_steps(self) -> bool:
        return self.max_steps is not None and max(self.state_steps, self.adjoint_steps) >= self.max_steps

    def _tighter(self, accuracy: Accuracy, judged: Judgement, limited: bool) -> Accuracy:
        """What was achieved, divided by what the bound still lacks, at least by 3 and at most by 10^4. A solver that
        believes it met its goal must get a smaller one; one that rounding limited need not."""
        target = self.target(judged)
        state_factor = _shrink(0.4 * target, judged.state_share)
        adjoint_factor = _shrink(0.4 * target, judged.adjoint_share)
        state, adjoint = judged.state_error * state_factor, judged.adjoint_residual * adjoint_factor
        if self.instance.strong_convexity <= 0:
            state = accuracy.state * state_factor
        if not limited:
            state = torch.minimum(state, 0.5 * accuracy.state if state_factor < 1 else accuracy.state)
            adjoint = torch.minimum(adjoint, 0.5 * accuracy.adjoint if adjoint_factor < 1 else accuracy.adjoint)
        return Accuracy(state, adjoint)

    # ---- results ---------------------------------------------------------------------------------------------------

    def _certified(self, judged: Judgement, status: Status) -> Hypergradient:
        return self._result(judged, judged.error_bound, "rigorous", status)

    def _estimate(self, judged: Judgement, iterates: Iterates, status: Status | None = None) -> Hypergradient:
        """No bound exists: correct by Newton steps until the correction, which estimates the error, is small enough."""
        x, X = judged.x, judged.X
        error, reason = math.inf, judged.reason
        for _ in range(_MAX_ROUNDS):
            x, X = newton_correction(self.exact_instance, self.loss, x, X, min(_CORRECTION, 0.1 * self.tolerance))
            corrected = self._judge(Iterates(x, X))
            difference = gradient_distance(corrected.gradient, judged.gradient)
            stalled = difference > 0.5 * error
            error, judged = difference, corrected
            if error <= self.target(judged):
                return self._result(judged, error, "estimate", Status.ESTIMATED, reason)
            if stalled or self._out_of_steps():
                break
        kind: BoundKind = "estimate" if math.isfinite(error) else "none"
        fallback = Status.MAX_STEPS if self._out_of_steps() else Status.STAGNATED
        return self._result(judged, error, kind, status or fallback, reason)

    def _result(
        self, judged: Judgement, error_bound: float, kind: BoundKind, status: Status, reason: str = ""
    ) -> Hypergradient:
        box, dtype = self.instance.box, self.b.dtype
        x, X = judged.x.to(dtype) if box is None else box.inside(judged.x, dtype), judged.X.to(dtype)
        certified = kind == "rigorous" and math.isfinite(error_bound)
        state_moved, adjoint_moved = (
            sum_samples((new - old) ** 2).sqrt() for new, old in ((x, judged.x), (X, judged.X))
        )
        return Hypergradient(
            gradient=judged.gradient,
            error_bound=error_bound,
            certified=certified,
            bound_kind=kind,
            reason=reason,
            loss=judged.loss,
            loss_interval=judged.loss_interval,
            x=image_part(x, self.instance.latent),
            X=image_part(X, self.instance.latent),
            state_error_bound=judged.state_error + state_moved,
            adjoint_error_bound=judged.adjoint_error + adjoint_moved,
            status=status,
            steps=max(self.state_steps, self.adjoint_steps),
            operator_applications=self.instance.counter.applications,
        )


def _shrink(wanted: float, share: float) -> float:
    if not math.isfinite(share):
        return 1e-2
    return min(max(wanted / share, 1e-4), 0.33) if share > wanted else 1.0
