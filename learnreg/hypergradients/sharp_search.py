"""The search for the sharp certificate: the method's iterates, corrected by Newton steps (Lemma 5).

A first run of the method leads into the region where Newton's method contracts, or is repeated until it does. What the
judgement says of errors there tells how accurate the state and the adjoint state have to be. Where the corrections lead
is judged afresh, so that a step that did not pay is dropped and costs time alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from learnreg.certificates.judgement import OUTLOOK, Judgement, PointCertificate
from learnreg.hypergradients.base import Accuracy, Iterates
from learnreg.hypergradients.search import LIMITED, Search, Start
from learnreg.linear.samples import sum_samples
from learnreg.result import Hypergradient, Status
from learnreg.solvers.newton_correction import approach_state, correct_adjoint

__all__ = ["SharpSearch"]

_MAX_ROUNDS, _MAX_IDLE_ROUNDS, _PROGRESS = 24, 6, 0.9
_FIRST_ADJOINT = 0.1
_FIRST_FORCING, _LARGEST_FORCING = 0.03, 0.1
_CONTRACTION = 0.5
_STATE_SHARE, _SHARE, _SMALLEST_FACTOR = 0.42, 0.93, 1e-8
"""Shares of the tolerance that the state may take, and both states; the least that a residual shrinks by at once."""

_ILL_CONDITIONED = 1000.0
_NEAR, _NEARER = 1e-3, 1e-4
"""Relative accuracy of the first state: within it Newton's method contracts on most problems, and on ill-conditioned
ones, where a step that fails is expensive."""


@dataclass(frozen=True)
class _Position:
    """Where the search stands: iterates, what is known of them, the relative residual of the next Newton step, and
    whether rounding keeps the state from getting any better."""

    iterates: Iterates
    judged: Judgement
    forcing: float
    state_final: bool = False


class SharpSearch(Search):
    """Newton corrections of the state until its share of the bound is small, then the adjoint equation there."""

    certificate: PointCertificate = "sharp"
    newton_steps = 12
    """Newton steps at most until the next judgement."""

    def run(self, start: Start | None) -> Hypergradient:
        iterates = self._initial(start)
        accuracy = self._first_accuracy(iterates)
        iterates = self._improve(iterates, accuracy)
        judged = self._judge(iterates, self._enough)
        if judged.reason and not self._depends_on_accuracy(judged):
            return self._estimate(judged, iterates)
        best, at, status = self.refine(iterates, judged, accuracy)
        if best.reason:
            return self._estimate(best, at, None if status is Status.CONVERGED else status)
        return self._certified(best, status)

    def refine(self, iterates: Iterates, judged: Judgement, accuracy: Accuracy) -> tuple[Judgement, Iterates, Status]:
        """Corrections until the bound meets the target: the best judgement, the last iterates and how it ended.
        ``accuracy``: what the iterates were computed to."""
        at, best, status, idle = _Position(iterates, judged, _FIRST_FORCING), judged, Status.STAGNATED, 0
        for _ in range(_MAX_ROUNDS):
            if best.error_bound <= self.target(best):
                return best, at.iterates, Status.CONVERGED
            if self._out_of_steps():
                return best, at.iterates, Status.MAX_STEPS
            moved = self._correct(at)
            if moved is None:
                accuracy = Accuracy(0.1 * torch.minimum(accuracy.state, at.judged.state_error), accuracy.adjoint)
                moved = self._go_on(at, accuracy)
                status = moved.iterates.status
            elif at.state_final and not moved.judged.better(best, _PROGRESS):
                break
            idle = 0 if moved.judged.better(best, _PROGRESS) else idle + 1
            at = moved
            if at.judged.better(best):
                best = at.judged
            if idle >= _MAX_IDLE_ROUNDS:
                break
        return best, at.iterates, Status.STAGNATED if status is Status.CONVERGED else status

    def _first_accuracy(self, iterates: Iterates) -> Accuracy:
        """A state from which Newton's method should contract, and an adjoint state good enough to weigh errors."""
        near = _NEARER if self.instance.condition_bound() >= _ILL_CONDITIONED else _NEAR
        size = sum_samples(iterates.x.double() ** 2).sqrt().clamp_min(1e-6)
        slope = sum_samples(self.loss.gradient(iterates.x).double() ** 2).sqrt()
        loose = (_FIRST_ADJOINT * slope).clamp_min(torch.finfo(torch.float64).tiny)
        return Accuracy(near * size, loose)

    def _correct(self, at: _Position) -> _Position | None:
        """Newton steps for the state if its share of the bound is too large, then the adjoint equation if they lead far
        enough; None if they neither contracted nor led to a bound that meets the target."""
        judged, target = at.judged, self.target(at.judged)
        instance, x, X = self.exact_instance, judged.x, judged.X
        wanted = 1.0 if at.state_final else _state_factor(target, judged)
        before, reached, aim = judged.state_residual, True, wanted * judged.state_residual
        if wanted < 1.0:
            step = approach_state(instance, x, aim, at.forcing, self._left(self.state_steps), self.newton_steps)
            self.state_steps += step.steps
            if not step.contracted:
                return None
            x, before, reached = step.point, step.before, step.reached
        if reached:
            target = max(target, 2.0 * judged.state_share) if at.state_final else target
            goal = judged.adjoint_residual * _adjoint_factor(target, judged, wanted)
            solved = correct_adjoint(instance, self.loss, x, X, goal, self._left(self.adjoint_steps))
            self.adjoint_steps += solved.steps
            X = solved.point
        iterates = Iterates(x, X, warm=True)
        after = self._judge(iterates)
        if wanted >= 1.0 or after.error_bound <= self.target(after):
            return _Position(iterates, after, at.forcing, at.state_final)
        if not bool((after.state_residual <= torch.maximum(_CONTRACTION * judged.state_residual, 2.0 * aim)).all()):
            return None
        ratio = float((after.state_residual / before.clamp_min(1e-300)).max())
        return _Position(iterates, after, min(max(ratio**2, _SMALLEST_FACTOR), _LARGEST_FORCING))

    def _go_on(self, at: _Position, accuracy: Accuracy) -> _Position:
        """The method again, from where it was; in float64 once rounding limits it."""
        exact = self.working is self.exact_instance
        iterates = self._improve(at.iterates, accuracy)
        judged, limited = self._judge(iterates), iterates.status in LIMITED
        if limited:
            self.working = self.exact_instance
        gained = bool((judged.state_residual <= _CONTRACTION * at.judged.state_residual).all())
        return _Position(iterates, judged, _FIRST_FORCING, limited and exact and not gained)

    def _left(self, steps: int) -> int | None:
        return None if self.max_steps is None else max(1, self.max_steps - steps)


