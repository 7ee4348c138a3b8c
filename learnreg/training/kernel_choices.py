"""Which convolution kernels a training run uses: those that were measured first on this machine, so that runs of the
same options round alike."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch

from learnreg.convolutions.correlation import adopt_kernels, chosen_kernels
from learnreg.errors import CheckpointError
from learnreg.models.tensor_files import write_atomically
from learnreg.operators.tomography.matrix_cache import cache_folder
from learnreg.training.environment import environment

__all__ = ["adopt_measured", "remember_measured"]


def adopt_measured() -> None:
    """Use what earlier processes measured here. Without a cache folder every process measures for itself."""
    path = _path()
    if path is not None:
        adopt_kernels(_read(path))


def remember_measured() -> None:
    """Keep what was measured for later processes; the first measurement of a shape stays. A cache that cannot be
    written costs equal bits between processes, never a run."""
    path = _path()
    if path is None:
        return
    known, found = _read(path), chosen_kernels()
    if found.keys() - known.keys():
        text = json.dumps({**found, **known}, indent=1, sort_keys=True)
        with contextlib.suppress(CheckpointError):
            write_atomically(path, (text + "\n").encode())


def _path() -> Path | None:
    """One file for each processor and version of torch."""
    folder = cache_folder()
    return None if folder is None else folder / f"kernels-{_machine()}.json"


@cache
def _machine() -> str:
    facts = environment()
    machine = f"{facts['processor']} {facts['vector_instructions']} {facts['cores']} {torch.__version__}"
    return hashlib.sha256(machine.encode()).hexdigest()[:16]


def _read(path: Path) -> Mapping[str, str]:
    """What the file says; nothing where it is absent or damaged."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}
