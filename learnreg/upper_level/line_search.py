"""Backtracking on certified values: a step is taken where its decrease is proven.

From theta along -p with slope <z, p> > 0, alpha is accepted if

    upper(ell(theta - alpha p)) <= reference - c alpha <z, p>,

the reference being the lower end of ell(theta) (every step lowers the loss), or the largest of the lower ends of the
last m iterates (Grippo, Lampariello, Lucidi, 1986: the largest loss of m iterates in a row falls). Intervals are made
narrower only as far as they decide: a trial whose upper end is below the threshold is accepted, and one whose lower end
is above it rejected, however wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from learnreg.errors import AssumptionError
from learnreg.upper_level.directions import Flat
from learnreg.upper_level.objective import Accuracy, Objective, Trial

__all__ = ["LineSearch", "Step"]

_ROUNDS = 4
_BASE_SHARE, _TRIAL_SHARE = 0.4, 0.4
"""Of (eta - c) times the predicted decrease: how wide intervals may be at last."""

_LEAST_CUT = 0.1


@dataclass(frozen=True)
class Step:
    """An accepted step: its size, the trials before and after it, how often it was cut, and the accuracy that
    decided."""

    size: float
    before: Trial
    after: Trial
    backtracks: int
    accuracy: Accuracy

    @property
    def decrease(self) -> float:
        """Certified decrease of the loss; where earlier iterates are the reference, it may be below 0."""
        return self.before.lower - self.after.upper


@dataclass(frozen=True)
class LineSearch:
    """eta, c, shrink, max_backtracks: as in :class:`learnreg.AdaptiveDescent`."""

    eta: float
    c: float
    shrink: float
    max_backtracks: int

    def search(
        self,
        objective: Objective,
        flat: Flat,
        here: Trial,
        direction: Tensor,
        slope: float,
        first: float,
        accuracy: Accuracy,
        earlier: Sequence[float] = (),
    ) -> Step | None:
        """Backtrack from the step size ``first``; None, with everything as before, when nothing was accepted.

        Parameters
        ----------
        earlier: lower ends of iterates before this one that count as references, too.
        """
        origin, alpha = flat.point(), first
        started = objective.snapshot()
        try:
            for backtracks in range(self.max_backtracks):
                predicted = alpha * slope
                width = (self.eta - self.c) * predicted
                if here.lower >= max(earlier, default=here.lower):
                    here = _narrowed(objective, here, accuracy, _BASE_SHARE * width)
                    started = objective.snapshot()
                threshold = max([here.lower, *earlier]) - self.c * predicted
                flat.move_to(origin - alpha * direction)
                objective.problem.project_()
                trial, accuracy = self._decide(objective, accuracy, threshold, _TRIAL_SHARE * width)
                if trial is not None and trial.upper <= threshold:
                    return Step(alpha, here, trial, backtracks, accuracy)
                flat.move_to(origin)
                objective.restore(started)
                alpha *= self._cut(here, trial, predicted)
        except BaseException:
            flat.move_to(origin)
            objective.restore(started)
            raise
        return None

    def _decide(
        self, objective: Objective, accuracy: Accuracy, threshold: float, width: float
    ) -> tuple[Trial | None, Accuracy]:
        """The trial at the present parameters, as accurate as the decision takes; None where the problem has no
        solution: too far."""
        try:
            trial = objective.evaluate(accuracy)
            for _ in range(_ROUNDS):
                decided = trial.upper <= threshold or trial.lower > threshold
                if decided or trial.width <= width or trial.limited:
                    break
                accuracy = trial.sharpened(accuracy, width)
                trial = objective.evaluate(accuracy)
        except AssumptionError:
            return None, accuracy
        return trial, accuracy

    def _cut(self, here: Trial, trial: Trial | None, predicted: float) -> float:
        """The minimum of the parabola through both losses and the slope, within limits."""
        excess = trial.loss - here.loss + predicted if trial is not None else 0.0
        if not excess > 0:
            return self.shrink
        return min(max(0.5 * predicted / excess, _LEAST_CUT), self.shrink)


def _narrowed(objective: Objective, here: Trial, accuracy: Accuracy, width: float) -> Trial:
    """The trial at the present parameters again, where its interval is wider than that."""
    for _ in range(_ROUNDS):
        if here.width <= width or here.limited:
            break
        accuracy = here.sharpened(accuracy, width)
        here = objective.evaluate(accuracy)
    return here
