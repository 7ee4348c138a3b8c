"""What a data set gives, read as samples: measurement, ground truth and perhaps the noise level; where it cannot be,
a sentence says what came and what to pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnreg.errors import DataError, OperatorError, ShapeError
from learnreg.linear.arguments import check_real, shown
from learnreg.linear.operator import LinearOperator
from learnreg.training.messages import hollow

__all__ = ["Reader", "Sample", "grouped", "stacked"]

Shape = tuple[int, ...]

_EXPECTED = "expected pairs (b, x_true) or triples (b, x_true, sigma) of tensors or arrays without batch axis"


@dataclass(frozen=True)
class Sample:
    """A measurement b and its ground truth, without batch axis. sigma: its noise level, where the data say. key: under
    which the states of the lower level are remembered; None: they are not."""

    b: Tensor
    x_true: Tensor
    sigma: float | None = None
    key: int | None = None

    @property
    def is_here(self) -> bool:
        """Whether this worker has its numbers, not its shapes alone."""
        return not self.b.is_meta

    def hollow(self) -> Sample:
        """Its kind and key, without numbers."""
        return Sample(hollow(self.b), hollow(self.x_true), self.sigma, self.key)

    @property
    def kind(self) -> tuple[Shape, Shape, float | None]:
        """Samples of one kind have one lower-level problem, and fit in one batch."""
        return tuple(self.b.shape), tuple(self.x_true.shape), self.sigma


def grouped(samples: Iterable[Sample]) -> list[list[Sample]]:
    """The samples of each kind together, in their order."""
    groups: dict[Any, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.kind, []).append(sample)
    return list(groups.values())


def stacked(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Measurements and ground truths of samples of one kind, with batch axis."""
    return torch.stack([s.b for s in samples]), torch.stack([s.x_true for s in samples])


class Reader:
    """Reads items and batches of data sets as samples of measurements by an operator.

    Raises
    ------
    DataError: what is no sample, or does not fit the operator; it says what came, and what to pass.
    """

    def __init__(self, operator: LinearOperator) -> None:
        self._operator = operator
        self._leveled: bool | None = None
        self._known: dict[Shape, Shape] = {tuple(operator.domain_shape): tuple(operator.range_shape)}

    def sample(self, item: Any, where: str, key: int | None = None) -> Sample:
        """An item without batch axis."""
        b, x_true, *rest = _entries(item, where)
        sample = Sample(
            _tensor(b, f"{where}: b"),
            _tensor(x_true, f"{where}: x_true"),
            _level(rest[0], where) if rest else None,
            key,
        )
        if self._leveled is None:
            self._leveled = bool(rest)
        if self._leveled != bool(rest):
            raise DataError(
                f"{where}: {len(item)} entries, others have {2 + self._leveled}; expected a noise level in "
                "every item, or in none."
            )
        self._check_shapes(tuple(sample.b.shape), tuple(sample.x_true.shape), where)
        if not (bool(torch.isfinite(sample.b).all()) and bool(torch.isfinite(sample.x_true).all())):
            raise DataError(f"{where}: NaN or infinite values.", hint="Clean the data.")
        return sample

    def batch(self, batch: Any, where: str) -> list[Sample]:
        """What a DataLoader gives: stacks of measurements and ground truths, a list of samples, or a single one."""
        if isinstance(batch, (list, tuple)) and batch and all(isinstance(item, (list, tuple)) for item in batch):
            return [self.sample(item, f"{where}, sample {i}") for i, item in enumerate(batch)]
        b, x_true, *rest = _entries(batch, where)
        if _dim(b) == len(self._operator.range_shape):
            return [self.sample(batch, where)]
        return [self.sample(item, f"{where}, sample {i}") for i, item in enumerate(rows(b, x_true, rest, where))]

    def is_pair(self, b: Any, x_true: Any) -> bool:
        """Whether two arrays are the measurement and the ground truth of one sample, not stacks of them."""
        return (tuple(b.shape), tuple(x_true.shape)) == (self._operator.range_shape, self._operator.domain_shape)

    def _check_shapes(self, b: Shape, x_true: Shape, where: str) -> None:
        wanted = self._known.get(x_true)
        domain, range_ = tuple(self._operator.domain_shape), tuple(self._operator.range_shape)
        if wanted is None and len(x_true) == len(domain) and x_true[0] == domain[0]:  # of another size
            try:
                wanted = self._known[x_true] = tuple(self._operator.on(x_true).range_shape)
            except OperatorError:
                wanted = None  # said below
        if b == wanted:
            return
        kind, hint = type(self._operator).__name__, ""
        if (b, x_true) == (domain, range_):
            hint = "The order is (b, x_true): measurement first, ground truth second."
        elif (b[1:], x_true[1:]) == (range_, domain):
            hint = "Leave out the batch axis: item[0]."
        elif (b, x_true) == (range_[1:], domain[1:]):
            hint = "Add the channel axis: b[None], x_true[None]."
        elif (x_true[-1:], x_true[:-1]) == (domain[:1], domain[1:]):
            hint = "Channels come first: permute(2, 0, 1)."
        elif len(x_true) == len(domain) and x_true[0] != domain[0]:
            hint = f"The images have {x_true[0]} channels, the problem {domain[0]}."
        elif len(x_true) == len(domain):
            hint = f"Crop or resize the images to {domain}."
        raise DataError(
            f"{where}: b has shape {b} and x_true {x_true}; {kind} maps {domain} to {range_}.",
            hint=hint or f"Expected b of shape {range_} and x_true of shape {domain}.",
        )


