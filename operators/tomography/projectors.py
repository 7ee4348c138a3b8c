"""X-ray projectors of a square image: line integrals along the rays of a parallel or fan beam."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learnreg.errors import ConfigError, OperatorError
from learnreg.linear.arguments import check_one_of
from learnreg.linear.norms import NormBound
from learnreg.linear.operator import LinearOperator, linear_map
from learnreg.operators.tomography.astra_cuda import CudaProjector
from learnreg.operators.tomography.astra_matrix import build_rows, check_entries
from learnreg.operators.tomography.coverage import Coverage, bridged, coverage_of
from learnreg.operators.tomography.geometry import (
    LARGEST_IMAGE,
    DetectorShape,
    FanGeometry,
    Geometry,
    ParallelGeometry,
    view_angles,
)
from learnreg.operators.tomography.limits import checked_count
from learnreg.operators.tomography.matrix_cache import Sample, cached_rows, key_of
from learnreg.operators.tomography.ramp import ramp_filtered
from learnreg.operators.tomography.ray_tracing import RayTracing
from learnreg.operators.tomography.rays import Kernel, kernel_for, rays_of
from learnreg.operators.tomography.symmetric_product import SymmetricProduct
from learnreg.operators.tomography.symmetry import MOST_MOTIONS, Symmetry, symmetry_of
from learnreg.operators.tomography.system_matrix import SystemMatrix, all_rows

__all__ = ["FanBeam2D", "ParallelBeam2D"]

Angles = int | Tensor | Sequence[float]
Backend = Literal["auto", "matrix", "matrix-free", "astra-cuda"]
SymmetryOption = Literal["auto", "none"]

LARGEST_MATRIX = 1e9
"""Bytes of matrix and transpose up to which "auto" takes them: 2 to 5 times faster than weights computed on the way
(docs/tomography.md), but the values for float64 and the building take as much again."""

_BYTES_PER_ENTRY = 16

_MOST_RAYS = 2**26
"""More of them, with what they meet of any image worth it, are more than 2^31 entries of a matrix, or too large a
table."""


class _Projector2D(LinearOperator):
    """What the projectors share: (1, n, n) to (1, angles, detectors) through a sparse matrix that ASTRA builds once, or
    by weights computed on the way.

    A matrix is kept in the cache of ``matrix_cache``; in memory it is part of no state dict.
    The adjoint is the exact transpose; with a matrix float64 inputs meet the same float32 entries.
    """

    geometry: Geometry
    geometry_class: ClassVar[type[Geometry]]
    engine: SystemMatrix | RayTracing | CudaProjector
    dead: Tensor | None

    def __init__(self, geometry: Geometry, kernel: Kernel | None, symmetry: SymmetryOption, backend: Backend) -> None:
        name = type(self).__name__
        check_one_of(symmetry, ("auto", "none"), f"{name}(symmetry)")
        check_one_of(backend, get_args(Backend), f"{name}(backend)")
        n = geometry.image_size
        super().__init__((1, n, n), (1, len(geometry.angles), geometry.detectors))
        self.geometry, self.kernel = geometry, kernel_for(geometry, kernel)
        dead = torch.tensor(geometry.dead_detectors) if geometry.dead_detectors else None
        self.register_buffer("dead", dead, persistent=False)
        self.engine = _engine(geometry, self.kernel, symmetry == "auto", backend)

    @classmethod
    def from_geometry(
        cls,
        geometry: Geometry,
        *,
        kernel: Kernel | None = None,
        symmetry: SymmetryOption = "auto",
        backend: Backend = "auto",
    ) -> Self:
        """The projector of any geometry: other units, angles, offsets and pitches."""
        if not isinstance(geometry, cls.geometry_class):
            expected = cls.geometry_class.__name__
            raise ConfigError(f"{cls.__name__}.from_geometry: got {type(geometry).__name__}, expected {expected}.")
        projector = cls.__new__(cls)
        _Projector2D.__init__(projector, geometry, kernel, symmetry, backend)
        return projector

    def stored(self) -> dict[str, Any]:
        return {"config": self.geometry.config(), "kernel": self.kernel}

    @classmethod
    def from_stored(cls, stored: dict[str, Any], image_shape: tuple[int, ...] | None = None) -> Self:
        return cls.from_geometry(cls.stored_geometry(stored), kernel=stored["kernel"])

    @classmethod
    def stored_geometry(cls, stored: Mapping[str, Any]) -> Geometry:
        """The geometry alone, without the work of building a matrix."""
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in stored["config"].items()}
        return cls.geometry_class(**values)

    def _find_nonnegative(self) -> bool:
        """All kernels interpolate with weights >= 0."""
        return True

    def forward(self, x: Tensor) -> Tensor:
        self.check_domain(x)
        return linear_map(x, self._project, self._back_project)

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_range(y)
        return linear_map(y, self._back_project, self._project)

    def _project(self, x: Tensor) -> Tensor:
        return self._live(self.engine.apply_to(x.flatten(1)).reshape(-1, *self.range_shape))

    def _back_project(self, y: Tensor) -> Tensor:
        return self.engine.apply_transpose_to(self._live(y).flatten(1)).reshape(-1, *self.domain_shape)

    def _live(self, y: Tensor) -> Tensor:
        """Sinograms with zeros at dead detectors, whose rows of A are zero."""
        return y if self.dead is None else y.index_fill(-1, self.dead, 0.0)

    def approximate_inverse(self, y: Tensor) -> Tensor | None:
        """Filtered back-projection with the Hann window, up to a factor, of a fan without the weights of distances;
        None where projections are truncated."""
        self.check_range(y)
        if self.geometry.truncated:
            return None
        views = bridged(y[:, 0], self.geometry.dead_detectors) * self.coverage.weights.to(y)
        return self._back_project(ramp_filtered(views, self.geometry.detector_pitch, "hann")[:, None])

    @cached_property
    def coverage(self) -> Coverage:
        """Which lines the scan measures, for filtered back-projection."""
        return coverage_of(self.geometry)

    def check_range(self, y: Tensor, name: str = "y") -> None:
        if isinstance(y, Tensor) and not y.is_nested and y.dim() == 4 and y.shape[1] == 1:
            self.geometry.check_sinogram(tuple(y.shape))
        super().check_range(y, name)

    def _find_norm(self) -> NormBound:
        if isinstance(self.engine, SymmetricProduct):
            return NormBound(self.engine.norm_bound(self._live_rays()))
        return super()._find_norm()

    def row_norms(self, grouped: bool) -> Tensor | float:
        if isinstance(self.engine, SymmetricProduct):
            return self._live(self.engine.row_norms().reshape(self.range_shape))
        return self.norm_bound()

    def _live_rays(self) -> Tensor | None:
        """One for each ray that is measured and zero for the others, (rays,); None where all are."""
        if self.dead is None:
            return None
        return self._live(torch.ones(self.range_shape, device=self.dead.device)).flatten()

    def adjoint_mismatch(self) -> float:
        return self.engine.mismatch()

    @property
    def nbytes(self) -> int:
        """Memory of what the products need to know, a matrix and its transpose or rays, in bytes."""
        return self.engine.nbytes

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kernel={self.kernel!r}"


class ParallelBeam2D(_Projector2D):
    """Parallel-beam projector of an image with side 1.

    Parameters
    ----------
    image_size: n; pixels have the side 1/n. angles: their number, uniform on [0, pi), or 1-D radians. detectors: at
        pitch 1/n, centred; by default the smallest odd number >= sqrt(2) n, which sees all of the image.
    kernel: "linear" (Joseph; the default), "line" (Siddon: 0.7 times the memory, less accurate) or "strip" (areas: 1.8
        times the memory). symmetry: "auto" stores one row of the matrix for up to eight rays, "none" all rows.
        Without a matrix it makes no difference.
    backend: "matrix" (built by ASTRA), "matrix-free": the same weights to rounding, computed on the way, for scans of
        any size and without ASTRA, or "auto": the matrix where it takes at most 1 GB and ASTRA is installed. "strip" is
        always a matrix. "astra-cuda" is ASTRA's own projector on an NVIDIA GPU, whose adjoint is inexact: nothing is
        certified with it.

    Other units, pitches and offsets: ``ParallelBeam2D.from_geometry(ParallelGeometry(...))``. Conventions and memory:
    docs/tomography.md.

    Raises
    ------
    ConfigError: no angles, sizes that are not positive, an unknown option, a kernel that the backend does not have, or
        astra is missing. ShapeError: angles not 1-D. A warning: angles that look like degrees, detectors that do not
        see the inscribed disc.

    Examples
    --------
    >>> A = lr.operators.ParallelBeam2D(16, 10, backend="matrix-free")
    >>> A.domain_shape, A.range_shape
    ((1, 16, 16), (1, 10, 23))
    """

    geometry_class = ParallelGeometry

    def __init__(
        self,
        image_size: int,
        angles: Angles,
        detectors: int | None = None,
        *,
        kernel: Kernel | None = None,
        symmetry: SymmetryOption = "auto",
        backend: Backend = "auto",
    ) -> None:
        views = view_angles(angles, ParallelGeometry.full_turn, "ParallelBeam2D")
        geometry = ParallelGeometry(**_unit_image(image_size, detectors, "ParallelBeam2D"), angles=views)
        if detectors is not None:
            geometry.warn_if_truncated()
        super().__init__(geometry, kernel, symmetry, backend)


class FanBeam2D(_Projector2D):
    """Fan-beam projector of an image with side 1, with a flat or a curved detector.

    Parameters
    ----------
    image_size, angles, detectors: as for :class:`ParallelBeam2D`, the angles uniform on [0, 2 pi). The detectors' pitch
        1/n is measured on the detector, where the image is magnified by source_to_detector/source_to_center: with the
        defaults it sees a disc of radius 0.35 (``geometry.visible_radius``); ``geometry.covering_detectors()`` says how
        many see all of the image.
    source_to_center, source_to_detector: in image sides. detector: "flat", or "curved": an arc around the source.
    kernel: "line" (Siddon; the default), "linear" (Joseph; without a matrix) or "strip" (1.4 times the memory).
    symmetry, backend: as there.

    Raises
    ------
    As :class:`ParallelBeam2D`; also ConfigError for a source inside the image or a detector in front of the axis.

    Examples
    --------
    >>> A = lr.operators.FanBeam2D(16, 10, backend="matrix-free")
    >>> A.domain_shape, A.range_shape
    ((1, 16, 16), (1, 10, 23))
    """

    geometry_class = FanGeometry

    def __init__(
        self,
        image_size: int,
        angles: Angles,
        detectors: int | None = None,
        source_to_center: float = 2.0,
        source_to_detector: float = 4.0,
        *,
        detector: DetectorShape = "flat",
        kernel: Kernel | None = None,
        symmetry: SymmetryOption = "auto",
        backend: Backend = "auto",
    ) -> None:
        views = view_angles(angles, FanGeometry.full_turn, "FanBeam2D")
        geometry = FanGeometry(
            **_unit_image(image_size, detectors, "FanBeam2D"),
            angles=views,
            source_to_center=source_to_center,
            source_to_detector=source_to_detector,
            detector_shape=detector,
        )
        if detectors is not None:
            geometry.warn_if_truncated()
        super().__init__(geometry, kernel, symmetry, backend)


def _unit_image(image_size: int, detectors: int | None, call: str) -> dict[str, Any]:
    """Sizes and lengths of an image of side 1, and of a detector whose pitch is the side of a pixel."""
    image_size = checked_count(image_size, f"{call}(image_size=", LARGEST_IMAGE)
    default = math.isqrt(2 * image_size**2 - 1) + 1
    return {
        "image_size": image_size,
        "detectors": default + 1 - default % 2 if detectors is None else detectors,
        "pixel_size": 1.0 / image_size,
        "detector_pitch": 1.0 / image_size,
    }


def _engine(
    geometry: Geometry, kernel: Kernel, symmetric: bool, backend: Backend
) -> SystemMatrix | RayTracing | CudaProjector:
    if backend == "astra-cuda":
        return CudaProjector(geometry)
    _check_rays(geometry)
    if backend == "auto":
        backend = "matrix" if _matrix_suits(geometry, kernel, symmetric) else "matrix-free"
    if backend == "matrix":
        return system_matrix(geometry, kernel, symmetric)
    return RayTracing(geometry, kernel)


def _check_rays(geometry: Geometry) -> None:
    views, rays = len(geometry.angles), len(geometry.angles) * geometry.detectors
    if rays > _MOST_RAYS:
        raise OperatorError(
            f"{views:,} views of {geometry.detectors:,} detectors are {rays:,} rays; a projector has at most "
            f"{_MOST_RAYS:,}. Use fewer views or detectors, or several projectors.",
            "memory",
        )


def _matrix_suits(geometry: Geometry, kernel: Kernel, symmetric: bool) -> bool:
    """Whether the matrix can be built and takes no more memory than ``LARGEST_MATRIX``."""
    if kernel == "strip":
        return True
    if (kernel == "linear" and isinstance(geometry, FanGeometry)) or find_spec("astra") is None:
        return False
    most = 2 * geometry.image_size * len(geometry.angles) * geometry.detectors
    least = _least_entries(geometry) // MOST_MOTIONS
    if _BYTES_PER_ENTRY * most <= LARGEST_MATRIX or _BYTES_PER_ENTRY * least > LARGEST_MATRIX:
        return _BYTES_PER_ENTRY * most <= LARGEST_MATRIX  # without the work of symmetries
    rows = symmetry_of(geometry, symmetric).rows
    return _BYTES_PER_ENTRY * rays_of(geometry, kernel, rows).entries(geometry.image_size) <= LARGEST_MATRIX


def system_matrix(geometry: Geometry, kernel: Kernel, symmetric: bool) -> SystemMatrix:
    """The matrix of a geometry, from the cache or built. Without symmetry its rows are copies of the stored ones.

    Raises
    ------
    ConfigError: Joseph's kernel for a fan beam. OperatorError: a matrix with more than 2^31 - 1 entries, or one that
        does not fit into the memory.
    """
    if kernel == "linear" and isinstance(geometry, FanGeometry):
        raise ConfigError(
            "ASTRA builds no matrix of a fan beam with kernel='linear': leave backend at 'auto', or use 'matrix-free'."
        )
    check_entries(_least_entries(geometry) // MOST_MOTIONS)  # before the work of finding symmetries
    try:
        symmetry = symmetry_of(geometry)
        check_entries(_least_entries(geometry) // symmetry.order)
        key = key_of(_description(geometry.in_pixels(), kernel, symmetry))
        shape = (len(symmetry.rows), geometry.image_size**2)
        rows = cached_rows(
            key, lambda: build_rows(geometry, kernel, symmetry.rows), shape, _two_views(geometry, kernel, symmetry.rows)
        )
        if not symmetric and symmetry.order > 1:
            none = symmetry_of(geometry, wanted=False)
            rows, symmetry = all_rows(rows, symmetry, none.rows), none
        return SystemMatrix(rows, symmetry, geometry.pixel_size)
    except MemoryError as error:
        raise OperatorError(
            f"the matrix of {len(geometry.angles):,} views of {geometry.detectors:,} detectors and an image of "
            f"{geometry.image_size:,}² pixels does not fit into the memory: use fewer, or backend='matrix-free'.",
            "memory",
        ) from error


def _two_views(geometry: Geometry, kernel: Kernel, rows: npt.NDArray[np.int64]) -> Sample | None:
    """The first and the last of those that stored rows belong to; None without ASTRA."""
    if find_spec("astra") is None:
        return None
    views = rows // geometry.detectors
    numbers = np.flatnonzero((views == views.min()) | (views == views.max()))
    return Sample(numbers, lambda: build_rows(geometry, kernel, rows[numbers]))


def _least_entries(geometry: Geometry) -> int:
    """Fewer entries than the matrix has without symmetry: one for each ray, and for the disc that all views see one
    for sqrt(2) pixels of each ray, which lie half as close behind the axis of a fan as there, at least."""
    pixels = geometry.in_pixels()
    radius = min(pixels.visible_radius, 0.5 * pixels.image_size)
    shrunk = pixels.source_to_detector / pixels.source_to_center if isinstance(pixels, FanGeometry) else 1.0
    per_view = math.pi * radius**2 * shrunk / (2.0 * math.sqrt(2.0) * pixels.detector_pitch)
    return len(pixels.angles) * max(pixels.detectors, int(per_view))


def _description(geometry: Geometry, kernel: Kernel, symmetry: Symmetry) -> dict[str, Any]:
    """All that determines the stored rows; those of dead detectors are stored, too."""
    return {
        "geometry": type(geometry).__name__,
        **replace(geometry, dead_detectors=()).config(),
        "kernel": kernel,
        "rows": hashlib.sha256(symmetry.rows.astype("<i8").tobytes()).hexdigest(),
    }
