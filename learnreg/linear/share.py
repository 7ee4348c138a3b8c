"""Where the responses of one part lie among those of a stack."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Share"]


@dataclass(frozen=True)
class Share:
    """Entries ``first`` to ``end`` of flat responses (batch, ...), which have this shape for themselves."""

    first: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, shapes: Sequence[tuple[int, ...]]) -> tuple[Share, ...]:
        """Those of parts one after the other."""
        found, first = [], 0
        for shape in shapes:
            found.append(cls(first, tuple(shape)))
            first = found[-1].end
        return tuple(found)

    @property
    def end(self) -> int:
        return self.first + math.prod(self.shape)

    def of_part(self, part: Share | None) -> Share:
        """Where the share of a part of the part lies; of all of it, where there is none."""
        return self if part is None else Share(self.first + part.first, part.shape)

    def flat(self, t: Tensor) -> Tensor:
        """The entries of t, (batch, entries), a view."""
        return t[:, self.first : self.end]

    def within(self, t: Tensor) -> Tensor:
        """The entries of t, (batch, *shape)."""
        return self.flat(t).reshape(t.shape[0], *self.shape)

    def embedded(self, p: Tensor, length: int) -> Tensor:
        """p (batch, *shape) among zeros, (batch, length)."""
        found = p.new_zeros(p.shape[0], length)
        found[:, self.first : self.end] = p.flatten(1)
        return found

    def spread(self, value: Tensor | float) -> Tensor:
        """A number, or numbers that broadcast against the shape, for each entry, (entries,)."""
        number = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        return number.expand(self.shape).reshape(-1)

    def spread_batch(self, t: Tensor) -> Tensor:
        """Numbers that broadcast against (batch, *shape), for each entry, (batch, entries)."""
        return t.expand(t.shape[0], *self.shape).reshape(t.shape[0], -1)