def rows(b: Any, x_true: Any, rest: Sequence[Any], where: str) -> list[tuple[Any, ...]]:
    """The items of stacks (count, *shape) of measurements, ground truths and perhaps noise levels (count,)."""
    columns = [b, x_true]
    for level in rest:
        columns.append([level] * len(b) if _dim(level) == 0 else level)
    counts = [len(column) for column in columns]
    if len(set(counts)) > 1:
        raise DataError(f"{where}: stacks of {', '.join(map(str, counts))} items, expected as many of each.")
    return list(zip(*columns, strict=True))


def is_array(value: object) -> bool:
    """Whether it is a tensor or a NumPy array, of one shape."""
    return isinstance(value, np.ndarray) or (isinstance(value, Tensor) and not value.is_nested)


def check_stack(value: Any, where: str) -> None:
    """DataError for a tensor that is nested, sparse or without data."""
    if isinstance(value, Tensor):
        try:
            check_real(value, where)
        except ShapeError as error:
            raise DataError(str(error)) from error


def _dim(value: Any) -> int:
    return int(value.ndim) if is_array(value) else 0


def _entries(item: Any, where: str) -> Sequence[Any]:
    """The two or three entries of an item or a batch."""
    if is_array(item):
        raise DataError(f"{where}: one array, {shown(item)}, {_EXPECTED}.")
    if not isinstance(item, (list, tuple)):
        keys = f" with the keys {', '.join(map(repr, item))}" if isinstance(item, dict) else ""
        raise DataError(
            f"{where}: a {type(item).__name__}{keys}, {_EXPECTED}: wrap the data set so that items are pairs."
        )
    if len(item) not in (2, 3):
        raise DataError(f"{where}: {len(item)} entries, {_EXPECTED}.")
    return item


def _tensor(value: Any, where: str) -> Tensor:
    """A tensor of floating-point numbers."""
    if isinstance(value, np.ndarray):
        try:
            value = torch.tensor(np.ascontiguousarray(value, value.dtype.newbyteorder("=")))
        except TypeError as error:
            raise DataError(f"{where}: an array of {value.dtype}, expected floating-point numbers.") from error
    if not isinstance(value, Tensor):
        raise DataError(f"{where}: a {type(value).__name__}, expected a tensor or a NumPy array.")
    if not value.is_complex():
        check_stack(value, where)
    if not value.is_floating_point():
        hint = "Divide by the largest possible value: b / 255 for 8 bits." if not value.is_complex() else ""
        hint = hint or "Real and imaginary part as two channels: torch.view_as_real."
        raise DataError(f"{where}: {str(value.dtype).removeprefix('torch.')}, expected float32 or float64.", hint=hint)
    return value.detach()


def _level(value: Any, where: str) -> float:
    """The noise level of a sample."""
    try:
        single = value.numel() == 1 if isinstance(value, Tensor) else np.size(value) == 1
        level = float(np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value).reshape(-1)[0])
    except (TypeError, ValueError, IndexError, OverflowError, RuntimeError, NotImplementedError):
        single, level = False, math.nan
    if not single:
        what = shown(value) if is_array(value) else f"a {type(value).__name__}"
        raise DataError(f"{where}: the third entry is {what}, expected the noise level sigma, one positive number.")
    if not (level > 0 and math.isfinite(level)):
        raise DataError(f"{where}: the noise level is {level:g}, expected a positive number.")
    return level
