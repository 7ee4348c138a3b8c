"""Nested dicts, lists and tuples of tensors, taken apart and put together again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learnreg.errors import ConfigError, ShapeError

__all__ = ["Tree", "Variables"]

Build = Callable[[Sequence[Any]], Any]


@dataclass(frozen=True)
class Tree:
    """What holds tensors: ``leaves`` in order, by their places in it, and how to make the same of others."""

    leaves: dict[str, Tensor]
    _build: Build

    @classmethod
    def of(cls, value: Any) -> Tree:
        """A tensor, or dicts, lists and tuples of tensors and of anything else, which stays as it is."""
        leaves: dict[str, Tensor] = {}
        build = _taken_apart(value, "", leaves)
        return cls(leaves, build)

    def built(self, leaves: Sequence[Any]) -> Any:
        """The same with other leaves, in this order."""
        return self._build(leaves)


def _taken_apart(value: Any, path: str, leaves: dict[str, Tensor]) -> Build:
    if isinstance(value, Tensor):
        place = len(leaves)
        leaves[path] = value
        return lambda found: found[place]
    if isinstance(value, Mapping):
        parts = {k: _taken_apart(v, f"{path}.{k}" if path else str(k), leaves) for k, v in value.items()}
        return lambda found: {k: build(found) for k, build in parts.items()}
    if type(value) in (list, tuple):
        kind = type(value)
        items = [_taken_apart(v, f"{path}.{k}" if path else str(k), leaves) for k, v in enumerate(value)]
        return lambda found: kind(build(found) for build in items)
    return lambda found: value


class Variables:
    """One tensor, or a dict of tensors by name, as one vector.

    Raises
    ------
    ConfigError: something else, or no tensor. ShapeError: tensors of other than one floating-point dtype, or NaN.
    """

    def __init__(self, value: Tensor | Mapping[str, Tensor], name: str) -> None:
        single = isinstance(value, Tensor)
        named = {name: value} if isinstance(value, Tensor) else value
        if not isinstance(named, Mapping) or not named or not all(isinstance(t, Tensor) for t in named.values()):
            kind = type(value).__name__
            raise ConfigError(f"{name}: got {kind}, expected a tensor or a dict of tensors by name.")
        self.name, self.single = name, single
        self.shapes = {key: tuple(t.shape) for key, t in named.items()}
        self.tensors = dict(named)
        dtypes = {t.dtype for t in named.values()}
        if len(dtypes) > 1 or next(iter(dtypes)) not in (torch.float32, torch.float64):
            raise ShapeError(f"{name}: got {', '.join(sorted(map(str, dtypes)))}, expected one of float32 and float64.")
        for key, t in named.items():
            if not bool(torch.isfinite(t).all()):
                raise ShapeError(f"{name}: {key} has NaN or infinite entries.")

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.tensors.values())).dtype

    def flat(self) -> Tensor:
        """All entries, (n,)."""
        return torch.cat([t.detach().reshape(-1) for t in self.tensors.values()])

    def shaped(self, v: Tensor) -> Any:
        """A vector (n,) in the form of the original."""
        found, first = {}, 0
        for key, shape in self.shapes.items():
            count = math.prod(shape)
            found[key] = v[first : first + count].view(shape)
            first += count
        return found[self.name] if self.single else found
