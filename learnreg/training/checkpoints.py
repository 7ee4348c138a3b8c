"""The checkpoints of a training run: the last two, and the best one."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from learnreg.errors import CheckpointError, ConfigError
from learnreg.linear.arguments import shown
from learnreg.models.tensor_files import read_tensors, write_tensors

__all__ = ["Checkpoints", "keep_copy"]

_LOGGER = logging.getLogger("learnreg")
_KEPT = 2
_FORMAT = 2
_READABLE_FORMATS = (1, 2)


class Checkpoints:
    """A folder of checkpoints, each with the number of rows that were logged before it, written atomically and with its
    SHA-256. The last two are kept, and ``best.safetensors``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def best_path(self) -> Path:
        return self.folder / "best.safetensors"

    def save(self, state: Mapping[Any, Any], rows: int, best: bool = False) -> Path:
        """Write a checkpoint; ``best``: also keep it as the best one.

        ``state`` is a nested dict (keys strings or integers) of tensors, numbers, strings, None, lists and tuples, as
        the ``state_dict`` of modules and optimizers is.

        Raises
        ------
        ConfigError: another kind of value. CheckpointError: the system refuses.
        """
        tensors: dict[str, Tensor] = {}
        content = {"checkpoint_format": _FORMAT, "rows": rows, "state": _pack(state, tensors, "state")}
        earlier = self._numbered()
        number = 1 + (_number(earlier[-1]) if earlier else 0)
        path = self.folder / f"checkpoint-{number:08d}.safetensors"
        write_tensors(path, tensors, content)
        if best:
            keep_copy(path, self.best_path)
        for old in self._numbered()[:-_KEPT]:
            old.unlink(missing_ok=True)
        return path

    def load(self) -> tuple[dict[Any, Any], int, Path] | None:
        """The newest checkpoint that is not damaged, as it was saved, its number of rows and its file; None when there
        is none. The best one is asked for after all others.

        A damaged one is named in a warning of the logger "learnreg".

        Raises
        ------
        CheckpointError: there are checkpoints, and all are damaged.
        """
        failures: list[str] = []
        best = [self.best_path] if self.best_path.exists() else []
        for path in reversed([*best, *self._numbered()]):
            try:
                state, rows = _read_checkpoint(path)
            except CheckpointError as error:
                failures.append(str(error))
                continue
            for failure in failures:
                _LOGGER.warning("%s Going on from the checkpoint before it, %s.", failure, path.name)
            return state, rows, path
        if failures:
            raise CheckpointError(f"every checkpoint is damaged: {' '.join(failures)} Start again with another --out.")
        return None

    def _numbered(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("checkpoint-*.safetensors") if _number(path) >= 0)


def keep_copy(source: Path, copy: Path) -> None:
    """Make ``copy`` another name of a file that is only ever replaced as a whole, or a copy where the file system has
    no such names.

    Raises
    ------
    CheckpointError: the system refuses.
    """
    temporary = copy.with_name(f".{copy.name}.{secrets.token_hex(6)}.tmp")
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, copy)
        temporary.unlink(missing_ok=True)  # a replacement by another name of the same file leaves both
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{copy}: cannot be written ({error.strerror or error}).") from error


def _number(path: Path) -> int:
    digits = path.stem.removeprefix("checkpoint-")
    return int(digits) if digits.isdecimal() else -1


def _read_checkpoint(path: Path) -> tuple[dict[Any, Any], int]:
    tensors, content = read_tensors(path)
    if content.get("checkpoint_format") not in _READABLE_FORMATS:
        raise CheckpointError(f"{path}: not a checkpoint of format {' or '.join(map(str, _READABLE_FORMATS))}.")
    try:
        state, rows = dict(_unpack(content["state"], tensors)), content["rows"]
    except Exception as error:  # a state of another make
        raise CheckpointError(f"{path}: its state cannot be read ({type(error).__name__}: {error}).") from error
    if type(rows) is not int or rows < 0:
        raise CheckpointError(f"{path}: its number of rows is {shown(rows)}, expected a whole number.")
    return state, rows


def _pack(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """JSON that tells dicts, tuples and tensors apart: a list whose first entry names the kind."""
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value
        return ["tensor", name]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, (str, int)) or isinstance(key, bool):
                raise ConfigError(f"checkpoint {where}: got the key {key!r}, expected a string or an integer.")
        return ["dict", *([key, _pack(item, tensors, f"{where}.{key}")] for key, item in value.items())]
    if isinstance(value, (list, tuple)):
        items = (_pack(item, tensors, f"{where}[{i}]") for i, item in enumerate(value))
        return ["tuple" if isinstance(value, tuple) else "list", *items]
    if isinstance(value, float):
        return ["float", value.hex()]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise ConfigError(f"checkpoint {where}: a {type(value).__name__} cannot be stored.")


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, list):
        return value
    kind, rest = value[0], value[1:]
    if kind == "tensor":
        return tensors[rest[0]]
    if kind == "float":
        return float.fromhex(rest[0])
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in rest}
    items: Iterator[Any] = (_unpack(item, tensors) for item in rest)
    return tuple(items) if kind == "tuple" else list(items)
