"""One process at a time in a run folder."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from learnreg.errors import CheckpointError, ConfigError

__all__ = ["LOCK_NAME", "check_free", "locked"]

LOCK_NAME = ".lock"
_ATTEMPTS = 5


@contextmanager
def locked(folder: Path, quietly: bool = False) -> Iterator[None]:
    """Hold the folder, in which the file ``.lock`` says who does. The system gives it free when a process ends, however
    it ends: the file itself may stay, and locks nothing then. quietly: without saying who does.

    Raises
    ------
    ConfigError: another run holds it; it says which process. CheckpointError: the system refuses.
    """
    path = folder / LOCK_NAME
    for _ in range(_ATTEMPTS):
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"{folder}: another run is writing there, {_holder(path)}. Wait until it has ended, end it, or choose "
                "another --out."
            ) from None
        except NotImplementedError:  # a file system without locks, by older versions of filelock
            warnings.warn(f"{folder}: this file system has no locks; start no second run there.", stacklevel=4)
            yield
            return
        except OSError as error:
            raise CheckpointError(f"{folder}: cannot be made or changed ({error.strerror or error}).") from error
        if path.exists():  # not removed by a run that learned nothing, between opening it and locking it
            break
        lock.release()
    try:
        if not quietly:
            with contextlib.suppress(OSError):
                path.write_text(_this_process(), encoding="utf-8")
        yield
    finally:
        lock.release()


def check_free(folder: Path) -> None:
    """ConfigError, as early as possible, if another run holds the folder; nothing is changed."""
    if (folder / LOCK_NAME).exists():
        with contextlib.suppress(CheckpointError), locked(folder, quietly=True):
            pass


def _this_process() -> str:
    began = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"process {os.getpid()} on {platform.node()}, since {began}: {' '.join(sys.argv)}"


def _holder(path: Path) -> str:
    """Who wrote the file that is locked."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        text = ""
    return text or "an unknown process"
