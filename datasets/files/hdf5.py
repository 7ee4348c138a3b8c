"""Arrays in HDF5 files, read as data only: nothing outside the file is ever opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from learnreg.datasets.files.checks import Mask, check_claim, check_file, float_tensor
from learnreg.errors import DataError, LearnregError

__all__ = ["dataset_names", "open_hdf5", "read_hdf5_array"]

_INSTALL_HINT = "Install it with: pip install 'learnreg[ct]'"
_SELF_CONTAINED = "Only data inside the file itself is read: write them into one file."


def read_hdf5_array(path: str | Path, key: str = "data", ignored: Mask | None = None) -> Tensor:
    """The whole data set ``key`` ("group/name" inside groups), unscaled, see ``float_tensor`` in ``checks``, also for
    ``ignored``.

    Raises
    ------
    DataError: h5py is missing; the file is missing, truncated, a Git LFS pointer or not HDF5; the data set is missing,
        reached by a link, virtual, stored in other files, never written, not numeric, or holds NaN.
    """
    with open_hdf5(path, key) as dataset:
        check_claim(Path(path), dataset.nbytes)
        return float_tensor(np.asarray(dataset[()]), path, ignored)


def dataset_names(path: str | Path) -> list[str]:
    """Names of the data sets at the root of a file; links are left out.

    Raises
    ------
    DataError: as `read_hdf5_array` for the file.
    """
    with _opened(path) as file:
        return _names(file)


@contextmanager
def open_hdf5(path: str | Path, key: str) -> Iterator[Any]:
    """The h5py data set ``key`` while the context lasts; errors of reading inside it become DataError."""
    with _opened(path) as file:
        yield _checked(_find(file, key, path), key, path)


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


def _names(group: Any) -> list[str]:
    from h5py import Dataset, h5l

    readable = [name for name in group if isinstance(name, str)]  # others are bytes
    hard = [name for name in readable if group.id.links.get_info(name.encode()).type == h5l.TYPE_HARD]
    return [name for name in hard if isinstance(group[name], Dataset)]


def _checked(dataset: Any, key: str, path: str | Path) -> Any:
    if dataset.is_virtual:
        raise DataError(f"{key!r} is a virtual data set, made of others.", path, _SELF_CONTAINED)
    if dataset.external:
        raise DataError(f"the values of {key!r} are stored in other files.", path, _SELF_CONTAINED)
    if dataset.dtype.kind not in "fiu":
        raise DataError(f"{key!r} holds {dataset.dtype}, expected real numbers.", path, "Save float32 or float64.")
    if dataset.shape is None:
        raise DataError(f"{key!r} has no shape and no values.", path, "Write or download it again.")
    if dataset.size and dataset.id.get_storage_size() == 0:
        raise DataError(f"{key!r} was created but never written.", path, "Write or download it again.")
    return dataset
