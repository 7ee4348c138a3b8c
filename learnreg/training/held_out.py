"""Samples that are kept from training: which they are, and how well the problem does on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from learnreg.errors import ConfigError, DataError
from learnreg.linear.arguments import shown
from learnreg.solvers.solve import solve
from learnreg.training.batch_groups import batch_groups
from learnreg.training.samples import Reader, Sample, is_array, stacked
from learnreg.training.session import Chunk, Session
from learnreg.training.sources import TrainingData, source_of
from learnreg.training.workers import Workers

__all__ = ["HeldOut", "held_apart"]

_MOST = 128
_TOLERANCE = 5e-3  # of the root mean square of the images
_WHERE = "train(validation)"


class _Part:
    """Some items of a map-style data set."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self._dataset, self._indices = dataset, list(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[self._indices[index]]

    def batch_groups(self) -> list[list[int]] | None:
        """What is left of the groups of the data set."""
        groups, place = batch_groups(self._dataset), {index: k for k, index in enumerate(self._indices)}
        return None if groups is None else [[place[i] for i in group if i in place] for group in groups]


def held_apart(data: TrainingData, share: float, seed: int) -> tuple[TrainingData, TrainingData]:
    """The data without a share of their items, and these: drawn by the seed, at least one.

    Raises
    ------
    ConfigError: data that cannot be divided. DataError: a single item.
    """
    stacks = isinstance(data, (tuple, list)) and len(data) in (2, 3) and all(is_array(column) for column in data)
    streams = isinstance(data, (DataLoader, IterableDataset))
    if not stacks and (streams or not (hasattr(data, "__getitem__") and hasattr(data, "__len__"))):
        raise ConfigError(
            f"{_WHERE}={share:g}: a {type(data).__name__} cannot be divided; give the samples to hold out as a data "
            "set of their own, validation=..."
        )
    count = len(data[0]) if stacks else len(data)  # type: ignore[index, arg-type]
    if count < 2:
        raise DataError(f"the dataset: {count} items, of which none can be held out.", hint="Leave validation out.")
    held = min(count - 1, max(1, round(share * count)))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed % 2**63)).tolist()
    parts = order[held:], order[:held]
    kept, apart = (_part(data, sorted(indices), stacks) for indices in parts)
    return kept, apart


def _part(data: Any, indices: list[int], stacks: bool) -> TrainingData:
    return tuple(column[indices] for column in data) if stacks else _Part(data, indices)


class HeldOut:
    """Samples on which a problem is measured now and then; at most 128 of those given.

    Raises
    ------
    DataError, ConfigError: data that do not fit the problem.
    """

    def __init__(self, data: TrainingData, session: Session) -> None:
        if data is None or isinstance(data, (bool, int, float)):
            raise ConfigError(f"{_WHERE}={shown(data)}: expected a share above 0 and below 1, or a data set.")
        workers = Workers(1)
        try:
            source = source_of(data, Reader(session.problem.operator), workers, None, 0)
            found = source.first(_MOST)
        finally:
            workers.close()
        if not found:
            raise DataError("the data set for validation is empty.", hint="Pass at least one pair (b, x_true).")
        self.samples = [Sample(s.b, s.x_true, s.sigma) for s in found]  # without keys: nothing of them is remembered
        squares = [float(s.x_true.double().square().mean()) for s in self.samples]
        self._session, self._tolerance = session, _TOLERANCE * max(math.sqrt(sum(squares) / len(squares)), 1e-30)

    def measure(self) -> dict[str, float]:
        """Mean loss, and mean PSNR in dB for the data range 1, at the present parameters. Solves start afresh, so that
        the numbers depend on the parameters alone."""
        chunks = self._session.chunks(self.samples)
        found = self._session.workers.map(self._measure_chunk, chunks)
        loss = math.fsum(len(chunk.samples) * one for chunk, (one, _) in zip(chunks, found, strict=True))
        psnr = math.fsum(value for _, values in found for value in values.tolist())
        return {"validation_loss": loss / len(self.samples), "validation_psnr": psnr / len(self.samples)}

    @torch.no_grad()
    def _measure_chunk(self, chunk: Chunk) -> tuple[float, Tensor]:
        b, x_true = stacked(chunk.samples)
        x = solve(chunk.frozen, b, self._tolerance).x
        error = (x - x_true).double().square().flatten(1).mean(1).clamp_min(1e-30)
        return float(self._session.loss_of(chunk.samples, x_true).value(x)), -10.0 * error.log10()
