"""The folder of one training run: configuration, metrics, checkpoints, model."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from learnreg.errors import CheckpointError, ConfigError
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.models.model import save_model
from learnreg.models.tensor_files import write_atomically
from learnreg.models.toml import to_toml
from learnreg.regularizers import Regularizer
from learnreg.training.checkpoints import Checkpoints, keep_copy
from learnreg.training.environment import MADE_WITH, environment
from learnreg.training.folder_lock import LOCK_NAME, locked
from learnreg.training.metrics import Metrics

__all__ = ["RunFolder", "check_folder", "contents_of"]

_CONTENTS = ("model.safetensors", "config.toml", "metrics.jsonl", "checkpoint")


def contents_of(path: str | Path) -> list[str]:
    """What there is of a run in a folder; nothing where there is no folder."""
    return [name for name in _CONTENTS if os.path.lexists(Path(path) / name)]


def check_folder(path: str | Path, resume: bool = False) -> None:
    """Raise ConfigError where no run can be written: the path is a file, or holds a run that is not to be resumed."""
    if Path(path).exists() and not Path(path).is_dir():
        raise ConfigError(f"{path}: expected a folder, this is a file. Choose another --out.")
    if not resume and (found := contents_of(path)):
        raise ConfigError(
            f"{path}: already holds a run ({', '.join(found)}). Pass --resume to go on with it, or another --out."
        )


class RunFolder:
    """``model.safetensors`` and ``best.safetensors``, ``config.toml``, ``metrics.jsonl``, ``kernels.json``,
    ``report.html`` and ``checkpoint/`` of one run.

    Every file but ``metrics.jsonl`` is replaced as a whole; a run that is killed at any moment can be resumed. Whoever
    writes holds the folder, ``with folder.held():``; nothing is changed before.

    Parameters
    ----------
    path: the folder; made if it does not exist.
    resume: go on with the run in the folder, if there is one.

    Raises
    ------
    ConfigError: the folder holds a run and ``resume`` is False, or the path is a file.
    """

    def __init__(self, path: str | Path, resume: bool = False) -> None:
        self.path, self.resume = Path(path), resume
        check_folder(self.path, resume)
        self._metrics, self._checkpoints = Metrics(self.metrics_path), Checkpoints(self.checkpoint_folder)
        self.resumed_from: Path | None = None
        self._held = 0

    @property
    def model_path(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def best_model_path(self) -> Path:
        """The model at the best validation so far; absent without validations."""
        return self.path / "best.safetensors"

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

    @contextmanager
    def held(self) -> Iterator[RunFolder]:
        """Keep other processes out, and remove what a killed one left half written. A new run that ends by an error
        before its first row leaves the folder as it found it. May be entered again within.

        Raises
        ------
        ConfigError: another process holds the folder, or has begun a run there. CheckpointError: it cannot be made.
        """
        self._held += 1
        try:
            if self._held > 1:
                yield self
                return
            is_new = not self.path.exists()
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CheckpointError(f"{self.path}: cannot be made or changed ({error.strerror or error}).") from error
            with locked(self.path):
                check_folder(self.path, self.resume)  # again: it may have ended since
                began_empty = not contents_of(self.path)
                try:
                    self._sweep()
                    self._metrics.cut()
                    yield self
                except BaseException:
                    if began_empty and not self._metrics.count:
                        self._discard(is_new)
                    raise
        finally:
            self._held -= 1

    def _sweep(self) -> None:
        try:
            for folder in (self.path, self.checkpoint_folder, self.path / "figures"):
                for leftover in folder.glob(".*.tmp"):
                    leftover.unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be made or changed ({error.strerror or error}).") from error

    def _discard(self, with_folder: bool) -> None:
        """Remove the run, and the folder, if it was made for it and holds nothing else."""
        own = (self.model_path, self.best_model_path, self.config_path, self.metrics_path, self.kernels_path)
        for path in own:
            path.unlink(missing_ok=True)
        shutil.rmtree(self.checkpoint_folder, ignore_errors=True)
        if os.name == "posix":  # elsewhere no open file can be removed
            (self.path / LOCK_NAME).unlink(missing_ok=True)
        if with_folder and not any(self.path.iterdir()):
            self.path.rmdir()

    # ---- configuration and model -------------------------------------------------------------------------------------

    def save_config(self, config: Mapping[str, Any]) -> None:
        """Write config.toml, which ``--config`` reads, with a table of what it was made with."""
        write_atomically(self.config_path, to_toml({**config, MADE_WITH: environment()}).encode())

    def load_config(self) -> dict[str, Any] | None:
        """The options that config.toml says; None without one."""
        try:
            found = tomllib.loads(self.config_path.read_text(encoding="utf-8"))
            return {name: value for name, value in found.items() if name != MADE_WITH}
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

    # ---- metrics and checkpoints -------------------------------------------------------------------------------------

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one JSON line to metrics.jsonl; numbers that are not finite become null."""
        self._metrics.append(row)

    def rows(self) -> list[dict[str, Any]]:
        """All rows logged so far. A last line that was cut off by a kill is left out.

        Raises
        ------
        CheckpointError: any other line is damaged.
        """
        return self._metrics.rows()

    def save_checkpoint(self, state: Mapping[Any, Any], best: bool = False) -> Path:
        """Write a checkpoint after the rows logged so far, see ``learnreg.training.checkpoints``; ``best``: also keep
        it, and the model as it is now, as the best ones.

        Raises
        ------
        ConfigError: a value that cannot be stored. CheckpointError: the system refuses.
        """
        path = self._checkpoints.save(state, self._metrics.flush(lasting=True), best)
        if best:
            keep_copy(self.model_path, self.best_model_path)
        return path

    def load_checkpoint(self) -> dict[Any, Any] | None:
        """The newest checkpoint that is not damaged, as it was saved; None when there is none.

        A damaged one is named in a warning of the logger "learnreg". metrics.jsonl is cut back to the rows the
        checkpoint knew, so that steps taken again are not logged twice.

        Raises
        ------
        CheckpointError: there are checkpoints, and all are damaged.
        """
        found = self._checkpoints.load()
        if found is None:
            return None
        state, rows, self.resumed_from = found
        self._metrics.cut(rows)
        return state
