"""Cone-beam projector of a cube on a circular orbit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

from torch import Tensor

from learnreg.errors import ConfigError
from learnreg.linear.arguments import check_one_of, shown
from learnreg.linear.norms import NormBound
from learnreg.linear.operator import LinearOperator, linear_map
from learnreg.operators.tomography.astra_cuda import CudaCone
from learnreg.operators.tomography.cone_tracing import ConeScan, ConeTracing
from learnreg.operators.tomography.geometry import view_angles
from learnreg.operators.tomography.limits import checked_count, checked_length

__all__ = ["ConeBeam3D"]

ConeBackend = Literal["matrix-free", "astra-cuda"]

_LARGEST_SIDE, _MOST_DETECTORS, _MOST_RAYS = 2**10, 2**13, 2**31
"""Of a volume of 4 GB in float32; views of more rays fill 8 GB."""

_STEEPEST = math.sqrt(0.5)
"""Rise of a ray over its way in the plane of rotation up to which it is closest to an axis of that plane."""


class ConeBeam3D(LinearOperator):
    """Cone-beam projector of a cube with side 1; (1, n, n, n) to (1, angles, rows, columns), line integrals.

    Parameters
    ----------
    image_size: n, at least 2; axes are z, y, x, the axis of rotation is z. Slices are images as for ``FanBeam2D``: x to
        the right, y upwards (the first row is at the top); z and detector rows are counted in one direction. The row in
        the plane of the source sees what a fan beam with the same numbers sees.
    angles: their number, uniform on [0, 2 pi), or 1-D radians. detectors: of the flat detector, (rows, columns) or one
        number for both, at pitch 1/n; by default the smallest odd number >= sqrt(2) n times the magnification.
    source_to_center, source_to_detector: in sides of the cube.
    backend: "matrix-free", Joseph's weights in three dimensions with the exact adjoint, on any device; or "astra-cuda",
        ASTRA's projector on an NVIDIA GPU, whose back-projection is not the exact adjoint: ``adjoint_mismatch`` is
        positive then, and nothing is certified with it.

    Raises
    ------
    ConfigError: no angles, sizes out of range, a source inside the cube or so close that rays rise by more than 35
        degrees; with "astra-cuda" astra is missing. OperatorError: no GPU that ASTRA can use. A warning: angles that
        look like degrees.
    Source: Joseph, IEEE Trans. Med. Imaging 1 (1982).

    Examples
    --------
    >>> A = lr.operators.ConeBeam3D(8, 4)
    >>> A.domain_shape
    (1, 8, 8, 8)
    """

    engine: ConeTracing | CudaCone

    def __init__(
        self,
        image_size: int,
        angles: int | Tensor | Sequence[float],
        detectors: int | tuple[int, int] | None = None,
        source_to_center: float = 2.0,
        source_to_detector: float = 4.0,
        *,
        backend: ConeBackend = "matrix-free",
    ) -> None:
        check_one_of(backend, get_args(ConeBackend), "ConeBeam3D(backend)")
        n = checked_count(image_size, "ConeBeam3D(image_size=", _LARGEST_SIDE)
        if n < 2:
            raise ConfigError(f"ConeBeam3D(image_size={n}): expected at least 2.")
        center = checked_length(source_to_center, "ConeBeam3D(source_to_center=", 1.0 / n)
        behind = checked_length(source_to_detector, "ConeBeam3D(source_to_detector=", 1.0 / n)
        if not math.sqrt(0.5) < center <= behind:
            raise ConfigError(
                f"ConeBeam3D(source_to_center={center:g}, source_to_detector={behind:g}): "
                "expected sqrt(1/2) < source_to_center <= source_to_detector, in sides of the cube."
            )
        views = view_angles(angles, 2.0 * math.pi, "ConeBeam3D")
        rows, columns = _sides(detectors, n, behind / center)
        if len(views) * rows * columns > _MOST_RAYS:
            raise ConfigError(
                f"ConeBeam3D: {len(views):,} views of {rows:,} x {columns:,} detectors are more than 2^31 rays; "
                "expected fewer."
            )
        rise = min(0.5 * rows / n / behind, 0.5 / (center - math.sqrt(0.5)))
        if backend == "matrix-free" and rise > _STEEPEST:
            raise ConfigError(
                f"ConeBeam3D(source_to_center={center:g}): rays rise by up to {rise:.3g} of their way through the "
                f"cube, expected at most {_STEEPEST:.3g}; move the source away (1.42 is enough for any detector), or "
                "use fewer detector rows."
            )
        super().__init__((1, n, n, n), (1, len(views), rows, columns))
        self.backend = backend
        scan = ConeScan(n, views, rows, columns, 1.0 / n, center, behind)
        self.engine = ConeTracing(scan) if backend == "matrix-free" else CudaCone(scan)

    def stored(self) -> dict[str, Any]:
        scan = self.engine.scan
        config = {
            "image_size": scan.n,
            "angles": list(scan.angles),
            "detectors": [scan.rows, scan.columns],
            "source_to_center": scan.source_to_center,
            "source_to_detector": scan.source_to_detector,
        }
        return {"config": config}

    @classmethod
    def from_stored(cls, stored: dict[str, Any], image_shape: tuple[int, ...] | None = None) -> Self:
        config = dict(stored["config"])
        rows, columns = config.pop("detectors")
        return cls(**config, detectors=(rows, columns))

    def forward(self, x: Tensor) -> Tensor:
        self.check_domain(x)
        return linear_map(x, self.engine.apply_to, self.engine.apply_transpose_to)

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_range(y)
        return linear_map(y, self.engine.apply_transpose_to, self.engine.apply_to)

    def adjoint_mismatch(self) -> float:
        return self.engine.mismatch()

    def _find_norm(self) -> NormBound:
        if isinstance(self.engine, ConeTracing):
            return NormBound(self.engine.norm_bound())
        return super()._find_norm()

    def row_norms(self, grouped: bool) -> Tensor | float:
        return self.engine.row_norms() if isinstance(self.engine, ConeTracing) else self.norm_bound()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, backend={self.backend!r}"


def _sides(detectors: int | tuple[int, int] | None, n: int, magnification: float) -> tuple[int, int]:
    """Rows and columns."""
    if detectors is None:
        count = math.ceil(math.sqrt(2.0) * n * magnification * (1.0 - 1e-12))
        count += 1 - count % 2
        detectors = (count, count)
    given = detectors if isinstance(detectors, (tuple, list)) else (detectors, detectors)
    if len(given) != 2:
        raise ConfigError(f"ConeBeam3D(detectors={shown(detectors)}): expected a number, or (rows, columns).")
    rows, columns = (checked_count(value, "ConeBeam3D(detectors=", _MOST_DETECTORS) for value in given)
    return rows, columns
