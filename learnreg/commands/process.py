"""What the command line changes in its process while it works, and puts back afterwards."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["large_blocks_kept", "threads"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _DEFAULT_BYTES = 2**30, 128 * 1024


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch on so many cores in this thread, and in those that start meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def large_blocks_kept() -> Iterator[None]:
    """glibc keeps freed blocks of up to a gigabyte instead of returning them to the system: on a CPU every fresh page
    of a large tensor costs a page fault, which made elementwise operations up to nine times slower. Other systems:
    nothing.

    Afterwards the thresholds are glibc's initial ones, which no longer grow with the blocks that a program frees: glibc
    cannot be asked for what they were.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    _set_thresholds(libc, _KEPT_BYTES)
    try:
        yield
    finally:
        _set_thresholds(libc, _DEFAULT_BYTES)
        libc.malloc_trim(0)


def _set_thresholds(libc: ctypes.CDLL, size: int) -> None:
    libc.mallopt(_MMAP_THRESHOLD, size)
    libc.mallopt(_TRIM_THRESHOLD, size)
