"""Opening DICOM files and reading their tags."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from learnreg.datasets.files.checks import check_file
from learnreg.errors import DataError

__all__ = ["is_dicom", "numbers", "opened", "required", "tag_numbers"]

_INSTALL_HINT = "Install it with: pip install 'learnreg[ct]'"
_DEFLATED = "1.2.840.10008.1.2.1.99"


def is_dicom(path: Path) -> bool:
    """Whether the file has the mark of DICOM files behind a preamble of 128 bytes."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


@contextmanager
def opened(path: Path, tags: Sequence[str] | None = None) -> Iterator[Any]:
    """The pydicom data set of a file, or only some of its ``tags``, while the context lasts; errors of reading inside
    it become DataError.

    Raises
    ------
    DataError: pydicom is missing; the file is missing, not DICOM, damaged or deflated.
    """
    path = check_file(path)
    try:
        import pydicom
    except ImportError as error:
        raise DataError("reading DICOM files needs the package pydicom.", path, _INSTALL_HINT) from error
    if not is_dicom(path):
        raise DataError("this is not a DICOM file (the mark DICM is missing).", path)
    with _quiet(path):
        syntax = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID")
        if syntax is None:
            raise DataError(_missing("TransferSyntaxUID"), path, "Export it again as a DICOM file.")
        if syntax == _DEFLATED:  # the size of what comes out is not bounded by that of the file
            raise DataError("its header is deflated.", path, "Export it as Explicit VR Little Endian.")
        if tags is None:
            yield pydicom.dcmread(path)
        else:
            yield pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags))


@contextmanager
def _quiet(path: Path) -> Iterator[None]:
    """Without pydicom's warnings about headers of other vendors; anything else it raises becomes DataError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DataError:
        raise
    except MemoryError as error:
        raise DataError("it takes more memory than there is.", path, "Export fewer frames to a file.") from error
    except Exception as error:  # pydicom and its decoders raise anything at all when a file is damaged
        raise DataError(
            f"cannot be read, the file is damaged or truncated ({type(error).__name__}: {error}).",
            path,
            "Copy or export it again.",
        ) from error


def tag_numbers(dataset: Any, keyword: str, count: int) -> tuple[float, ...] | None:
    """The numbers of a tag; None where it is missing, empty or malformed."""
    value = dataset.get(keyword)
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    try:
        found = tuple(float(v) for v in values)
    except (TypeError, ValueError):
        return None
    return found if len(found) == count and all(map(math.isfinite, found)) else None


def required(dataset: Any, keyword: str, path: Path) -> Any:
    """The value of a tag.

    Raises
    ------
    DataError: it is missing or empty.
    """
    value = dataset.get(keyword)
    if value is None or (isinstance(value, (str, bytes)) and not value):
        raise DataError(_missing(keyword), path, "Export it again with all tags of the CT image module.")
    return value


def numbers(dataset: Any, keyword: str, count: int, path: Path) -> tuple[float, ...]:
    """The numbers of a tag.

    Raises
    ------
    DataError: it is missing, empty or malformed.
    """
    value = required(dataset, keyword, path)
    found = tag_numbers(dataset, keyword, count)
    if found is None:
        raise DataError(f"{keyword} is {value!r}, expected {count} finite number{'s' * (count > 1)}.", path)
    return found


def _missing(keyword: str) -> str:
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(keyword) or 0
    return f"the tag {keyword} ({tag >> 16:04X},{tag & 0xFFFF:04X}) is missing or empty."
