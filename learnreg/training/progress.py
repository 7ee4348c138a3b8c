"""How far some work is, for people who wait for it."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

__all__ = ["Count", "Progress"]

_INTERVAL = 30.0
_ENDLESS = 1e6  # minutes


class Progress:
    """A bar on a terminal, else a line at the first update and every 30 seconds, on stderr; ``on_update`` of
    ``learnreg.train``.

    Parameters
    ----------
    minutes, updates: what ends the run, whichever comes first.
    """

    def __init__(self, minutes: float, updates: int | None = None) -> None:
        self._seconds, self._updates = 60.0 * minutes if minutes < _ENDLESS else math.inf, updates
        self._psnr: float | None = None
        self._last: Mapping[str, Any] | None = None
        self._said = -math.inf
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            size = (
                shutil.get_terminal_size()
            )  # some terminals, of containers, say that they have no rows: tqdm hides then
            shown = "training: {percentage:3.0f}%|{bar:20}| {desc}"
            self._bar = tqdm(total=100, file=sys.stderr, bar_format=shown, ncols=size.columns, nrows=size.lines)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._last is not None:
            self._say(self._last)

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Show a logged row."""
        self._psnr = row.get("psnr", self._psnr)
        if self._bar is not None:
            self._bar.n = 100.0 * self._share(row)
            self._bar.set_description_str(self._text(row))
            return
        self._last = row
        if time.monotonic() - self._said >= _INTERVAL:
            self._say(row)

    def _say(self, row: Mapping[str, Any]) -> None:
        print(f"training: {100.0 * self._share(row):.0f} %, {self._text(row)}", file=sys.stderr, flush=True)
        self._said, self._last = time.monotonic(), None

    def _share(self, row: Mapping[str, Any]) -> float:
        updates = 0.0 if self._updates is None else row["step"] / self._updates
        return float(min(1.0, max(row["seconds"] / self._seconds, updates)))

    def _text(self, row: Mapping[str, Any]) -> str:
        psnr = "" if self._psnr is None else f", held-out PSNR {self._psnr:.2f}"
        of = "" if self._updates is None else f" of {self._updates}"
        limit = f" of {_clock(self._seconds)}" if math.isfinite(self._seconds) else ""
        time_of = f"{_clock(row['seconds'])}{limit}"
        return f"{time_of}, update {row['step']}{of}, loss {row['loss']:.4g}{psnr}"


class Count:
    """How many of so many things are done: a bar on a terminal, else a line every 30 seconds, on stderr."""

    def __init__(self, what: str, total: int, shown: bool = True) -> None:
        self._what, self._total, self._shown, self._done = what, total, shown, 0
        self._said = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Count:
        if self._shown and sys.stderr.isatty():
            self._bar = tqdm(total=self._total, desc=self._what, file=sys.stderr, leave=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self) -> None:
        """One more is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()
        elif self._shown and time.monotonic() - self._said >= _INTERVAL:
            print(f"{self._what}: {self._done} of {self._total}", file=sys.stderr, flush=True)
            self._said = time.monotonic()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
