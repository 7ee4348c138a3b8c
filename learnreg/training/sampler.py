"""The items of a data set, in minibatches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from learnreg.errors import DataError

__all__ = ["PairedDataset", "Sampler"]


class PairedDataset(Protocol):
    """A map-style dataset: item i is (b, x_true), without batch axis."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]: ...


class Sampler:
    """Minibatches of seeded permutations of a dataset, one permutation after the other."""

    def __init__(self, dataset: PairedDataset, batch_size: int, seed: int) -> None:
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self._order: list[int] = []
        self._epoch = 0

    def next_batch(self) -> list[int]:
        """Indices of the next minibatch."""
        batch: list[int] = []
        size = min(self.batch_size, len(self.dataset))
        while len(batch) < size:
            if not self._order:
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self._epoch)
                self._order = torch.randperm(len(self.dataset), generator=generator).tolist()
                self._epoch += 1
            batch.append(self._order.pop())
        return batch

    def items(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Measurements and ground truths, stacked.

        Raises
        ------
        DataError: an item that is not (b, x_true), or has NaN.
        """
        items = [self.dataset[i] for i in indices]
        try:
            b, x_true = (torch.stack([item[k] for item in items]) for k in range(2))
        except (TypeError, IndexError, RuntimeError) as error:
            raise DataError(
                f"dataset items {list(indices)[:4]}...: expected pairs (b, x_true) of tensors of one shape ({error})."
            ) from error
        if not (bool(torch.isfinite(b).all()) and bool(torch.isfinite(x_true).all())):
            raise DataError(f"NaN or infinite values in dataset items {list(indices)}.", hint="Clean the data.")
        return b, x_true

    def state_dict(self) -> dict[str, Any]:
        return {"order": self._order, "epoch": self._epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._order, self._epoch = list(state["order"]), int(state["epoch"])
