"""The search for the sharp certificate: the method's iterates, corrected by Newton steps (Lemma 5).

A first run of the method leads into the region where Newton's method contracts, or is repeated until it does. Each
correction is judged afresh, so that a step that did not pay is dropped and costs time alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from learnreg.certificates.correction import correct_adjoint, correct_state
from learnreg.certificates.judgement import Judgement, PointCertificate
from learnreg.convex import sum_samples
from learnreg.hypergradients.base import Accuracy, Iterates
from learnreg.hypergradients.search import LIMITED, Search, Start
from learnreg.result import Hypergradient, Status

__all__ = ["SharpSearch"]

_MAX_ROUNDS, _MAX_IDLE_ROUNDS = 24, 6
_FIRST_ADJOINT = 0.1
_FIRST_FORCING, _LARGEST_FORCING = 1e-2, 0.1
_CONTRACTION = 0.5
_SHARE, _SMALLEST_FACTOR = 0.45, 1e-8
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

    def run(self, start: Start | None) -> Hypergradient:
        iterates = self._initial(start)
        accuracy = self._first_accuracy(iterates)
        iterates = self._improve(iterates, accuracy)
        judged = self._judge(iterates)
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
            elif at.state_final and moved.judged.error_bound > 0.9 * best.error_bound:
                break
            idle = 0 if moved.judged.error_bound < 0.9 * best.error_bound or best.reason else idle + 1
            at = moved
            if at.judged.error_bound < best.error_bound:
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
        """A Newton step for the state if its share of the bound is too large, and the adjoint equation if this is
        the last one needed; None if the step did not contract."""
        judged, target = at.judged, self.target(at.judged)
        instance, x, X = self.exact_instance, judged.x, judged.X
        wanted = 1.0 if at.state_final else _factor(target, judged.state_share)
        target = max(target, 2.0 * judged.state_share) if at.state_final else target
        relative = max(at.forcing, wanted)
        if wanted < 1.0:
            step = correct_state(
                instance, x, torch.full_like(judged.state_error, relative), self._left(self.state_steps)
            )
            self.state_steps += step.steps
            x = step.point
        if wanted >= 1.0 or relative <= wanted:
            goal = judged.adjoint_residual * _factor(target, judged.adjoint_share)
            solved = correct_adjoint(instance, self.loss, x, X, goal, self._left(self.adjoint_steps))
            self.adjoint_steps += solved.steps
            X = solved.point
        iterates = Iterates(x, X, warm=True)
        after = self._judge(iterates)
        if wanted >= 1.0:
            return _Position(iterates, after, at.forcing, at.state_final)
        ratio = float((after.state_residual / judged.state_residual.clamp_min(1e-300)).max())
        if not ratio <= _CONTRACTION:
            return None
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


def _factor(target: float, share: float) -> float:
    """What a residual must shrink by for its share of the bound to leave room for the other; 1 if it does."""
    if not math.isfinite(share):
        return _FIRST_FORCING
    return 1.0 if share <= 0.5 * target else max(_SHARE * target / share, _SMALLEST_FACTOR)
