"""The workers of a training run: one process, or several that compute as one.

Every worker holds the same parameters, draws the same batches and makes the same updates; what differs is which pieces
of a batch it solves. Whatever a decision rests on is the same everywhere before: results of pieces are exchanged and
added in one order, and what only the first worker does, such as files, is done through ``first``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = ["Group", "Mapper", "Parcel"]

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")

Mapper = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
"""Calls a function with each of some items, in threads perhaps, as ``Workers.map`` does."""


@dataclass(frozen=True)
class Parcel:
    """Tensors that one worker has, and another needs; on the others they are on the device "meta", shapes alone."""

    source: int
    target: int
    tensors: list[Tensor]


class Group:
    """A single process, the only worker: nothing is exchanged."""

    rank, size = 0, 1
    place = torch.device("cpu")
    """Of the parameters, where tensors of other workers are wanted."""

    def device(self, named: torch.device) -> torch.device:
        """The accelerator of this worker, where none of several is named."""
        return named

    # ---- who does what ---------------------------------------------------------------------------------------------

    def owner(self, index: int, count: int) -> int:
        """The worker that computes item ``index`` of ``count``: neighbours as a rule have the same one."""
        return index * self.size // count

    def map(
        self,
        run: Mapper,
        function: Callable[[T], R],
        items: Sequence[T],
        sent: Callable[[R], R],
        owners: Sequence[int] | None = None,
    ) -> list[R]:
        """Results in the order of the items, each computed by its owner. An error of any worker is raised by all: that
        of the first item that has one.

        Parameters
        ----------
        run: how a worker calls the function for its own items.
        sent: what the other workers get of a result.
        owners: of the items; by default those that ``owner`` says.
        """
        return run(function, items)

    def first(self, function: Callable[[], R]) -> R:
        """What the function returns, or raises, at the first worker, which alone calls it."""
        return function()

    def last(self, function: Callable[[], R], otherwise: R) -> R:
        """The same, but the others do not wait for it, and have ``otherwise``: from now on the first one is alone."""
        return function()

    def by_first(self, function: Callable[P, R]) -> Callable[P, R]:
        """The function, called through ``first``."""

        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            return self.first(lambda: function(*args, **kwargs))

        return called

    # ---- what is exchanged -----------------------------------------------------------------------------------------

    def gather(self, value: T) -> list[T]:
        """The values of all workers, in their order."""
        return [value]

    def largest(self, number: int) -> int:
        """Of the numbers of all workers."""
        return max(self.gather(number))

    def move(self, parcels: Sequence[Parcel]) -> list[list[Tensor]]:
        """The tensors of each parcel, there at its target; the parcels are the same on all workers."""
        return [parcel.tensors for parcel in parcels]

    def share_kernels(self) -> None:
        """Let all workers use the same convolution kernels from now on, whoever measures them."""

    def check_same(self, what: str, values: Callable[[], Mapping[str, Any]]) -> None:
        """WorkerError, with the first name that differs, unless all workers have the same values."""

    # ---- how it ends -----------------------------------------------------------------------------------------------

    @property
    def speaks(self) -> bool:
        """Whether it is this worker's turn to say of what a run ends: the first one's, while it lives."""
        return True

    def settle(self, error: BaseException) -> bool:
        """After an error, before anything else is exchanged: see whether all workers have it, or tell them. Returns
        whether it is this one's alone."""
        return False

    def close(self) -> None:
        """Leave the group."""
