"""Filtered back-projection of scans that measure lines twice, once or never, against sinograms of ellipses."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import registry
import torch
from torch import Tensor

import learnreg as lr
from learnreg.operators import FanBeam2D, FanGeometry, ParallelBeam2D, ParallelGeometry, filtered_back_projection
from learnreg.operators.tomography.coverage import coverage_of, detector_positions
from learnreg.operators.tomography.geometry import Geometry

pytest.importorskip("astra")

N, VIEWS, TURN, OFFSET = 32, 120, 2 * math.pi, 0.25
"""The offset is that of a quarter of the pitch, with which opposite rays interlace."""

FAN_ANGLE = 2 * math.asin(0.25)
SHORT = math.pi + FAN_ANGLE
ELLIPSES = (  # middle, half axes, tilt, value; in sides of the image
    (0.0, 0.0, 0.42, 0.34, 0.2, 1.0),
    (0.12, -0.1, 0.12, 0.2, 0.5, -0.5),
    (-0.16, 0.12, 0.08, 0.05, 1.0, 0.7),
    (0.05, 0.22, 0.06, 0.06, 0.0, 0.9),
)


def views(start: float, stop: float, count: int = VIEWS) -> list[float]:
    return np.linspace(start, stop, count, endpoint=False).tolist()


def fan(
    angles: Sequence[float], detectors: int = 37, offset: float = OFFSET, distance: float = 2.0, **k: Any
) -> Geometry:
    """The magnification is 1.5; lengths in pixels of the axis of rotation."""
    return FanGeometry(
        image_size=N, angles=tuple(angles), detectors=detectors, pixel_size=1 / N, detector_pitch=1.5 / N,
        detector_offset=1.5 * offset / N, source_to_center=distance, source_to_detector=1.5 * distance, **k,
    )  # fmt: skip


def parallel(angles: Sequence[float], detectors: int = 35, offset: float = OFFSET, **k: Any) -> Geometry:
    return ParallelGeometry(
        image_size=N, angles=tuple(angles), detectors=detectors, pixel_size=1 / N, detector_pitch=1 / N,
        detector_offset=offset / N, **k,
    )  # fmt: skip


def irregular(start: float, stop: float, count: int) -> list[float]:
    return np.random.default_rng(0).uniform(start, stop, count).tolist()


def line_integrals(g: Geometry) -> Tensor:
    """(1, 1, angles, detectors), from the documented conventions alone."""
    theta = torch.tensor(g.angles, dtype=torch.float64)[:, None]
    s = (torch.arange(g.detectors).double() - 0.5 * (g.detectors - 1)) * g.detector_pitch + g.detector_offset
    if isinstance(g, FanGeometry):
        turned = s / g.source_to_detector if g.detector_shape == "curved" else (s / g.source_to_detector).atan()
        phi, t = theta - turned, g.source_to_center * turned.sin()
    else:
        phi, t = theta + 0 * s, s
    result = torch.zeros(phi.shape, dtype=torch.float64)
    for x, y, a, b, tilt, value in ELLIPSES:
        distance = t - ((x + g.image_center[0]) * phi.cos() + (y + g.image_center[1]) * phi.sin())
        square = (a * (phi - tilt).cos()).square() + (b * (phi - tilt).sin()).square()
        result += value * 2 * a * b * (square - distance.square()).clamp_min(0).sqrt() / square
    return result[None, None]


def truth(fine: int = 8) -> Tensor:
    u = (torch.arange(N * fine).double() + 0.5) / (N * fine) - 0.5
    x, y = u[None, :], -u[:, None]
    image = torch.zeros(N * fine, N * fine, dtype=torch.float64)
    for x0, y0, a, b, tilt, value in ELLIPSES:
        along = (x - x0) * math.cos(tilt) + (y - y0) * math.sin(tilt)
        across = -(x - x0) * math.sin(tilt) + (y - y0) * math.cos(tilt)
        image += value * ((along / a).square() + (across / b).square() < 1)
    return image.reshape(N, fine, N, fine).mean((1, 3))


def projector(g: Geometry) -> FanBeam2D | ParallelBeam2D:
    return FanBeam2D.from_geometry(g) if isinstance(g, FanGeometry) else ParallelBeam2D.from_geometry(g)


def error_of(g: Geometry) -> tuple[float, float]:
    """Root mean square and mean in the disc inscribed in the image."""
    u = (torch.arange(N).double() + 0.5) / N - 0.5
    error = (filtered_back_projection(projector(g), line_integrals(g))[0, 0] - truth())[
        u[None, :].square() + u[:, None].square() < 0.47**2
    ]
    return float(error.square().mean().sqrt()), float(error.mean())


REFERENCE = {"fan": lambda: fan(views(0, TURN)), "parallel": lambda: parallel(views(0, TURN, 2 * VIEWS))}

COMPLETE: dict[str, Callable[[], Geometry]] = {
    "clockwise": lambda: fan(views(0, -TURN)),
    "another start": lambda: fan(views(-9.0, TURN - 9.0)),
    "the end point twice": lambda: fan([*views(0, TURN), TURN]),
    "one and a half turns": lambda: fan(views(0, 1.5 * TURN, 180)),
    "two turns that interlace": lambda: fan(views(0, 2 * TURN, 241)),
    "three turns of a motor": lambda: fan([a + 1e-4 * k for k in range(3) for a in views(0, TURN)]),
    "irregular": lambda: fan(irregular(0, TURN, 260)),
    "views left out": lambda: fan(np.delete(views(0, TURN), range(40, 50)).tolist()),
    "350 degrees": lambda: fan(views(0, TURN * 350 / 360)),
    "curved": lambda: fan(views(0, TURN), detector_shape="curved"),
    "off the axis": lambda: fan(views(0, TURN), 45, image_center=(0.04, -0.03)),
    "short scan": lambda: fan(views(1, 1 + SHORT)),
    "short scan, clockwise": lambda: fan(views(1, 1 - SHORT)),
    "short scan with its end": lambda: fan(np.linspace(0, SHORT, VIEWS).tolist()),
    "short scan, curved": lambda: fan(views(1, 1 + SHORT), detector_shape="curved"),
    "short scan, three times": lambda: fan([a + 1e-5 * k for k in range(3) for a in views(0, SHORT)]),
    "short scan, off the axis": lambda: fan(views(0, SHORT + 0.1), 45, image_center=(0.04, -0.03)),
    "270 degrees": lambda: fan(views(0, 1.5 * math.pi)),
    "270 degrees, irregular": lambda: fan(irregular(0, 1.5 * math.pi, 260)),
    "two arcs": lambda: fan([*views(3.3, TURN + 1.3, 120), *views(1.7, 2.9, 34)]),
    "close source": lambda: fan(views(0, math.pi + 2 * math.asin(0.5 / 0.8), 160), 47, distance=0.8),
    "half-fan": lambda: fan(views(0, TURN), 27, 7.25),
    "half-fan to the left": lambda: fan(views(0, TURN), 27, -7.25),
    "half-fan, five detectors of overlap": lambda: fan(views(0, TURN), 22, 8.25),
    "half-fan, curved, clockwise": lambda: fan(views(0, -TURN), 27, 7.25, detector_shape="curved"),
    "half-fan, one and a half turns": lambda: fan(views(0, 1.5 * TURN, 180), 27, 7.25),
    "half-fan, irregular": lambda: fan(irregular(0, TURN, 300), 27, 7.25),
    "half-fan, off the axis": lambda: fan(views(0, TURN), 31, 8.25, image_center=(0.04, -0.02)),
    "half-beam": lambda: parallel(views(0, TURN, 2 * VIEWS), 24, 5.25),
    "half-beam to the left, clockwise": lambda: parallel(views(0, -TURN, 2 * VIEWS), 24, -5.25),
    "half-beam, the end point twice": lambda: parallel(np.linspace(0, TURN, 2 * VIEWS + 1).tolist(), 24, 5.25),
    "parallel, three quarters of a turn": lambda: parallel(views(0, 1.5 * math.pi, 180)),
    "parallel, a half turn with its end": lambda: parallel(np.linspace(0, math.pi, VIEWS + 1).tolist()),
    "parallel, irregular": lambda: parallel(irregular(0, math.pi, 260)),
    "parallel, off the axis": lambda: parallel(views(0, math.pi), 43, image_center=(0.05, -0.04)),
}  # fmt: skip


@pytest.fixture(scope="module")
def reference() -> dict[str, float]:
    return {kind: error_of(build())[0] for kind, build in REFERENCE.items()}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scan", COMPLETE)
def test_complete_scans_are_as_good_as_full_ones(scan: str, reference: dict[str, float]) -> None:
    """Most without a quarter of the pitch between opposite rays: 1.8 times the error of the full scan, at most."""
    g = COMPLETE[scan]()
    error, mean = error_of(g)
    assert error < 1.8 * reference["fan" if isinstance(g, FanGeometry) else "parallel"]
    assert abs(mean) < 2e-3


INCOMPLETE: dict[str, tuple[Callable[[], Geometry], str]] = {
    "half a turn": (lambda: fan(views(0, math.pi)), "a gap of 3.17 radians; expected the full turn, or pi and the fan"),
    "a fan angle too little": (lambda: fan(views(0, SHORT - 0.1)), "image, 3.65 radians. Solve a"),
    "two quarters": (lambda: fan([*views(0, 1.5), *views(math.pi, math.pi + 1.5)]), "a gap of 1.65 radians"),
    "half-fan, 300 degrees": (lambda: fan(views(0, 5.2), 27, 7.25), "the detector reaches from -0.293 to 0.9727"),
    "half-fan, short scan": (lambda: fan(views(0, SHORT), 27, 7.25), "expected the full turn of angles and a detector"),
    "a hole at the axis": (lambda: fan(views(0, TURN), 16, 9.25), "on both sides of the ray"),
    "half-beam, half a turn": (lambda: parallel(views(0, math.pi), 24, 5.25), "expected the full turn of angles"),
}  # fmt: skip


@pytest.mark.parametrize("scan", INCOMPLETE)
def test_incomplete_scans_are_refused_with_advice(scan: str) -> None:
    build, message = INCOMPLETE[scan]
    A = projector(build())
    with pytest.raises(lr.ConfigError, match=re.escape(message)):
        filtered_back_projection(A, torch.zeros(1, *A.range_shape))


@pytest.mark.parametrize(
    ("build", "gap"),
    [
        (lambda: parallel(views(0, 0.96 * math.pi)), "a gap of 0.151 radians (8.64 degrees)"),
        (lambda: parallel([*views(0, 1.0), *views(1.1, math.pi)]), "a gap of 0.108 radians"),
        (lambda: parallel([*views(0, TURN - 0.2, 240)], 24, 5.25), "a gap of 0.225 radians"),
    ],
)
def test_gaps_that_are_bridged_are_said(build: Callable[[], Geometry], gap: str) -> None:
    A = projector(build())
    with pytest.warns(UserWarning, match=re.escape(gap)):
        filtered_back_projection(A, torch.zeros(1, *A.range_shape))


@pytest.mark.parametrize("build", [fan, parallel])
def test_narrow_detectors_are_said(build: Callable[..., Geometry]) -> None:
    A = projector(build(views(0, TURN), 21, 0.0))
    with pytest.warns(UserWarning, match=r"too narrow, it measures lines within 0\.\d+ of the axis .* reaches 0\.5;"):
        filtered_back_projection(A, torch.zeros(1, *A.range_shape))


def test_weights_are_wang_s_and_opposite_rays_share_one() -> None:
    g = fan(views(0, TURN), 27, 7.25)
    weights = coverage_of(g).weights / (TURN / VIEWS)
    begin, _ = g.edges
    s = detector_positions(g)
    wang = 0.5 * (1 + (0.5 * math.pi * (s / -begin).clamp(-1, 1)).sin())
    torch.testing.assert_close(weights, wang.expand_as(weights))
    for g in (fan(views(0, SHORT, 400), 37, 0.0), fan(views(0, 5.0, 400), 37, 0.0)):
        weights = coverage_of(g).weights / (g.angles[1] - g.angles[0])
        assert float(weights.min()) >= 0
        assert float(weights.max()) <= 1 + 1e-12
        theta, turned = torch.tensor(g.angles), g.ray_angles(detector_positions(g))
        for i in (3, 13, 18, 27):  # the same line, measured near the start and near the end
            there = theta + math.pi - 2 * turned[i]
            found = [np.interp(t, theta, weights[:, -1 - i], 0, 0) for t in (there, there - TURN)]
            inner = torch.stack([(t - end).abs() > 0.05 for t in (there, there - TURN) for end in theta[[0, -1]]]).all(
                0
            )
            total = (weights[:, i] + torch.tensor(found[0] + found[1]))[inner]
            torch.testing.assert_close(total, torch.ones_like(total), atol=0.01, rtol=0)


def test_short_scans_are_as_good_as_parker_s() -> None:
    """Parker's formula for the short scan, in place of the weights."""
    g = fan(views(0, SHORT), 35, 0.0)
    A = projector(g)
    beta = torch.tensor(g.angles, dtype=torch.float64)[:, None] + 0.5 * SHORT / VIEWS
    turned, half = g.ray_angles(detector_positions(g))[None, :], 0.5 * FAN_ANGLE
    rising = (0.25 * math.pi * beta / (half + turned).clamp_min(1e-9)).sin().square()
    falling = (0.25 * math.pi * (SHORT - beta) / (half - turned).clamp_min(1e-9)).sin().square()
    start, end = beta < 2 * (half + turned), beta > math.pi + 2 * turned
    parker = torch.where(start, rising, torch.where(end, falling, torch.ones_like(rising)))
    ours, b = filtered_back_projection(A, line_integrals(g)), line_integrals(g)
    A.__dict__["coverage"] = replace(A.coverage, weights=parker * SHORT / VIEWS)
    theirs = filtered_back_projection(A, b)
    errors = [float((x[0, 0] - truth()).square().mean().sqrt()) for x in (ours, theirs)]
    assert errors[0] < 1.1 * errors[1]


def test_dead_detectors_are_interpolated_with_a_word() -> None:
    whole = fan(views(0, TURN))
    g = replace(whole, dead_detectors=(0, 13, 22, 23))
    b = line_integrals(g)
    b[..., list(g.dead_detectors)] = 1e3 * registry.randn(1, 1, VIEWS, 4)
    with pytest.warns(UserWarning, match="4 dead detectors are interpolated from their neighbours. A lower-level"):
        image = filtered_back_projection(projector(g), b)
    full = filtered_back_projection(projector(whole), line_integrals(whole))
    assert float((image - full).square().mean().sqrt()) < 0.03
    constant = torch.ones(1, 1, VIEWS, g.detectors, dtype=torch.float64)
    holes = constant.clone()
    holes[..., list(g.dead_detectors)] = 0
    with pytest.warns(UserWarning, match="dead"):
        found = filtered_back_projection(projector(g), holes)
    torch.testing.assert_close(found, filtered_back_projection(projector(whole), constant))
