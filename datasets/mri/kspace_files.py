"""Measured k-space from .npy files and from HDF5 files in the layouts of fastMRI and ISMRMRD; read as data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnreg.datasets.files.checks import check_file
from learnreg.datasets.files.hdf5 import dataset_names, group_names, open_hdf5, read_values
from learnreg.datasets.files.sinograms import map_npy
from learnreg.datasets.mri.ismrmrd import read_ismrmrd
from learnreg.errors import DataError, ShapeError

__all__ = ["KSpace", "is_kspace_file", "read_kspace"]

_HDF5_SUFFIXES = frozenset({".h5", ".hdf5", ".hdf", ".mrd"})


@dataclass(frozen=True)
class KSpace:
    """Measured k-space.

    data: complex (slices, coils, H, W), frequency zero at (H // 2, W // 2), 0 where nothing was measured.
    mask: boolean (H, W), where it was measured: where a slice or coil is not 0.
    image_sides: (h, w) of the middle of the image that the scanner means, where the file tells; else (H, W).

    Examples
    --------
    >>> data, mask = torch.zeros(1, 4, 8, 8, dtype=torch.complex64), torch.zeros(8, 8, dtype=torch.bool)
    >>> mask[:, ::2] = True
    >>> lr.datasets.KSpace(data, mask, (8, 8)).lines.sum()
    tensor(4)
    """

    data: Tensor
    mask: Tensor
    image_sides: tuple[int, int]

    @property
    def lines(self) -> Tensor:
        """Boolean (W,): the lines of which something was measured."""
        return self.mask.any(0)


def read_kspace(path: str | Path, select: Mapping[str, int] | None = None) -> KSpace:
    """K-space of Cartesian lines, unscaled.

    A .npy file holds a complex array (H, W), (coils, H, W) or (slices, coils, H, W). HDF5 files are those of fastMRI
    (a data set "kspace", (slices, H, W) or (slices, coils, H, W)) or of ISMRMRD (a group "dataset" with "data" and
    "xml"). Points that are 0 in all slices and coils count as not measured.

    Parameters
    ----------
    path: of the file.
    select: of an ISMRMRD file, which contrast, phase, repetition or set, by number, where it holds several.

    Raises
    ------
    ShapeError: another number of axes.
    DataError: missing, damaged, of an unknown kind, real numbers, NaN, nothing but zeros; ISMRMRD: not Cartesian, 3-D,
        several contrasts or the like without ``select``, lines outside the encoded matrix.
    """
    path = check_file(path)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _of_array(map_npy(path), path, ("coils", "H", "W"))
    if suffix not in _HDF5_SUFFIXES:
        raise DataError(f"unknown kind of file {suffix!r}.", path, "Readable k-space: .npy, .h5, .hdf5, .hdf, .mrd.")
    if "kspace" in dataset_names(path):
        with open_hdf5(path, "kspace", kinds="c") as dataset:
            return _of_array(read_values(dataset, path), path, ("slices", "H", "W"))
    if "dataset" in group_names(path):
        lines, sides = read_ismrmrd(path, select or {})
        found = _of_array(lines, path, ("slices", "H", "W"))
        return KSpace(found.data, found.mask, sides)
    raise DataError(
        'it holds neither "kspace" (fastMRI) nor a group "dataset" (ISMRMRD).',
        path,
        f"At its root: {', '.join([*dataset_names(path), *group_names(path)]) or 'nothing'}.",
    )


def is_kspace_file(path: Path) -> bool:
    """Whether ``read_kspace`` reads files of that name."""
    return path.suffix.lower() in _HDF5_SUFFIXES | {".npy"} and not path.name.startswith(".")


def _of_array(values: np.ndarray[Any, Any], path: Path, three: tuple[str, str, str]) -> KSpace:
    """Checked; three: what the axes of an array of three axes are."""
    if values.dtype.kind != "c":
        raise DataError(f"it holds {values.dtype}, expected complex numbers.", path, "Save complex64 or complex128.")
    if values.ndim not in (2, 3, 4) or not values.size:
        raise ShapeError(
            f"{path}: shape {values.shape}, expected (H, W), ({', '.join(three)}) or (slices, coils, H, W)."
        )
    try:
        data = torch.from_numpy(np.array(values, dtype=np.complex64 if values.dtype.itemsize <= 8 else np.complex128))
    except MemoryError as error:
        raise DataError("it takes more memory than there is.", path, "Cut it into several files.") from error
    bad = int((~torch.isfinite(torch.view_as_real(data))).any(-1).sum())
    if bad:
        raise DataError(f"{bad} of {data.numel()} values are NaN or infinite.", path, "Repair them before using it.")
    if data.dim() == 3:
        data = data[None] if three[0] == "coils" else data[:, None]
    elif data.dim() == 2:
        data = data[None, None]
    mask = (data != 0).flatten(0, 1).any(0)
    if not bool(mask.any()):
        raise DataError("all values are 0: nothing was measured.", path, "Copy or export it again.")
    return KSpace(data, mask, (data.shape[-2], data.shape[-1]))
