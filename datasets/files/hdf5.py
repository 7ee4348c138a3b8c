"""Arrays in HDF5 files, read as data only: nothing outside the file is ever opened."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from learnreg.datasets.files.checks import Mask, check_claim, check_file, float_tensor
from learnreg.errors import DataError, LearnregError

__all__ = ["check_chunks", "dataset_names", "group_names", "open_hdf5", "read_hdf5_array", "read_values"]

_INSTALL_HINT = "Install it with: pip install 'learnreg[ct]'"
_SELF_CONTAINED = "Only data inside the file itself is read: write them into one file."
_WRITE_AGAIN = "Write or download it again."
_WRITE_AS = {"fiu": "Save float32 or float64.", "c": "Save complex64 or complex128."}
_HELD = {"c": "complex numbers", "fiu": "real numbers", "V": "records", "OS": "text"}
_FILTERS = {
    4: "SZIP",
    305: "LZO",
    307: "bzip2",
    32001: "Blosc",
    32004: "LZ4",
    32008: "bitshuffle",
    32013: "ZFP",
    32015: "Zstandard",
    32026: "Blosc2",
}
#: Attributes by which netCDF and NeXus say that values stand for others, and what they say when they do not.
_PACKING = {"scale_factor": 1, "add_offset": 0, "scaling_factor": 1, "_Unsigned": "false"}
_MISSING_VALUES = ("_FillValue", "missing_value")
_FILL_VALUE_OF_USER = 2  # H5D_FILL_VALUE_USER_DEFINED


def read_hdf5_array(path: str | Path, key: str = "data", ignored: Mask | None = None) -> Tensor:
    """The whole data set ``key`` ("group/name" inside groups), unscaled, see ``float_tensor`` in ``checks``, also for
    ``ignored``.

    Parameters
    ----------
    path: of the file.

    Raises
    ------
    DataError: h5py is missing; the file is missing, truncated, a Git LFS pointer or not HDF5; the data set is missing,
        reached by a link, virtual, stored in other files, not numeric, or compressed by a filter that is not installed
        (named); parts of it were never written, hold its fill value or NaN; its attributes say that values stand for
        others.
    """
    with open_hdf5(path, key) as dataset:
        return float_tensor(read_values(dataset, path), path, ignored)


def read_values(dataset: Any, path: str | Path, row: int | None = None) -> np.ndarray[Any, Any]:
    """The values of a data set, or those of one ``row`` of its first axis, as (1, ...).

    Raises
    ------
    DataError: the file cannot hold so many; chunks of them were never written, or some are the fill value.
    """
    shape = dataset.shape if row is None else (1, *dataset.shape[1:])
    check_claim(Path(path), math.prod(shape) * dataset.dtype.itemsize)
    check_chunks(dataset, path, row)
    values = np.asarray(dataset[()] if row is None else dataset[row : row + 1])
    for marker in _missing_values(dataset):
        count = int((values == marker).sum())
        if count:
            raise DataError(
                f"{count} of {values.size} values are the fill value {marker:g}: they were never measured or written.",
                path,
                "Repair or leave out these parts before using it.",
            )
    return values


def dataset_names(path: str | Path) -> list[str]:
    """Names of the data sets at the root of a file; links are left out.

    Raises
    ------
    DataError: as `read_hdf5_array` for the file.
    """
    with _opened(path) as file:
        return _names(file)


def group_names(path: str | Path) -> list[str]:
    """Names of the groups at the root of a file; links are left out.

    Raises
    ------
    DataError: as `read_hdf5_array` for the file.
    """
    with _opened(path) as file:
        return _names(file, groups=True)


@contextmanager
def open_hdf5(path: str | Path, key: str, kinds: str = "fiu") -> Iterator[Any]:
    """The h5py data set ``key`` while the context lasts; errors of reading inside it become DataError. kinds: of its
    NumPy dtype; real numbers where nothing else is asked for."""
    with _opened(path) as file:
        yield _checked(_find(file, key, path), key, path, kinds)


def _import_h5py(path: str | Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise DataError("reading HDF5 files needs the package h5py.", path, _INSTALL_HINT) from error
    return h5py


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    h5py = _import_h5py(path)
    path = check_file(path)
    if not h5py.is_hdf5(path):
        raise DataError("this is not an HDF5 file, or its beginning is damaged.", path, "Copy or download it again.")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except LearnregError:
        raise
    except MemoryError as error:
        raise DataError("it takes more memory than there is.", path, "Cut it into several files.") from error
    except Exception as error:  # h5py raises anything at all when a file is damaged
        raise DataError(
            f"cannot be read, the file is truncated or damaged ({type(error).__name__}: {error}).",
            path,
            "Copy or download it again.",
        ) from error


def _find(file: Any, key: str, path: str | Path) -> Any:
    """Walk hard links only: asking h5py for a name would open the files that external links point to."""
    import h5py

    node = file
    for part in [part for part in key.split("/") if part]:
        links = node.id.links if isinstance(node, h5py.Group) else None
        if links is None or not links.exists(part.encode()):
            raise DataError(
                f"there is no data set {key!r}.", path, f"At the root: {', '.join(_names(file)) or 'none'}."
            )
        if links.get_info(part.encode()).type != h5py.h5l.TYPE_HARD:
            raise DataError(f"{key!r} is reached by a link ({part!r}).", path, _SELF_CONTAINED)
        node = node[part]
    if not isinstance(node, h5py.Dataset):
        raise DataError(f"{key!r} is a group.", path, f"Data sets in it: {', '.join(_names(node)) or 'none'}.")
    return node


def _names(group: Any, groups: bool = False) -> list[str]:
    from h5py import Dataset, Group, h5l

    readable = [name for name in group if isinstance(name, str)]  # others are bytes
    hard = [name for name in readable if group.id.links.get_info(name.encode()).type == h5l.TYPE_HARD]
    return [name for name in hard if isinstance(group[name], Group if groups else Dataset)]


def _checked(dataset: Any, key: str, path: str | Path, kinds: str) -> Any:
    import h5py

    if dataset.is_virtual:
        raise DataError(f"{key!r} is a virtual data set, made of others.", path, _SELF_CONTAINED)
    if dataset.external:
        raise DataError(f"the values of {key!r} are stored in other files.", path, _SELF_CONTAINED)
    names = h5py.check_enum_dtype(dataset.dtype)
    if dataset.dtype.kind not in kinds or names is not None:
        held = dataset.dtype if names is None else f"names ({', '.join(names)})"
        raise DataError(f"{key!r} holds {held}, expected {_HELD[kinds]}.", path, _WRITE_AS.get(kinds, _WRITE_AGAIN))
    if dataset.shape is None:
        raise DataError(f"{key!r} has no shape and no values.", path, _WRITE_AGAIN)
    if dataset.size and dataset.id.get_storage_size() == 0:
        raise DataError(f"{key!r} was created but never written.", path, _WRITE_AGAIN)
    for name, plain in _PACKING.items():
        value = dataset.attrs.get(name, plain)
        if np.any(np.asarray(value) != np.asarray(plain)):
            raise DataError(
                f"the values of {key!r} stand for others by its attribute {name} = {value}.",
                path,
                "Apply it, save the numbers that are meant, and leave the attribute out.",
            )
    _check_filters(dataset, key, path)
    return dataset


def _check_filters(dataset: Any, key: str, path: str | Path) -> None:
    missing = _missing_filters(dataset)
    if missing:
        with suppress(ImportError):
            importlib.import_module("hdf5plugin")  # registers its filters
        missing = _missing_filters(dataset)
    if missing:
        raise DataError(
            f"{key!r} is compressed by a filter that is not installed: {', '.join(missing)}.",
            path,
            "Install it with: pip install hdf5plugin, or compress the file with gzip: h5repack -f GZIP=4 OLD NEW",
        )


def _missing_filters(dataset: Any) -> list[str]:
    from h5py import h5z

    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(i) for i in range(plist.get_nfilters())]
    return [
        f"{_FILTERS.get(number) or name.decode(errors='replace') or 'unknown'} (number {number})"
        for number, _, _, name in filters
        if not h5z.filter_avail(number)
    ]


def check_chunks(dataset: Any, path: str | Path, row: int | None = None) -> None:
    """Refuse a data set, or a ``row`` of its first axis, with chunks that were never written: they read as zeros, or as
    whatever the fill value is.

    Raises
    ------
    DataError: there are such chunks.
    """
    if dataset.chunks is None:
        return
    counts = [-(-n // chunk) for n, chunk in zip(dataset.shape, dataset.chunks, strict=True)]
    total, written = math.prod(counts), dataset.id.get_num_chunks()
    if written >= total:
        return
    if row is None:
        raise DataError(f"{total - written} of {total} chunks were never written.", path, _WRITE_AGAIN)
    places = [range(0, n, chunk) for n, chunk in zip(dataset.shape[1:], dataset.chunks[1:], strict=True)]
    first = row - row % dataset.chunks[0]
    for place in itertools.product([first], *places):
        if dataset.id.get_chunk_info_by_coord(place).byte_offset is None:
            raise DataError(f"parts of sample {row} were never written.", path, _WRITE_AGAIN)


def _missing_values(dataset: Any) -> list[float]:
    """Numbers that mark values as missing: by attributes of netCDF, or a fill value that somebody chose (0 and NaN
    apart: zeros are numbers, and NaN is refused anyway)."""
    chosen = [dataset.attrs[name] for name in _MISSING_VALUES if name in dataset.attrs]
    if dataset.id.get_create_plist().fill_value_defined() == _FILL_VALUE_OF_USER and dataset.fillvalue != 0:
        chosen.append(dataset.fillvalue)
    markers = [np.ravel(value) for value in chosen]
    return sorted({float(n) for row in markers if row.dtype.kind in "fiu" for n in row if np.isfinite(n)})
