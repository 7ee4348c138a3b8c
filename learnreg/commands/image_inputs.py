"""What ``learnreg reconstruct`` reads for denoisers: images and arrays, and how finely they are stored."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from learnreg.datasets import read_image
from learnreg.datasets.files.checks import check_file
from learnreg.datasets.files.sinograms import map_npy
from learnreg.errors import DataError
from learnreg.models.extras import require

__all__ = ["ImageInput", "files_of", "read_input", "read_measurement"]

_ARRAY, _TIFF = ".npy", frozenset({".tif", ".tiff"})
_BITS, _SAMPLE_FORMAT, _FLOAT = 258, 339, 3  # TIFF 6.0, sections 8 and 19
_INSTEAD = {
    ".npz": "Save one array with numpy.save(path, array).",
    ".dcm": "Read it with learnreg.datasets.read_dicom, map its window to [0, 1], and save it as .npy.",
}


@dataclass(frozen=True)
class ImageInput:
    """An image (1, height, width), or (3, height, width) of colours, in float32. bits: of its pixels, 8 or 16; None for
    floating-point numbers. rounding:
    root-mean-square difference to the file's numbers. notes: what was done to it."""

    values: Tensor
    bits: int | None
    rounding: float
    notes: tuple[str, ...] = ()


def files_of(inputs: Sequence[Path], suffixes: frozenset[str]) -> list[Path]:
    """The inputs, folders replaced by those of their files that end in one of these, sorted by name; sub-folders are
    not searched.

    Raises
    ------
    DataError: a folder without any, or one that cannot be listed.
    """
    found: list[Path] = []
    for path in inputs:
        found += _files_in(path, suffixes) if path.is_dir() else [path]
    return found


def _files_in(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    try:
        entries = [p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith(".")]
    except OSError as error:
        raise DataError(f"cannot be listed ({error.strerror}).", folder, "Check its permissions.") from error
    files = sorted((p for p in entries if p.is_file()), key=lambda p: p.name)
    if not files:
        formats = ", ".join(sorted(suffix[1:] for suffix in suffixes))
        raise DataError("this folder holds no input.", folder, f"Readable: {formats}; sub-folders are not searched.")
    return files


def read_measurement(path: Path) -> Tensor:
    """An image file, see ``learnreg.datasets.read_image``, or a .npy array (height, width), (1, height, width) or (3,
    height, width) of floating-point numbers; these and float images may have values outside [0, 1]. Shape (1, height,
    width), or (3, height, width) of colours, float32."""
    return read_input(path).values


def read_input(path: Path) -> ImageInput:
    """The same, with how it is stored.

    Raises
    ------
    DataError: a missing, damaged or unknown file, other shapes or types, NaN or infinite values.
    """
    suffix = path.suffix.lower()
    if suffix == _ARRAY:
        return _read_array(path)
    if suffix in _INSTEAD:
        raise DataError(f"{suffix} files are not read by denoisers.", path, _INSTEAD[suffix])
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", UserWarning)
        warnings.simplefilter("ignore", RuntimeWarning)  # of sizes, which are checked
        values = read_image(path, noisy=True)
        bits, coloured, transparent = _describe(path)
        values = _with_colours(path, values) if coloured else values
    said = (str(warning.message).removeprefix(f"{path}: ") for warning in heard)
    notes = tuple(dict.fromkeys(text for text in said if text.startswith("its header")))
    if transparent:
        notes = ("its transparency (alpha) is dropped", *notes)
    if coloured and len(values) == 1:
        notes = ("its three channels are equal: it is taken for a grey image", *notes)
    low, high = float(values.min()), float(values.max())
    if low < 0.0 or high > 1.0:
        notes += (f"its values span [{low:.4g}, {high:.4g}]; they are taken as they are, white being 1",)
    return ImageInput(values, bits, 2.0**-24 * _rms(values), notes)


def _with_colours(path: Path, grey: Tensor) -> Tensor:
    """Red, green and blue, or ``grey``, if they are equal."""
    values = read_image(path, noisy=True, colour=True)
    equal = torch.equal(values[0], values[1]) and torch.equal(values[0], values[2])
    return grey if equal else values


def _read_array(path: Path) -> ImageInput:
    array = map_npy(check_file(path))
    if array.dtype.kind != "f":
        raise DataError(f"its type is {array.dtype}.", path, "Save an array of floating-point numbers, white being 1.")
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.shape[0] not in (1, 3) or array.size == 0:
        expected = "(height, width), (1, height, width), or (3, height, width) of colours"
        raise DataError(f"its shape is {array.shape}, expected {expected}.", path)
    with np.errstate(over="ignore"):  # checked below
        values = np.array(array, dtype=np.float32, order="C")
    if not np.isfinite(values).all():
        count = int(values.size - np.isfinite(values).sum())
        if np.isfinite(array).all():
            raise DataError(f"{count} values are beyond the range of float32.", path, "Scale them so that white is 1.")
        raise DataError(f"{count} values are NaN or infinite.", path, "Replace them before using the file.")
    rounding = 0.0 if array.dtype.itemsize <= 4 else float(np.sqrt(np.mean(np.square(array - values, dtype=float))))
    return ImageInput(torch.from_numpy(values), None, rounding)


def _describe(path: Path) -> tuple[int | None, bool, bool]:
    """Bits of the pixels of an image that could be read, None for floating-point numbers; whether it is coloured, and
    transparent."""
    image = require("PIL.Image", "reading images", "pillow")
    try:
        with image.open(path) as opened:
            mode, tags = opened.mode, dict(getattr(opened, "tag_v2", {}))
            transparent = "transparency" in opened.info or mode in ("LA", "La", "PA", "RGBA", "RGBa")
            coloured = mode not in ("1", "L", "LA", "La", "I", "F") and not mode.startswith("I;16")
            deep = mode in ("I", "F") or mode.startswith("I;16")
    except image.UnidentifiedImageError:  # a TIFF file of a kind that Pillow does not know
        return _describe_tiff(path)
    deep = deep or _png_bits(path) > 8
    bits = max(_numbers(tags.get(_BITS, 16 if deep else 8)))
    floating = mode == "F" or _FLOAT in _numbers(tags.get(_SAMPLE_FORMAT, 1))
    return None if floating else (16 if bits > 8 else 8), coloured, transparent


def _png_bits(path: Path) -> int:
    """Bits that a PNG file says it has, 8 of another: Pillow takes colours of 16 bits for those of 8."""
    with path.open("rb") as file:
        head = file.read(25)
    return head[24] if head.startswith(b"\x89PNG") and len(head) == 25 else 8


def _describe_tiff(path: Path) -> tuple[int | None, bool, bool]:
    tifffile = require("tifffile", "reading this TIFF file", "tifffile")
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        dtype, samples = page.dtype, page.samplesperpixel
    bits = None if dtype.kind == "f" else (16 if dtype.itemsize > 1 else 8)
    return bits, samples >= 3, samples in (2, 4)


def _numbers(value: object) -> tuple[int, ...]:
    return tuple(int(v) for v in value) if isinstance(value, (tuple, list)) else (int(value),)  # type: ignore[call-overload]


def _rms(values: Tensor) -> float:
    return math.sqrt(float(values.square().mean(dtype=torch.float64)))
