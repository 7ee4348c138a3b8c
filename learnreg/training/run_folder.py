"""The folder of one training run: configuration, metrics, checkpoints, model."""

from __future__ import annotations

import json
import logging
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from learnreg.errors import CheckpointError, ConfigError
from learnreg.linear.arguments import shown
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.models.model import save_model
from learnreg.models.tensor_files import dumps, read_tensors, write_atomically, write_tensors
from learnreg.models.toml import to_toml
from learnreg.regularizers import Regularizer

__all__ = ["RunFolder", "check_folder", "contents_of"]

_LOGGER = logging.getLogger("learnreg")
_CONTENTS = ("model.safetensors", "config.toml", "metrics.jsonl", "checkpoint")
_KEPT_CHECKPOINTS = 2
_CHECKPOINT_FORMAT = 2
_READABLE_FORMATS = (1, 2)


def contents_of(path: str | Path) -> list[str]:
    """What there is of a run in a folder; nothing where there is no folder."""
    return [name for name in _CONTENTS if (Path(path) / name).exists()]


def check_folder(path: str | Path, resume: bool = False) -> None:
    """Raise ConfigError where no run can be written: the path is a file, or holds a run that is not to be resumed."""
    if Path(path).exists() and not Path(path).is_dir():
        raise ConfigError(f"{path}: expected a folder, this is a file. Choose another --out.")
    if not resume and (found := contents_of(path)):
        raise ConfigError(
            f"{path}: already holds a run ({', '.join(found)}). Pass --resume to go on with it, or another --out."
        )


