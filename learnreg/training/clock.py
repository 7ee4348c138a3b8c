"""The time of a training run, and the share of it that audits may take."""

from __future__ import annotations

import time
from typing import Any

__all__ = ["AuditBudget", "Clock", "TimeUp"]

_AUDIT_SHARE = 0.08


class TimeUp(Exception):  # noqa: N818 (a signal, not an error)
    """The time for upper-level training is over."""


class Clock:
    """Seconds of upper-level training, those of earlier runs included; ``seconds`` is how many there are."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._before, self._began = 0.0, time.monotonic()

    def start(self) -> None:
        """Count from now on: what was done before the first update, such as files written, is no training."""
        self._began = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds so far."""
        return self._before + time.monotonic() - self._began

    @property
    def progress(self) -> float:
        """Share of the time that is used up, in [0, 1]."""
        return min(1.0, self.elapsed / self.seconds)

    def check(self) -> None:
        """Raise TimeUp when the time is over."""
        if self.elapsed >= self.seconds:
            raise TimeUp

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before, self._began = float(state["elapsed"]), time.monotonic()


class AuditBudget:
    """Lets audits take a small share of the time: one is due if another as long as the last one keeps within it."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self.spent, self._last = clock, 0.0, 0.0

    @property
    def due(self) -> bool:
        return self.spent + self._last <= _AUDIT_SHARE * self._clock.elapsed

    def charge(self, seconds: float) -> None:
        """Count an audit of so many seconds."""
        self._last = seconds
        self.spent += seconds

    def state_dict(self) -> dict[str, Any]:
        return {"audit_seconds": self.spent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.spent = float(state["audit_seconds"])
