"""What a training run logs: a file of JSON objects, one a line, that is only ever appended to."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from learnreg.errors import CheckpointError
from learnreg.models.tensor_files import dumps, write_atomically

__all__ = ["Metrics"]

_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)


class Metrics:
    """The rows of one run. They are read when the first one is appended or when they are asked for, never in between.

    A row that the system refuses (disk full) waits, and is written with the next one; what was written of it is
    overwritten then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[bytes] = []
        self._count, self._end = 0, -1

    @property
    def count(self) -> int:
        """Rows so far, those that wait included."""
        return self._count + len(self._waiting)

    def append(self, row: Mapping[str, Any]) -> None:
        """Append one JSON line; numbers that are not finite become null.

        Raises
        ------
        CheckpointError: the system refuses.
        """
        self._waiting.append((dumps(row) + "\n").encode())
        self.flush()

    def flush(self, lasting: bool = False) -> int:
        """Write the rows that wait, ``lasting``: so that they survive a power cut; how many rows the file has.

        Raises
        ------
        CheckpointError: the system refuses.
        """
        if self._end < 0:
            self.cut()
        if not self._waiting and not (lasting and self._count):
            return self._count
        data = b"".join(self._waiting)
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | _NO_LINKS, 0o666)
            with os.fdopen(descriptor, "r+b", buffering=0) as file:
                end = min(self._end, file.seek(0, os.SEEK_END))  # after what was torn, or cut by somebody
                file.truncate(end)
                file.seek(end)
                written = file.write(data)
                if written < len(data):
                    raise OSError(f"{written} of {len(data)} bytes were written")
                if lasting:
                    os.fsync(descriptor)
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: cannot be written ({error.strerror or error}). Check the free space."
            ) from error
        self._end, self._count = end + len(data), self._count + len(self._waiting)
        self._waiting.clear()
        return self._count

    def rows(self) -> list[dict[str, Any]]:
        """All rows. A last line that was cut off by a kill is left out.

        Raises
        ------
        CheckpointError: any other line is damaged.
        """
        return [json.loads(line) for line in self._lines()]

    def cut(self, count: int | None = None) -> None:
        """Keep the first ``count`` complete rows, by default all of them. A link is replaced by a file of its own.

        Raises
        ------
        CheckpointError: a line is damaged, or the system refuses.
        """
        lines = self._lines()[:count]
        content = b"".join(line + b"\n" for line in lines)
        linked = self.path.is_symlink()
        if linked or (self.path.exists() and self.path.stat().st_size != len(content)):
            write_atomically(self.path, content)
        self._count, self._end = len(lines), len(content)

    def _lines(self) -> list[bytes]:
        """The complete lines, each checked to be a JSON object."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read ({error.strerror or error}).") from error
        lines = content.split(b"\n")[:-1]  # what follows the last newline is torn
        for number, line in enumerate(lines, start=1):
            if not _is_object(line):
                raise CheckpointError(f"{self.path}: line {number} is damaged; restore or delete the file.")
        return lines


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
