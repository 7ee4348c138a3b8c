"""Which rays a scan measures once, twice or never, and what each of them counts in filtered back-projection.

The line of the ray at view theta and position s along the detector, at the angle g from the central ray, is met again
from the other side at theta + pi - 2 g, position -s (g = 0 for parallel rays). Where both are measured they share the
weight 1 of the line, in the ratio of factors that vanish smoothly at the ends of the scan and of the detector: what is
filtered must not jump. For detectors that reach further to one side over a full turn these are Wang's weights; over
less than a full turn they are of Parker's kind, for scans of any length and in any number of arcs, as Noo et al. write
them.

Source: Parker, Med. Phys. 9 (1982); Silver, Med. Phys. 27 (2000); Wang, Med. Phys. 29 (2002); Noo, Defrise, Clackdoyle
and Kudo, "Image reconstruction from fan-beam projections on less than a short scan", Phys. Med. Biol. 47 (2002).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learnreg.operators.tomography.geometry import FanGeometry, Geometry

__all__ = ["Coverage", "coverage_of", "detector_positions"]

_TURN = 2.0 * math.pi
_TYPICAL_GAPS, _SHARE_OF_TURN = 3.0, 0.05
"""Neighbouring angles further apart than both, in gaps as they are usual and in turns, are the ends of a scan."""

_IRREGULAR = 1.5
"""Angles are irregular whose wider gaps are so many times the typical ones; some of theirs are wide anyway."""

_TAPER, _TAPER_GAPS = math.pi / 9, 4.0
"""Over this angle, and so many gaps, factors rise at the ends of a scan: from 10 to 60 degrees make no difference for
many views, and few views want some of them in there."""

_ROUND = 0.5
"""A detector that is this much shorter on one side still sees a disc worth reconstructing without opposite views."""

_LINES, _POSITIONS = 1440, 65
"""Views and positions at which lines are looked for."""


@dataclass(frozen=True)
class Coverage:
    """weights: of the rays, (angles, detectors) or (angles, 1), float64; sums over views weighted with them are
    integrals over lines. radius: of the disc around the axis of rotation whose lines are measured. missing: why that
    does not hold, a sentence. padding: detectors that measure nothing, to be added to both ends of the row: filtered
    views go on beyond a detector that reaches further to the other side. bridged: the widest gap between views that
    counts as if it were measured, radians, where it is wider than gaps of this scan are; 0 without one."""

    weights: Tensor
    radius: float
    missing: str | None = None
    padding: tuple[int, int] = (0, 0)
    bridged: float = 0.0


@dataclass(frozen=True)
class _Views:
    """weights: half the distance between each angle's neighbours, with gaps that end the scan counted as typical ones.
    arcs: (first, length) of what lies between such gaps, half a typical gap added to both sides; none for a full turn.
    bridged: the widest gap that ends no arc, if it is wider than gaps of this scan are, else 0.
    """

    weights: Tensor
    arcs: list[tuple[float, float]]
    typical: float
    widest: float
    bridged: float


@dataclass(frozen=True)
class _Rays:
    """Which rays are measured, and by which factor those of one line share its weight.

    begin, end: of the detector. faded: half of the strip along the detector, from its nearer end, over which the factor
    rises; 0: it does not depend on the position.
    """

    geometry: Geometry
    views: _Views
    begin: float
    end: float
    faded: float

    def measured(self, theta: Tensor, s: Tensor) -> Tensor:
        """Whether the ray is, half a gap of views aside."""
        slack = 0.5 * self.views.typical
        found = torch.full_like(theta, not self.views.arcs, dtype=torch.bool)
        for first, length in self.views.arcs:
            found = found | ((theta - first + slack) % _TURN <= length + 2.0 * slack)
        return found & (s >= self.begin) & (s <= self.end)

    def factor(self, theta: Tensor, s: Tensor) -> Tensor:
        """Not negative, and positive where a ray is measured; without ``faded`` whatever its position."""
        found = torch.full_like(theta, 0.0 if self.views.arcs else 1.0)
        taper = max(_TAPER, _TAPER_GAPS * self.views.typical)
        for first, length in self.views.arcs:
            along = (theta - first) % _TURN
            found = found + _rising(along / taper) * _rising((length - along) / taper)
        if self.faded > 0.0:
            nearer = s - self.begin if -self.begin < self.end else self.end - s
            found = found * _rising(nearer / (2.0 * self.faded))
        return found

    def opposite(self, theta: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """The same line from the other side."""
        return theta + math.pi - 2.0 * self.geometry.ray_angles(s), -s

    def complete(self, half_width: float) -> bool:
        """Whether all lines are measured that rays within this distance from the middle of the detector lie on."""
        theta = torch.arange(_LINES, dtype=torch.float64)[:, None] * (_TURN / _LINES)
        s = torch.linspace(-half_width, half_width, _POSITIONS, dtype=torch.float64)[None, :]
        return bool((self.measured(theta, s) | self.measured(*self.opposite(theta, s))).all())

    def weights(self) -> Tensor:
        """Of all rays, (angles, detectors)."""
        theta = torch.tensor(self.geometry.angles, dtype=torch.float64)[:, None]
        s = detector_positions(self.geometry)[None, :]
        own, other = self.factor(theta, s), self.factor(*self.opposite(theta, s))
        return self.views.weights[:, None] * own / (own + other).clamp_min(1e-300)


def coverage_of(geometry: Geometry) -> Coverage:
    """What a scan measures."""
    begin, end = geometry.edges
    short, long = sorted((-begin, end))
    needed = geometry.half_width(geometry.inscribed_radius)
    one_sided = short < needed and long - short > geometry.detector_pitch * (1.0 + 1e-9)
    discs = [(min(long if one_sided else short, needed), one_sided)]
    if one_sided and short >= _ROUND * min(long, needed):
        discs.append((short, False))
    fan = isinstance(geometry, FanGeometry)
    for half_width, faded in discs:
        if not (fan or faded):  # opposite parallel views are one, whole
            views = _views(geometry, math.pi, loose=True)
            return Coverage(views.weights[:, None], geometry.visible(half_width), bridged=views.bridged)
        for loose in (False, True):
            views = _views(geometry, _TURN, loose)
            rays = _Rays(geometry, views, begin, end, short if faded else 0.0)
            if rays.complete(half_width):
                missed = math.ceil((half_width - short) / geometry.detector_pitch) if faded else 0
                padding = (missed, 0) if -begin < end else (0, missed)
                return Coverage(rays.weights(), geometry.visible(half_width), None, padding, views.bridged)
    views = _views(geometry, geometry.full_turn, loose=True)
    share = 0.5 if fan else 1.0
    return Coverage(
        share * views.weights[:, None], geometry.visible(max(0.0, short)), _missing(geometry, views, one_sided)
    )


def _missing(geometry: Geometry, views: _Views, one_sided: bool) -> str:
    if one_sided:
        begin, end = geometry.edges
        return (
            f"the detector reaches from {begin:.4g} to {end:.4g} along its axis, seen from the central ray; expected "
            "the full turn of angles and a detector on both sides of the ray: opposite views see what is missing."
        )
    assert isinstance(geometry, FanGeometry)
    fan = 2.0 * math.asin(min(1.0, min(geometry.inscribed_radius, geometry.visible_radius) / geometry.source_to_center))
    return (
        f"the fan's angles leave a gap of {views.widest:.3g} radians; expected the full turn, or pi and the fan angle "
        f"of the image, {math.pi + fan:.3g} radians."
    )


def _views(geometry: Geometry, turn: float, loose: bool) -> _Views:
    """What angles count modulo a turn, and where they end: at gaps beyond three typical ones, and beyond 5 % of the
    turn if ``loose`` or if angles are irregular."""
    angles = torch.tensor(geometry.angles, dtype=torch.float64) % turn
    ascending, order = angles.sort()
    gaps = torch.cat([ascending[1:], ascending[:1] + turn]) - ascending
    distinct = gaps[gaps > 1e-6 * gaps.max()]  # repeated and opposite views are one, up to rounding ...
    distinct = distinct[distinct > 1e-2 * distinct.quantile(0.9)]  # ... and to what a motor repeats
    typical = float(distinct.median())
    share = _SHARE_OF_TURN * turn
    wide = _TYPICAL_GAPS * float(distinct.quantile(0.9))
    limit = share if loose else min(share, wide)
    ends = gaps > max(_TYPICAL_GAPS * typical, limit)
    irregular = wide > _IRREGULAR * _TYPICAL_GAPS * typical
    widest, within = float(gaps.max()), gaps[~ends & (gaps > (2.0 * wide if irregular else _TYPICAL_GAPS * typical))]
    bridged = float(within.max()) if len(within) else 0.0
    arcs = []
    last = torch.nonzero(ends).flatten().tolist()
    for before, here in zip([last[-1] - len(ascending), *last], last, strict=False) if last else ():
        first = float(ascending[before + 1])
        arcs.append((first - 0.5 * typical, (float(ascending[here]) - first) % turn + typical))
    gaps = torch.where(ends, typical, gaps)
    weights = torch.empty(len(angles), dtype=torch.float64)
    weights[order] = 0.5 * (gaps + gaps.roll(1))
    return _Views(weights, arcs, typical, widest, bridged)


def detector_positions(geometry: Geometry) -> Tensor:
    """Where the middles of the detectors lie along the detector, seen from the central ray, float64."""
    numbers = torch.arange(geometry.detectors, dtype=torch.float64) - 0.5 * (geometry.detectors - 1)
    return numbers * geometry.detector_pitch + geometry.detector_offset


def bridged(views: Tensor, dead: tuple[int, ...]) -> Tensor:
    """Views (..., detectors) with linear interpolation between live neighbours at dead detectors, constant beyond."""
    if not dead:
        return views
    missing = np.array(dead)
    live = np.setdiff1d(np.arange(views.shape[-1]), missing)
    after = np.searchsorted(live, missing)
    left, right = live[np.maximum(after - 1, 0)], live[np.minimum(after, live.size - 1)]
    share = views.new_tensor((missing - left) / np.maximum(right - left, 1)).clamp(0.0, 1.0)
    between = torch.lerp(views[..., left], views[..., right], share)
    return views.index_copy(-1, torch.tensor(missing, device=views.device), between)


def _rising(u: Tensor) -> Tensor:
    """From 0 to 1 over [0, 1], smoothly."""
    return (0.5 * math.pi * u.clamp(0.0, 1.0)).sin().square()
