"""The run folder of a group of workers, which the first of them alone reads and writes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from learnreg.training.group import Group
from learnreg.training.run_folder import RunFolder

__all__ = ["SharedFolder", "folder_of"]


class SharedFolder(RunFolder):
    """A run folder whose public methods run at the first worker, of which all get what they return or raise: the others
    may have no access to the disk."""

    def __init__(self, path: str | Path, resume: bool, group: Group) -> None:
        self.path, self._group = Path(path), group
        opened: list[RunFolder] = []
        group.first(lambda: opened.append(RunFolder(path, resume)))
        self._opened = opened  # nothing, at the others

    def __getattribute__(self, name: str) -> Any:
        kind = None if name.startswith("_") or name == "held" else inspect.getattr_static(RunFolder, name, None)
        if kind is None:
            return super().__getattribute__(name)
        group: Group = super().__getattribute__("_group")
        opened: list[RunFolder] = super().__getattribute__("_opened")
        if isinstance(kind, property):
            return group.first(lambda: getattr(opened[0], name))
        return group.by_first(lambda *args, **kwargs: getattr(opened[0], name)(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return self._group.first(lambda: getattr(self._opened[0], name))

    @contextmanager
    def held(self) -> Iterator[RunFolder]:
        entered: list[Any] = []

        def enter() -> None:
            entered.append(self._opened[0].held())
            entered[0].__enter__()

        self._group.first(enter)
        try:
            yield self
        except BaseException as error:
            self._group.settle(error)
            for manager in entered:
                manager.__exit__(type(error), error, error.__traceback__)
            raise
        for manager in entered:
            manager.__exit__(None, None, None)


def folder_of(path: str | Path, resume: bool, group: Group) -> RunFolder:
    """The run folder at a path, for all workers of a group.

    Raises
    ------
    ConfigError, CheckpointError: as ``RunFolder`` does.
    """
    return RunFolder(path, resume) if group.size == 1 else SharedFolder(path, resume, group)