def _state_factor(target: float, judged: Judgement) -> float:
    """What the residual of the state must shrink by for its share of the bound to leave room for the other; 1 if it
    does. Shares follow a power of the residual, at least the first, as far as the outlook goes, then the first."""
    share = judged.state_share
    if share <= 0.5 * target:
        return 1.0
    wanted = _STATE_SHARE * target
    near = math.inf if judged.outlook is None else judged.outlook[0]
    if not math.isfinite(near):
        return max(wanted / share, _SMALLEST_FACTOR) if math.isfinite(share) else _FIRST_FORCING
    near = max(min(near, OUTLOOK * share), _SMALLEST_FACTOR * wanted)
    if wanted <= near or not math.isfinite(share):
        return min(max(OUTLOOK * wanted / near, _SMALLEST_FACTOR), OUTLOOK)
    return math.exp(math.log(OUTLOOK) * math.log(wanted / share) / math.log(near / share))


def _adjoint_factor(target: float, judged: Judgement, state_factor: float) -> float:
    """The same for the adjoint state, once the residual of the state has shrunk by its factor."""
    share, state = judged.adjoint_share, judged.state_share
    if state_factor < 1.0:
        state = _STATE_SHARE * target
        if judged.outlook is not None and state_factor <= OUTLOOK:
            share = judged.outlook[1]
    if not math.isfinite(share):
        return _FIRST_FORCING
    wanted = max(_SHARE * target - state, 0.4 * target)
    return 1.0 if share <= wanted else max(wanted / share, _SMALLEST_FACTOR)
