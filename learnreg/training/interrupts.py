"""Signals that end a process, acted on between updates instead of wherever they hit."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

__all__ = ["Interrupted", "Interrupts"]

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_OF_THE_SYSTEM = (signal.SIG_DFL, signal.default_int_handler)
_ECHO_SECONDS = 0.5  # timeout(1) and wrappers of commands deliver one signal twice


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP. ``number``: of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interrupts:
    """Ctrl-C, SIGTERM and SIGHUP raise Interrupted while it is entered: where they hit, or within ``held`` at the next
    ``check``. Raised in the middle of a thread pool's work, it may leave a lock behind that somebody waits for without
    end.

    A second signal, at least half a second later, does what it would have done without this, or calls ``at_second``.
    Handlers of the user's own, and signals that are ignored (``nohup``), stay as they are, and so does everything in
    threads other than the main one, which cannot handle signals.

    Parameters
    ----------
    at_first: called with the number of a signal that is held, in the handler.
    at_second: called with that of the second one, in the handler.
    """

    def __init__(
        self, at_first: Callable[[int], None] | None = None, at_second: Callable[[int], None] | None = None
    ) -> None:
        self._at_first, self._at_second = at_first, at_second
        self._first: int | None = None
        self._when = 0.0
        self._held = False
        self._agree: Callable[[int], int] = int
        self._before: dict[int, Any] = {}

    @classmethod
    @contextmanager
    def active(cls) -> Iterator[Interrupts]:
        """The one whose signals are handled now, as the command line's are, or a new one."""
        for number in _SIGNALS:
            owner = getattr(signal.getsignal(number), "__self__", None)
            if isinstance(owner, cls):
                yield owner
                return
        with cls() as new:
            yield new

    def __enter__(self) -> Interrupts:
        if current_thread() is main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) in _OF_THE_SYSTEM:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._restore()
        if isinstance(error, Interrupted) and error.number != signal.SIGINT:
            signal.raise_signal(error.number)  # all is saved: end as a process that this signal ends

    @contextmanager
    def held(self, agree: Callable[[int], int] = int) -> Iterator[None]:
        """Signals wait for ``check``, or for the end of the block.

        Parameters
        ----------
        agree: what ``check`` goes by for the number of a signal, 0 for none: several processes end for one's signal.
        """
        self._held, self._agree = True, agree
        try:
            try:
                yield
            finally:
                self._held = False
            self.check()
        finally:
            self._agree = int

    def check(self) -> None:
        """Raise Interrupted if there was a signal."""
        number = self._agree(self._first or 0)
        if number:
            raise Interrupted(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._first is not None:
            if time.monotonic() - self._when > _ECHO_SECONDS:
                self._again(number)
            return
        self._first, self._when = number, time.monotonic()
        if not self._held:
            raise Interrupted(number)
        if self._at_first is not None:
            self._at_first(number)

    def _again(self, number: int) -> None:
        if self._at_second is not None:
            self._at_second(number)
            return
        self._restore()
        signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
