"""The system matrix of a geometry, built by the ASTRA toolbox on the CPU in units of pixels."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from learnreg.errors import ConfigError, OperatorError
from learnreg.linear.arguments import check_one_of
from learnreg.operators.tomography.geometry import FanGeometry, Geometry, ParallelGeometry

__all__ = ["Kernel", "SparseRows", "build_rows", "check_entries", "kernel_for", "require", "view_vectors"]

Kernel = Literal["linear", "line", "strip"]
Doubles = npt.NDArray[np.float64]

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


def kernel_for(geometry: Geometry, kernel: Kernel | None) -> Kernel:
    """The kernel to discretise with: by default "linear" (Joseph) for parallel and "line" (Siddon) for fan beams.

    Raises
    ------
    ConfigError: an unknown kernel, or one that ASTRA does not have for the geometry.
    """
    fan = isinstance(geometry, FanGeometry)
    if kernel is None:
        return "line" if fan else "linear"
    known = ("line", "strip") if fan else ("linear", "line", "strip")
    check_one_of(kernel, known, f"{type(geometry).__name__}: kernel")
    if isinstance(geometry, FanGeometry) and kernel == "strip":
        moved = geometry.detector_offset != 0.0 or geometry.image_center != (0.0, 0.0)
        if moved or geometry.curved:
            raise ConfigError(
                "kernel='strip' for a fan beam needs a flat detector, detector_offset=0 and image_center=(0, 0); use "
                "kernel='line'."
            )
    return kernel


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
    for first in range(0, used.size, step):
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
        scan = astra.create_proj_geom("fanflat_vec", 1, _curved_vectors(geometry, angles, last))
    else:
        vectors = view_vectors(geometry, angles, last)
        scan = astra.create_proj_geom("fanflat_vec" if fan else "parallel_vec", last, vectors)
    with _exported(astra, f"{kernel}_fanflat" if fan else kernel, scan, geometry.image_size) as matrix:
        return matrix


def view_vectors(geometry: Geometry, angles: npt.ArrayLike, last: int) -> Doubles:
    """One row per view of a flat detector: source (fan) or direction (parallel), middle of the first ``last``
    detectors, and pitch; seen from the middle of the image."""
    axis, ray = _axes(angles)
    middle = geometry.detector_offset - 0.5 * (geometry.detectors - last) * geometry.detector_pitch
    origin = np.asarray(geometry.image_center)
    if isinstance(geometry, FanGeometry):
        source = -geometry.source_to_center * ray
        center = (geometry.source_to_detector - geometry.source_to_center) * ray + middle * axis
        return np.concatenate([source - origin, center - origin, geometry.detector_pitch * axis], 1)
    assert isinstance(geometry, ParallelGeometry)
    return np.concatenate([-ray, middle * axis - origin, geometry.detector_pitch * axis], 1)


def _curved_vectors(geometry: FanGeometry, angles: npt.ArrayLike, last: int) -> Doubles:
    """One row per ray to the first ``last`` detectors of an arc, as ``view_vectors`` of views with one detector."""
    axis, ray = (part[:, None, :] for part in _axes(angles))
    numbers = np.arange(last) - 0.5 * (geometry.detectors - 1)
    turned = (numbers * geometry.detector_pitch + geometry.detector_offset) / geometry.source_to_detector
    cosine, sine = np.cos(turned)[None, :, None], np.sin(turned)[None, :, None]
    source = -geometry.source_to_center * ray - np.asarray(geometry.image_center)
    detector = source + geometry.source_to_detector * (cosine * ray + sine * axis)
    pitch = geometry.detector_pitch * (cosine * axis - sine * ray)
    return np.concatenate([np.broadcast_to(source, detector.shape), detector, pitch], 2).reshape(-1, 6)


def _axes(angles: npt.ArrayLike) -> tuple[Doubles, Doubles]:
    """The detector axis and the central ray of each view, (views, 2)."""
    cosine, sine = np.cos(angles), np.sin(angles)
    return np.stack([cosine, sine], 1), np.stack([-sine, cosine], 1)


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
