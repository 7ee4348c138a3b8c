"""The run folder of a group of workers, which the first of them alone reads and writes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from learnreg.training.group import Group
from learnreg.training.run_folder import RunFolder

__all__ = ["SharedFolder", "folder_of"]

P = ParamSpec("P")
R = TypeVar("R")


def _by_first(method: Callable[Concatenate[RunFolder, P], R]) -> Callable[Concatenate[SharedFolder, P], R]:
    """The method, called at the first worker; all get what it returns or raises."""

    @functools.wraps(method)
    def called(self: SharedFolder, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.group.first(lambda: method(self.opened[0], *args, **kwargs))

    return called


class SharedFolder(RunFolder):
    """A run folder that the first worker alone reads and writes: the others may have no access to the disk.

    opened: the folder itself, at the first worker; nothing at the others.
    """

    def __init__(self, path: str | Path, resume: bool, group: Group) -> None:
        self.path, self.group, self.resumed_from = Path(path), group, None
        self.opened: list[RunFolder] = []
        group.first(lambda: self.opened.append(RunFolder(path, resume)))

    save_config = _by_first(RunFolder.save_config)
    load_config = _by_first(RunFolder.load_config)
    save_model = _by_first(RunFolder.save_model)
    save_kernels = _by_first(RunFolder.save_kernels)
    log = _by_first(RunFolder.log)
    rows = _by_first(RunFolder.rows)
    save_checkpoint = _by_first(RunFolder.save_checkpoint)

    def load_checkpoint(self) -> dict[Any, Any] | None:
        state = self.group.first(lambda: self.opened[0].load_checkpoint())
        self.resumed_from = self.group.first(lambda: self.opened[0].resumed_from)
        return state

    @contextmanager
    def held(self) -> Iterator[RunFolder]:
        entered: list[Any] = []

        def enter() -> None:
            entered.append(self.opened[0].held())
            entered[0].__enter__()

        self.group.first(enter)
        try:
            yield self
        except BaseException as error:
            self.group.settle(error)
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
