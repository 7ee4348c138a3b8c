"""What numbers of a scan may be: errors that name the value and what to do, before it fills memory or overflows."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from learnreg.errors import ConfigError
from learnreg.linear.arguments import shown

__all__ = ["checked_angles", "checked_count", "checked_indices", "checked_length"]

_SHORTEST, _LONGEST = 1e-12, 1e12
"""The squares of lengths beyond, summed over rays, are no float32 numbers."""

_MOST_PIXELS = 1e9
"""Rays through a pixel are told apart up to this distance, in float64."""

_FARTHEST_ANGLE = 1e6


def checked_count(value: Any, call: str, most: int) -> int:
    """A whole number, 1 to ``most``; ``call`` is what errors begin with, up to the value.

    Raises
    ------
    ConfigError: otherwise.
    """
    count = _index(value)
    if count is None or count < 1:
        raise ConfigError(f"{call}{shown(value)}): expected a positive integer.")
    if count > most:
        raise ConfigError(f"{call}{shown(count)}): expected at most {most:,}.")
    return count


def _index(value: Any) -> int | None:
    """A whole number, of any library; None for something else."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # arrays and tensors of other kinds, or of several numbers
        return None


def checked_length(value: Any, call: str, pixel: float | None = None, signed: bool = False) -> float:
    """A finite length in any unit, positive unless ``signed``, that float32 and the pixel do not lose.

    Raises
    ------
    ConfigError: otherwise.
    """
    expected = "a finite length" if signed else "a positive, finite length"
    try:
        length = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        length = math.nan
    if not math.isfinite(length) or not (signed or length > 0):
        raise ConfigError(f"{call}{shown(value)}): expected {expected}.")
    size = abs(length)
    if size > _LONGEST or (size < _SHORTEST and not signed):
        raise ConfigError(
            f"{call}{length:g}): expected {expected}, {_SHORTEST:g} to {_LONGEST:g}; choose another unit of length."
        )
    if pixel is not None and (size > _MOST_PIXELS * pixel or (size < pixel / _MOST_PIXELS and not signed)):
        raise ConfigError(
            f"{call}{length:g}): that is {size / pixel:.3g} pixels of side {pixel:g}; all lengths are in one unit, and "
            f"within a factor of {_MOST_PIXELS:g} of the pixel."
        )
    return length


def checked_angles(angles: Any, call: str, most: int) -> tuple[float, ...]:
    """Finite angles, at least one.

    Raises
    ------
    ConfigError: otherwise.
    """
    try:
        values = tuple(float(angle) for angle in angles)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ConfigError(f"{call}={shown(angles)}): expected numbers, radians.") from error
    if not values:
        raise ConfigError(f"{call}=()): expected at least one angle.")
    if len(values) > most:
        raise ConfigError(f"{call}): {len(values):,} of them, expected at most {most:,}.")
    if not all(map(math.isfinite, values)):
        raise ConfigError(f"{call}): NaN or infinite entries.")
    farthest = max(values, key=abs)
    if abs(farthest) > _FARTHEST_ANGLE:
        raise ConfigError(
            f"{call}): {farthest:.4g} radians; beyond {_FARTHEST_ANGLE:g} they lose their digits. Give angles within a "
            "few turns."
        )
    return values


def checked_indices(numbers: Any, count: int, call: str, what: str) -> tuple[int, ...]:
    """Different whole numbers from 0 to ``count`` - 1, fewer than ``count``, in ascending order.

    Raises
    ------
    ConfigError: otherwise.
    """
    try:
        given = [None] if isinstance(numbers, (str, bytes, Mapping)) else [_index(number) for number in numbers]
    except (TypeError, RuntimeError):  # no list: a number, a tensor of one
        given = [None]
    found = sorted(number for number in given if number is not None)
    if len(found) < len(given):
        raise ConfigError(f"{call}{shown(numbers)}): expected a list of whole numbers, counted from 0.")
    outside = [i for i in found if not 0 <= i < count]
    if outside:
        raise ConfigError(
            f"{call}...): there is no number {shown(outside[0])}; the {count} {what} are counted from 0 to {count - 1}."
        )
    twice = [i for i, following in pairwise(found) if i == following]
    if twice:
        raise ConfigError(f"{call}...): {twice[0]} is named twice.")
    if len(found) == count:
        raise ConfigError(f"{call}...): all {count} {what} are dead, which leaves nothing to measure.")
    return tuple(found)
