"""What training tells others while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from learnreg.errors import ConfigError
from learnreg.linear.arguments import shown
from learnreg.training.group import Group
from learnreg.training.result import TrainResult

__all__ = ["ByFirst", "Callback", "Callbacks"]


class Callback:
    """What ``learnreg.train`` calls, in its own thread; a subclass implements what it needs. They change nothing of the
    run, and run in the order in which they were given. One that raises ends the run, with everything saved.

    Examples
    --------
    >>> class Losses(lr.Callback):
    ...     def __init__(self):
    ...         self.losses = []
    ...     def on_update(self, row):
    ...         self.losses.append(row["loss"])
    >>> problem = lr.LowerLevelProblem(lr.operators.Identity((1, 8, 8)), lr.regularizers.TotalVariation(0.1))
    >>> pairs, seen = [(torch.rand(1, 8, 8), torch.full((1, 8, 8), 0.5))], Losses()
    >>> result = lr.train(problem, pairs, updates=1, batch_size=1, tune=False, callbacks=seen, progress=False)
    >>> len(seen.losses)
    1
    """

    def on_update(self, row: Mapping[str, Any]) -> None:
        """After each update, with what was logged of it: at least ``step``, its number, ``seconds`` and ``loss``."""

    def on_checkpoint(self, path: Path) -> None:
        """After a checkpoint was written, with its file; there are none without a run folder."""

    def on_end(self, result: TrainResult | None) -> None:
        """At the end of the run, with what it returns; None where an error or a signal ends it."""


class Callbacks(Callback):
    """Several as one; at the end each is called, even if others raise.

    Parameters
    ----------
    given: a callback or several. on_update: a function that gets each row, called first. last: called last.

    Raises
    ------
    ConfigError: something else than a Callback, or a class instead of an object of it.
    """

    def __init__(
        self,
        given: Callback | Iterable[Callback] = (),
        on_update: Callable[[Mapping[str, Any]], None] | None = None,
        last: Callback | None = None,
    ) -> None:
        self._all: list[Any] = [given]
        if isinstance(given, Iterable) and not isinstance(given, Tensor):
            self._all = list(given)
        self._on_update = on_update
        for callback in self._all:
            if not isinstance(callback, Callback):
                call = "; give an object, with ()" if isinstance(callback, type) else ""
                raise ConfigError(f"train(callbacks): got {shown(callback)}, expected Callback objects{call}.")
        self._all += [] if last is None else [last]
        if on_update is not None and not callable(on_update):
            raise ConfigError(f"train(on_update={shown(on_update)}): expected a function, or None.")

    def on_update(self, row: Mapping[str, Any]) -> None:
        if self._on_update is not None:
            self._on_update(row)
        for callback in self._all:
            callback.on_update(row)

    def on_checkpoint(self, path: Path) -> None:
        for callback in self._all:
            callback.on_checkpoint(path)

    def on_end(self, result: TrainResult | None) -> None:
        failures: list[Exception] = []
        for callback in self._all:
            try:
                callback.on_end(result)
            except Exception as error:
                failures.append(error)
        if failures:
            raise failures[0]


class ByFirst(Callback):
    """Another one, told at the first worker of a group alone; what it raises there all workers raise."""

    def __init__(self, callback: Callback, group: Group) -> None:
        self._callback, self._group = callback, group

    def on_update(self, row: Mapping[str, Any]) -> None:
        self._group.first(lambda: self._callback.on_update(row))

    def on_checkpoint(self, path: Path) -> None:
        self._group.first(lambda: self._callback.on_checkpoint(path))

    def on_end(self, result: TrainResult | None) -> None:
        self._group.first(lambda: self._callback.on_end(result))
