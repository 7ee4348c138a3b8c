"""How far work is: a bar on a terminal and in notebooks, elsewhere a line now and then; on stderr.

Nobody may be there to see it: programs without a console have no stderr, terminals are closed and pipes end while work
goes on. It never ends for that.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, TextIO, TypeVar

__all__ = ["GONE", "INTERVAL", "Count", "counted", "hidden", "is_hidden", "is_interactive", "new_bar", "tell"]

GONE = (OSError, ValueError)
"""What writing raises to a stream that is closed, or whose other end is."""

INTERVAL = 30.0
"""Seconds between lines where there is no terminal."""

_PATIENCE = 1.0  # seconds before a bar appears: quick work needs none
_HIDDEN: ContextVar[bool] = ContextVar("hidden", default=False)

T = TypeVar("T")


@contextmanager
def hidden(hide: bool = True) -> Iterator[None]:
    """Within, nothing is shown."""
    token = _HIDDEN.set(hide or _HIDDEN.get())
    try:
        yield
    finally:
        _HIDDEN.reset(token)


def is_hidden() -> bool:
    """Whether this runs within ``hidden``."""
    return _HIDDEN.get()


def in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel, whose output is no terminal but can show bars."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def is_interactive(stream: TextIO | None = None) -> bool:
    """Whether somebody looks at the stream, stderr by default, so that lines may be overwritten."""
    is_terminal = getattr(sys.stderr if stream is None else stream, "isatty", lambda: False)
    with suppress(*GONE):
        return bool(is_terminal()) or in_notebook()
    return False


def tell(text: str, stream: TextIO | None = None) -> None:
    """Write a line, to stderr by default, if anything is there to write to."""
    stream = sys.stderr if stream is None else stream
    if stream is not None:
        with suppress(*GONE):
            print(text, file=stream, flush=True)


def new_bar(stream: TextIO | None = None, **options: Any) -> Any:
    """A bar of tqdm, as the place shows it; ``options`` are tqdm's."""
    stream = sys.stderr if stream is None else stream
    if not in_notebook():
        from tqdm import tqdm

        return tqdm(file=stream, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tqdm, where ipywidgets are missing: bars are text then
        from tqdm.auto import tqdm as of_notebooks

        return of_notebooks(file=stream, **options)


class Count:
    """How many of so many things are done: a bar where somebody looks, else a line every 30 seconds, on stderr. Nothing
    is shown of what takes less than a second.

    Parameters
    ----------
    what: a few words, such as "reading images". total: None where nobody knows.
    """

    def __init__(self, what: str, total: int | None, shown: bool = True) -> None:
        self._what, self._total, self._done = what, total, 0
        self._shown = shown and not _HIDDEN.get()
        self._said = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Count:
        if self._shown and is_interactive():
            with suppress(*GONE):
                self._bar = new_bar(total=self._total, desc=self._what, leave=False, delay=_PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            with suppress(*GONE):
                self._bar.close()

    def update(self, note: str = "") -> None:
        """One more is done. note: what is said of it behind the numbers."""
        self._done += 1
        if self._bar is not None:
            with suppress(*GONE):
                if note:
                    self._bar.set_postfix_str(note, refresh=False)
                self._bar.update()
        elif self._shown and time.monotonic() - self._said >= INTERVAL:
            of = "" if self._total is None else f" of {self._total}"
            tell(f"{self._what}: {self._done}{of}{f', {note}' if note else ''}")
            self._said = time.monotonic()


def counted(things: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The things, counted as they are taken; total: their number, by default their length where they have one."""
    if total is None and isinstance(things, Sized):
        total = len(things)
    with Count(what, total) as count:
        for thing in things:
            yield thing
            count.update()
