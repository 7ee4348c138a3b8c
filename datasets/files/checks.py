"""Checks that all readers of array files share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnreg.errors import DataError
from learnreg.linear.paths import file_trouble, given_path, is_lfs_pointer

__all__ = ["Mask", "check_claim", "check_file", "float_tensor"]

Mask = np.ndarray[Any, np.dtype[np.bool_]]

_LARGEST_EXPANSION = 1100  # deflate reaches 1032
_LARGEST_INTEGER = 2**53  # below it all integers are float64 numbers


def check_file(path: str | Path) -> Path:
    """The path of a file that exists, is not empty and is not a Git LFS pointer.

    Raises
    ------
    DataError: otherwise.
    """
    path = given_path(path, "path")
    if trouble := file_trouble(path):
        raise DataError(trouble.reason, path, trouble.hint)
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}).", path, "Check its permissions.") from error
    if not start:
        raise DataError("this file is empty (0 bytes).", path, "Copy or download it again.")
    if is_lfs_pointer(start):
        raise DataError("this is a Git LFS pointer, not the data.", path, "Fetch the data with: git lfs pull")
    return path


def check_claim(path: Path, claimed: int) -> None:
    """Refuse an array of ``claimed`` bytes that a file of its size cannot hold, before memory is taken for it.

    Raises
    ------
    DataError: the array is more than 1,100 times as large as the file.
    """
    size = path.stat().st_size
    if claimed > _LARGEST_EXPANSION * size:
        raise DataError(
            f"its header promises {claimed:,} bytes of values, the file has {size:,}.", path, "Copy or write it again."
        )


def float_tensor(values: np.ndarray[Any, Any], path: str | Path, ignored: Mask | None = None) -> Tensor:
    """Real numbers as a tensor, unscaled: float32 for float16, float32 and integers of at most 16 bits, otherwise
    float64; 0 where ``ignored``, if it is as long as the last axis.

    Raises
    ------
    DataError: not numbers, complex, empty, NaN and infinite values, integers beyond 2^53, or too many for the memory.
    """
    if values.dtype.kind not in "fiu":
        raise DataError(f"expected real numbers, got the type {values.dtype}.", path, "Save float32 or float64.")
    if values.size == 0:
        raise DataError(f"there are no values in this array of shape {values.shape}.", path)
    small = values.dtype.itemsize <= (4 if values.dtype.kind == "f" else 2)
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # infinite values and NaN are refused below
            converted = np.asarray(values, dtype=np.float32 if small else np.float64, order="C")
        if ignored is not None and values.shape[-1:] == ignored.shape:
            converted = np.where(ignored, 0.0, converted).astype(converted.dtype)
        if not converted.flags.writeable:  # mapped
            converted = converted.copy()
        bad = int(converted.size - np.isfinite(converted).sum())
    except MemoryError as error:
        raise DataError("it takes more memory than there is.", path, "Cut it into several files.") from error
    if bad:
        raise DataError(f"{bad} of {converted.size} values are NaN or infinite.", path, "Repair them before using it.")
    if values.dtype.kind in "iu" and values.dtype.itemsize == 8 and float(np.abs(converted).max()) > _LARGEST_INTEGER:
        raise DataError("it holds integers beyond 2^53, which float64 rounds.", path, "Save float64, or smaller ones.")
    return torch.from_numpy(converted)
