"""Keep large memory blocks of the process instead of returning them to the system after every use."""

from __future__ import annotations

import ctypes
import platform

__all__ = ["keep_large_blocks"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**30


def keep_large_blocks() -> None:
    """Raise glibc's thresholds so that freed response tensors are reused: on a CPU every fresh page of a large
    tensor costs a page fault, which made elementwise operations up to nine times slower. Other systems: nothing."""
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)
    libc.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
