"""Filtered back-projection: a fast first image from a sinogram, and the baseline of every other method."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from learnreg.errors import ConfigError
from learnreg.linear.arguments import check_one_of, check_real, shown
from learnreg.operators.tomography.coverage import Coverage, bridged, detector_positions
from learnreg.operators.tomography.geometry import FanGeometry, Geometry
from learnreg.operators.tomography.projectors import FanBeam2D, ParallelBeam2D
from learnreg.operators.tomography.ramp import Window, ramp_filtered
from learnreg.operators.tomography.symmetric_product import take

__all__ = ["filtered_back_projection"]

_UNNOTICED = 2.0
"""Pixels at the rim of the disc inscribed in the image that a detector may miss without a word."""


def filtered_back_projection(
    operator: ParallelBeam2D | FanBeam2D,
    sinogram: Tensor,
    filter: Window = "ramp",  # noqa: A002
) -> Tensor:
    """Images (batch, 1, n, n) from sinograms (batch, 1, angles, detectors): the inverse of the projector up to
    discretisation, for projections that measure all lines through the object. Differentiable, linear in the sinogram.

    filter: "ramp" (band-limited at the detector's Nyquist frequency), or "hann": times a Hann window, for noisy data.
    Rays that measure one line share its weight: a fan beam covers the full turn, or pi and its fan angle, or more; a
    detector that reaches further to one side (half-fan, half-beam) needs the full turn. Parallel angles of a whole
    detector may lie anywhere, gaps of limited scans count nothing.

    Parameters
    ----------
    operator: ``ParallelBeam2D`` or ``FanBeam2D``.
    sinogram: (batch, 1, angles, detectors).

    Raises
    ------
    ConfigError: an unknown filter, or lines through the disc inscribed in the image that are not measured: a fan beam
        over less than a short scan, a detector on one side over less than the full turn. ShapeError: a sinogram that
        does not fit. A warning: a detector that is too narrow on both sides; dead detectors, which are interpolated; a
        gap between views of up to 5 % of the turn, which is bridged.
    Source: Kak and Slaney, Principles of Computerized Tomographic Imaging (1988), (61) of chapter 3 for the ramp, (137)
        to (139) for equally spaced collinear and Section 3.4.1 for equiangular rays; weights: see ``coverage``.
    """
    if not hasattr(operator, "geometry") or not hasattr(operator, "coverage"):
        raise ConfigError(
            f"filtered_back_projection(operator={shown(operator)}): expected a ParallelBeam2D or a FanBeam2D."
        )
    check_one_of(filter, ("ramp", "hann"), "filtered_back_projection(filter)")
    operator.check_range(sinogram, "sinogram")
    check_real(sinogram, "sinogram")
    geometry, coverage, n = operator.geometry, operator.coverage, operator.geometry.image_size
    if not len(sinogram):
        return sinogram.new_zeros(0, 1, n, n)
    if coverage.missing is not None:
        raise ConfigError(f"filtered_back_projection: {coverage.missing} Solve a lower-level problem instead.")
    _warn(geometry, coverage)
    dtype = torch.float64 if sinogram.dtype == torch.float64 else torch.float32
    views = bridged(sinogram[:, 0].to(dtype), geometry.dead_detectors)
    positions = detector_positions(geometry)
    views = views * (coverage.weights * geometry.ray_angles(positions).cos()).to(views)
    pitch = geometry.detector_pitch / _magnification(geometry)
    views = torch.nn.functional.pad(views, coverage.padding)
    views = ramp_filtered(views, pitch, filter, isinstance(geometry, FanGeometry) and geometry.curved)
    side = torch.arange(geometry.image_size, dtype=dtype, device=views.device) - 0.5 * (geometry.image_size - 1)
    x = side[None, :] * geometry.pixel_size + geometry.image_center[0]
    y = -side[:, None] * geometry.pixel_size + geometry.image_center[1]
    image = views.new_zeros(side.numel() ** 2, views.shape[0])
    for k, angle in enumerate(geometry.angles):
        position, weight = _projected(geometry, x, y, angle)
        index = (position - float(positions[0])) / geometry.detector_pitch + coverage.padding[0]
        image = image + weight.reshape(-1, 1) * _interpolate(views[:, k].T, index.flatten())
    return image.T.reshape(-1, *operator.domain_shape).to(sinogram.dtype)


def _magnification(geometry: Geometry) -> float:
    """Length on the detector of what the ramp filter counts as one: a length at the axis of rotation, or on an arc an
    angle."""
    if not isinstance(geometry, FanGeometry):
        return 1.0
    return geometry.source_to_detector / (1.0 if geometry.curved else geometry.source_to_center)


def _projected(geometry: Geometry, x: Tensor, y: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    """Where the rays of a view through these points meet the detector, and what the view counts there, (n, n)."""
    along, towards = x * math.cos(angle) + y * math.sin(angle), x * math.sin(angle) - y * math.cos(angle)
    if not isinstance(geometry, FanGeometry):
        return along, torch.ones_like(along)
    depth = geometry.source_to_center - towards
    if geometry.curved:
        weight = geometry.source_to_center / (along.square() + depth.square())
        return torch.atan2(along, depth) * geometry.source_to_detector, weight
    closeness = 1.0 / depth
    return along * closeness * geometry.source_to_detector, (closeness * geometry.source_to_center) ** 2


def _warn(geometry: Geometry, coverage: Coverage) -> None:
    """Say what is not as it should be."""
    radius = coverage.radius
    if coverage.bridged > 0.0:
        warnings.warn(
            f"filtered_back_projection: there is a gap of {coverage.bridged:.3g} radians "
            f"({math.degrees(coverage.bridged):.3g} degrees) between neighbouring views; what it misses counts as if "
            "it were like them. A lower-level problem leaves it open.",
            stacklevel=3,
        )
    if radius < geometry.inscribed_radius - _UNNOTICED * geometry.pixel_size:
        warnings.warn(
            f"filtered_back_projection: the detector is too narrow, it measures lines within {radius:.4g} of the axis "
            f"of rotation and the image reaches {geometry.inscribed_radius:.4g}; values are wrong if the object is "
            "wider. Solve a lower-level problem instead.",
            stacklevel=3,
        )
    if geometry.dead_detectors:
        warnings.warn(
            f"filtered_back_projection: {len(geometry.dead_detectors)} dead detectors are interpolated from their "
            "neighbours. A lower-level problem leaves them out.",
            stacklevel=3,
        )


def _interpolate(view: Tensor, index: Tensor) -> Tensor:
    """(pixels, batch): linear interpolation of (detectors, batch) at fractional places; 0 beyond the detector."""
    padded = torch.nn.functional.pad(view, (0, 0, 1, 2))
    place = (index + 1.0).clamp(0.0, view.shape[0] + 1.0)
    lower = place.floor()
    share, first = (place - lower)[:, None], lower.int()
    return take(padded, first) + share * take(padded.diff(dim=0), first)
