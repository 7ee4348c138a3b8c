"""The system matrix of a geometry, built by the ASTRA toolbox on the CPU in units of pixels."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from learnreg.errors import ConfigError, OperatorError
from learnreg.operators.tomography.geometry import FanGeometry, Geometry
from learnreg.operators.tomography.rays import Kernel, curved_vectors, view_vectors
from learnreg.progress import counted

__all__ = ["SparseRows", "build_rows", "check_entries", "require"]

_ENTRIES_AT_ONCE = 20_000_000
"""Entries that ASTRA holds at a time, in several copies."""

_INT32_LIMIT = 2**31 - 1


class SparseRows(NamedTuple):
    """Rows of a sparse matrix: starts (rows + 1,) int32, columns int32, ascending in each row, and values float32."""

    starts: npt.NDArray[np.int32]
    columns: npt.NDArray[np.int32]
    values: npt.NDArray[np.float32]


def require(module: str, package: str) -> Any:
    """The module, or ConfigError naming the extra that installs its package."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"projectors need {package}, which cannot be imported ({error}). "
            "Install it with: pip install 'learnreg[ct]'"
        ) from error


def build_rows(geometry: Geometry, kernel: Kernel, rows: npt.NDArray[np.int64]) -> SparseRows:
    """These rows (view · detectors + detector, in any order) of the system matrix; entries are lengths in pixels.

    Raises
    ------
    ConfigError: astra is not installed. OperatorError: more than 2^31 - 1 entries.
    """
    astra, pixels = require("astra", "the ASTRA toolbox"), geometry.in_pixels()
    order = np.argsort(rows)
    ascending = rows[order]
    views, detectors = np.divmod(ascending, geometry.detectors)
    used, last = np.unique(views), int(detectors.max()) + 1
    per_view = 3 * geometry.image_size * max(last, geometry.image_size)
    step = max(1, _ENTRIES_AT_ONCE // per_view)
    parts: list[Any] = []
    for first in counted(range(0, used.size, step), "building the matrix of the scan"):
        chosen = used[first : first + step]
        kept = (views >= chosen[0]) & (views <= chosen[-1])
        matrix = _matrix(astra, pixels, kernel, chosen, last)
        matrix = matrix[np.searchsorted(chosen, views[kept]) * last + detectors[kept]].astype(np.float32)
        matrix.data.clip(0.0, None, out=matrix.data)  # strips have rounding errors of 1e-7 below zero
        matrix.eliminate_zeros()
        matrix.sort_indices()
        parts.append(matrix)
        check_entries(sum(part.nnz for part in parts))
    whole = require("scipy.sparse", "SciPy").vstack(parts, format="csr")[np.argsort(order)]
    return SparseRows(whole.indptr.astype(np.int32), whole.indices.astype(np.int32), whole.data)


def check_entries(count: int) -> None:
    """Raise OperatorError where int32 cannot number the entries of a matrix."""
    if count > _INT32_LIMIT:
        raise OperatorError(
            "the matrix of this scan has more than 2^31 - 1 entries. Use angles with symmetries (docs/tomography.md), "
            "fewer of them, or a smaller image.",
            "memory",
        )


def _matrix(astra: Any, geometry: Geometry, kernel: Kernel, views: npt.NDArray[np.int64], last: int) -> Any:
    """scipy.sparse matrix of the first ``last`` detectors of some views; lengths in pixels."""
    angles = np.asarray(geometry.angles)[views]
    if isinstance(geometry, FanGeometry) and kernel == "strip":  # ASTRA has no other form of it
        behind = geometry.source_to_detector - geometry.source_to_center
        scan = astra.create_proj_geom(
            "fanflat", geometry.detector_pitch, geometry.detectors, angles, geometry.source_to_center, behind
        )
        keep = (np.arange(views.size)[:, None] * geometry.detectors + np.arange(last)).reshape(-1)
        with _exported(astra, "strip_fanflat", scan, geometry.image_size) as matrix:
            return matrix[keep]
    fan = isinstance(geometry, FanGeometry)
    if isinstance(geometry, FanGeometry) and geometry.curved:
        scan = astra.create_proj_geom("fanflat_vec", 1, curved_vectors(geometry, angles, last))
    else:
        vectors = view_vectors(geometry, angles, last)
        scan = astra.create_proj_geom("fanflat_vec" if fan else "parallel_vec", last, vectors)
    with _exported(astra, f"{kernel}_fanflat" if fan else kernel, scan, geometry.image_size) as matrix:
        return matrix


@contextmanager
def _exported(astra: Any, projector: str, scan: Any, image_size: int) -> Iterator[Any]:
    """The matrix of a projector as ASTRA exports it; its own copies are freed at the end."""
    volume = astra.create_vol_geom(image_size, image_size)
    projector_id = astra.create_projector(projector, scan, volume)
    try:
        matrix_id = astra.projector.matrix(projector_id)
        try:
            yield astra.matrix.get(matrix_id)
        finally:
            astra.matrix.delete(matrix_id)
    finally:
        astra.projector.delete(projector_id)
