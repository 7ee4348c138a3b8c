"""Whether what a run is asked for fits into the memory, before any of it is taken."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import torch

from learnreg.errors import ConfigError
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.training.samples import Sample

__all__ = ["check_memory", "free_bytes"]

_COPIES = 3
"""Tensors of the size of the responses that every solver has at once, at least: responses, slopes, and a step."""


def check_memory(problem: LowerLevelProblem, sample: Sample, batch: int, chunk: int, threads: int) -> None:
    """Hold what a run takes at least against what is free, on a CPU.

    Parameters
    ----------
    sample: one of the data.
    batch: samples that are read at once. chunk: those that a thread solves together. threads: that solve at once.

    Raises
    ------
    ConfigError: it cannot fit.
    """
    free = free_bytes()
    if free is None or sample.b.device.type != "cpu":
        return
    data = batch * (sample.b.nbytes + sample.x_true.nbytes)
    numbers = sample.x_true.numel() + _responses(problem, sample)
    together = min(batch, chunk * threads)
    work = _COPIES * together * numbers * sample.x_true.element_size()
    if data + work > free:
        raise ConfigError(
            f"train: {batch:,} samples in a batch, of which {together:,} are solved at once with {numbers:,} numbers "
            f"each, take at least {(data + work) / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free. Choose a smaller "
            "batch_size or chunk_size, smaller images or fewer filters."
        )


@torch.no_grad()
def _responses(problem: LowerLevelProblem, sample: Sample) -> int:
    """How many numbers the regularizer makes of an image."""
    try:
        kind = problem.frozen().of_kind(tuple(sample.x_true.shape), sample.sigma)
        shape = kind.first_stage.terms.operator.range_shape
    except Exception:  # of code of the user's own: training says what is wrong
        return 0
    return int(torch.Size(shape).numel())


def free_bytes() -> int | None:
    """Memory that this process may still take: of the machine, of its control group, and below its limit of address
    space; None where the system does not say."""
    found = [_available(), _of_control_group(), _below_limit()]
    known = [size for size in found if size is not None]
    return max(0, min(known)) if known else None


def _available() -> int | None:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        return 1024 * _figure(Path("/proc/meminfo"), "MemAvailable")
    return None


def _of_control_group() -> int | None:
    folder = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        return int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())
    return None


def _below_limit() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    with contextlib.suppress(OSError, ValueError, StopIteration):
        return limit - 1024 * _figure(Path("/proc/self/status"), "VmSize")
    return None


def _figure(path: Path, name: str) -> int:
    """The number of a line such as ``MemAvailable:  1234 kB``."""
    lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])