class RunFolder:
    """``model.safetensors``, ``config.toml``, ``metrics.jsonl``, ``kernels.json``, ``report.html`` and ``checkpoint/``
    of one run.

    Every file but ``metrics.jsonl`` is replaced as a whole; a run that is killed at any moment can be resumed.

    Parameters
    ----------
    path: the folder; made if it does not exist.
    resume: go on with the run in the folder, if there is one.

    Raises
    ------
    ConfigError: the folder holds a run and ``resume`` is False, or the path is a file.
    CheckpointError: the folder cannot be made.
    """

    def __init__(self, path: str | Path, resume: bool = False) -> None:
        self.path = Path(path)
        check_folder(self.path, resume)
        self._is_new = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for leftover in (*self.path.glob(".*.tmp"), *self.checkpoint_folder.glob(".*.tmp")):
                leftover.unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be made or changed ({error.strerror or error}).") from error
        if resume:
            self._keep_rows()

    @property
    def model_path(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def config_path(self) -> Path:
        return self.path / "config.toml"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def kernels_path(self) -> Path:
        return self.path / "kernels.json"

    @property
    def checkpoint_folder(self) -> Path:
        return self.path / "checkpoint"

    def discard(self) -> None:
        """Remove the run, and the folder, if it was made for it and holds nothing else."""
        for path in (self.model_path, self.config_path, self.metrics_path, self.kernels_path):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.checkpoint_folder, ignore_errors=True)
        if self._is_new and not any(self.path.iterdir()):
            self.path.rmdir()

    # ---- configuration and model -------------------------------------------------------------------------------------

    def save_config(self, config: Mapping[str, Any]) -> None:
        """Write config.toml, which ``--config`` reads."""
        write_atomically(self.config_path, to_toml(config).encode())

    def load_config(self) -> dict[str, Any] | None:
        """What config.toml says; None without one."""
        try:
            return tomllib.loads(self.config_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.config_path}: cannot be read ({error}).") from error

    def save_model(self, problem: LowerLevelProblem | Regularizer, config: Mapping[str, Any] | None = None) -> Path:
        """Write model.safetensors, see ``learnreg.models.model.save_model``."""
        save_model(self.model_path, problem, config)
        return self.model_path

    def save_kernels(self, chosen: Mapping[str, str]) -> None:
        """Write kernels.json: the convolution kernel in use for each shape, those of earlier runs included."""
        try:
            earlier = json.loads(self.kernels_path.read_text(encoding="utf-8")) if self.kernels_path.exists() else {}
        except (OSError, ValueError):
            earlier = {}  # a record for people; nothing is read from it
        content = {**earlier, **chosen}
        if content != earlier:
            write_atomically(self.kernels_path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())

    # ---- metrics -----------------------------------------------------------------------------------------------------

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one JSON line to metrics.jsonl; numbers that are not finite become null."""
        try:
            with self.metrics_path.open("a", encoding="utf-8") as file:
                file.write(dumps(row) + "\n")
        except OSError as error:
            raise CheckpointError(
                f"{self.metrics_path}: cannot be written ({error.strerror or error}). Check the free space."
            ) from error

    def rows(self) -> list[dict[str, Any]]:
        """All rows logged so far. A last line that was cut off by a kill is left out.

        Raises
        ------
        CheckpointError: any other line is damaged.
        """
        return [json.loads(line) for line in self._lines()]

    def _lines(self) -> list[bytes]:
        """The complete lines, each checked to be a JSON object."""
        if not self.metrics_path.exists():
            return []
        lines = self.metrics_path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is torn
        for number, line in enumerate(lines, start=1):
            if not _is_object(line):
                raise CheckpointError(f"{self.metrics_path}: line {number} is damaged; restore or delete the file.")
        return lines

    def _keep_rows(self, count: int | None = None) -> None:
        """Cut metrics.jsonl back to its first ``count`` complete lines, by default to all of them."""
        content = b"".join(line + b"\n" for line in self._lines()[:count])
        if self.metrics_path.exists() and self.metrics_path.stat().st_size != len(content):
            write_atomically(self.metrics_path, content)

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def save_checkpoint(self, state: Mapping[Any, Any]) -> Path:
        """Write a checkpoint, atomically and with its SHA-256, and keep the last two.

        ``state`` is a nested dict (keys strings or integers) of tensors, numbers, strings, None, lists and tuples, as
        the ``state_dict`` of modules and optimizers is. The number of rows logged so far is stored with it.

        Raises
        ------
        ConfigError: another kind of value. CheckpointError: the system refuses.
        """
        tensors: dict[str, Tensor] = {}
        content = {
            "checkpoint_format": _CHECKPOINT_FORMAT,
            "rows": len(self._lines()),
            "state": _pack(state, tensors, "state"),
        }
        earlier = self._checkpoints()
        number = 1 + (_number(earlier[-1]) if earlier else 0)
        path = self.checkpoint_folder / f"checkpoint-{number:08d}.safetensors"
        write_tensors(path, tensors, content)
        for old in self._checkpoints()[:-_KEPT_CHECKPOINTS]:
            old.unlink(missing_ok=True)
        return path

    def load_checkpoint(self) -> dict[Any, Any] | None:
        """The newest checkpoint that is not damaged, as it was saved; None when there is none.

        A damaged one is named in a warning of the logger "learnreg". metrics.jsonl is cut back to the rows the
        checkpoint knew, so that steps taken again are not logged twice.

        Raises
        ------
        CheckpointError: there are checkpoints, and all are damaged.
        """
        failures: list[str] = []
        for path in reversed(self._checkpoints()):
            try:
                state, rows = _read_checkpoint(path)
            except CheckpointError as error:
                failures.append(str(error))
                continue
            for failure in failures:
                _LOGGER.warning("%s Going on from the checkpoint before it, %s.", failure, path.name)
            self._keep_rows(rows)
            return state
        if failures:
            raise CheckpointError(f"every checkpoint is damaged: {' '.join(failures)} Start again with another --out.")
        return None

    def _checkpoints(self) -> list[Path]:
        return sorted(path for path in self.checkpoint_folder.glob("checkpoint-*.safetensors") if _number(path) >= 0)


def _number(path: Path) -> int:
    digits = path.stem.removeprefix("checkpoint-")
    return int(digits) if digits.isdecimal() else -1


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


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
