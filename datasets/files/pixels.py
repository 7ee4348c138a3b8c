"""What the numbers of a decoded picture mean: white, opacity, luma."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from learnreg.errors import DataError

__all__ = ["LUMA", "Alpha", "Picture", "check_size", "colours", "luminance", "oriented", "split_alpha"]

#: Weights of red, green and blue in the grey value (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)

_MOST_PIXELS = 2**27  # a file of half a megabyte can decode to more
_BLOCK = 2**20  # numbers that are worked on in float64 at a time

Alpha = Literal["unassociated", "associated", "unspecified"]


@dataclass(frozen=True)
class Picture:
    """pixels: (height, width) or (height, width, channels) as they are stored, or shares of white, without opacity.
    transparent: some of them are not opaque."""

    pixels: np.ndarray[Any, Any]
    transparent: bool = False


def check_size(width: int, height: int, path: Path) -> None:
    """Refuse a picture too large, before memory is taken for it.

    Raises
    ------
    DataError: more than 2^27 pixels.
    """
    if width * height > _MOST_PIXELS:
        raise DataError(
            f"it has {width} x {height} pixels, at most {_MOST_PIXELS:,} are read.", path, "Cut it into several files."
        )


def split_alpha(pixels: np.ndarray[Any, Any], path: Path, alpha: Alpha = "unassociated", white: float = 255) -> Picture:
    """Without the last channel, the opacity, of which ``white`` is opaque. Colours that do not depend on it
    ("unassociated") are those of the picture without its transparency.

    Raises
    ------
    DataError: some pixels are not opaque, and colours are multiplied by the opacity ("associated"), or what the channel
        means is not said.
    """
    seen_through = int((pixels[..., -1] != white).sum())
    if seen_through and alpha == "associated":
        raise DataError(
            "its colours are multiplied by their opacity (associated alpha), and "
            f"{seen_through} of {pixels[..., -1].size} pixels are not opaque.",
            path,
            "Flatten it onto a background, or save it with unassociated alpha or none.",
        )
    if seen_through and alpha == "unspecified":
        raise DataError(
            "it has a channel beside grey or RGB, and its tags do not say what it is.", path, "Save it without."
        )
    colours = pixels[..., :-1]
    return Picture(colours[..., 0] if colours.shape[2] == 1 else colours, seen_through > 0)


def oriented(pixels: np.ndarray[Any, Any], orientation: int) -> np.ndarray[Any, Any]:
    """The picture as it is to be seen, from rows and columns as they are stored; ``orientation``: 1 to 8, tag 274 of
    TIFF and EXIF."""
    if orientation in (2, 3, 6, 7):
        pixels = {2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 6: pixels[::-1], 7: pixels[::-1, ::-1]}[orientation]
    elif orientation in (4, 8):
        pixels = pixels[::-1] if orientation == 4 else pixels[:, ::-1]
    return pixels.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else pixels


def luminance(pixels: np.ndarray[Any, Any], path: Path, noisy: bool = False) -> np.ndarray[Any, Any]:
    """Grey values (height, width) in [0, 1], float32, from a picture as it is stored; of one that is ``noisy``,
    floating-point numbers of any size. Works on blocks of rows, because the whole in float64 takes several times the
    memory.

    Raises
    ------
    DataError: the type has no white, values are not finite or outside [0, 1], or the channels are not 1 or 3.
    """
    white, channels = _white(pixels, path, noisy), _channels(pixels, path)
    grey = np.empty(pixels.shape[:2], np.float32)
    rows = max(1, _BLOCK // pixels[0].size)
    for start in range(0, len(grey), rows):
        values = pixels[start : start + rows] / white
        if channels == 3:
            values = values @ np.array(LUMA)
            values = values if noisy else np.clip(values, 0.0, 1.0)  # rounded weights can sum to one plus an ulp
        grey[start : start + rows] = values.reshape(values.shape[:2])
    return grey


def colours(pixels: np.ndarray[Any, Any], path: Path, noisy: bool = False) -> np.ndarray[Any, Any]:
    """Red, green and blue, (3, height, width), otherwise as ``luminance``; those of a grey picture are equal."""
    white, channels = _white(pixels, path, noisy), _channels(pixels, path)
    found = np.empty((3, *pixels.shape[:2]), np.float32)
    rows = max(1, _BLOCK // pixels[0].size)
    for start in range(0, found.shape[1], rows):
        values = pixels[start : start + rows] / white
        found[:, start : start + rows] = values.reshape(*values.shape[:2], channels).transpose(2, 0, 1)
    return found


def _channels(pixels: np.ndarray[Any, Any], path: Path) -> int:
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.ndim not in {2, 3} or pixels.size == 0 or channels not in {1, 3}:
        raise DataError(
            f"expected a grey or RGB picture, got an array of shape {pixels.shape}.", path, "Save it as grey or RGB."
        )
    return channels


def _white(pixels: np.ndarray[Any, Any], path: Path, noisy: bool) -> float:
    if pixels.dtype == np.bool_:
        return 1.0
    if pixels.dtype.kind == "u":
        return float(np.iinfo(pixels.dtype).max)
    if pixels.dtype.kind != "f":
        raise DataError(
            f"its pixels are of type {pixels.dtype}, whose white is not defined.",
            path,
            "Save it with 8 or 16 bits, or as float in [0, 1].",
        )
    if not np.isfinite(pixels).all():
        count = int(np.size(pixels) - np.isfinite(pixels).sum())
        raise DataError(f"{count} pixels are NaN or infinite.", path, "Replace them before using the image.")
    low, high = float(pixels.min(initial=0.0)), float(pixels.max(initial=0.0))
    if not noisy and (low < 0 or high > 1):
        raise DataError(
            f"a float image must lie in [0, 1], its values span [{low:.6g}, {high:.6g}].", path, "Rescale it to [0, 1]."
        )
    return 1.0
