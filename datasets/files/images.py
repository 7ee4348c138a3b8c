"""Reading one image file as a grey tensor in [0, 1]."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from learnreg.datasets.files.tiff import TiffLayout, full_pages, oriented
from learnreg.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["IMAGE_SUFFIXES", "LUMA", "read_image"]

#: File name endings taken for images, in lower case.
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
#: Weights of red, green and blue in the grey value (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)

_TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
_BITS_PER_SAMPLE = 258  # the TIFF tag
_FORMATS = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
_INSTALL_HINT = "Install it with: pip install 'learnreg[images]'"


def read_image(path: str | Path, noisy: bool = False) -> Tensor:
    """Read an image file as a float32 tensor of shape (1, height, width) with values in [0, 1].

    Integer images are divided by the largest value of their bits (255, 4095, 65535), and inverted where 0 stands for
    white; float images must lie in [0, 1] already. They are turned as their orientation says. Colour becomes luma, .299
    red + .587 green + .114 blue; an alpha channel is dropped. Colour PNG files of 16 bits are read at 8 bits. Smaller
    copies among the pages of a TIFF file are left out.

    Parameters
    ----------
    noisy: float images may have any values, as those have whose noise is not cut off.

    Raises
    ------
    DataError: the file is missing, truncated, not an image, holds several images, signed integers, or values that are
        not finite or outside [0, 1].
    """
    path = Path(path)
    pixels = _to_unit_range(_decode(path, _read_bytes(path)), path, noisy)
    if pixels.ndim == 3:
        pixels = _to_luma(pixels, path, noisy)
    if pixels.ndim != 2 or pixels.size == 0:
        raise DataError(f"expected a grey or colour image, got an array of shape {pixels.shape}", path)
    return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32)).unsqueeze(0)


def _read_bytes(path: Path) -> bytes:
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"not an image file, its name ends in {path.suffix!r}.", path, f"Readable formats: {_FORMATS}.")
    if not path.exists():
        raise DataError("this image file does not exist.", path, "Check the path.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}).", path, "Check the path and its permissions.") from error
    if not data:
        raise DataError("this image file is empty (0 bytes).", path, "Copy or download it again.")
    return data


def _decode(path: Path, data: bytes) -> np.ndarray[Any, Any]:
    """The pixels as they are stored: (height, width) or (height, width, channels), integer, bool or float."""
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise DataError("reading images needs the package pillow.", path, _INSTALL_HINT) from error
    is_tiff = path.suffix.lower() in _TIFF_SUFFIXES
    try:
        try:
            with Image.open(io.BytesIO(data)) as image:
                if not is_tiff:
                    return _pixels(ImageOps.exif_transpose(image))
                pages = full_pages(image)
                if pages == 1:
                    layout = TiffLayout.of(dict(image.tag_v2), path)  # type: ignore[attr-defined]
                    if not _is_deep_colour(image):
                        return layout.scaled(_pixels(image), path)  # Pillow has turned it already
        except UnidentifiedImageError:
            if not is_tiff:
                raise
            pages = 1
        if pages == 1:
            return _decode_tiff(path, data)
    except DataError:
        raise
    except Exception as error:  # decoders raise anything at all when a file is damaged
        if "imagecodecs" in str(error):
            hint = "Install it with: pip install imagecodecs, or save the image uncompressed with 8 or 16 bits."
            raise DataError("decoding it needs the package imagecodecs.", path, hint) from error
        raise DataError(
            f"cannot be decoded, the file is damaged, truncated or not an image ({type(error).__name__}: {error}).",
            path,
            "Copy or download it again, or remove it from the folder.",
        ) from error
    raise DataError(f"this TIFF file holds {pages} pages.", path, "Save each page as an image file of its own.")


def _is_deep_colour(image: Image.Image) -> bool:
    """Whether Pillow would drop bits: it has no colour mode of more than 8 bits."""
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))
    return image.mode in {"RGB", "RGBA", "RGBX"} and max(bits) > 8


def _pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    if image.mode == "I" and image.format == "PNG":  # Pillow before 11.3 widens 16-bit grey PNG to 32 bits
        return np.asarray(image).astype(np.uint16)
    if image.mode in {"1", "L", "F", "I", "RGB"} or image.mode.startswith("I;16"):
        return np.asarray(image)
    if image.mode in {"LA", "La"}:
        return np.asarray(image.convert("LA"))[..., 0]
    return np.asarray(image.convert("RGBA" if "transparency" in image.info else "RGB"))


def _decode_tiff(path: Path, data: bytes) -> np.ndarray[Any, Any]:
    """Colour of 16 bits and floating-point colour."""
    try:
        import tifffile
    except ImportError as error:
        raise DataError("reading this TIFF file needs the package tifffile.", path, _INSTALL_HINT) from error
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        count = sum(not page.aspage().is_reduced for page in tiff.pages)
        if count != 1:
            raise DataError(f"this TIFF file holds {count} pages.", path, "Save each page as an image file of its own.")
        page = tiff.pages.first
        kinds = tifffile.PHOTOMETRIC
        if page.photometric not in {kinds.MINISBLACK, kinds.MINISWHITE, kinds.RGB}:
            raise DataError("this TIFF file is neither grey nor RGB.", path, "Convert it to 8-bit PNG.")
        layout = TiffLayout.of({tag.code: tag.value for tag in page.tags.values()}, path)
        pixels = page.asarray()
        if page.axes.startswith("S"):  # separate planes
            pixels = np.moveaxis(pixels, 0, -1)
        if layout.bits <= 8 and layout.white_is_zero:
            pixels = 2**layout.bits - 1 - pixels
    return oriented(layout.scaled(pixels, path), layout.orientation)


def _to_unit_range(pixels: np.ndarray[Any, Any], path: Path, noisy: bool) -> np.ndarray[Any, Any]:
    if pixels.dtype == np.bool_:
        return pixels.astype(np.float64)
    if pixels.dtype.kind == "u":
        return pixels / float(np.iinfo(pixels.dtype).max)
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
    if (low < 0 or high > 1) and not noisy:
        raise DataError(
            f"a float image must lie in [0, 1], its values span [{low:.6g}, {high:.6g}].", path, "Rescale it to [0, 1]."
        )
    return pixels.astype(np.float64)


def _to_luma(pixels: np.ndarray[Any, Any], path: Path, noisy: bool) -> np.ndarray[Any, Any]:
    channels = pixels.shape[2]
    if channels in {1, 2}:  # grey, grey and alpha
        return pixels[..., 0]
    if channels in {3, 4}:
        luma: np.ndarray[Any, Any] = pixels[..., :3] @ np.array(LUMA)
        return luma if noisy else np.clip(luma, 0.0, 1.0)  # the rounded weights can sum to one plus an ulp
    raise DataError(f"expected 1 to 4 channels, got {channels}.", path, "Save it as a grey or RGB image.")
