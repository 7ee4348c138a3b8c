"""Projectors without a matrix: their weights from the definitions, the stored matrix, and ASTRA's sums."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
import registry
import torch
from support.projectors import bits_do_not_depend_on_threads, norm_found_by
from torch import Tensor

import learnreg as lr
from learnreg.linear.norms import dense_matrix
from learnreg.operators import FanBeam2D, FanGeometry, ParallelBeam2D, ParallelGeometry
from learnreg.operators.tomography import ray_tracing
from learnreg.operators.tomography.ray_tracing import RayTracing
from learnreg.operators.tomography.rays import rays_of
from learnreg.operators.tomography.symmetry import symmetry_of
from learnreg.operators.tomography.system_matrix import SystemMatrix
from learnreg.regularizers import TotalVariation

Projector = ParallelBeam2D | FanBeam2D

LENGTHS = {"pixel_size": 0.5, "detector_pitch": 0.35, "detectors": 19}
FAN = {"source_to_center": 5.0, "source_to_detector": 8.0}


def parallel(n: int, views: int, **options: Any) -> ParallelGeometry:
    return ParallelGeometry(image_size=n, angles=tuple(0.1 + 0.83 * k for k in range(views)), **LENGTHS | options)


def fan(n: int, views: int, **options: Any) -> FanGeometry:
    angles = tuple(0.1 + 0.83 * k for k in range(views))
    return FanGeometry(image_size=n, angles=angles, **LENGTHS | FAN | options)


GEOMETRIES = {
    "parallel": parallel(6, 8),
    "parallel-moved": parallel(5, 4, image_center=(0.3, -0.4), detector_offset=0.2),
    "fan": fan(6, 8, detector_pitch=0.6),
    "fan-moved": fan(5, 4, image_center=(0.3, -0.4), detector_offset=0.2, detector_pitch=0.6),
    "curved": fan(6, 5, detector_shape="curved", detector_pitch=0.6),
    "curved-moved": fan(5, 4, detector_shape="curved", image_center=(0.3, -0.4), detector_offset=0.4),
    "narrow-pixels": parallel(9, 3, detector_pitch=2.0, detectors=4),
    "two-pixels": fan(2, 7),
    "one-pixel": parallel(1, 5),
}


def free(geometry: Any, kernel: Any = None) -> Projector:
    kind = FanBeam2D if isinstance(geometry, FanGeometry) else ParallelBeam2D
    return kind.from_geometry(geometry, kernel=kernel, backend="matrix-free")


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def lines(g: Any) -> list[tuple[Tensor, Tensor]]:
    """A point and the direction of every ray, seen from the middle of the image, by docs/geometry.md alone."""
    found = []
    for theta in g.angles:
        axis = torch.tensor([math.cos(theta), math.sin(theta)], dtype=torch.float64)
        along = torch.tensor([-math.sin(theta), math.cos(theta)], dtype=torch.float64)
        middle = torch.tensor(g.image_center, dtype=torch.float64)
        for d in range(g.detectors):
            s = (d - 0.5 * (g.detectors - 1)) * g.detector_pitch + g.detector_offset
            if isinstance(g, ParallelGeometry):
                found.append((s * axis - middle, along))
                continue
            turn = s / g.source_to_detector if g.curved else math.atan(s / g.source_to_detector)
            found.append((-g.source_to_center * along - middle, math.cos(turn) * along + math.sin(turn) * axis))
    return found


def joseph(g: Any) -> Tensor:
    """(rays, pixels): in each row, or column, linear interpolation between the two nearest pixels."""
    n, h, rows = g.image_size, g.pixel_size, []
    centres = (torch.arange(n).double() - 0.5 * (n - 1)) * h
    for point, ray in lines(g):
        image = torch.zeros(n, n, dtype=torch.float64)  # of y upwards, x
        steep = int(abs(float(ray[1])) > abs(float(ray[0])))
        for k in range(n):
            reached = float(point[1 - steep] + (centres[k] - point[steep]) * ray[1 - steep] / ray[steep])
            share = (1.0 - (centres - reached).abs() / h).clamp_min(0.0) * h / abs(float(ray[steep]))
            image[(k, slice(None)) if steep else (slice(None), k)] += share
        rows.append(image.flip(0).flatten())
    return torch.stack(rows)


def siddon(g: Any) -> Tensor:
    """(rays, pixels): the length of the ray in each, from its sorted crossings of the lines of the grid."""
    n, h, rows = g.image_size, g.pixel_size, []
    edges = (torch.arange(n + 1).double() - 0.5 * n) * h
    for point, ray in lines(g):
        image = torch.zeros(n, n, dtype=torch.float64)
        crossings = torch.cat([(edges - point[k]) / ray[k] for k in range(2)]).sort().values.tolist()
        for a, b in pairwise(crossings):
            column, row = ((point + 0.5 * (a + b) * ray) / h + 0.5 * n).floor().long().tolist()
            if 0 <= column < n and 0 <= row < n:
                image[row, column] += b - a
        rows.append(image.flip(0).flatten())
    return torch.stack(rows)


@pytest.mark.parametrize("kernel", ["linear", "line"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_weights_are_those_of_the_definition(name: str, kernel: Any) -> None:
    geometry = GEOMETRIES[name]
    A, expected = free(geometry, kernel), joseph(geometry) if kernel == "linear" else siddon(geometry)
    torch.testing.assert_close(dense_matrix(A, A.domain_shape), expected, rtol=0, atol=1e-12)
    norm = float(torch.linalg.matrix_norm(expected, 2))
    assert norm <= A.norm_bound() <= 1.05 * norm
    assert A.norm_bound_kind == "rigorous"
    torch.testing.assert_close(torch.as_tensor(A.row_norms(False)).flatten(), expected.norm(dim=1))


SCANS = [
    (ParallelBeam2D, {"image_size": 32, "angles": 24}),
    (ParallelBeam2D, {"image_size": 31, "angles": 7, "kernel": "line"}),
    (FanBeam2D, {"image_size": 32, "angles": 20}),  # central rays along lines of the grid
    (FanBeam2D, {"image_size": 33, "angles": 9, "detector": "curved"}),
    (FanBeam2D, {"image_size": 16, "angles": 8, "symmetry": "none"}),
]


@pytest.mark.parametrize(("projector", "options"), SCANS)
def test_the_stored_matrix_is_the_same(projector: Any, options: Any) -> None:
    """To the float32 numbers in which ASTRA computes where a ray meets a row."""
    pytest.importorskip("astra")
    A, stored = projector(**options, backend="matrix-free"), projector(**options, backend="matrix")
    assert isinstance(A.engine, RayTracing)
    assert isinstance(stored.engine, SystemMatrix)
    x, y = registry.rand(2, *A.domain_shape), registry.rand(2, *A.range_shape)
    assert relative(A(x), stored(x)) < 2e-5
    assert relative(A.adjoint(y), stored.adjoint(y)) < 2e-5
    assert A.norm_bound() == pytest.approx(stored.norm_bound(), rel=0.02)
    assert A.nbytes < stored.nbytes
    rows = symmetry_of(A.geometry, stored.engine.order > 1).rows
    expected = rays_of(A.geometry, A.kernel, rows).entries(A.geometry.image_size)
    assert expected == pytest.approx(stored.engine.entries, rel=0.1)


@pytest.mark.parametrize("batch", [0, 1, 3, 9])
@pytest.mark.parametrize("name", ["parallel", "curved"])
def test_plain_torch_computes_the_same(name: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several images at a time, one by one, and with as many threads as there may be."""
    A = free(GEOMETRIES[name], "line")
    x, y = registry.randn(batch, *A.domain_shape, seed=1), registry.randn(batch, *A.range_shape, seed=2)
    expected = A(x), A.adjoint(y), A.row_norms(False)
    monkeypatch.setattr(ray_tracing, "kernels_for", lambda *_: None)
    monkeypatch.setattr(ray_tracing, "_AT_ONCE", 500)
    for found, wanted in zip((A(x), A.adjoint(y), A.row_norms(False)), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("angles", [12, 7, 1])
def test_bits_do_not_depend_on_threads(angles: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    A = ParallelBeam2D(70, angles, backend="matrix-free")
    x, y = registry.rand(1, *A.domain_shape).to(dtype), registry.rand(1, *A.range_shape).to(dtype)
    bits_do_not_depend_on_threads(A, x, y, monkeypatch)


def test_the_norm_of_a_larger_scan_is_found_on_a_coarse_one_and_proved_on_itself() -> None:
    A = ParallelBeam2D(150, 24, backend="matrix-free")
    norm = norm_found_by(A, registry.rand(1, *A.domain_shape), 30)
    assert norm <= A.norm_bound() <= 1.03 * norm


def test_precisions_copies_and_files() -> None:
    A = free(fan(12, 6, detector_pitch=0.9), "linear")
    x = registry.rand(2, *A.domain_shape)
    expected = A(x)
    assert relative(A(x.float()).double(), expected) < 1e-6
    for moved in (A.float(), A.half(), A.double(), copy.deepcopy(A), pickle.loads(pickle.dumps(A))):
        assert torch.equal(moved(x), expected)
    assert A.state_dict() == {}
    again = FanBeam2D.from_stored(A.stored())
    assert again.kernel == "linear"
    torch.testing.assert_close(again(x), expected)
    with pytest.raises(lr.ShapeError, match="meta"):
        A(x.to("meta"))


def test_a_reconstruction_is_certified() -> None:
    A = ParallelBeam2D(10, 8, backend="matrix-free")
    problem = lr.LowerLevelProblem(A, TotalVariation(0.02, 0.05).double(), ridge=1e-2)
    b = A(registry.rand(1, 1, 10, 10))
    solution = lr.solve(problem, b, 1e-4)
    assert solution.bound_kind == "rigorous"
    exact = lr.solve(problem, b, 1e-9).x
    assert float((solution.x - exact).square().mean().sqrt()) <= float(solution.error_bound) <= 1e-4
    assert lr.hypergradient(problem, b, lr.SquaredError(torch.zeros_like(exact)), tolerance=1e-2).certified


def test_what_is_chosen_and_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("astra")
    assert isinstance(ParallelBeam2D(8, 4).engine, SystemMatrix)
    assert isinstance(FanBeam2D(8, 4, kernel="linear").engine, RayTracing)
    monkeypatch.setattr("learnreg.operators.tomography.projectors.LARGEST_MATRIX", 2000.0)
    assert isinstance(ParallelBeam2D(8, 4).engine, RayTracing)
    assert isinstance(ParallelBeam2D(8, 4, kernel="strip").engine, SystemMatrix)
    assert isinstance(ParallelBeam2D(8, 4, backend="matrix").engine, SystemMatrix)
    with pytest.raises(lr.ConfigError, match=r"ASTRA builds no matrix.*matrix-free"):
        FanBeam2D(8, 4, kernel="linear", backend="matrix")
    with pytest.raises(lr.ConfigError, match="use backend='matrix'"):
        ParallelBeam2D(8, 4, kernel="strip", backend="matrix-free")


@pytest.mark.slow(10)
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are those of Linux")
def test_memory_stays_within_a_limit() -> None:
    """A scan whose matrix takes 360 MB, and as much again to be built, in 128 MB beyond what torch and numba take."""
    script = """
import resource, torch
from learnreg.operators import ParallelBeam2D
A = ParallelBeam2D(16, 8, backend="matrix-free")
A.adjoint(A(torch.ones(1, 1, 16, 16)))
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 128 * 2**20,) * 2)
A = ParallelBeam2D(512, 360, backend="matrix-free")
print(float(A(torch.ones(1, 1, 512, 512)).mean()) > 0.5)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "True", run.stderr
