"""The items of a data set, in minibatches, and where the lower level was left at each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from learnreg.errors import DataError
from learnreg.hypergradients.compute import Start

__all__ = ["PairedDataset", "Sampler", "WarmStarts"]

_BYTES = 2 * 1024**3


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


class WarmStarts:
    """States and adjoint states by sample, at most ``limit`` bytes of them; samples beyond that start cold at every
    visit.

    domain_shape: of the images, without the batch axis.
    """

    def __init__(self, domain_shape: tuple[int, ...], limit: int = _BYTES) -> None:
        self._shape, self._limit = domain_shape, limit
        self._states: dict[int, Start] = {}

    def starts(self, indices: Sequence[int], b: Tensor) -> Start:
        """Earlier states of the samples; one that is new has no latent variables, so that they are guessed for all."""
        cold = self._cold_start(b)
        states = [self._states.get(i, Start(cold[k], torch.zeros_like(cold[k]))) for k, i in enumerate(indices)]
        columns = ([getattr(state, name) for state in states] for name in ("x", "X", "z", "Z"))
        x, X, z, Z = (None if any(v is None for v in column) else torch.stack(column) for column in columns)
        assert x is not None
        assert X is not None
        return Start(x, X, z, Z).part(slice(None), 1.0 / len(indices))

    def keep(self, indices: Sequence[int], state: Start) -> None:
        """Remember states, and adjoint states of the sum over samples: a mean's carry 1/batch, which varies."""
        item_bytes = 2 * sum(v[0].numel() * v.element_size() for v in (state.x, state.z) if v is not None)
        for k, i in enumerate(indices):
            if i in self._states or (len(self._states) + 1) * item_bytes <= self._limit:
                self._states[i] = state.part(k, len(indices))

    def _cold_start(self, b: Tensor) -> Tensor:
        return b if tuple(b.shape[1:]) == self._shape else b.new_zeros(b.shape[0], *self._shape)
