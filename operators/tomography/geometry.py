"""Scan geometries of two-dimensional tomography: where rays run through a square image.

Coordinates are centred on the axis of rotation, and so is the image unless ``image_center`` says otherwise; x points
right, y up, so that the first row of an image is at the top. At angle theta the detector axis is
(cos theta, sin theta), detectors are numbered along it, and rays run along (-sin theta, cos theta); a fan's source is
at source_to_center · (sin theta, -cos theta). This is the convention of the ASTRA toolbox; ``skimage.transform.radon``
gives the same sinograms, transposed, of images with an odd number of pixels along a side (docs/geometry.md).

Lengths are in any unit; the matrix of a geometry has the same unit, since its entries are lengths of rays in pixels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from learnreg.errors import ConfigError, ShapeError
from learnreg.linear.arguments import check_one_of, given_tensor, real_number, shown
from learnreg.operators.tomography.limits import checked_angles, checked_count, checked_indices, checked_length

__all__ = ["LARGEST_IMAGE", "DetectorShape", "FanGeometry", "Geometry", "ParallelGeometry", "view_angles"]

DetectorShape = Literal["flat", "curved"]

_LARGEST_ANGLE = 2 * math.pi * 1.05
"""Scans go a little beyond the full turn; radians beyond this are taken for degrees."""

LARGEST_IMAGE, _MOST_DETECTORS, _MOST_ANGLES = 2**15, 2**17, 100_000
"""Beyond what a two-dimensional scan has; larger numbers are slips that would fill the memory before they fail."""

_LATER_FIELDS = ("image_center", "dead_detectors", "detector_shape")
"""Left out of ``config`` at their defaults: model files and caches of scans without them stay what they were."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What parallel and fan beams share.

    image_size: pixels along a side. angles: radians, in any order. detectors: number of them. pixel_size: side of a
    pixel. detector_pitch: distance of neighbouring detectors. detector_offset: how far the middle of the detector lies
    from the central ray along the detector axis. image_center: (x, y) of the middle of the image, seen from the axis of
    rotation. dead_detectors: numbers, from 0, of those that measure nothing; their rays see nothing, so that whatever
    a sinogram holds there changes no reconstruction.

    Raises
    ------
    ConfigError: no angles, a value that is not finite, a size or length out of range, a dead detector that is none.
    """

    full_turn: ClassVar[float]

    image_size: int
    angles: tuple[float, ...]
    detectors: int
    pixel_size: float
    detector_pitch: float
    detector_offset: float = 0.0
    image_center: tuple[float, float] = (0.0, 0.0)
    dead_detectors: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        name = type(self).__name__
        sizes = {"image_size": LARGEST_IMAGE, "detectors": _MOST_DETECTORS}
        found: dict[str, Any] = {
            key: checked_count(getattr(self, key), f"{name}({key}=", most) for key, most in sizes.items()
        }
        pixel = checked_length(self.pixel_size, f"{name}(pixel_size=")
        found |= {key: checked_length(getattr(self, key), f"{name}({key}=", pixel) for key in self._lengths()}
        found["detector_offset"] = checked_length(self.detector_offset, f"{name}(detector_offset=", pixel, signed=True)
        center = self.image_center
        if not isinstance(center, (tuple, list)) or len(center) != 2:
            raise ConfigError(f"{name}(image_center={center!r}): expected two lengths, (x, y).")
        found["image_center"] = tuple(checked_length(c, f"{name}(image_center=", pixel, signed=True) for c in center)
        found["angles"] = checked_angles(self.angles, f"{name}(angles", _MOST_ANGLES)
        call = f"{name}(dead_detectors="
        found["dead_detectors"] = checked_indices(self.dead_detectors, found["detectors"], call, "detectors")
        for key, value in found.items():
            object.__setattr__(self, key, value)

    def _lengths(self) -> tuple[str, ...]:
        return ("pixel_size", "detector_pitch")

    def config(self) -> dict[str, Any]:
        """The fields, as model files and the cache know them."""
        kept = (f for f in fields(self) if f.name not in _LATER_FIELDS or getattr(self, f.name) != f.default)
        return {f.name: getattr(self, f.name) for f in kept}

    # ---- what is seen ------------------------------------------------------------------------------------------------

    @property
    def image_side(self) -> float:
        """Length of a side of the image."""
        return self.image_size * self.pixel_size

    @property
    def reach(self) -> float:
        """Distance of the farthest corner of the image from the axis of rotation."""
        return math.hypot(*(abs(c) + 0.5 * self.image_side for c in self.image_center))

    @property
    def inscribed_radius(self) -> float:
        """Radius of the disc around the axis of rotation that holds the disc inscribed in the image."""
        return math.hypot(*self.image_center) + 0.5 * self.image_side

    @property
    def edges(self) -> tuple[float, float]:
        """Where the detector begins and ends along its axis, dead detectors at its ends left out."""
        dead = set(self.dead_detectors)
        live = [i for i in range(self.detectors) if i not in dead] if dead else [0, self.detectors - 1]
        begin, end = (i - 0.5 * self.detectors for i in (live[0], live[-1] + 1))
        return begin * self.detector_pitch + self.detector_offset, end * self.detector_pitch + self.detector_offset

    @property
    def visible_radius(self) -> float:
        """Radius of the disc around the axis of rotation that every view sees whole; 0 if there is none."""
        begin, end = self.edges
        return max(0.0, self.visible(min(-begin, end)))

    def visible(self, half_width: float) -> float:
        """Radius of the disc that a detector reaching ``half_width`` to both sides sees."""
        raise NotImplementedError

    def half_width(self, radius: float) -> float:
        """Inverse of ``visible``."""
        raise NotImplementedError

    def ray_angles(self, positions: Tensor) -> Tensor:
        """Radians between the ray to a position along the detector and the central ray; counter-clockwise is negative,
        so that the ray at theta has the direction of the parallel view theta minus its angle."""
        raise NotImplementedError

    def covering_detectors(self, radius: float | None = None) -> int:
        """Smallest odd number of detectors that see the disc of this radius, by default the image with its corners."""
        radius = self.reach if radius is None else checked_length(radius, "covering_detectors(radius=")
        half_width = self.half_width(radius) + abs(self.detector_offset)
        count = math.ceil(2.0 * half_width / self.detector_pitch * (1.0 - 1e-12))
        return count + 1 - count % 2

    @property
    def truncated(self) -> bool:
        """Whether some view misses a part of the disc inscribed in the image."""
        return self.visible_radius < self.inscribed_radius * (1.0 - 1e-9)

    @property
    def complemented(self) -> bool:
        """Whether views of the full turn see from the other side what the detector misses on its shorter one."""
        short, long = sorted((-self.edges[0], self.edges[1]))
        if short <= 0.0 or self.visible(long) < self.inscribed_radius * (1.0 - 1e-9):
            return False
        ascending = np.sort(np.asarray(self.angles) % (2.0 * math.pi))
        gaps = np.diff(ascending, append=ascending[0] + 2.0 * math.pi)
        return bool(gaps.max() <= max(0.1 * math.pi, 3.0 * np.median(gaps)))

    def warn_if_truncated(self) -> None:
        """Warn when some view misses a part of the disc inscribed in the image that no opposite one sees."""
        if self.truncated and not self.complemented:
            warnings.warn(
                f"the detector is too narrow for the image: every view sees a disc of radius {self.visible_radius:.4g} "
                f"only, half the image's side is {0.5 * self.image_side:.4g}; projections are truncated. "
                f"{self.covering_detectors(self.inscribed_radius)} detectors see the disc inscribed in the image, "
                f"{self.covering_detectors()} all of it.",
                stacklevel=3,
            )

    def in_pixels(self) -> Self:
        """The same rays, the side of a pixel being the unit of length."""
        return replace(self._with_lengths(lambda length: length / self.pixel_size), pixel_size=1.0)

    def scaled(self, factor: float) -> Self:
        """The same rays with all lengths times ``factor``, in another unit of length."""
        factor = real_number(factor, "scaled(factor)", above=0.0)
        return self._with_lengths(lambda length: length * factor)

    def _with_lengths(self, change: Callable[[float], float]) -> Self:
        lengths: dict[str, Any] = {key: change(getattr(self, key)) for key in (*self._lengths(), "detector_offset")}
        x, y = self.image_center
        return replace(self, **lengths, image_center=(change(x), change(y)))

    def check_sinogram(self, shape: tuple[int, ...]) -> None:
        """Raise ShapeError where a sinogram (..., angles, detectors) does not fit."""
        if not isinstance(shape, (tuple, list)):
            raise ShapeError(f"check_sinogram(shape): got {shown(shape)}, expected a shape (..., angles, detectors).")
        for size, expected, what in zip(
            reversed(shape), (self.detectors, len(self.angles)), ("detectors", "angles"), strict=False
        ):
            if size != expected:
                raise ShapeError(f"the sinogram of shape {shape} has {size} {what}, the geometry {expected}.")


@dataclass(frozen=True, kw_only=True)
class ParallelGeometry(Geometry):
    """Parallel rays; a half turn sees everything.

    Examples
    --------
    >>> geometry = lr.operators.ParallelBeam2D(16, 10, backend="matrix-free").geometry
    >>> type(geometry).__name__, geometry.image_size
    ('ParallelGeometry', 16)
    """

    full_turn: ClassVar[float] = math.pi

    def visible(self, half_width: float) -> float:
        return half_width

    def half_width(self, radius: float) -> float:
        return radius

    def ray_angles(self, positions: Tensor) -> Tensor:
        return torch.zeros_like(positions)


@dataclass(frozen=True, kw_only=True)
class FanGeometry(Geometry):
    """Rays from a point source to a detector behind the axis of rotation.

    source_to_center, source_to_detector: distances along the ray through the axis, of the axis and of the detector.
    detector_shape: "flat", perpendicular to that ray, or "curved", an arc around the source (equiangular rays).
    ``detector_pitch`` and ``detector_offset`` are measured on the detector, along the arc of a curved one, where the
    image is magnified by the quotient of the distances.

    Raises
    ------
    ConfigError: also for a source inside the image, a detector that is not behind the axis of rotation, and an arc of
        more than half a turn.

    Examples
    --------
    >>> geometry = lr.operators.FanBeam2D(16, 10, backend="matrix-free").geometry
    >>> geometry.source_to_center
    2.0
    """

    full_turn: ClassVar[float] = 2.0 * math.pi

    source_to_center: float
    source_to_detector: float
    detector_shape: DetectorShape = "flat"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of(self.detector_shape, ("flat", "curved"), "FanGeometry(detector_shape)")
        if self.source_to_center <= self.reach:
            raise ConfigError(
                f"FanGeometry(source_to_center={self.source_to_center:g}): the source runs through the image, whose "
                f"corners are {self.reach:.4g} from the axis of rotation; expected a larger distance."
            )
        if self.source_to_detector < self.source_to_center:
            raise ConfigError(
                f"FanGeometry(source_to_detector={self.source_to_detector:g}): the detector is in front of the axis of "
                f"rotation, at source_to_center={self.source_to_center:g}; expected a distance at least as large."
            )
        half_arc = 0.5 * self.detectors * self.detector_pitch + abs(self.detector_offset)
        if self.curved and half_arc >= 0.5 * math.pi * self.source_to_detector:
            raise ConfigError(
                f"FanGeometry(detector_shape='curved'): the arc reaches {half_arc / self.source_to_detector:.3g} "
                "radians from the central ray; expected less than a quarter turn. Check detectors, detector_pitch, "
                "detector_offset and source_to_detector."
            )

    @property
    def curved(self) -> bool:
        """Whether the detector is an arc around the source."""
        return self.detector_shape == "curved"

    def _lengths(self) -> tuple[str, ...]:
        return (*super()._lengths(), "source_to_center", "source_to_detector")

    def visible(self, half_width: float) -> float:
        if self.curved:
            return self.source_to_center * math.sin(half_width / self.source_to_detector)
        return self.source_to_center * half_width / math.hypot(self.source_to_detector, half_width)

    def half_width(self, radius: float) -> float:
        if self.curved:
            return self.source_to_detector * math.asin(radius / self.source_to_center)
        return self.source_to_detector * radius / math.sqrt(self.source_to_center**2 - radius**2)

    def ray_angles(self, positions: Tensor) -> Tensor:
        angles = positions / self.source_to_detector
        return angles if self.curved else angles.atan()


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
        count = checked_count(angles, f"{call}(angles=", _MOST_ANGLES)
        return tuple(turn * k / count for k in range(count))
    try:
        values = given_tensor(angles, f"{call}(angles)").double()
    except ShapeError as error:
        raise ShapeError(f"{error} Pass a number of angles, or 1-D radians.") from error
    if values.dim() != 1:
        raise ShapeError(f"{call}: angles have shape {tuple(values.shape)}, expected a number of them or 1-D radians.")
    if values.numel() == 0:
        raise ConfigError(f"{call}: got no angles, expected at least one.")
    if not bool(torch.isfinite(values).all()):
        raise ConfigError(f"{call}(angles): NaN or infinite entries.")
    largest = float(values.abs().max())
    if largest > _LARGEST_ANGLE:
        warnings.warn(
            f"{call}: the largest angle is {largest:.4g}, which looks like degrees; angles are radians: {fix}.",
            stacklevel=3,
        )
    return tuple(values.tolist())
