"""Scan geometries of two-dimensional tomography: where rays run through a square image.

Coordinates are centred on the image and on the axis of rotation; x points right, y up, so that the first row of an
image is at the top. At angle theta the detector axis is (cos theta, sin theta), detectors are numbered along it, and
rays run along (-sin theta, cos theta); a fan's source is at source_to_center · (sin theta, -cos theta). This is the
convention of the ASTRA toolbox; ``skimage.transform.radon`` gives the same sinograms, transposed.

Lengths are in any unit; the matrix of a geometry has the same unit, since its entries are lengths of rays in pixels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from learnreg.errors import ConfigError, ShapeError

__all__ = ["FanGeometry", "Geometry", "ParallelGeometry", "view_angles"]

_LARGEST_ANGLE = 2 * math.pi * 1.05
"""Scans go a little beyond the full turn; radians beyond this are taken for degrees."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What parallel and fan beams share.

    image_size: pixels along a side. angles: radians, in any order. detectors: number of them. pixel_size: side of a
    pixel. detector_pitch: distance of neighbouring detectors. detector_offset: how far the middle of the detector lies
    from the central ray along the detector axis.

    Raises
    ------
    ConfigError: no angles, a value that is not finite, or a size that is not positive.
    """

    full_turn: ClassVar[float]

    image_size: int
    angles: tuple[float, ...]
    detectors: int
    pixel_size: float
    detector_pitch: float
    detector_offset: float = 0.0

    def __post_init__(self) -> None:
        name = type(self).__name__
        for key in ("image_size", "detectors"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}({key}={value!r}): expected a positive integer.")
        for key in self._lengths():
            value = getattr(self, key)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}({key}={value!r}): expected a positive, finite length.")
        if not math.isfinite(self.detector_offset):
            raise ConfigError(f"{name}(detector_offset={self.detector_offset!r}): expected a finite length.")
        if not self.angles:
            raise ConfigError(f"{name}(angles=()): expected at least one angle.")
        if not all(math.isfinite(angle) for angle in self.angles):
            raise ConfigError(f"{name}(angles): NaN or infinite entries.")

    def _lengths(self) -> tuple[str, ...]:
        return ("pixel_size", "detector_pitch")

    @property
    def image_side(self) -> float:
        """Length of a side of the image."""
        return self.image_size * self.pixel_size

    @property
    def visible_radius(self) -> float:
        """Radius of the disc around the axis of rotation that every view sees whole; 0 if there is none."""
        return max(0.0, self._visible(0.5 * self.detectors * self.detector_pitch - abs(self.detector_offset)))

    def _visible(self, half_width: float) -> float:
        """Radius of the disc that a detector reaching ``half_width`` to both sides sees."""
        raise NotImplementedError

    def covering_detectors(self, radius: float | None = None) -> int:
        """Smallest odd number of detectors that see the disc of this radius, by default the image with its corners."""
        wanted = self.image_side / math.sqrt(2.0) if radius is None else radius
        half_width = self._half_width(wanted) + abs(self.detector_offset)
        count = math.ceil(2.0 * half_width / self.detector_pitch * (1.0 - 1e-12))
        return count + 1 - count % 2

    def _half_width(self, radius: float) -> float:
        """Inverse of ``_visible``."""
        raise NotImplementedError

    @property
    def truncated(self) -> bool:
        """Whether some view misses a part of the disc inscribed in the image."""
        return self.visible_radius < 0.5 * self.image_side * (1.0 - 1e-9)

    def warn_if_truncated(self) -> None:
        """Warn when some view misses a part of the disc inscribed in the image."""
        if self.truncated:
            warnings.warn(
                f"the detector is too narrow for the image: every view sees a disc of radius {self.visible_radius:.4g} "
                f"only, half the image's side is {0.5 * self.image_side:.4g}; projections are truncated. "
                f"{self.covering_detectors(0.5 * self.image_side)} detectors see the disc inscribed in the image, "
                f"{self.covering_detectors()} all of it.",
                stacklevel=3,
            )

    def in_pixels(self) -> Self:
        """The same rays, the side of a pixel being the unit of length."""
        changes: dict[str, Any] = {key: getattr(self, key) / self.pixel_size for key in self._lengths()}
        return replace(self, **{**changes, "pixel_size": 1.0}, detector_offset=self.detector_offset / self.pixel_size)

    def scaled(self, factor: float) -> Self:
        """The same rays with all lengths times ``factor``, in another unit of length."""
        changes: dict[str, Any] = {key: getattr(self, key) * factor for key in self._lengths()}
        return replace(self, **changes, detector_offset=self.detector_offset * factor)

    def check_sinogram(self, shape: tuple[int, ...]) -> None:
        """Raise ShapeError where a sinogram (..., angles, detectors) does not fit."""
        for size, expected, what in zip(
            reversed(shape), (self.detectors, len(self.angles)), ("detectors", "angles"), strict=False
        ):
            if size != expected:
                raise ShapeError(f"the sinogram of shape {shape} has {size} {what}, the geometry {expected}.")


@dataclass(frozen=True, kw_only=True)
class ParallelGeometry(Geometry):
    """Parallel rays; a half turn sees everything."""

    full_turn: ClassVar[float] = math.pi

    def _visible(self, half_width: float) -> float:
        return half_width

    def _half_width(self, radius: float) -> float:
        return radius


@dataclass(frozen=True, kw_only=True)
class FanGeometry(Geometry):
    """Rays from a point source to a flat detector, which is perpendicular to the ray through the axis of rotation.

    source_to_center, source_to_detector: distances along that ray, of the axis and of the detector. ``detector_pitch``
    and ``detector_offset`` are measured on the detector, where the image is magnified by their quotient.

    Raises
    ------
    ConfigError: also for a source inside the image, and a detector that is not behind the axis of rotation.
    """

    full_turn: ClassVar[float] = 2.0 * math.pi

    source_to_center: float
    source_to_detector: float

    def __post_init__(self) -> None:
        super().__post_init__()
        reach = self.image_side / math.sqrt(2.0)
        if self.source_to_center <= reach:
            raise ConfigError(
                f"FanGeometry(source_to_center={self.source_to_center:g}): the source runs through the image, whose "
                f"corners are {reach:.4g} from the axis of rotation; expected a larger distance."
            )
        if self.source_to_detector < self.source_to_center:
            raise ConfigError(
                f"FanGeometry(source_to_detector={self.source_to_detector:g}): the detector is in front of the axis of "
                f"rotation, at source_to_center={self.source_to_center:g}; expected a distance at least as large."
            )

    def _lengths(self) -> tuple[str, ...]:
        return (*super()._lengths(), "source_to_center", "source_to_detector")

    def _visible(self, half_width: float) -> float:
        return self.source_to_center * half_width / math.hypot(self.source_to_detector, half_width)

    def _half_width(self, radius: float) -> float:
        return self.source_to_detector * radius / math.sqrt(self.source_to_center**2 - radius**2)


def view_angles(
    angles: int | Tensor | Sequence[float], turn: float, call: str, fix: str = "pass torch.deg2rad(angles)"
) -> tuple[float, ...]:
    """Angles in radians from a number of them, uniform on [0, turn), or from themselves; ``fix`` is the advice where
    they look like degrees.

    Raises
    ------
    ConfigError: none at all. ShapeError: a tensor that is not 1-D.
    """
    if isinstance(angles, (int, np.integer)) and not isinstance(angles, bool):
        if angles < 1:
            raise ConfigError(f"{call}: got angles={angles}, expected at least one.")
        return tuple(turn * k / int(angles) for k in range(int(angles)))
    values = torch.as_tensor(angles, dtype=torch.float64)
    if values.dim() != 1:
        raise ShapeError(f"{call}: angles have shape {tuple(values.shape)}, expected a number of them or 1-D radians.")
    if values.numel() == 0:
        raise ConfigError(f"{call}: got no angles, expected at least one.")
    if float(values.abs().max()) > _LARGEST_ANGLE:
        warnings.warn(
            f"{call}: the largest angle is {float(values.abs().max()):.4g}, which looks like degrees; angles are "
            f"radians: {fix}.",
            stacklevel=3,
        )
    return tuple(values.tolist())
