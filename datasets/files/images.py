"""Reading one image file as a tensor in [0, 1], grey or coloured."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import torch
from torch import Tensor

from learnreg.datasets.files.bitmaps import decode_bitmap
from learnreg.datasets.files.checks import check_file
from learnreg.datasets.files.pixels import Picture, colours, luminance
from learnreg.datasets.files.tiff import decode_tiff, is_tiff, silence_logs
from learnreg.errors import DataError
from learnreg.linear.paths import given_path

__all__ = ["IMAGE_SUFFIXES", "read_image"]

#: File name endings taken for images, in lower case.
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})

_FORMATS = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
_INSTALL_HINT = "Install it with: pip install 'learnreg[images]'"
_JPEG = b"\xff\xd8"


def read_image(path: str | Path, noisy: bool = False, colour: bool = False) -> Tensor:
    """Read an image file as a float32 tensor of shape (1, height, width) with values in [0, 1].

    Integer images are divided by the largest value of their bits (255, 4095, 65535), and inverted where 0 stands for
    white; float images must lie in [0, 1] already. They are turned as their orientation says. Colour becomes luma, .299
    red + .587 green + .114 blue. Values are those of the file: no gamma or colour profile is applied. Opacity that
    colours do not depend on is left out, with a warning where pixels are not opaque. Smaller copies among the pages of
    a TIFF file or the pictures of a camera's JPEG file are left out. What a file holds decides, not the end of its
    name.

    Parameters
    ----------
    path: of the file.
    noisy: float images may have any values, as those have whose noise is not cut off.
    colour: red, green and blue, (3, height, width), in place of luma; grey images have three equal channels.

    Raises
    ------
    DataError: the file is missing, truncated, not an image, or holds several images, signed integers, values that are
        not finite or outside [0, 1], colours multiplied by an opacity below 1, inks, CIE L*a*b*, channels beside grey
        or RGB, or more than 2^27 pixels.
    """
    path = given_path(path, "read_image(path)")
    picture = _decode(path, _read_bytes(path))
    if picture.transparent:
        warnings.warn(
            f"{path}: some of its pixels are transparent; their colours are taken as they are stored. Flatten it onto "
            "a background if that is to be seen.",
            stacklevel=2,
        )
    if colour:
        return torch.from_numpy(colours(picture.pixels, path, noisy))
    return torch.from_numpy(luminance(picture.pixels, path, noisy)).unsqueeze(0)


def _read_bytes(path: Path) -> bytes:
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"not an image file, its name ends in {path.suffix!r}.", path, f"Readable formats: {_FORMATS}.")
    try:
        return check_file(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}).", path, "Check the path and its permissions.") from error


def _decode(path: Path, data: bytes) -> Picture:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("reading images needs the package pillow.", path, _INSTALL_HINT) from error
    if data[12:16] == b"CgBI":
        raise DataError("this PNG file is in Apple's own variant (CgBI).", path, "Export it as an ordinary PNG file.")
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # pixels are counted here
            picture = _opened(path, data)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"it has too many pixels ({error}).", path, "Cut it into several files.") from error
    except MemoryError as error:
        raise DataError("it takes more memory than there is.", path, "Cut it into several files.") from error
    except Exception as error:  # decoders raise anything at all when a file is damaged
        if "imagecodecs" in str(error):
            hint = "Install it with: pip install imagecodecs, or save the image uncompressed with 8 or 16 bits."
            raise DataError("decoding it needs the package imagecodecs.", path, hint) from error
        known = " Of JPEG files those of 8 bits with losses can be read." if data.startswith(_JPEG) else ""
        raise DataError(
            f"cannot be decoded, the file is damaged, truncated or not an image{_why(error)}.",
            path,
            f"Copy or download it again, or remove it from the folder.{known}",
        ) from error
    for odd in dict.fromkeys(str(warning.message).strip() for warning in heard):
        warnings.warn(f"{path}: its header is damaged ({odd}); see whether the image is the right one.", stacklevel=3)
    return picture


def _opened(path: Path, data: bytes) -> Picture:
    from PIL import Image, UnidentifiedImageError

    silence_logs()
    try:
        with Image.open(io.BytesIO(data)) as image:
            return decode_tiff(image, data, path) if image.format == "TIFF" else decode_bitmap(image, data, path)
    except UnidentifiedImageError:
        if not is_tiff(data):
            raise
        return decode_tiff(None, data, path)


def _why(error: Exception) -> str:
    """What Pillow says, unless that is only that it does not know the format."""
    return "" if type(error).__name__ == "UnidentifiedImageError" else f" ({error})"
