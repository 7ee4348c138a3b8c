"""Stored values of DICOM files, and the Hounsfield units they stand for.

Source: DICOM PS3.5, section 8.1.1 (Bits Stored, High Bit); PS3.3, sections C.7.5.1.1.2 (Pixel Padding Value) and
C.8.2.1 (CT Image Module).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from learnreg.datasets.files.checks import check_claim
from learnreg.datasets.files.dicom_tags import numbers, required, tag_numbers
from learnreg.errors import DataError

__all__ = ["VACUUM", "check_unit", "hounsfield_units", "stored_values"]

VACUUM = -1000.0
"""In Hounsfield units."""

_LARGEST_SIDE = 8192
_LARGEST_HOUNSFIELD = 1e6  # metal is below 1e5 on the widest scales
_SHADES = frozenset({"MONOCHROME1", "MONOCHROME2"})  # how values are shown; Hounsfield units are the same


def stored_values(dataset: Any, frames: int, path: Path) -> np.ndarray[Any, Any]:
    """The values of all frames as they are stored, (frames, rows, columns), without the unused bits of their words.

    Raises
    ------
    DataError: a tag is missing or senseless, there are fewer bytes than pixels, colours are not grey, or no decoder
        is installed.
    """
    rows, columns = (int(required(dataset, keyword, path)) for keyword in ("Rows", "Columns"))
    if not (0 < rows <= _LARGEST_SIDE and 0 < columns <= _LARGEST_SIDE):
        raise DataError(f"it has {rows} x {columns} pixels, expected sides of 1 to {_LARGEST_SIDE}.", path)
    for keyword in ("BitsAllocated", "PixelRepresentation", "PhotometricInterpretation", "PixelData"):
        required(dataset, keyword, path)
    if dataset.PhotometricInterpretation not in _SHADES:
        raise DataError(
            f"its PhotometricInterpretation is {dataset.PhotometricInterpretation}, expected MONOCHROME2.",
            path,
            "Export it in grey values.",
        )
    stored, high = (int(required(dataset, keyword, path)) for keyword in ("BitsStored", "HighBit"))
    if high != stored - 1:
        raise DataError(
            f"its HighBit is {high}, expected BitsStored - 1 = {stored - 1} as CT images have it.",
            path,
            "Export it again with values in the lower bits of each word.",
        )
    syntax = dataset.file_meta.TransferSyntaxUID
    expected = frames * rows * columns * int(dataset.BitsAllocated) // 8
    if syntax.is_compressed:
        _check_decoder(syntax, path)
        if frames > 1:
            check_claim(path, expected)
    elif len(dataset.PixelData) < expected:
        found = len(dataset.PixelData)
        raise DataError(f"truncated: {found} of {expected} bytes of pixels.", path, "Copy or export it again.")
    pixels: np.ndarray[Any, Any] = dataset.pixel_array
    whole = (rows, columns) if frames == 1 else (frames, rows, columns)
    if pixels.shape != whole:
        raise DataError(f"its pixels have shape {pixels.shape}, the header says {whole}.", path)
    return pixels.reshape(frames, rows, columns)


def check_unit(transformation: Any, path: Path) -> tuple[float, float]:
    """RescaleSlope and RescaleIntercept to Hounsfield units.

    Raises
    ------
    DataError: they are missing or senseless, or lead to another unit.
    """
    slope, intercept = (numbers(transformation, f"Rescale{what}", 1, path)[0] for what in ("Slope", "Intercept"))
    if slope == 0:
        raise DataError("RescaleSlope is 0.", path, "The header is damaged: export it again.")
    unit = transformation.get("RescaleType") or "HU"
    if unit not in {"HU", "HU_MOD"}:
        raise DataError(
            f"its values are in {unit!r} (RescaleType), expected HU.", path, "Export it in Hounsfield units."
        )
    return slope, intercept


def hounsfield_units(
    stored: np.ndarray[Any, Any], slope: float, intercept: float, dataset: Any, path: Path
) -> np.ndarray[Any, Any]:
    """float32, slope times stored value + intercept.

    Raises
    ------
    DataError: units beyond a million, or pixels of padding above vacuum, which would be tissue.
    """
    with np.errstate(over="ignore"):  # infinite values are refused below
        values = (stored.astype(np.float64) * slope + intercept).astype(np.float32)
    extreme = float(np.abs(values).max())
    if not extreme <= _LARGEST_HOUNSFIELD:
        raise DataError(
            f"RescaleSlope {slope:g} and RescaleIntercept {intercept:g} lead to {extreme:g} HU.",
            path,
            "The header is damaged: export it again.",
        )
    padding = _padding(stored, dataset)
    if padding is not None and float(values[padding].max(initial=VACUUM)) > VACUUM:
        raise DataError(
            f"{int(padding.sum())} pixels are padding (PixelPaddingValue), which becomes "
            f"{float(values[padding].max()):g} HU here, as if it were matter.",
            path,
            "Set padding to -1000 HU or less, or remove the tag where these pixels were measured.",
        )
    return values


def _padding(stored: np.ndarray[Any, Any], dataset: Any) -> np.ndarray[Any, Any] | None:
    """Which pixels fill the rectangle around what was measured."""
    values = tag_numbers(dataset, "PixelPaddingValue", 1)
    if values is None:
        return None
    limits = [values[0], (tag_numbers(dataset, "PixelPaddingRangeLimit", 1) or values)[0]]
    if stored.dtype.kind == "i":  # written as unsigned by some
        word = 2 ** int(dataset.BitsAllocated)
        limits = [limit - word if limit >= word // 2 else limit for limit in limits]
    inside: np.ndarray[Any, Any] = (stored >= min(limits)) & (stored <= max(limits))
    return inside


def _check_decoder(syntax: Any, path: Path) -> None:
    from pydicom.pixels.decoders.base import get_decoder

    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise DataError(
            f"its transfer syntax {syntax.name} cannot be decoded.", path, "Export it uncompressed."
        ) from error
    if not decoder.is_available:
        missing = "; ".join(decoder.missing_dependencies)
        extra = " Pillow comes with the extra images: pip install 'learnreg[images]'." if "illow" in missing else ""
        raise DataError(
            f"compressed as {syntax.name}, for which no decoder is installed.",
            path,
            f"Export it uncompressed, or install one of: {missing}.{extra}",
        )
