"""Where a training run takes its samples from: map-style data sets, stacks, DataLoaders and iterable data sets."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from learnreg.errors import ConfigError, DataError
from learnreg.training.batch_groups import batch_groups, shuffled_batches
from learnreg.training.group import Group
from learnreg.training.samples import Reader, Sample, check_stack, is_array, rows
from learnreg.training.workers import Workers, pieces

__all__ = ["BATCH_SIZE", "PairedDataset", "Source", "TrainingData", "source_of"]

BATCH_SIZE = 16
_DIGESTED, _DIGESTED_OF_STREAMS, _DIGESTED_BYTES = 512, 32, 64 * 1024**2
_RANDOM = 4
"""Samples that are read twice, to see whether they differ at every access."""


class PairedDataset(Protocol):
    """A map-style dataset: item i is (b, x_true) or (b, x_true, sigma), without batch axis. A method ``batch_groups``,
    if it has one, says which items share batches with no others: lists of their indices, or None."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


TrainingData = PairedDataset | Sequence[Any] | DataLoader[Any] | Iterable[Any]
"""What ``learnreg.train`` takes."""


class Source(ABC):
    """Gives minibatches, one after the other, for as long as a run takes. batch_size: of a batch at most, as far as it
    is known."""

    batch_size: int

    @abstractmethod
    def next_batch(self) -> list[Sample]:
        """The next minibatch, the same for all workers of a group; samples that others will solve may be hollow."""

    def whole(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """The samples with their numbers."""
        return samples

    @abstractmethod
    def first(self, count: int) -> list[Sample]:
        """The first samples of the data, at most so many; the order of minibatches does not change by it."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """State to resume from."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the batch after the last one."""

    def count(self, most: int) -> int:
        """How many samples there are, as far as that is known, at most so many."""
        return most

    @property
    def largest_batch(self) -> int:
        """Samples of a batch at most."""
        return self.count(self.batch_size)

    def updates_in(self, epochs: float) -> int:
        """How many batches so many passes over the data are.

        Raises
        ------
        ConfigError: nobody knows how long a pass is.
        """
        batches = self._batches()
        if batches is None:
            raise ConfigError(f"train(epochs={epochs:g}): the data set does not say how long it is; give updates.")
        return max(1, math.ceil(epochs * batches))

    def _batches(self) -> float | None:
        """Of one pass over the data; None where that is unknown."""
        return None

    def digest(self) -> dict[str, Any]:
        """What tells data sets apart: their length and a hash of up to 512 samples and 64 MB, unless these differ at
        every access."""
        same = _hashed(self._digested(_RANDOM)) == _hashed(self._digested(_RANDOM))
        return {"data": self._length(), "sha256": _hashed(self._digested(_DIGESTED)) if same else "random"}

    def _digested(self, most: int) -> list[Sample]:
        """At most so many samples, from all over the data where that is known, else few of its beginning."""
        return self.first(min(most, _DIGESTED_OF_STREAMS))

    def _length(self) -> str:
        return "a stream"


class MapStyle(Source):
    """Minibatches of seeded permutations of a dataset, one permutation after the other, or of shuffled batches of its
    groups; items are read by workers."""

    def __init__(
        self,
        dataset: PairedDataset,
        reader: Reader,
        workers: Workers,
        batch_size: int,
        seed: int,
        group: Group | None = None,
        chunk_size: int = BATCH_SIZE,
    ) -> None:
        try:
            count = len(dataset)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise DataError(f"the dataset: its __len__ failed ({error}); expected the number of its items.") from error
        if count == 0:
            raise DataError("the dataset is empty.", hint="Pass at least one pair (b, x_true).")
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self._reader, self._workers = reader, workers
        self._group, self._chunk_size = Group() if group is None else group, chunk_size
        self._groups = batch_groups(dataset)
        self._order: list[Any] = []  # of items; of batches where there are groups
        self._epoch = 0

    def next_batch(self) -> list[Sample]:
        """Each worker reads what it will solve, if the batch is of one kind."""
        indices = self.next_indices()
        cut = pieces(indices, self._chunk_size)
        owners = [self._group.owner(k, len(cut)) for k, piece in enumerate(cut) for _ in piece]
        return self._group.map(self._workers.map, self._read_one, indices, Sample.hollow, owners)

    def whole(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        return [s if s.is_here or s.key is None else self._read_one(s.key) for s in samples]

    def next_indices(self) -> list[int]:
        """Indices of the next minibatch."""
        if self._groups is not None:
            self._order = self._order or shuffled_batches(self._groups, self.batch_size, self._next_epoch())
            return self._order.pop()
        batch: list[int] = []
        size = self.largest_batch
        while len(batch) < size:
            if not self._order:
                self._order = torch.randperm(len(self.dataset), generator=self._next_epoch()).tolist()
            batch.append(self._order.pop())
        return batch

    def _next_epoch(self) -> torch.Generator:
        """What orders the samples of the pass that begins."""
        self._epoch += 1
        return torch.Generator().manual_seed((int(self.seed) * 1_000_003 + self._epoch - 1) % 2**63)

    def first(self, count: int) -> list[Sample]:
        return self._read(range(self.count(count)))

    def count(self, most: int) -> int:
        return min(most, len(self.dataset))

    def state_dict(self) -> dict[str, Any]:
        return {"order": list(self._order), "epoch": self._epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._order, self._epoch = list(state["order"]), int(state["epoch"])

    def _read(self, indices: Sequence[int]) -> list[Sample]:
        return self._workers.map(self._read_one, indices)

    def _read_one(self, index: int) -> Sample:
        return self._reader.sample(self.dataset[index], f"dataset item {index}", index)

    def _batches(self) -> float | None:
        if self._groups is not None:
            return sum(math.ceil(len(group) / self.batch_size) for group in self._groups)
        return len(self.dataset) / self.largest_batch

    def _digested(self, most: int) -> list[Sample]:
        (first,) = self.first(1)
        size = first.b.nbytes + first.x_true.nbytes
        count, most = len(self.dataset), max(_RANDOM, min(most, _DIGESTED_BYTES // size))
        return self._read(sorted({round(k * (count - 1) / (most - 1)) for k in range(most)}))

    def _length(self) -> str:
        return f"{len(self.dataset)} items"


class Stream(Source):
    """Batches of something that is iterated over, from the start again when it ends."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._iterator: Iterator[list[Sample]] | None = None
        self._taken = 0

    @abstractmethod
    def _pass(self) -> Iterator[list[Sample]]:
        """The batches of one pass over the data."""

    def next_batch(self) -> list[Sample]:
        for _ in range(2):
            if self._iterator is None:
                self._iterator = self._begin(self._taken)
            batch = next(self._iterator, None)
            if batch is not None:
                self._taken += 1
                return batch
            self._iterator, self._taken = None, 0
        raise DataError(
            "the data set gives no samples.", hint="A DataLoader with drop_last=True needs batch_size items at least."
        )

    def first(self, count: int) -> list[Sample]:
        return list(islice((sample for batch in self._pass() for sample in batch), count))

    def _begin(self, skipped: int) -> Iterator[list[Sample]]:
        return islice(self._pass(), skipped, None)

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._iterator, self._taken = None, int(state["taken"])


class Iterated(Stream):
    """The samples of an iterable data set, ``batch_size`` at a time, in its order."""

    def __init__(self, dataset: Any, reader: Reader, batch_size: int) -> None:
        super().__init__(reader)
        self._dataset, self.batch_size = dataset, batch_size

    def _batches(self) -> float | None:
        return math.ceil(len(self._dataset) / self.batch_size) if hasattr(self._dataset, "__len__") else None

    def _pass(self) -> Iterator[list[Sample]]:
        items = (self._reader.sample(item, f"dataset item {i}") for i, item in enumerate(self._dataset))
        while batch := list(islice(items, self.batch_size)):
            yield batch


class Loaded(Stream):
    """The batches of a DataLoader, as it samples and collates them.

    A resumed run goes on in the order of the interrupted one as far as that comes from torch's random numbers, of its
    default generator or of those of the loader and its sampler.
    """

    def __init__(self, loader: DataLoader[Any], reader: Reader, group: Group) -> None:
        super().__init__(reader)
        self._group = group
        self._loader, self.batch_size = loader, loader.batch_size or BATCH_SIZE
        self._random: list[Tensor] = []

    def _pass(self) -> Iterator[list[Sample]]:
        for i, batch in enumerate(self._loader):
            yield self._reader.batch(batch, f"batch {i} of the DataLoader")

    def first(self, count: int) -> list[Sample]:
        """Of the data set in its order, each collated alone."""
        dataset = self._loader.dataset
        if isinstance(dataset, IterableDataset):
            before = [generator.get_state() for generator in self._generators()]
            found = super().first(count)
            self._set_random(before)
            return found
        indices = range(min(count, len(dataset)))  # type: ignore[arg-type]
        return [sample for i in indices for sample in self._collated(i)][:count]

    def _collated(self, index: int) -> list[Sample]:
        item = self._loader.dataset[index]
        alone = item if self._loader.batch_size is None and self._loader.batch_sampler is None else [item]
        return self._reader.batch(self._loader.collate_fn(alone), f"dataset item {index}, collated")

    def _generators(self) -> list[torch.Generator]:
        own = (self._loader.generator, getattr(self._loader.sampler, "generator", None))
        return [torch.default_generator, *(generator for generator in own if generator is not None)]

    def _begin(self, skipped: int) -> Iterator[list[Sample]]:
        if not skipped:  # all workers read as the first one does
            self._random = self._group.first(lambda: [generator.get_state() for generator in self._generators()])
        self._set_random(self._random)
        return super()._begin(skipped)

    def _set_random(self, states: Sequence[Tensor]) -> None:
        for generator, state in zip(self._generators(), states, strict=True):
            generator.set_state(state)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "random": list(self._random)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._random = list(state["random"])

    def _batches(self) -> float | None:
        try:
            return len(self._loader)
        except TypeError:
            return None

    def _length(self) -> str:
        dataset = self._loader.dataset
        count = "a stream" if isinstance(dataset, IterableDataset) else f"{len(dataset)} items"  # type: ignore[arg-type]
        return f"{count} in batches of {self._loader.batch_size}"


def source_of(
    data: Any,
    reader: Reader,
    workers: Workers,
    batch_size: int | None,
    seed: int,
    group: Group | None = None,
    chunk_size: int = BATCH_SIZE,
) -> Source:
    """What gives the batches of ``data``; batch_size: None for the loader's own, or 16. group, chunk_size: who shares
    the batches, and in which pieces.

    Raises
    ------
    DataError: what ``learnreg.train`` cannot take; it says what to pass. ConfigError: a batch size that is not the
        loader's.
    """
    group = Group() if group is None else group
    if isinstance(data, DataLoader):
        if batch_size is not None and data.batch_size is not None and batch_size != data.batch_size:
            raise ConfigError(
                f"train(batch_size={batch_size}): the DataLoader gives batches of {data.batch_size}; leave it out."
            )
        return Loaded(data, reader, group)
    size = BATCH_SIZE if batch_size is None else batch_size
    if isinstance(data, (tuple, list)) and len(data) in (2, 3) and all(is_array(column) for column in data):
        b, x_true, *rest = data
        for column in data:
            check_stack(column, "the dataset")
        _check_stacks(b, x_true)
        if reader.is_pair(b, x_true):
            raise DataError("the dataset: one pair of arrays without batch axis.", hint="Pass a list: [(b, x_true)].")
        return MapStyle(rows(b, x_true, rest, "the dataset"), reader, workers, size, seed, group, chunk_size)
    _refuse(data)
    if not isinstance(data, IterableDataset) and hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return MapStyle(data, reader, workers, size, seed, group, chunk_size)
    return Iterated(data, reader, size)


def _check_stacks(b: Any, x_true: Any) -> None:
    if b.ndim < 2 or x_true.ndim < 2 or not len(b):
        shapes = f"{tuple(b.shape)} and {tuple(x_true.shape)}"
        raise DataError(
            f"the dataset: two arrays of shapes {shapes}, expected stacks (count, *shape) of measurements "
            "and of ground truths."
        )


def _refuse(data: Any) -> None:
    """DataError for what is no data set."""
    kind = type(data).__name__
    expected = (
        "expected a map-style data set of pairs (b, x_true), a list of pairs, two stacks (b, x_true), a DataLoader or "
        "an IterableDataset"
    )
    if is_array(data):
        raise DataError(f"the dataset: one array of shape {tuple(data.shape)}, {expected}.")
    if isinstance(data, tuple) and len(data) in (2, 3) and all(isinstance(column, list) for column in data):
        raise DataError(
            f"the dataset: a tuple of {len(data)} lists, {expected}.", hint="Pass list(zip(measurements, truths))."
        )
    if isinstance(data, (str, Path, Mapping)):
        raise DataError(
            f"the dataset: a {kind}, {expected}.", hint="See learnreg.datasets.DenoisingPatches for images."
        )
    if isinstance(data, Iterator):
        raise DataError(f"the dataset: a {kind} can be read only once, {expected}.", hint="Pass list(...) of it.")
    whole = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if not whole and not hasattr(data, "__iter__"):
        lacks = "without __len__" if hasattr(data, "__getitem__") else "that cannot be read"
        raise DataError(f"the dataset: a {kind} {lacks}, {expected}.")


def _hashed(samples: Sequence[Sample]) -> str:
    found = hashlib.sha256()
    for sample in samples:
        for t in (sample.b, sample.x_true):
            t = t.cpu().contiguous()
            found.update(f"{tuple(t.shape)}{t.dtype}".encode())
            found.update(t.numpy().tobytes())
        found.update(repr(sample.sigma).encode())
    return found.hexdigest()
