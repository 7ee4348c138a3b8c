"""What the tags of a TIFF file say of its pixels.

Source: TIFF 6.0 (Adobe, 1992), section 8: PhotometricInterpretation, BitsPerSample, SampleFormat, Orientation; ImageJ
and tifffile write several images behind one directory and say so in ImageDescription.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from learnreg.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["TiffLayout", "described_images", "full_pages", "oriented"]

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _DESCRIPTION = 254, 256, 257, 258, 262, 270
_ORIENTATION, _SAMPLES, _SAMPLE_FORMAT = 274, 277, 339
_REDUCED, _WHITE_IS_ZERO, _SIGNED = 1, 0, 2
_AS_GREY = "Save it with 8 or 16 bits, 0 being black, or as float in [0, 1]."


@dataclass(frozen=True)
class TiffLayout:
    """bits: of each sample. white_is_zero: 0 stands for white. orientation: 1 to 8, tag 274."""

    bits: int
    white_is_zero: bool
    orientation: int

    @classmethod
    def of(cls, tags: Mapping[int, Any], path: Path) -> TiffLayout:
        """From the tags of a page, by their numbers.

        Raises
        ------
        DataError: samples that are signed integers, or several images behind one directory.
        """
        if _SIGNED in _all(tags.get(_SAMPLE_FORMAT, 1)):
            raise DataError("its pixels are signed integers, whose white is not defined.", path, _AS_GREY)
        numbers = int(tags[_HEIGHT]) * int(tags[_WIDTH]) * int(tags.get(_SAMPLES, 1))
        count = described_images(str(tags.get(_DESCRIPTION, "")), numbers)
        if count > 1:
            raise DataError(f"this TIFF file holds {count} images.", path, "Save each as an image file of its own.")
        bits = max(_all(tags.get(_BITS, 1)))
        return cls(bits, tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO, int(tags.get(_ORIENTATION, 1)))

    def scaled(self, pixels: np.ndarray[Any, Any], path: Path) -> np.ndarray[Any, Any]:
        """Samples of more than 8 bits, as they are stored, by their largest value, 0 being black then; others
        themselves."""
        if self.bits <= 8:
            return pixels
        if pixels.dtype.kind != "u":
            if self.white_is_zero:
                raise DataError("0 is white in it, but its pixels are no unsigned integers.", path, _AS_GREY)
            return pixels
        shares = pixels / float(2**self.bits - 1)
        return 1.0 - shares if self.white_is_zero else shares


def _all(value: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in value) if isinstance(value, (tuple, list)) else (int(value),)


def described_images(description: str, numbers: int) -> int:
    """How many images of so many numbers a description announces; 1 where it announces none."""
    if description.startswith("ImageJ="):
        found = re.search(r"^images=(\d+)", description, re.MULTILINE)
        return int(found[1]) if found else 1
    try:
        shape = json.loads(description)["shape"]
        size = math.prod(int(n) for n in shape)
    except (ValueError, TypeError, KeyError):
        return 1
    return max(1, size // numbers)


def full_pages(image: Image.Image) -> int:
    """How many pages of an opened TIFF file are images of their own, not smaller copies of others; the first one is
    open afterwards."""
    count = 0
    for page in range(getattr(image, "n_frames", 1)):
        image.seek(page)
        count += not int(getattr(image, "tag_v2", {}).get(_SUBFILE, 0)) & _REDUCED
    image.seek(0)
    return count


def oriented(pixels: np.ndarray[Any, Any], orientation: int) -> np.ndarray[Any, Any]:
    """The picture as it is to be seen, from rows and columns as they are stored."""
    if orientation in (2, 3, 6, 7):
        pixels = {2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 6: pixels[::-1], 7: pixels[::-1, ::-1]}[orientation]
    elif orientation in (4, 8):
        pixels = pixels[::-1] if orientation == 4 else pixels[:, ::-1]
    return pixels.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else pixels
