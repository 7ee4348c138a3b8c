"""Signs of life between the workers of a group, over torch's store, so that nobody waits for one that is no more."""

from __future__ import annotations

import os
import threading
from typing import Any

from learnreg.errors import ConfigError
from learnreg.linear.arguments import real_number

__all__ = ["PATIENCE_VARIABLE", "TIMEOUT_VARIABLE", "Lifeline", "Watch"]

PATIENCE_VARIABLE, TIMEOUT_VARIABLE = "LEARNREG_PATIENCE", "LEARNREG_TIMEOUT"
_PATIENCE, _TIMEOUT = 20.0, 1800.0
_BEAT, _SHORT = 0.5, 0.02
_SYMMETRY = 3.0
"""Seconds that an error of all workers may take to arrive at all of them."""

_FAILED = "failed"


class Lifeline:
    """A thread that tells the other workers that this one lives, and listens whether the next one does, and whether any
    has failed.

    Parameters
    ----------
    store: of torch.distributed, of this group alone; it is cloned.
    patience: seconds without a sign of life after which a worker counts as lost.
    """

    def __init__(self, store: Any, rank: int, size: int, patience: float | None = None) -> None:
        self._store, self._own = store, store.clone()
        self.rank, self.size, self.next = rank, size, (rank + 1) % size
        self.patience = _seconds(PATIENCE_VARIABLE, _PATIENCE) if patience is None else patience
        self.timeout = _seconds(TIMEOUT_VARIABLE, _TIMEOUT)
        self.failure: str | None = None
        self.hangs: int | None = None  # a worker of which this one found out
        self.heard, self.answers, self.is_cut = b"", 0, False
        self._ended = threading.Event()
        self._own.set(_beat(rank), "0")
        self._thread = threading.Thread(target=self._live, name="learnreg-lifeline", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No signs of life any more: the run is over."""
        self._ended.set()
        self._thread.join(_BEAT)

    def tell(self, cause: str) -> str:
        """Let all workers know why the group is broken; the cause that they were told first."""
        told = self.failure or cause
        try:
            told = self._store.compare_set(_FAILED, "", cause).decode()
        except RuntimeError:
            self.is_cut = True
        self.failure = told
        return told

    def rest(self, seconds: float) -> None:
        """Wait."""
        self._ended.wait(seconds)

    def is_shared(self, exchanges: int) -> bool:
        """Whether all workers ask this after as many exchanges: they have the same error then, and can go on
        together."""
        try:
            key = f"settled/{exchanges}"
            self._store.add(key, 1)
            for _ in range(round(_SYMMETRY / _SHORT)):
                if self._store.add(key, 0) >= self.size:
                    return True
                if self.failure is not None:
                    return False
                self.rest(_SHORT)
        except RuntimeError:
            self.is_cut = True
        return False

    def agreed(self, name: str, proposal: str) -> str:
        """What the first worker that asked for this name has proposed."""
        return str(self._store.compare_set(name, "", proposal).decode())

    def _live(self) -> None:
        beats = 0
        try:
            while not self._ended.wait(_BEAT):
                beats += 1
                self._own.set(_beat(self.rank), str(beats))
                if self._own.check([_beat(self.next)]):
                    self.heard = self._own.get(_beat(self.next))
                if self.failure is None and self._own.check([_FAILED]):
                    self.failure = self._own.get(_FAILED).decode()
                self.answers += 1
        except RuntimeError:
            self.is_cut = True


class Watch:
    """Looks, while this worker waits for the others, whether they still live.

    Counts the looks, not the time: of a process that was stopped itself, and woken up, the others are not lost.
    """

    def __init__(self, line: Lifeline) -> None:
        self._line = line
        self._heard, self._answers = line.heard, line.answers
        self._silent = self._unanswered = self.waited = 0.0

    def look(self, seconds: float) -> str | None:
        """Why there is nothing to wait for any more, if that is so; ``seconds``: since the last look."""
        line = self._line
        self.waited += seconds
        answered, heard = line.answers != self._answers, line.heard != self._heard
        self._answers, self._heard = line.answers, line.heard
        self._unanswered += seconds
        if answered:
            self._silent = 0.0 if heard else self._silent + self._unanswered
            self._unanswered = 0.0
        if line.failure is not None:
            return line.failure
        if line.is_cut or self._unanswered > line.patience:
            return "the connection to torch's store is lost: the process that has it ended or hangs"
        if self._silent > line.patience:
            line.hangs = line.next
            return f"worker {line.next} hangs: no sign of life for {line.patience:g} s"
        if self.waited > line.timeout:
            return (
                f"an exchange between the workers took more than {line.timeout:g} s: one of them is busy with "
                f"something else, or hangs ({TIMEOUT_VARIABLE} allows more)"
            )
        return None


def _beat(rank: int) -> str:
    return f"beat/{rank}"


def _seconds(variable: str, default: float) -> float:
    """A number of seconds from the environment."""
    text = os.environ.get(variable)
    if text is None:
        return default
    try:
        return real_number(float(text), variable, above=0.0)
    except ValueError:
        raise ConfigError(f"{variable}={text}: expected a positive number of seconds.") from None
