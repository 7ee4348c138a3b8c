"""One CT slice from a DICOM file, in Hounsfield units."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnreg.datasets.files.checks import check_file
from learnreg.errors import DataError

__all__ = ["DicomHeader", "DicomSlice", "is_dicom", "read_dicom", "read_header"]

_INSTALL_HINT = "Install it with: pip install 'learnreg[ct]'"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_LARGEST_SIDE = 8192
_SORTING_TAGS = ("Modality", "SeriesInstanceUID", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient")


@dataclass(frozen=True)
class DicomSlice:
    """A CT slice.

    Attributes
    ----------
    hounsfield: (1, rows, columns) float32, in Hounsfield units: -1000 is vacuum, 0 water.
    pixel_spacing: distance of rows and of columns in millimetres.
    """

    hounsfield: Tensor
    pixel_spacing: tuple[float, float]
    series_uid: str
    path: Path


def read_dicom(path: str | Path) -> DicomSlice:
    """Read one slice; its pixels become Hounsfield units by RescaleSlope and RescaleIntercept.

    Raises
    ------
    DataError: pydicom is missing; the file is missing, damaged, truncated or not DICOM; not CT, a localizer, in colour
        or of several frames; a tag is missing (named) or senseless; compressed without a decoder installed (named).
    """
    path = check_file(path)
    pydicom = _import_pydicom(path)
    _check_deflated(path, pydicom)
    with _quiet(path):
        dataset = pydicom.dcmread(path)
        _check_kind(dataset, path)
        slope, intercept = (
            _numbers(dataset, "RescaleSlope", 1, path)[0],
            _numbers(dataset, "RescaleIntercept", 1, path)[0],
        )
        spacing = _numbers(dataset, "PixelSpacing", 2, path)
        if slope == 0 or min(spacing) <= 0:
            raise DataError(f"RescaleSlope is {slope:g} and PixelSpacing {spacing}.", path, "The header is damaged.")
        stored, series_uid = _pixels(dataset, path), str(dataset.SeriesInstanceUID)
    hounsfield = (stored.astype(np.float64) * slope + intercept).astype(np.float32)
    return DicomSlice(torch.from_numpy(hounsfield).unsqueeze(0), (spacing[0], spacing[1]), series_uid, path)


@dataclass(frozen=True)
class DicomHeader:
    """What groups and sorts files: None (series and modality: "") where a tag is missing, empty or malformed."""

    modality: str
    series_uid: str
    instance_number: float | None
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None


def is_dicom(path: Path) -> bool:
    """Whether the file has the mark of DICOM files behind a preamble of 128 bytes."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_header(path: Path) -> DicomHeader:
    """The tags that group and sort slices, without reading pixels.

    Raises
    ------
    DataError: pydicom is missing, or the file is damaged.
    """
    pydicom = _import_pydicom(path)
    _check_deflated(path, pydicom)
    with _quiet(path):
        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_SORTING_TAGS))
        number = _tag_numbers(dataset, "InstanceNumber", 1)
        return DicomHeader(
            str(dataset.get("Modality") or ""),
            str(dataset.get("SeriesInstanceUID") or ""),
            None if number is None else number[0],
            _tag_numbers(dataset, "ImagePositionPatient", 3),
            _tag_numbers(dataset, "ImageOrientationPatient", 6),
        )


def _tag_numbers(dataset: Any, keyword: str, count: int) -> tuple[float, ...] | None:
    """The numbers of a tag; None where it is missing, empty or malformed."""
    value = dataset.get(keyword)
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    try:
        numbers = tuple(float(v) for v in values)
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def _import_pydicom(path: Path) -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise DataError("reading DICOM files needs the package pydicom.", path, _INSTALL_HINT) from error
    return pydicom


@contextmanager
def _quiet(path: Path) -> Iterator[None]:
    """Without pydicom's warnings about headers of other vendors; anything else it raises becomes DataError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DataError:
        raise
    except Exception as error:  # pydicom and its decoders raise anything at all when a file is damaged
        raise DataError(
            f"cannot be read, the file is damaged or truncated ({type(error).__name__}: {error}).",
            path,
            "Copy or export it again.",
        ) from error


def _check_deflated(path: Path, pydicom: Any) -> None:
    """Before anything is inflated: the size of what comes out is not bounded by that of the file."""
    if not is_dicom(path):
        raise DataError("this is not a DICOM file (the mark DICM is missing).", path)
    with _quiet(path):
        syntax = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID")
    if syntax is None:
        raise DataError(_missing("TransferSyntaxUID"), path, "Export it again as a DICOM file.")
    if syntax == _DEFLATED:
        raise DataError("its header is deflated.", path, "Export it as Explicit VR Little Endian.")


def _check_kind(dataset: Any, path: Path) -> None:
    modality = _required(dataset, "Modality", path)
    if modality != "CT":
        raise DataError(f"its modality is {modality}, expected CT.", path, "Leave it out.")
    if "LOCALIZER" in (dataset.get("ImageType") or ()):
        raise DataError("this is a localizer, a projection and no slice.", path, "Leave it out.")
    _required(dataset, "SeriesInstanceUID", path)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise DataError(f"it holds {frames} frames.", path, "Export every slice as a file of its own.")
    samples = int(_required(dataset, "SamplesPerPixel", path))
    if samples != 1:
        raise DataError(f"it has {samples} samples per pixel (colour), expected grey values.", path)
    unit = dataset.get("RescaleType") or "HU"
    if unit not in {"HU", "HU_MOD"}:
        raise DataError(f"its values are in {unit!r} (RescaleType), expected HU.", path)


def _pixels(dataset: Any, path: Path) -> np.ndarray[Any, Any]:
    rows, columns = (int(_required(dataset, keyword, path)) for keyword in ("Rows", "Columns"))
    if not (0 < rows <= _LARGEST_SIDE and 0 < columns <= _LARGEST_SIDE):
        raise DataError(f"it has {rows} x {columns} pixels, expected sides of 1 to {_LARGEST_SIDE}.", path)
    for keyword in ("BitsAllocated", "PixelRepresentation", "PhotometricInterpretation", "PixelData"):
        _required(dataset, keyword, path)
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed:
        _check_decoder(syntax, path)
    else:
        expected = rows * columns * int(dataset.BitsAllocated) // 8
        if len(dataset.PixelData) < expected:
            found = len(dataset.PixelData)
            raise DataError(f"truncated: {found} of {expected} bytes of pixels.", path, "Copy or export it again.")
    pixels: np.ndarray[Any, Any] = dataset.pixel_array
    if pixels.shape != (rows, columns):
        raise DataError(f"its pixels have shape {pixels.shape}, the header says {(rows, columns)}.", path)
    return pixels


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


def _required(dataset: Any, keyword: str, path: Path) -> Any:
    value = dataset.get(keyword)
    if value is None or (isinstance(value, (str, bytes)) and not value):
        raise DataError(_missing(keyword), path, "Export it again with all tags of the CT image module.")
    return value


def _numbers(dataset: Any, keyword: str, count: int, path: Path) -> tuple[float, ...]:
    value = _required(dataset, keyword, path)
    numbers = _tag_numbers(dataset, keyword, count)
    if numbers is None:
        raise DataError(f"{keyword} is {value!r}, expected {count} finite number{'s' * (count > 1)}.", path)
    return numbers


def _missing(keyword: str) -> str:
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(keyword) or 0
    return f"the tag {keyword} ({tag >> 16:04X},{tag & 0xFFFF:04X}) is missing or empty."
