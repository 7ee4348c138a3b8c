"""The time of a training run, which only ever ends it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Clock", "TimeUp"]


class TimeUp(Exception):  # noqa: N818 (a signal, not an error)
    """The time for upper-level training is over."""


class Clock:
    """Seconds of upper-level training, those of earlier runs included; ``seconds`` is how many there are, by default as
    many as it takes. agree: calls what says whether they are over; the workers of a group go by one of their clocks."""

    def __init__(self, seconds: float = math.inf) -> None:
        self.seconds = seconds
        self.agree: Callable[[Callable[[], bool]], bool] = lambda is_over: is_over()
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
        if math.isfinite(self.seconds) and self.agree(lambda: self.elapsed >= self.seconds):
            raise TimeUp

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before, self._began = float(state["elapsed"]), time.monotonic()
