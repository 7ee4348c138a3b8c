"""Kernels in as many threads as torch may use: they hold no lock of Python's while they run."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

__all__ = ["in_parts"]

_PARTS = 4
"""For each thread, since parts take different times."""

_LEAST = 200_000
"""Numbers that one thread handles sooner than others have started."""


def in_parts(work: Callable[[int, int], None], count: int, numbers: int, multiple: int = 1) -> None:
    """Call ``work(first, stop)`` for consecutive ranges of range(count), in torch.get_num_threads() threads; ranges
    begin at a ``multiple``. numbers: about how many are handled in all."""
    threads = torch.get_num_threads() if numbers > _LEAST else 1
    size = -(-count // (threads * _PARTS) // multiple) * multiple
    starts = range(0, count, max(size, multiple))
    if threads == 1 or len(starts) == 1:
        work(0, count)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda first: work(first, min(first + starts.step, count)), starts))
