"""The threads that compute in a training run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Barrier
from typing import Any, TypeVar

import torch

__all__ = ["Workers", "pieces"]

T = TypeVar("T")
R = TypeVar("R")


def pieces(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """The items in pieces of this size, the last one perhaps of less: how many workers there are has no say, so that
    any number of them computes the same."""
    return [items[first : first + size] for first in range(0, len(items), size)]


class Workers:
    """``count`` threads of one core each: on a CPU that is faster than splitting every small operation over the cores,
    and does not collapse when another process wants one of them.

    Torch keeps the number of cores for each thread of the process; that of the calling thread stays as it is.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count)
        met = Barrier(count)

        def start(_: int) -> None:
            torch.set_num_threads(1)
            torch.get_num_threads()  # a thread takes up the process's latest number at its first use of it, now 1
            met.wait()  # so that every thread gets one of these calls

        list(self._pool.map(start, range(count)))
        # The latest call also is the default of threads that start later, which are not ours.
        torch.set_num_threads(torch.get_num_threads())

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Results in the order of the items. After an error or an interrupt nothing is computed any more."""
        futures = [self._pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()
            wait(futures)

    def call(self, function: Callable[..., R], *arguments: Any) -> R:
        """A result computed in one of the threads."""
        return self._pool.submit(function, *arguments).result()

    def close(self, wait: bool = True) -> None:
        """End the threads, once they have done what was begun. Not to be waited for after an interrupt, which may have
        left a lock of the pool behind."""
        self._pool.shutdown(wait=wait, cancel_futures=True)
