"""Training runs in TensorBoard."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from learnreg.errors import ConfigError
from learnreg.linear.paths import given_path
from learnreg.training.callbacks import Callback
from learnreg.training.result import TrainResult

__all__ = ["TensorBoard"]

_WRITERS = ("torch.utils.tensorboard", "tensorboardX")
_COUNTERS = ("step",)


class TensorBoard(Callback):
    """Writes what is logged of each update as scalars that TensorBoard shows: ``lr.train(..., callbacks=
    lr.TensorBoard("runs/x/tensorboard"))``, then ``tensorboard --logdir runs``.

    A run that is resumed goes on in the same folder; what was written of updates that are made again is dropped.
    Numbers that are not finite are left out.

    Parameters
    ----------
    out: folder of the event files.

    Raises
    ------
    ConfigError: neither tensorboard nor tensorboardX is installed; before the work.
    """

    def __init__(self, out: str | Path) -> None:
        self._out = str(given_path(out, "TensorBoard(out)"))
        self._make = _writer_class()
        self._writer: Any = None

    def on_update(self, row: Mapping[str, Any]) -> None:
        step = int(row["step"])
        if self._writer is None:
            self._writer = self._make(self._out, purge_step=step)
        for name, value in row.items():
            if name not in _COUNTERS and isinstance(value, (int, float)) and math.isfinite(value):
                self._writer.add_scalar(name, float(value), step)

    def on_checkpoint(self, path: Path) -> None:
        if self._writer is not None:
            self._writer.flush()

    def on_end(self, result: TrainResult | None) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _writer_class() -> Any:
    """``SummaryWriter`` of the first package that has one."""
    for name in _WRITERS:
        try:
            return importlib.import_module(name).SummaryWriter
        except ImportError:
            continue
    raise ConfigError(
        "TensorBoard needs the package tensorboard or tensorboardX. Install it with: pip install "
        "'learnreg[tensorboard]'"
    )
