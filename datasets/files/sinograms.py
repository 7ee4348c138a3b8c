"""Measured sinograms from .npy, HDF5 and TIFF files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from learnreg.datasets.files.checks import Mask, check_claim, check_file, float_tensor
from learnreg.datasets.files.hdf5 import dataset_names, open_hdf5, read_hdf5_array, read_values
from learnreg.datasets.files.pixels import oriented
from learnreg.datasets.files.tiff import check_description, check_written, described_images, open_tiff
from learnreg.errors import DataError, ShapeError
from learnreg.linear.operator import LinearOperator
from learnreg.operators import FanBeam2D, ParallelBeam2D

__all__ = ["SinogramStack", "dead_mask", "map_npy", "read_array", "read_sinogram"]

_HDF5_SUFFIXES = frozenset({".h5", ".hdf5", ".hdf", ".nxs"})
_TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
_ORIENTATION = 274


def read_sinogram(
    path: str | Path, key: str | None = None, operator: LinearOperator | None = None, counts: bool = False
) -> Tensor:
    """One or several sinograms, shape (count, 1, angles, detectors), in the units of the file.

    An array (angles, detectors) is one sinogram, (count, angles, detectors) and (count, 1, angles, detectors) are
    several; in TIFF files every page is one. float32 stays float32; integers of more than 16 bits and float64 become
    float64. Nothing is scaled, also not integers. Pickled objects are never loaded.

    Parameters
    ----------
    path: of the file.
    key: the data set in an HDF5 file; without it "data", or the only one.
    operator: whose ``range_shape`` the sinograms must have, if given. Values at its dead detectors are not looked at:
        NaN or negative ones become 0, too.
    counts: the values are counts of photons, so that negative ones are an error.

    Raises
    ------
    ShapeError: another shape, or not that of the operator's range.
    DataError: the file is missing, damaged, of an unknown kind or a Git LFS pointer; NaN; negative counts; a ``key``
        for a file that has none; what `read_hdf5_array` names.
    """
    values = read_array(path, key, dead_mask(operator))
    sinograms = values.reshape(-1, 1, *_sides(path, tuple(values.shape), operator)[1:])
    return _checked(sinograms, path, counts)


class SinogramStack(Sequence[Tensor]):
    """The sinograms of a file one by one, (1, 1, angles, detectors) each: as ``read_sinogram`` reads them, but with no
    more than one in memory. Of compressed HDF5 files a chunk at a time, of TIFF files a page.

    Parameters and errors: those of ``read_sinogram``; values are looked at when a sinogram is read.

    Parameters
    ----------
    path, key, operator, counts: as of :func:`learnreg.datasets.read_sinogram`.

    Raises
    ------
    DataError: a file that cannot be read, or without values.
    """

    def __init__(
        self, path: str | Path, key: str | None = None, operator: LinearOperator | None = None, counts: bool = False
    ) -> None:
        self.path, self._counts, self._ignored = check_file(path), counts, dead_mask(operator)
        self._rows = _rows_of(self.path, key)
        if 0 in self._rows.shape:
            raise DataError(f"there are no values in this array of shape {self._rows.shape}.", self.path)
        self._count, *self._shape = _sides(self.path, self._rows.shape, operator)
        self._several = len(self._rows.shape) > 2

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        if not 0 <= index < self._count:
            raise IndexError(index)
        try:
            values = float_tensor(self._rows.read(index if self._several else None), self.path, self._ignored)
            return _checked(values.reshape(1, 1, *self._shape), self.path, self._counts)
        except DataError as error:
            if self._count == 1:
                raise
            raise DataError(f"sinogram {index}: {error.reason}", error.path, error.hint) from error


@dataclass(frozen=True)
class _Rows:
    """An array in a file: its shape, and what reads all of it (None) or one row of its first axis."""

    shape: tuple[int, ...]
    read: Callable[[int | None], np.ndarray[Any, Any]]


def _rows_of(path: Path, key: str | None) -> _Rows:
    suffix = path.suffix.lower()
    if suffix in _HDF5_SUFFIXES:
        name = key if key is not None else _only_key(path)

        def read(row: int | None) -> np.ndarray[Any, Any]:
            with open_hdf5(path, name) as dataset:
                return read_values(dataset, path, row)

        with open_hdf5(path, name) as dataset:
            check_claim(path, math.prod(dataset.shape) * dataset.dtype.itemsize)
            return _Rows(tuple(dataset.shape), read)
    if suffix == ".npy" and key is None:
        mapped = map_npy(path)
        return _Rows(mapped.shape, lambda row: mapped if row is None else mapped[row : row + 1])
    if suffix in _TIFF_SUFFIXES and key is None:

        def read_page(row: int | None) -> np.ndarray[Any, Any]:
            with _opened_tiff(path) as tiff:
                return _values(tiff.pages[row].aspage(), path)[None]

        with _opened_tiff(path) as tiff:
            pages = _checked_pages(tiff, path)
            return _Rows((len(pages), *_turned(pages[0])), read_page)
    read_array(path, key)  # says what is wrong
    raise DataError(f"unknown kind of file {suffix!r}.", path)


def _sides(path: str | Path, shape: tuple[int, ...], operator: LinearOperator | None) -> tuple[int, int, int]:
    """How many sinograms an array of this shape holds, and theirs."""
    if len(shape) not in {2, 3} and not (len(shape) == 4 and shape[1] == 1):
        raise ShapeError(f"{path}: shape {shape}, expected (angles, detectors) or (count, angles, detectors).")
    count, (angles, detectors) = (shape[0] if len(shape) > 2 else 1), shape[-2:]
    found = (1, angles, detectors)
    if operator is not None and found != tuple(operator.range_shape):
        turned = (1, detectors, angles) == tuple(operator.range_shape)
        raise ShapeError(
            f"{path}: sinograms of shape {found}, but {type(operator).__name__} measures "
            f"{tuple(operator.range_shape)}: (1, angles, detectors)."
            + " Is it transposed? Then swap the last two axes of the file."
            * turned
        )
    return count, angles, detectors


def _checked(sinograms: Tensor, path: str | Path, counts: bool) -> Tensor:
    negative = int((sinograms < 0).sum()) if counts else 0
    if negative:
        raise DataError(
            f"{negative} counts are negative, the smallest is {float(sinograms.min()):.6g}.",
            path,
            "Are these line integrals? Then pass counts=False.",
        )
    return sinograms


def dead_mask(operator: LinearOperator | None) -> Mask | None:
    """Which detectors of a projector are dead, (detectors,); None where none is."""
    dead = operator.geometry.dead_detectors if isinstance(operator, (ParallelBeam2D, FanBeam2D)) else ()
    if operator is None or not dead:
        return None
    return np.isin(np.arange(operator.range_shape[-1]), dead)


def read_array(path: str | Path, key: str | None = None, ignored: Mask | None = None) -> Tensor:
    """An array of any shape from a .npy, HDF5 or TIFF file (pages, height, width), unscaled, such as a flat field.

    ignored: where values are replaced by 0, whatever they are, if the last axis has as many places.

    Parameters
    ----------
    path: of the file.
    key: of the array in an HDF5 file; None where there is only one.

    Raises
    ------
    ShapeError, DataError: as `read_sinogram` for the file.
    """
    path = check_file(path)
    suffix = path.suffix.lower()
    if suffix in _HDF5_SUFFIXES:
        return read_hdf5_array(path, key if key is not None else _only_key(path), ignored)
    if key is not None:
        raise DataError(f"key={key!r} was given, but only HDF5 files have keys.", path)
    if suffix == ".npy":
        return float_tensor(map_npy(path), path, ignored)
    if suffix in _TIFF_SUFFIXES:
        return _read_tiff(path, ignored)
    raise DataError(f"unknown kind of file {suffix!r}.", path, "Readable: .npy, .h5, .hdf5, .hdf, .nxs, .tif, .tiff.")


def _only_key(path: Path) -> str:
    names = dataset_names(path)
    if "data" in names:
        return "data"
    if len(names) != 1:
        raise DataError(
            f"it holds {len(names)} data sets at its root: {', '.join(names) or 'none'}.", path, "Pass key=."
        )
    return names[0]


def map_npy(path: Path) -> np.ndarray[Any, Any]:
    """The array of a .npy file, mapped, because only then is the size that the header claims compared with that of the
    file. Pickled objects are never loaded.

    Raises
    ------
    DataError: damaged, an archive, or not of numbers.
    """
    try:
        with np.errstate(over="ignore"):  # sizes beyond 2^63, which do not fit the file
            values: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy parses the header as Python literals, which fail in many ways
        raise DataError(
            f"cannot be read as .npy, it is damaged, truncated or holds objects ({type(error).__name__}: {error}).",
            path,
            "Save a numeric array with numpy.save(path, array).",
        ) from error
    if not isinstance(values, np.ndarray):
        values.close()
        raise DataError("this is an .npz archive.", path, "Save one array with numpy.save(path, array).")
    return values


def _read_tiff(path: Path, ignored: Mask | None) -> Tensor:
    with _opened_tiff(path) as tiff:
        arrays = [_values(page, path) for page in _checked_pages(tiff, path)]
    return float_tensor(np.stack(arrays) if len(arrays) > 1 else arrays[0][None], path, ignored)  # one is not copied


@contextmanager
def _opened_tiff(path: Path) -> Iterator[Any]:
    """The file as tifffile opens it; errors of reading become DataError."""
    try:
        with open_tiff(path, path) as tiff:
            yield tiff
    except (DataError, ShapeError):
        raise
    except MemoryError as error:
        raise DataError("it takes more memory than there is.", path, "Cut it into several files.") from error
    except Exception as error:  # decoders raise anything at all when a file is damaged
        raise DataError(
            f"cannot be decoded, the file is damaged or truncated ({type(error).__name__}: {error}).",
            path,
            "Copy it again.",
        ) from error


def _checked_pages(tiff: Any, path: Path) -> list[Any]:
    """Grey pages of one shape, as many as the file promises."""
    # Page by page: a series may, by its metadata, continue in other files. By number: a ring never ends.
    pages = [tiff.pages[i].aspage() for i in range(len(tiff.pages))]
    check_claim(path, sum(page.nbytes for page in pages))
    _check_pages(pages, path)
    shapes = sorted({_turned(page) for page in pages})
    if len(shapes) != 1 or len(shapes[0]) != 2:
        raise ShapeError(f"{path}: pages of shapes {', '.join(map(str, shapes))}, expected equal grey pages.")
    promised = described_images(pages[0].description, max(1, math.prod(shapes[0])))
    if len(pages) < promised:
        raise DataError(f"{promised} images in {len(pages)} page.", path, "Save every sinogram as a page of its own.")
    return pages


def _values(page: Any, path: Path) -> np.ndarray[Any, Any]:
    check_written(page, path)
    values = page.asarray()
    if values.shape != tuple(page.shape):
        raise DataError(f"a page of shape {tuple(page.shape)} holds {values.shape}.", path, "Copy it again.")
    return oriented(values, _orientation(page))


def _turned(page: Any) -> Any:
    """The shape of a page as it is to be seen."""
    shape = tuple(page.shape)
    return shape[1::-1] + shape[2:] if _orientation(page) > 4 else shape


def _check_pages(pages: list[Any], path: Path) -> None:
    """Measured values are those that are stored: whether 0 is to be shown as white does not matter, colours do."""
    for page in pages:
        if page.ndim == 2 and int(page.photometric) > 1:
            raise DataError(
                f"its values are of kind {page.photometric.name}, expected grey.", path, "Save grey values."
            )
    check_description(pages[0].description, path)


def _orientation(page: Any) -> int:
    tag = page.tags.get(_ORIENTATION)
    return 1 if tag is None else int(tag.value)
