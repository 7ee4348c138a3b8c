"""Filtered back-projection against scikit-image, and what it recovers from its own projectors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import registry
import torch
from torch import Tensor

import learnreg as lr
from learnreg.operators import FanBeam2D, FanGeometry, ParallelBeam2D, ParallelGeometry, filtered_back_projection
from learnreg.regularizers import TotalVariation
from learnreg.solvers.solve import initial_point

pytest.importorskip("astra")

Projector = ParallelBeam2D | FanBeam2D

MIDDLE, RADIUS = (0.11, -0.17), 0.24


def built(kind: type[Projector], n: int, angles: Any, **options: Any) -> Projector:
    geometry: Any = FanGeometry if kind is FanBeam2D else ParallelGeometry
    options = {"pixel_size": 1.0 / n, "detector_pitch": 1.0 / n} | options
    if isinstance(angles, int):
        angles = [geometry.full_turn * k / angles for k in range(angles)]
    return kind.from_geometry(geometry(image_size=n, angles=tuple(angles), **options))


def distance_from_the_middle(n: int) -> Tensor:
    u = (torch.arange(n).double() + 0.5) / n - 0.5
    return torch.hypot(u[None, :] - MIDDLE[0], -u[:, None] - MIDDLE[1])


FAN = {"detectors": 301, "source_to_center": 2.0, "source_to_detector": 4.0}

SCANS: dict[str, tuple[type[Projector], int, Any, dict[str, Any]]] = {
    "parallel": (ParallelBeam2D, 96, 150, {"detectors": 137}),
    "other lengths, offset": (
        ParallelBeam2D, 97, 150,
        {"detectors": 101, "detector_pitch": 0.02, "detector_offset": 0.03, "pixel_size": 0.013},
    ),
    "full turn": (ParallelBeam2D, 96, [2 * math.pi * k / 300 for k in range(300)], {"detectors": 137}),
    "irregular": (
        ParallelBeam2D, 96, [math.pi * (k / 200 + 0.01 * math.sin(k)) for k in range(200)], {"detectors": 137},
    ),
    "fan": (FanBeam2D, 96, 240, FAN),
    "fan, close, offset": (
        FanBeam2D, 97, 240,
        FAN | {"source_to_center": 1.3, "source_to_detector": 1.9, "detector_offset": -0.05},
    ),
    "fan in other lengths": (
        FanBeam2D, 96, 240,
        {"detectors": 201, "source_to_center": 80.0, "source_to_detector": 120.0, "pixel_size": 0.4,
         "detector_pitch": 0.5},
    ),
}  # fmt: skip


@pytest.mark.parametrize("scan", SCANS)
def test_intensities_are_recovered(scan: str) -> None:
    kind, n, angles, options = SCANS[scan]
    A = built(kind, n, angles, **options)
    distance = distance_from_the_middle(n)
    x = (distance < RADIUS).double()[None, None]
    for name in ("ramp", "hann"):
        image = filtered_back_projection(A, A(x), name)[0, 0]  # type: ignore[arg-type]
        assert float(image[distance < 0.8 * RADIUS].mean()) == pytest.approx(1.0, abs=0.01)
        assert float(image[distance > 1.3 * RADIUS].mean()) == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("scan", SCANS)
def test_solvers_start_from_it(scan: str) -> None:
    """Up to a factor, and unless projections are truncated."""
    kind, n, angles, options = SCANS[scan]
    A = built(kind, n, angles, **options)
    x = (distance_from_the_middle(n) < RADIUS).double()[None, None]
    b = A(x)
    guess = A.approximate_inverse(b)
    if A.geometry.truncated:
        assert guess is None
        return
    assert guess is not None
    problem = lr.LowerLevelProblem(A, TotalVariation(1e-6, 1e-2).double(), ridge=1e-6)
    start = initial_point(problem.instance(b), b)
    direct = filtered_back_projection(A, b, "hann")
    similarity = float((start * direct).sum() / (start.norm() * direct.norm()))
    assert similarity > (0.99 if kind is ParallelBeam2D else 0.95)
    assert float((start - x).norm()) < 1.2 * float((direct - x).norm()) + 0.05 * float(x.norm())


def test_it_equals_scikit_image_s() -> None:
    transform = pytest.importorskip("skimage.transform")
    n, angles = 65, 60
    A = ParallelBeam2D(n, angles, n)
    distance = distance_from_the_middle(n)
    x = ((distance < 0.2).double() + 0.3 * (distance < 0.31))[None, None]
    sinogram = A(x)
    degrees = np.rad2deg(A.geometry.angles)
    u = torch.arange(n) - n // 2
    seen = torch.hypot(u[None, :].double(), u[:, None].double()) < n // 2 - 1
    for name, size in (("ramp", 1e-10), ("hann", 0.05)):
        expected = transform.iradon(sinogram[0, 0].numpy().T * n, degrees, filter_name=name, circle=True)
        ours = filtered_back_projection(A, sinogram, name)[0, 0]  # type: ignore[arg-type]
        assert float((ours - torch.from_numpy(expected)).abs()[seen].max()) < size
        errors = [float((image - x[0, 0])[seen].square().mean()) for image in (ours, torch.from_numpy(expected))]
        assert abs(10 * math.log10(errors[0] / errors[1])) < 0.5, "PSNR"


@pytest.mark.parametrize("n", [40, 64])
def test_scikit_image_turns_even_images_about_another_pixel(n: int) -> None:
    """Half a pixel right of the middle and below it, as docs/geometry.md says."""
    transform = pytest.importorskip("skimage.transform")
    half = 0.5 / n
    A = built(ParallelBeam2D, n, 60, detectors=n, detector_offset=-half, image_center=(-half, half))
    distance = distance_from_the_middle(n)
    smooth = torch.exp(-200 * distance.square()) * (distance < 0.25)
    expected = torch.from_numpy(transform.radon(smooth.numpy(), np.rad2deg(A.geometry.angles), circle=True).T / n)
    found = A(smooth[None, None])[0, 0]
    assert float((found - expected).norm() / expected.norm()) < 0.01
    centred = built(ParallelBeam2D, n, 60, detectors=n)(smooth[None, None])[0, 0]
    assert float((centred - expected).norm() / expected.norm()) > 0.05, "half a pixel is no small thing"
    sinogram = A((distance < 0.2).double()[None, None])
    theirs = transform.iradon(sinogram[0, 0].numpy().T * n, np.rad2deg(A.geometry.angles), filter_name="ramp")
    u = torch.arange(n) - n // 2
    seen = torch.hypot(u[None, :].double(), u[:, None].double()) < n // 2 - 1
    ours = filtered_back_projection(A, sinogram)[0, 0]
    assert float((ours - torch.from_numpy(theirs)).abs()[seen].max()) < 1e-10


def test_limited_angles() -> None:
    A = built(ParallelBeam2D, 48, [math.pi * k / 120 for k in range(80)], detectors=69)
    x = (distance_from_the_middle(48) < RADIUS).double()[None, None]
    image = filtered_back_projection(A, A(x))
    full = built(ParallelBeam2D, 48, 120, detectors=69)
    part = A.adjoint(A(x)).sum() / full.adjoint(full(x)).sum()
    assert float(image.sum() / filtered_back_projection(full, full(x)).sum()) == pytest.approx(float(part), abs=0.05)
    views = [0.1 * k for k in range(30)]
    half = built(FanBeam2D, 8, views, detectors=31, source_to_center=2.0, source_to_detector=4.0)
    with pytest.raises(lr.ConfigError, match=r"gap of .* radians; expected the full turn"):
        filtered_back_projection(half, torch.zeros(1, *half.range_shape))


def test_it_is_linear_differentiable_and_keeps_the_dtype() -> None:
    A = ParallelBeam2D(12, 9)
    y = registry.randn(3, *A.range_shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: filtered_back_projection(A, y), (y,), fast_mode=True)
    images = filtered_back_projection(A, y.detach())
    assert images.shape == (3, *A.domain_shape)
    torch.testing.assert_close(filtered_back_projection(A, -2 * y[1:2].detach()), -2 * images[1:2])
    single = filtered_back_projection(A, y.detach().float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), images, rtol=1e-4, atol=1e-4)
    one = ParallelBeam2D(4, 2, 5)
    assert bool(torch.isfinite(filtered_back_projection(one, torch.ones(1, *one.range_shape))).all())


def test_wrong_arguments() -> None:
    A = ParallelBeam2D(8, 4)
    with pytest.raises(lr.ConfigError, match="filter='cosine'"):
        filtered_back_projection(A, torch.zeros(1, *A.range_shape), "cosine")  # type: ignore[arg-type]
    with pytest.raises(lr.ShapeError, match="15 detectors, the geometry 13"):
        filtered_back_projection(A, torch.zeros(1, 1, 4, 15))
