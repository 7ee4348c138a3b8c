"""PNG, JPEG, BMP, GIF and WebP, decoded by Pillow with all their bits."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from learnreg.datasets.files.pixels import Picture, check_size, oriented, split_alpha
from learnreg.datasets.files.png import check_rows
from learnreg.errors import DataError

if TYPE_CHECKING:
    from PIL import ImageFile

__all__ = ["decode_bitmap"]

_FORMATS = frozenset({"PNG", "JPEG", "MPO", "BMP", "DIB", "GIF", "WEBP"})
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "I", "I;16", "I;16B"})
#: How Pillow names 16-bit colour of PNG, and the name under which it takes the lower bytes instead of the upper ones.
_DEEP_PNG = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L", "LA;16B": "RGBA"}
_ORIENTATION = 274
_MP_ENTRIES = 0xB002  # the tag of the list of pictures in MPO files


def decode_bitmap(image: ImageFile.ImageFile, data: bytes, path: Path) -> Picture:
    """The only picture of an opened file, whose bytes are ``data``, turned as its orientation says.

    Raises
    ------
    DataError: another format, several pictures, colours that are not grey, palette or RGB, too many pixels, or, of PNG,
        more or fewer than its data are.
    """
    if image.format not in _FORMATS:
        raise DataError(f"by its content this is a file of format {image.format}.", path, "Save it as PNG or TIFF.")
    count = _count(image)
    if count != 1:
        raise DataError(f"it holds {count} pictures (frames).", path, "Save each as an image file of its own.")
    if image.mode not in _MODES:
        raise DataError(
            f"its colours are {image.mode}, and what these are in grey depends on inks and profiles.",
            path,
            "Convert it to RGB or grey with a program that manages colours.",
        )
    check_size(*image.size, path)
    if image.format == "PNG":
        check_rows(data, path)
    return _pixels(image, data, path)


def _count(image: ImageFile.ImageFile) -> int:
    """How many pictures there are; smaller copies and maps of highlights in JPEG files of cameras are none."""
    if image.format != "MPO":
        return int(getattr(image, "n_frames", 1))
    if b"hdrgm:Version" in image.info.get("xmp", b""):  # Ultra HDR: the first is the picture, another brightens it
        return 1
    kinds = [entry["Attribute"]["MPType"] for entry in image.mpinfo[_MP_ENTRIES]]  # type: ignore[attr-defined]
    return sum(not kind.startswith("Large Thumbnail") for kind in kinds)


def _pixels(image: ImageFile.ImageFile, data: bytes, path: Path) -> Picture:
    keyed = "transparency" in image.info  # a colour or entries of the palette that are transparent
    raw = image.tile[0][3] if image.format == "PNG" and image.tile else ""
    if raw in _DEEP_PNG:
        picture = _deep_png(image, str(raw), data, path)
    elif image.mode in {"LA", "RGBA", "PA"} or (image.mode == "P" and keyed):
        picture = split_alpha(np.asarray(image if image.mode == "LA" else image.convert("RGBA")), path)
    elif image.mode in {"P", "RGBX"}:
        picture = Picture(np.asarray(image.convert("RGB")))
    elif image.mode == "I":  # Pillow before 11.3 widens 16-bit grey PNG to 32 bits
        picture = Picture(np.asarray(image).astype(np.uint16), keyed)
    else:
        picture = Picture(np.asarray(image), keyed)
    return Picture(oriented(picture.pixels, int(image.getexif().get(_ORIENTATION, 1))), picture.transparent)


def _deep_png(image: ImageFile.ImageFile, raw: str, data: bytes, path: Path) -> Picture:
    """Colour of 16 bits, of which Pillow keeps the upper bytes: decoded once more for the lower ones."""
    from PIL import Image

    keyed = "transparency" in image.info
    upper = np.asarray(image)
    with Image.open(io.BytesIO(data)) as again:
        again.tile = [(*again.tile[0][:3], _DEEP_PNG[raw])]  # type: ignore[list-item]
        lower = np.asarray(again)
    if raw == "LA;16B":  # grey and alpha of 16 bits take the bytes of colour and alpha of 8 bits
        return split_alpha(np.ascontiguousarray(lower).view(">u2").astype(np.uint16), path, white=65535)
    pixels = (upper.astype(np.uint16) << 8) | lower
    return split_alpha(pixels, path, white=65535) if pixels.shape[2] == 4 else Picture(pixels, keyed)
