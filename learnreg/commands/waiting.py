"""Signs of life from commands that work through files."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from tqdm import tqdm

from learnreg.progress import GONE, is_interactive, new_bar, tell

__all__ = ["Waiting"]

_BAR_INTERVAL, _LINE_INTERVAL = 1.0, 30.0


class Waiting:
    """On stderr, a bar on a terminal, else a line every 30 seconds in which nothing was finished; a thread of its own
    writes them, since one large image may take minutes.

    total: number of things to be done. stream: instead of stderr.
    """

    def __init__(self, what: str, total: int, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._what, self._total, self._done, self._began = what, total, 0, time.monotonic()
        self._ended = threading.Event()
        self._bar: Any = None
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Waiting:
        if is_interactive(self._stream):
            with suppress(*GONE):
                self._bar = new_bar(self._stream, total=self._total, desc=self._what, leave=False)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._bar is not None:
            with suppress(*GONE):
                self._bar.close()

    @contextmanager
    def finished(self) -> Iterator[None]:
        """One thing is done; within, lines may be printed."""
        self._done += 1
        if self._bar is None:
            yield
            return
        with tqdm.external_write_mode(file=self._stream):
            yield
        with suppress(*GONE):
            self._bar.update()

    def _beat(self) -> None:
        said = self._done
        while not self._ended.wait(_LINE_INTERVAL if self._bar is None else _BAR_INTERVAL):
            if self._bar is not None:
                with suppress(*GONE):
                    self._bar.refresh()
            elif self._done == said:
                seconds = time.monotonic() - self._began
                text = f"{self._what}: {self._done} of {self._total} done after {seconds:.0f} s"
                tell(text, self._stream)
            said = self._done
