"""Rays as lines through the grid of pixels, and the two pixels of each row or column that share one.

A ray that is steeper than 45 degrees is *upright* and followed from row to row, the others from column to column. In
row i it meets the pixels p = floor(t) and p + 1, t = offset + i slope, and its length there is shared as 1 - w and w
with w = max(0, t - p - gap) inverse: linear interpolation at the middle of the row (Joseph), or the exact lengths in
both pixels (Siddon), whose t is where the ray enters the row.

Source: Joseph, IEEE Trans. Med. Imaging 1 (1982); Siddon, Med. Phys. 12 (1985).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from learnreg.errors import ConfigError
from learnreg.linear.arguments import check_one_of
from learnreg.operators.tomography.geometry import FanGeometry, Geometry, ParallelGeometry

__all__ = ["Kernel", "Rays", "curved_vectors", "kernel_for", "rays_of", "view_vectors"]

Kernel = Literal["linear", "line", "strip"]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rays:
    """offsets, slopes: of t. gaps, inverses: of the weights. lengths: in one row or column, in pixels. upright: which
    are followed from row to row. All (rays,)."""

    offsets: Doubles
    slopes: Doubles
    gaps: Doubles
    inverses: Doubles
    lengths: Doubles
    upright: npt.NDArray[np.bool_]

    def entries(self, image_size: int) -> int:
        """About how many entries the matrix of these rays has."""
        last = self.offsets + (image_size - 1) * self.slopes
        low, high = np.minimum(self.offsets, last), np.maximum(self.offsets, last)
        inside = np.clip(np.minimum(high, image_size) - np.maximum(low, -1.0), 0.0, None)
        steep = high - low > 1e-9 * image_size
        within = (low < image_size) & (high > -1.0)
        share = np.where(steep, inside / np.where(steep, high - low, 1.0), within)
        per_row = np.where(self.inverses == 1.0, 2.0, 1.0 + np.abs(self.slopes))
        return int((share * per_row).sum() * image_size)


def rays_of(geometry: Geometry, kernel: Kernel, rows: npt.NDArray[np.int64]) -> Rays:
    """These rays (view · detectors + detector) of a geometry, in units of pixels; kernel: "linear" or "line"."""
    pixels = geometry.in_pixels()
    views, numbers = np.divmod(rows, pixels.detectors)
    if isinstance(pixels, FanGeometry) and pixels.curved:
        vectors = curved_vectors(pixels, pixels.angles, pixels.detectors)[rows]
        detector = vectors[:, 2:4]
    else:
        vectors = view_vectors(pixels, pixels.angles, pixels.detectors)[views]
        detector = vectors[:, 2:4] + (numbers - 0.5 * (pixels.detectors - 1))[:, None] * vectors[:, 4:6]
    ray = vectors[:, :2] - detector if isinstance(pixels, FanGeometry) else vectors[:, :2]
    upright = np.abs(ray[:, 0]) < np.abs(ray[:, 1])
    along, across = (np.where(upright, ray[:, k], ray[:, 1 - k]) for k in (1, 0))
    ratio, middle = across / along, 0.5 * (pixels.image_size - 1)
    x, y = detector[:, 0], detector[:, 1]
    crossed = np.where(upright, x + (middle - y) * ratio, -y + (middle + x) * ratio) + middle
    lengths, steps = np.hypot(1.0, ratio), np.abs(ratio)
    if kernel == "linear":
        return Rays(crossed, -ratio, np.zeros_like(ratio), np.ones_like(ratio), lengths, upright)
    inverses = np.divide(1.0, steps, out=np.zeros_like(steps), where=steps > 0.0)
    return Rays(crossed + 0.5 - 0.5 * steps, -ratio, 1.0 - steps, inverses, lengths, upright)


def kernel_for(geometry: Geometry, kernel: Kernel | None) -> Kernel:
    """The kernel to discretise with: by default "linear" (Joseph) for parallel and "line" (Siddon) for fan beams.

    Raises
    ------
    ConfigError: an unknown kernel, or one that is not known for the geometry.
    """
    fan = isinstance(geometry, FanGeometry)
    if kernel is None:
        return "line" if fan else "linear"
    check_one_of(kernel, ("linear", "line", "strip"), f"{type(geometry).__name__}: kernel")
    if isinstance(geometry, FanGeometry) and kernel == "strip":
        moved = geometry.detector_offset != 0.0 or geometry.image_center != (0.0, 0.0)
        if moved or geometry.curved:
            raise ConfigError(
                "kernel='strip' for a fan beam needs a flat detector, detector_offset=0 and image_center=(0, 0); use "
                "kernel='line'."
            )
    return kernel


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


def curved_vectors(geometry: FanGeometry, angles: npt.ArrayLike, last: int) -> Doubles:
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
