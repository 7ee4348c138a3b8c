"""The time of a training run, which only ever ends it."""

from __future__ import annotations

import math
import time
from typing import Any

__all__ = ["Clock", "TimeUp"]


class TimeUp(Exception):  # noqa: N818 (a signal, not an error)
    """The time for upper-level training is over."""


class Clock:
    """Seconds of upper-level training, those of earlier runs included; ``seconds`` is how many there are, by default as
    many as it takes."""

    def __init__(self, seconds: float = math.inf) -> None:
        self.seconds = seconds
        self._before, self._began = 0.0, time.monotonic()

    def start(self) -> None:
        """Count from now on: what was done before the first update, such as files written, is no training."""
        self._began = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds so far."""
        return self._before + time.monotonic() - self._began

    def check(self) -> None:
        """Raise TimeUp when the time is over."""
        if self.elapsed >= self.seconds:
            raise TimeUp

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before, self._began = float(state["elapsed"]), time.monotonic()
