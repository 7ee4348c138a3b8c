"""What callers pass as the path of a file or folder, looked at without an error of the system's own.

Imports no torch: the command line reads its arguments without it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from learnreg.errors import ConfigError, DataError, LearnregError

__all__ = ["Trouble", "file_trouble", "files_in", "folder_trouble", "given_path", "is_lfs_pointer", "read_text"]

_LFS_POINTER = b"version https://git-lfs"
_LONGEST_TEXT = 2**23


class Trouble(NamedTuple):
    """Why a path cannot be used, a sentence, and what to do about it."""

    reason: str
    hint: str

    def __str__(self) -> str:
        return f"{self.reason} {self.hint}".rstrip()


def given_path(value: Any, name: str) -> Path:
    """The path of a file or folder; ConfigError unless it is a text or a path."""
    if isinstance(value, bytes) or not isinstance(value, (str, os.PathLike)):
        found = type(value).__name__
        raise ConfigError(f"{name}: got {found}, expected the path of a file or folder, a text or a pathlib.Path.")
    return Path(value)


def file_trouble(path: Path) -> Trouble | None:
    """What keeps a path from being read as a file; None where it is one that can be opened. Pipes and devices may never
    end, or never begin."""
    found = _status(path)
    if isinstance(found, Trouble):
        return found
    if found is None:
        return Trouble("this file does not exist.", "Check the path.")
    if stat.S_ISDIR(found.st_mode):
        return Trouble("expected a file, this is a folder.", "Pass a file inside it.")
    if not stat.S_ISREG(found.st_mode):
        return Trouble("expected a file, this is a pipe or a device.", "Save it to a file.")
    if not os.access(path, os.R_OK):
        return Trouble("cannot be read (Permission denied).", "Check its permissions.")
    return None


def folder_trouble(path: Path, optional: bool = False) -> Trouble | None:
    """What keeps a path from being used as a folder; None where it is one whose entries can be read, or, if it is
    ``optional``, where there is nothing."""
    found = _status(path)
    if isinstance(found, Trouble):
        return found
    if found is None:
        return None if optional else Trouble("this folder does not exist.", "Check the path.")
    if not stat.S_ISDIR(found.st_mode):
        hint = "Choose another." if optional else f"Did you mean its folder, {path.parent}?"
        return Trouble("expected a folder, this is a file.", hint)
    if not os.access(path, os.R_OK | os.X_OK):
        return Trouble("cannot be listed (Permission denied).", "Check its permissions.")
    return None


def files_in(folder: Path) -> list[Path]:
    """The files directly inside a folder, sorted by name, those apart whose names begin with a dot. Pipes, devices and
    links to nothing are no files.

    Raises
    ------
    DataError: the folder is missing, no folder, or cannot be listed.
    """
    if trouble := folder_trouble(folder):
        raise DataError(trouble.reason, folder, trouble.hint)
    try:
        entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise DataError(f"cannot be listed ({error.strerror}).", folder, "Check its permissions.") from error
    return sorted((path for path in entries if os.path.isfile(path)), key=lambda path: path.name)


def read_text(path: Path, failure: Callable[[Trouble], LearnregError]) -> str:
    """The text of a file of at most 8 MiB.

    Raises
    ------
    What ``failure`` makes of the trouble: missing, no file, no permission, too large. UnicodeDecodeError: not UTF-8.
    """
    if trouble := file_trouble(path):
        raise failure(trouble)
    try:
        size = path.stat().st_size
        if size > _LONGEST_TEXT:
            raise failure(Trouble(f"it has {size:,} bytes, at most {_LONGEST_TEXT:,} are read.", "Is it another file?"))
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise failure(Trouble(f"cannot be read ({error.strerror or error}).", "Check its permissions.")) from error


def is_lfs_pointer(start: bytes) -> bool:
    """Whether a file that begins so stands for another one, which Git LFS has not fetched."""
    return start.startswith(_LFS_POINTER)


def _status(path: Path) -> os.stat_result | Trouble | None:
    """What the system says of a path: None where there is nothing, or why it does not say."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:  # a name that is too long, a folder that may not be searched, a ring of links
        return Trouble(f"cannot be used as a path ({error.strerror}).", "Check the path and the permissions.")
    except ValueError as error:  # a zero byte, half a character
        return Trouble(f"cannot be used as a path ({error}).", "Check the path.")
