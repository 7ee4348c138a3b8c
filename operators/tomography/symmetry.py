"""Symmetries of a scan of a square image: rotations by quarter turns and reflections that permute its rays.

If such a motion g of the plane takes ray r to ray s, then <a_s, x> = <a_r, x∘g>: one row of the system matrix serves up
to eight rays, applied to eight copies of the image. A scan with uniform angles and a centred detector has all eight
symmetries when the number of angles is even (parallel) or a multiple of four (fan); an image off the axis has none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from learnreg.operators.tomography.geometry import Geometry, ParallelGeometry

__all__ = ["MOST_MOTIONS", "Symmetry", "reordered", "symmetry_of"]

Index = npt.NDArray[np.int64]

MOST_MOTIONS = 8

_ANGLE_TOLERANCE = 5e-7
"""Radians: angles that were rounded to float32 are still uniform. It moves rays by less than 2e-4 pixels at 512²."""

_BUNDLE = 16


@dataclass(frozen=True)
class Symmetry:
    """How rays and pixels are permuted by a group of ``order`` motions.

    rows: the rays (view · detectors + detector) whose rows of the matrix are stored, in that order: bundles of
    neighbouring detectors, their views, the detectors of each, so that rows meet pixels still in the cache. source:
    for every ray, position in ``rows`` · order + motion. slots: for every such pair the ray that it gives, or the
    number of rays where another pair gives it already. pixels: (order, pixels), the pixel whose value x∘g has at each.
    """

    order: int
    rows: Index
    source: Index
    slots: Index
    pixels: Index


def symmetry_of(geometry: Geometry, wanted: bool = True) -> Symmetry:
    """The symmetries of a geometry, or the trivial one if they are not ``wanted``."""
    rays, n = len(geometry.angles) * geometry.detectors, geometry.image_size
    identity = np.arange(rays)
    motions = [(0, False)]
    images = [identity]
    if wanted and geometry.image_center == (0.0, 0.0):
        for motion in [(k, mirrored) for mirrored in (False, True) for k in range(4)][1:]:
            moved = _moved_rays(geometry, *motion)
            if moved is not None:
                motions.append(motion)
                images.append(moved)
    table = np.stack(images)
    rows = np.flatnonzero(table.min(0) == identity)
    view, detector = np.divmod(rows, geometry.detectors)
    rows = rows[np.lexsort((detector, view, detector // _BUNDLE))]
    order, given = len(motions), table[:, rows].T.reshape(-1)
    source = np.empty(rays, np.int64)
    source[given] = np.arange(given.size)  # the last of the pairs that give a ray
    slots = np.full(given.size, rays, np.int64)
    slots[source] = identity
    return Symmetry(order, rows, source, slots, np.stack([_moved_pixels(n, *motion) for motion in motions]))


def reordered(symmetry: Symmetry, order: Index) -> Symmetry:
    """The same with other numbers: position i of the new ``rows`` is position order[i] of the old ones."""
    places = np.argsort(order)
    stored, motion = np.divmod(symmetry.source, symmetry.order)
    return replace(
        symmetry,
        rows=symmetry.rows[order],
        source=places[stored] * symmetry.order + motion,
        slots=symmetry.slots.reshape(-1, symmetry.order)[order].reshape(-1),
    )


def _moved_rays(geometry: Geometry, quarter_turns: int, mirrored: bool) -> Index | None:
    """The ray to which each ray moves, or None if one of them moves to no ray of the scan. Mirrored: x to -x first.

    The reflection takes a ray at angle theta and position s along the detector to (-theta, -s), a rotation by phi to
    (theta + phi, s); parallel rays at (theta + pi, s) and (theta, -s) are one.
    """
    angles = np.asarray(geometry.angles)
    moved = (-angles if mirrored else angles) + quarter_turns * math.pi / 2
    views, flipped = _find(angles, moved), np.full(angles.shape, mirrored)
    if isinstance(geometry, ParallelGeometry):
        opposite = _find(angles, moved + math.pi)
        flipped = np.where(views < 0, ~flipped, flipped)
        views = np.where(views < 0, opposite, views)
    if (views < 0).any() or (flipped.any() and geometry.detector_offset != 0.0):
        return None
    detectors = np.arange(geometry.detectors)
    columns = np.where(flipped[:, None], detectors[::-1], detectors)
    rays: Index = (views[:, None] * geometry.detectors + columns).reshape(-1)
    return rays if int(np.bincount(rays).max()) == 1 else None


def _find(angles: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]) -> Index:
    """Position in ``angles`` of each wanted angle, modulo the full turn; -1 where it is absent."""
    turn = 2 * math.pi
    order = np.argsort(angles % turn)
    ascending = angles[order] % turn
    after = np.searchsorted(ascending, wanted % turn)
    result = np.full(wanted.shape, -1)
    for candidate in (after - 1, after % angles.size):
        difference = np.abs((ascending[candidate] - wanted + math.pi) % turn - math.pi)
        result = np.where(difference < _ANGLE_TOLERANCE, order[candidate], result)
    return result


def _moved_pixels(n: int, quarter_turns: int, mirrored: bool) -> Index:
    """The pixel to which each pixel moves; rows are numbered downwards, the plane's y points up."""
    row, column = np.divmod(np.arange(n * n), n)
    if mirrored:
        column = n - 1 - column
    for _ in range(quarter_turns):  # (x, y) to (-y, x)
        row, column = n - 1 - column, row
    pixels: Index = row * n + column
    return pixels
