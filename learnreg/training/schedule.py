"""What happens when in a training run, by the number of updates and the work done, never by the clock: runs of the same
seed are the same on any machine, however fast."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["AuditCount", "is_milestone", "is_validated", "step_factor"]

_LEAST_FACTOR = 1e-3
_RISING_UPDATES, _DECAY_UPDATES = 20.0, 50.0
_MOST_BETWEEN, _ENOUGH_BETWEEN = 100, 60


def step_factor(done: int, updates: int | None) -> float:
    """The factor of the step size after so many updates. It rises over the first 20 of them (a quarter of an annealed
    run of less than 80), since Adam's first steps move every parameter by the whole step, which good starts do not
    survive. Then it falls by the inverse square root of the updates, from 50 on, so that it does not depend on how long
    the run will be; annealed over a number of updates, by a half cosine."""
    if updates is None:
        return min(1.0, (done + 1) / _RISING_UPDATES) / math.sqrt(1.0 + done / _DECAY_UPDATES)
    rising = max(1.0, min(_RISING_UPDATES, updates / 4))
    falling = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done / updates)))
    return max(min(1.0, (done + 1) / rising) * falling, _LEAST_FACTOR)


def is_milestone(update: int) -> bool:
    """Whether a checkpoint is due after this update: each a quarter of the updates so far after the last one, at most
    100."""
    return update in _milestones(update)


def is_validated(update: int) -> bool:
    """Whether held-out images are due after this update, at a milestone: after twice as many updates as the last time,
    or some 60 to 160 more. They may take as long as many updates."""
    last = 0
    for milestone in _milestones(update):
        if milestone >= last + min(last, _ENOUGH_BETWEEN):
            last = milestone
    return last == update


def _milestones(up_to: int) -> list[int]:
    """1, 2, 3 ... up to this update."""
    found, due = [], 1
    while due <= up_to:
        found.append(due)
        due += min(max(1, due // 4), _MOST_BETWEEN)
    return found


class AuditCount:
    """Says when gradients are audited: the first one and every so many."""

    def __init__(self, every: int) -> None:
        self.every, self.seen = every, 0

    def next(self) -> bool:
        """Count a gradient; whether it is due."""
        due = self.seen % self.every == 0
        self.seen += 1
        return due

    def state_dict(self) -> dict[str, Any]:
        return {"gradients": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = int(state.get("gradients", 0))
