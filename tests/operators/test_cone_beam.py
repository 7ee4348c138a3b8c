"""The cone-beam projector against its definition, line integrals of a ball, the fan beam in its middle plane."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import registry
import torch
from support.projectors import bits_do_not_depend_on_threads, norm_found_by
from torch import Tensor

import learnreg as lr
from learnreg.linear.norms import dense_matrix
from learnreg.operators import ConeBeam3D, FanBeam2D
from learnreg.operators.tomography import cone_tracing
from learnreg.regularizers import AnalysisOperator

BALL = (0.08, -0.11, 0.05, 0.31)
"""Middle (x, y, z) and radius in sides of the cube."""


def scan(**options: Any) -> ConeBeam3D:
    """By default with nothing that is symmetric."""
    return ConeBeam3D(**{"image_size": 5, "angles": torch.tensor([0.2, 1.3, 2.9, 4.4]), "detectors": (4, 9)} | options)


SCANS = {
    "moderate": scan(),
    "near": scan(source_to_center=1.0, source_to_detector=1.2, detectors=(5, 14)),
    "axes": scan(angles=8, detectors=(6, 6)),
    "two-voxels": scan(image_size=2, detectors=5),
    "wide": scan(
        image_size=3, angles=torch.tensor([0.7]), source_to_center=1.43, source_to_detector=4.0, detectors=(23, 7)
    ),
}


def rays(A: ConeBeam3D, source_to_center: float = 2.0, source_to_detector: float = 4.0) -> tuple[Tensor, Tensor]:
    """Sources (angles, 1, 1, 3) and directions (angles, rows, columns, 3), x, y, z, from the documentation alone."""
    _, n, _, _ = A.domain_shape
    _, angles, rows, columns = A.range_shape
    theta = torch.tensor(A.stored()["config"]["angles"], dtype=torch.float64)[:, None, None]
    column = (torch.arange(columns).double() - 0.5 * (columns - 1)) / n
    height = ((torch.arange(rows).double() - 0.5 * (rows - 1)) / n)[:, None]
    along, across = (-theta.sin(), theta.cos()), (theta.cos(), theta.sin())
    source = torch.stack([*(-source_to_center * a for a in along), torch.zeros_like(theta)], -1)
    plane = [source_to_detector * a + column * b for a, b in zip(along, across, strict=True)]
    ray = torch.stack(torch.broadcast_tensors(*plane, height), -1)
    assert ray.shape[:3] == (angles, rows, columns)
    return source, ray


def by_definition(A: ConeBeam3D) -> Tensor:
    """(rays, voxels): in each slab across the axis closest to the ray, bilinear interpolation at its middle."""
    config, n = A.stored()["config"], A.domain_shape[1]
    sources, directions = rays(A, config["source_to_center"], config["source_to_detector"])
    middles = (torch.arange(n).double() - 0.5 * (n - 1)) / n
    rows = []
    for source, ray in zip(sources.expand_as(directions).reshape(-1, 3), directions.reshape(-1, 3), strict=True):
        axis = int(ray[:2].abs().argmax())
        volume = torch.zeros(n, n, n, dtype=torch.float64)  # x, y upwards, z
        for k in range(n):
            point = source + (middles[k] - source[axis]) / ray[axis] * ray
            shares = [(1.0 - (middles - place).abs() * n).clamp_min(0.0) for place in point]
            shares[axis] = (torch.arange(n) == k).double() / n / abs(float(ray[axis])) * ray.norm()
            volume += torch.einsum("i,j,k->ijk", *shares)
        rows.append(volume.permute(2, 1, 0).flip(1).flatten())
    return torch.stack(rows)


@pytest.mark.parametrize("name", SCANS)
def test_weights_are_those_of_the_definition(name: str) -> None:
    A = SCANS[name]
    expected = by_definition(A)
    torch.testing.assert_close(dense_matrix(A, A.domain_shape), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(dense_matrix(A.adjoint, A.range_shape), expected.T, rtol=0, atol=1e-12)
    norm = float(torch.linalg.matrix_norm(expected, 2))
    assert norm <= A.norm_bound() <= 1.05 * norm
    assert A.norm_bound_kind == "rigorous"
    torch.testing.assert_close(torch.as_tensor(A.row_norms(False)).flatten(), expected.norm(dim=1))


def ball_error(n: int, **options: float) -> float:
    """Relative distance of the projections of a ball, its share in each voxel, from the lengths of its chords."""
    fine = 4
    A = ConeBeam3D(n, 5, (5 * n // 4, 2 * n), **options)
    u = (torch.arange(n * fine).double() + 0.5) / (n * fine) - 0.5
    x, y, z, radius = BALL
    inside = (u - x).square() + (-u[:, None] - y).square() + (u[:, None, None] - z).square() < radius**2
    volume = inside.double().reshape(n, fine, n, fine, n, fine).mean((1, 3, 5))[None, None]
    source, ray = rays(A, *options.values())
    away = torch.linalg.cross(torch.tensor([x, y, z]).double() - source, ray).norm(dim=-1) / ray.norm(dim=-1)
    expected = 2.0 * (radius**2 - away.square()).clamp_min(0.0).sqrt()
    return float((A(volume)[0, 0] - expected).norm() / expected.norm())


@pytest.mark.parametrize("options", [{}, {"source_to_center": 1.5, "source_to_detector": 2.0}])
def test_line_integrals_of_a_ball(options: dict[str, float]) -> None:
    """The voxels of its surface decide: their share is proportional to the side of a voxel, or falls faster."""
    coarse, fine = ball_error(20, **options), ball_error(40, **options)
    assert fine < 0.04
    assert fine < 0.6 * coarse


def test_the_middle_row_sees_what_a_fan_beam_sees() -> None:
    A, fan = ConeBeam3D(9, 7, (5, 21)), FanBeam2D(9, 7, 21, kernel="linear")
    x = registry.rand(2, 1, 9, 9)
    volume = torch.zeros(2, 1, 9, 9, 9, dtype=torch.float64)
    volume[:, :, 4] = x
    torch.testing.assert_close(A(volume)[:, :, :, 2], fan(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", SCANS)
def test_plain_torch_computes_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    A = SCANS[name]
    x, y = registry.randn(2, *A.domain_shape, seed=1), registry.randn(2, *A.range_shape, seed=2)
    expected = A(x), A.adjoint(y), A.row_norms(False)
    monkeypatch.setattr(cone_tracing, "kernels_for", lambda *_: None)
    monkeypatch.setattr(cone_tracing, "_AT_ONCE", 200)
    for found, wanted in zip((A(x), A.adjoint(y), A.row_norms(False)), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)


def test_bits_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    A = ConeBeam3D(20, 19, (12, 31))
    x, y = registry.rand(1, *A.domain_shape).float(), registry.rand(1, *A.range_shape).float()
    bits_do_not_depend_on_threads(A, x, y, monkeypatch)


def test_the_norm_of_a_larger_scan_is_found_on_a_coarse_one_and_proved_on_itself() -> None:
    A = ConeBeam3D(50, 6, (40, 70))
    norm = norm_found_by(A, registry.rand(1, *A.domain_shape).float(), 12)
    assert norm * (1 - 1e-5) <= A.norm_bound() <= 1.03 * norm


def test_precisions_copies_and_files() -> None:
    A = scan()
    x = registry.rand(2, *A.domain_shape)
    expected = A(x)
    torch.testing.assert_close(A(x.float()).double(), expected, rtol=1e-5, atol=1e-6)
    for moved in (A.float(), A.half(), A.double(), copy.deepcopy(A), pickle.loads(pickle.dumps(A))):
        assert torch.equal(moved(x), expected)
    assert torch.equal(ConeBeam3D.from_stored(A.stored())(x), expected)
    assert A.state_dict() == {}
    with pytest.raises(lr.ShapeError, match="meta"):
        A(x.to("meta"))


def test_a_reconstruction_is_certified() -> None:
    A = ConeBeam3D(4, 6, (5, 9))
    regularizer = AnalysisOperator(lr.operators.Identity(A.domain_shape), lr.PseudoHuber(0.05, 0.01)).double()
    problem = lr.LowerLevelProblem(A, regularizer, ridge=1e-2)
    b = A(registry.rand(1, *A.domain_shape))
    solution = lr.solve(problem, b, 1e-5)
    assert solution.bound_kind == "rigorous"
    exact = lr.solve(problem, b, 1e-10).x
    assert float((solution.x - exact).square().mean().sqrt()) <= float(solution.error_bound) <= 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 1}, "at least 2"),
        ({"image_size": 2000}, "at most 1,024"),
        ({"detectors": (3, 4, 5)}, r"expected a number, or \(rows, columns\)"),
        ({"detectors": (0, 4)}, "positive integer"),
        ({"source_to_center": 0.7}, "sides of the cube"),
        ({"source_to_detector": 1.0}, "sides of the cube"),
        ({"source_to_center": math.nan}, "finite length"),
        ({"source_to_center": 0.8, "detectors": 101}, r"rays rise by up to .* move the source away"),
        ({"image_size": 800, "angles": 2000, "detectors": 2000}, "more than 2\\^31 rays"),
        ({"backend": "matrix"}, "backend='matrix'"),
        ({"angles": []}, "angles"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(lr.ConfigError, match=message):
        scan(**options)


def test_angles_that_look_like_degrees_warn() -> None:
    with pytest.warns(UserWarning, match="looks like degrees"):
        scan(angles=torch.tensor([0.0, 90.0]))
