"""What the tags of a TIFF file say of its pixels, and decoding them.

Source: TIFF 6.0 (Adobe, 1992), section 8: PhotometricInterpretation, BitsPerSample, SampleFormat, Orientation; section
18: ExtraSamples; ImageJ and tifffile write several images behind one directory and say so in ImageDescription.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from learnreg.datasets.files.checks import check_claim
from learnreg.datasets.files.pixels import LUMA, Alpha, Picture, check_size, oriented, split_alpha
from learnreg.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "check_description",
    "check_written",
    "decode_tiff",
    "described_images",
    "is_tiff",
    "open_tiff",
    "silence_logs",
]

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _DESCRIPTION = 254, 256, 257, 258, 262, 270
_FILL_ORDER, _REVERSED = 266, 2
_ORIENTATION, _SAMPLES, _PLANAR, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 274, 277, 284, 338, 339
_REDUCED, _SIGNED, _SEPARATE_PLANES = 1, 2, 2
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_COLOUR_MAP, _LUMA_WEIGHTS, _REFERENCE = 320, 529, 532
_FULL_RANGE = (0, 255, 128, 255, 128, 255)
_CHANNELS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _YCBCR: 3}
_OTHER_COLOURS = {
    4: "a mask",
    5: "inks (CMYK)",
    8: "CIE L*a*b*",
    9: "ICC L*a*b*",
    10: "ITU L*a*b*",
    32803: "a colour filter array",
    32844: "LogL",
    32845: "LogLuv",
    34892: "linear raw",
}
_ALPHA: dict[int, Alpha] = {1: "associated", 2: "unassociated"}
_MAGIC = frozenset({b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"})
_INSTALL_HINT = "Install it with: pip install 'learnreg[images]'"
_AS_GREY = "Save it with 8 or 16 bits, 0 being black, or as float in [0, 1]."
_STDERR_LOCK = threading.Lock()
_SEPARATELY = "Save each as an image file of its own."


@dataclass(frozen=True)
class _Layout:
    """bits: of each sample. photometric: tag 262. alpha: what the last channel is, if there is one beside the colours.
    orientation: 1 to 8, tag 274."""

    bits: int
    photometric: int
    alpha: Alpha | None
    orientation: int

    @classmethod
    def of(cls, tags: Mapping[int, Any], path: Path) -> _Layout:
        """From the tags of a page, by their numbers.

        Raises
        ------
        DataError: samples that are signed integers, colours that are not grey, palette, RGB or YCbCr, more than one
            channel beside them, several images behind one directory, or too many pixels.
        """
        width, height, samples = int(tags[_WIDTH]), int(tags[_HEIGHT]), int(tags.get(_SAMPLES, 1))
        check_size(width, height, path)
        if _SIGNED in _all(tags.get(_SAMPLE_FORMAT, 1)):
            raise DataError("its pixels are signed integers, whose white is not defined.", path, _AS_GREY)
        description = str(tags.get(_DESCRIPTION, ""))
        check_description(description, path)
        count = described_images(description, height * width * samples)
        if count > 1:
            raise DataError(f"this TIFF file holds {count} images.", path, _SEPARATELY)
        photometric, bits = int(tags.get(_PHOTOMETRIC, _BLACK_IS_ZERO)), _all(tags.get(_BITS, 1))
        if photometric not in _CHANNELS:
            colours = _OTHER_COLOURS.get(photometric, f"of kind {photometric}")
            raise DataError(f"its colours are {colours}, expected grey or RGB.", path, "Convert it to RGB or grey.")
        extra = samples - _CHANNELS[photometric]
        if not 0 <= extra <= 1 or len(set(bits)) != 1:
            raise DataError(
                f"it has {samples} channels of {', '.join(map(str, bits))} bits, expected grey or RGB.", path, _AS_GREY
            )
        kind = _ALPHA.get(_all(tags.get(_EXTRA_SAMPLES, 0))[0], "unspecified") if extra else None
        return cls(bits[0], photometric, kind, int(tags.get(_ORIENTATION, 1)))

    def from_black(self, colours: np.ndarray[Any, Any], path: Path) -> np.ndarray[Any, Any]:
        """Samples as they are stored, 0 being black, and shares of the largest value unless that is 255 or 65535."""
        if colours.dtype == np.bool_:
            colours = colours.astype(np.uint8)
        if colours.dtype.kind != "u":
            if self.photometric == _WHITE_IS_ZERO:
                raise DataError("0 is white in it, but its pixels are no unsigned integers.", path, _AS_GREY)
            return colours
        whole = self.bits == 8 * colours.dtype.itemsize
        largest = np.iinfo(colours.dtype).max if whole else colours.dtype.type(2**self.bits - 1)
        if self.photometric == _WHITE_IS_ZERO:
            colours = largest - colours
        return colours if whole else colours / float(largest)


def decode_tiff(image: Image.Image | None, data: bytes, path: Path) -> Picture:
    """The only picture among the pages of a file whose bytes are ``data``; ``image``: as Pillow has opened it, which
    knows more compressions than tifffile, but not all depths.

    Raises
    ------
    DataError: several pictures, none, one whose tags say that its pixels have no grey value, or tifffile is missing.
    """
    if image is not None:
        image.seek(_only([_tag(image, page) for page in range(getattr(image, "n_frames", 1))], path))
        layout = _Layout.of(dict(image.tag_v2), path)  # type: ignore[attr-defined]
        if not _loses_something(image, layout):
            return _by_pillow(image, layout, path)
    with open_tiff(io.BytesIO(data), path) as tiff:
        pages = [tiff.pages[i].aspage() for i in range(len(tiff.pages))]  # iterating never ends where pages are a ring
        page = pages[_only([int(page.subfiletype) for page in pages], path)]
        layout = _Layout.of({tag.code: tag.value for tag in page.tags.values()}, path)
        if layout.photometric not in {_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB}:
            raise DataError("neither grey nor RGB, with more than 8 bits.", path, "Convert it to RGB or grey.")
        check_claim(path, page.nbytes)
        check_written(page, path)
        pixels = page.asarray()
        if page.axes.startswith("S"):  # separate planes
            pixels = np.moveaxis(pixels, 0, -1)
        opaque = 2.0**layout.bits - 1 if pixels.dtype.kind == "u" else 1.0
        whole = Picture(pixels) if layout.alpha is None else split_alpha(pixels, path, layout.alpha, opaque)
        return Picture(oriented(layout.from_black(whole.pixels, path), layout.orientation), whole.transparent)


def _by_pillow(image: Image.Image, layout: _Layout, path: Path) -> Picture:
    """Pillow has turned the picture, and spread up to 8 bits over 0 to 255, 0 being black."""
    _check_conversion(image.tag_v2, layout.photometric, path)  # type: ignore[attr-defined]
    with _silent_libtiff(image):
        image.load()
    if image.mode in {"LA", "La"}:
        pixels = np.asarray(image.convert("LA"))
    elif image.mode in {"P", "PA", "YCbCr"}:
        pixels = np.asarray(image.convert("RGB" if layout.alpha is None else "RGBA"))
    else:
        pixels = np.asarray(image)
    whole = Picture(pixels) if layout.alpha is None else split_alpha(pixels, path, layout.alpha)
    return whole if layout.bits <= 8 else Picture(layout.from_black(whole.pixels, path), whole.transparent)


def _check_conversion(tags: Mapping[int, Any], photometric: int, path: Path) -> None:
    """Whether palettes and YCbCr are those that Pillow takes them for: 16 bits, ITU-R BT.601, 0 to 255."""
    if photometric == _PALETTE and 0 < max(tags.get(_COLOUR_MAP, (0,))) < 256:
        raise DataError("the colours of its palette have 8 bits, expected 16.", path, "Convert it to RGB.")
    if photometric == _YCBCR:
        luma = [float(v) for v in tags.get(_LUMA_WEIGHTS, LUMA)]
        limits = [float(v) for v in tags.get(_REFERENCE, _FULL_RANGE)]
        if not (np.allclose(luma, LUMA, atol=1e-3) and np.allclose(limits, _FULL_RANGE, atol=1)):
            raise DataError(
                f"its YCbCr has weights {luma} and limits {limits}, expected those of JPEG.", path, "Convert it to RGB."
            )


@contextmanager
def open_tiff(source: Path | io.BytesIO, path: Path) -> Iterator[Any]:
    """The file as tifffile opens it.

    Raises
    ------
    DataError: tifffile is missing.
    """
    try:
        import tifffile
    except ImportError as error:
        raise DataError("reading this TIFF file needs the package tifffile.", path, _INSTALL_HINT) from error
    silence_logs()
    with tifffile.TiffFile(source) as tiff:
        yield tiff


def check_written(page: Any, path: Path) -> None:
    """Refuse a page with strips or tiles that are not in the file: they would read as zeros.

    Raises
    ------
    DataError: there are such.
    """
    missing = sum(not (offset and size) for offset, size in zip(page.dataoffsets, page.databytecounts, strict=False))
    if missing or not page.dataoffsets:
        raise DataError(f"{missing or 'all'} of its strips or tiles were never written.", path, "Save it again.")


@cache
def silence_logs() -> None:
    """Decoders log what is odd about a file, which Python shows on stderr where no program asks for logs."""
    for name in ("PIL", "tifffile"):
        logging.getLogger(name).addHandler(logging.NullHandler())


@contextmanager
def _silent_libtiff(image: Image.Image) -> Iterator[None]:
    """libtiff writes what is odd about a file on stderr, past Python; whatever else writes there meanwhile is lost."""
    if all(tile[0] != "libtiff" for tile in image.tile):  # type: ignore[attr-defined]
        yield
        return
    with _STDERR_LOCK, ExitStack() as undo:
        with suppress(OSError):  # a process without stderr
            kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
            undo.callback(os.close, kept)
            undo.callback(os.close, nowhere)
            os.dup2(nowhere, 2)
            undo.callback(os.dup2, kept, 2)
        yield


def _tag(image: Image.Image, page: int) -> int:
    image.seek(page)
    return int(getattr(image, "tag_v2", {}).get(_SUBFILE, 0))


def _only(kinds: list[int], path: Path) -> int:
    """The page that is no smaller copy of another one."""
    full = [page for page, kind in enumerate(kinds) if not kind & _REDUCED]
    if not full:
        hint = "The picture itself may be in a sub-directory, as in raw files of cameras: export it as TIFF or PNG."
        raise DataError("all pages of this TIFF file are smaller copies (previews).", path, hint)
    if len(full) > 1:
        raise DataError(f"this TIFF file holds {len(full)} pages.", path, "Save each page as an image file of its own.")
    return full[0]


def _loses_something(image: Image.Image, layout: _Layout) -> bool:
    """Whether Pillow drops bits or a channel, or has no mode for the pixels."""
    deep_colour = layout.bits > 8 and image.mode in {"RGB", "RGBA", "RGBX"}
    tags = image.tag_v2  # type: ignore[attr-defined]
    separate = layout.alpha is not None and tags.get(_PLANAR) == _SEPARATE_PLANES
    reversed_bits = layout.bits >= 8 and tags.get(_FILL_ORDER) == _REVERSED
    return deep_colour or separate or reversed_bits or layout.alpha == "unspecified" or image.mode == "I"


def check_description(description: str, path: Path) -> None:
    """Refuse numbers that stand for others by a calibration of ImageJ, such as signed ones.

    Raises
    ------
    DataError: there is one.
    """
    if description.startswith("ImageJ=") and re.search(r"^cf=", description, re.MULTILINE):
        raise DataError(
            "ImageJ has written it with a calibration of its values (cf=, c0=, c1=).",
            path,
            "Convert it to 32 bits in ImageJ and save it again.",
        )


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


def is_tiff(data: bytes) -> bool:
    """Whether bytes begin like a TIFF file."""
    return data[:4] in _MAGIC


def _all(value: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in value) if isinstance(value, (tuple, list)) else (int(value),)
