"""What the description in a model file may ask for: no more than the file holds numbers, before memory is taken."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from learnreg.errors import ConfigError
from learnreg.linear.arguments import shown

__all__ = ["ModestTensors", "check_sizes"]

_ANY_SIZE = 1024
"""Whole numbers up to this one are no sizes that matter."""

_ANY_TENSOR = 2**22
_TIMES = 16
"""Constructors hold tables and copies beside what is stored: they may be so much larger."""

_MAKERS = frozenset({torch.empty, torch.eye, torch.full, torch.ones, torch.rand, torch.randn, torch.zeros})


class ModestTensors(TorchFunctionMode):
    """Within it, no tensor is made that is much larger than ``numbers``, those that a file holds.

    Raises
    ------
    ConfigError: when one is asked for, before its memory is taken.
    """

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self._most = max(_TIMES * numbers, _ANY_TENSOR)

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function in _MAKERS and (size := _size(function, args, kwargs or {})) > self._most:
            raise ConfigError(f"it asks for {size:,} numbers, far more than the file holds.")
        return function(*args, **(kwargs or {}))


def _size(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """How many numbers a call makes. On the device "meta" torch would say it, which takes a second to import."""
    given = args[:1] if function is torch.full else args
    sizes = kwargs.get("size", given[0] if given and isinstance(given[0], (tuple, list)) else given)
    sizes = (sizes,) if isinstance(sizes, int) else sizes
    square = 2 if function is torch.eye and len(sizes) == 1 else 1
    return int(math.prod(size for size in sizes if isinstance(size, int)) ** square)


def check_sizes(config: Mapping[str, Any], numbers: int) -> None:
    """ConfigError where the config of a family of this package names a size beyond the numbers in its file: each
    filter, knot or layer has some."""
    most = max(numbers, _ANY_SIZE)
    for key, value in config.items():
        if any(abs(size) > most for size in _whole_numbers(value)):
            raise ConfigError(f"{key}={shown(value)}, but the file holds {numbers:,} numbers.")


def _whole_numbers(value: Any) -> Iterable[int]:
    if isinstance(value, list):
        for item in value:
            yield from _whole_numbers(item)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value
