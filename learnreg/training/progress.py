"""How far some work is, for people who wait for it."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from learnreg.progress import GONE, INTERVAL, is_hidden, is_interactive, new_bar, tell
from learnreg.training.callbacks import Callback

__all__ = ["Progress"]

_ENDLESS = 1e6  # minutes


class Progress(Callback):
    """A bar on a terminal and in notebooks, else a line at the first update and every 30 seconds, on stderr.

    Parameters
    ----------
    minutes, updates: what ends the run, whichever comes first. at_once: False: nothing is said of the first 30 seconds
        where there is no bar.
    """

    def __init__(self, minutes: float, updates: int | None = None, at_once: bool = True) -> None:
        self._seconds, self._updates = 60.0 * minutes if minutes < _ENDLESS else math.inf, updates
        self._psnr: float | None = None
        self._last: Mapping[str, Any] | None = None
        self._said = -math.inf if at_once else time.monotonic()
        self._spoke = at_once
        self._bar: Any = None
        self._quiet = False

    def __enter__(self) -> Progress:
        self._quiet = is_hidden()
        if is_interactive() and not self._quiet:
            # some terminals, of containers, say that they have no rows: tqdm hides then
            size = shutil.get_terminal_size()
            shown = "training: {percentage:3.0f}%|{bar:20}| {desc}"
            with suppress(*GONE):
                self._bar = new_bar(total=100, bar_format=shown, ncols=size.columns, nrows=size.lines)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            with suppress(*GONE):
                self._bar.close()
        elif self._last is not None and self._spoke:
            self._say(self._last)

    def on_update(self, row: Mapping[str, Any]) -> None:
        """Show a logged row."""
        self._psnr = row.get("psnr", row.get("validation_psnr", self._psnr))
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.n = 100.0 * self._share(row)
            with suppress(*GONE):
                self._bar.set_description_str(self._text(row))
            return
        self._last = row
        if time.monotonic() - self._said >= INTERVAL:
            self._say(row)

    def _say(self, row: Mapping[str, Any]) -> None:
        tell(f"training: {100.0 * self._share(row):.0f} %, {self._text(row)}")
        self._said, self._last, self._spoke = time.monotonic(), None, True

    def _share(self, row: Mapping[str, Any]) -> float:
        updates = 0.0 if self._updates is None else row["step"] / self._updates
        return float(min(1.0, max(row["seconds"] / self._seconds, updates)))

    def _text(self, row: Mapping[str, Any]) -> str:
        psnr = "" if self._psnr is None else f", held-out PSNR {self._psnr:.2f}"
        of = "" if self._updates is None else f" of {self._updates}"
        limit = f" of {_clock(self._seconds)}" if math.isfinite(self._seconds) else ""
        time_of = f"{_clock(row['seconds'])}{limit}"
        return f"{time_of}, update {row['step']}{of}, loss {row['loss']:.4g}{psnr}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
