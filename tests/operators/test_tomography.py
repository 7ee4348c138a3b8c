"""Projectors against closed forms, ASTRA's own projections and scikit-image; what they promise as modules."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import registry
import torch
from torch import Tensor

import learnreg as lr
from learnreg.linear.norms import dense_matrix
from learnreg.operators import FanBeam2D, FanGeometry, ParallelBeam2D, ParallelGeometry
from learnreg.operators.tomography.system_matrix import SystemMatrix
from learnreg.regularizers import TotalVariation

astra = pytest.importorskip("astra")

Projector = ParallelBeam2D | FanBeam2D

DISC = (0.11, -0.17, 0.24)
"""Middle and radius in image sides."""


def parallel(n: int, angles: int, backend: Any = "auto", **changes: Any) -> ParallelBeam2D:
    options = {"detectors": 2 * n, "pixel_size": 1.0 / n, "detector_pitch": 1.0 / n} | changes
    views = tuple(math.pi * k / angles for k in range(angles))
    return ParallelBeam2D.from_geometry(ParallelGeometry(image_size=n, angles=views, **options), backend=backend)


def fan(n: int, angles: int, backend: Any = "auto", **changes: Any) -> FanBeam2D:
    options = {"detectors": 4 * n, "pixel_size": 1.0 / n, "detector_pitch": 1.0 / n}
    options |= {"source_to_center": 2.0, "source_to_detector": 4.0} | changes
    views = tuple(2 * math.pi * k / angles for k in range(angles))
    return FanBeam2D.from_geometry(FanGeometry(image_size=n, angles=views, **options), backend=backend)


def disc(n: int, side: float = 1.0) -> Tensor:
    """(1, 1, n, n): share of each pixel inside the disc, y upwards."""
    fine = 8
    u = (np.arange(n * fine) + 0.5) / (n * fine) - 0.5
    inside = (u[None, :] - DISC[0]) ** 2 + (-u[:, None] - DISC[1]) ** 2 < DISC[2] ** 2
    return torch.from_numpy(inside.reshape(n, fine, n, fine).mean((1, 3)))[None, None]


def chords(A: Projector) -> Tensor:
    """Length of each ray within the disc, from the documented conventions alone."""
    g = A.geometry
    x, y, radius = (value * g.image_side for value in DISC)
    x, y = x + g.image_center[0], y + g.image_center[1]
    theta = torch.tensor(g.angles, dtype=torch.float64)[:, None]
    s = (torch.arange(g.detectors).double() - 0.5 * (g.detectors - 1)) * g.detector_pitch + g.detector_offset
    along, across = x * theta.cos() + y * theta.sin(), -x * theta.sin() + y * theta.cos()
    if isinstance(g, FanGeometry) and g.detector_shape == "curved":
        s = g.source_to_detector * (s / g.source_to_detector).tan()
    if isinstance(g, FanGeometry):  # in the view's own axes the source is at (0, -source_to_center)
        distance = (along * g.source_to_detector - s * (across + g.source_to_center)) / torch.hypot(
            s, torch.tensor(g.source_to_detector).double()
        )
    else:
        distance = along - s
    return 2 * (radius**2 - distance**2).clamp_min(0).sqrt()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


# ---- what they compute -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "A",
    [
        parallel(96, 60),
        parallel(97, 31, detector_pitch=0.005, detectors=301, detector_offset=0.03),
        parallel(96, 20, pixel_size=2.0, detector_pitch=3.0, detectors=131),
        fan(96, 60),
        fan(97, 31, detector_offset=-0.05, source_to_center=1.3, source_to_detector=1.9),
        fan(96, 20, pixel_size=0.4, detector_pitch=0.5, source_to_center=80.0, source_to_detector=120.0),
        fan(96, 60, detector_shape="curved"),
        fan(97, 31, detector_shape="curved", detector_offset=-0.05, source_to_center=1.3, source_to_detector=1.9),
        fan(96, 20, image_center=(0.05, -0.08), detector_offset=0.02),
        fan(96, 20, image_center=(-0.05, 0.03), detector_shape="curved"),
        parallel(96, 31, image_center=(0.05, -0.08)),
        parallel(96, 20, image_center=(16.0, 8.0), pixel_size=2.0, detector_pitch=3.0, detectors=151),
    ],
)
def test_line_integrals_of_a_disc(A: Projector) -> None:
    assert relative(A(disc(A.geometry.image_size))[0, 0], chords(A)) < 0.015


@pytest.mark.parametrize("kernel", ["linear", "line", "strip"])
def test_kernels_are_astra_s(kernel: Any) -> None:
    n, x = 15, registry.rand(1, 1, 15, 15)
    for A in (
        ParallelBeam2D(n, 12, kernel=kernel),
        FanBeam2D(n, 12, 31, kernel=kernel if kernel != "linear" else None),
    ):
        g = A.geometry.in_pixels()
        if isinstance(g, FanGeometry):
            behind = g.source_to_detector - g.source_to_center
            scan = astra.create_proj_geom("fanflat", 1.0, g.detectors, np.array(g.angles), g.source_to_center, behind)
        else:
            scan = astra.create_proj_geom("parallel", 1.0, g.detectors, np.array(g.angles))
        name = f"{A.kernel}_fanflat" if isinstance(g, FanGeometry) else A.kernel
        projector = astra.create_projector(name, scan, astra.create_vol_geom(n, n))
        handle, expected = astra.create_sino(x[0, 0].float().numpy(), projector)
        assert relative(A(x)[0, 0], torch.from_numpy(expected).double() / n) < 2e-5
        astra.data2d.delete(handle)
        astra.projector.delete(projector)


def test_orientation() -> None:
    """One pixel at the top right: detectors count to the right at angle 0, upwards a quarter turn later."""
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 1, 7] = 1.0
    for A in (ParallelBeam2D(9, torch.tensor([0.0, math.pi / 2]), 13), FanBeam2D(9, 4, 41)):
        views = A(image)[0, 0]
        middle = (A.geometry.detectors - 1) // 2
        assert int(views[0].argmax()) > middle
        assert int(views[1].argmax()) > middle
    parallel_views = ParallelBeam2D(9, torch.tensor([0.0, math.pi / 2]), 9)(image)[0, 0]
    assert parallel_views.argmax(1).tolist() == [7, 7]
    assert float(parallel_views.max()) == pytest.approx(1 / 9)


def test_the_convention_is_that_of_scikit_image() -> None:
    transform = pytest.importorskip("skimage.transform")
    n, angles = 65, 24
    A = ParallelBeam2D(n, angles, n)
    x = disc(n)
    expected = transform.radon(x[0, 0].numpy(), np.rad2deg(A.geometry.angles), circle=True).T / n
    assert relative(A(x)[0, 0], torch.from_numpy(expected)) < 0.01


def test_defaults_of_the_contract() -> None:
    for n in (1, 5, 12, 29, 64):
        detectors = ParallelBeam2D(n, 1).geometry.detectors
        assert detectors % 2 == 1
        assert detectors >= math.sqrt(2) * n > detectors - 2
    A, F = ParallelBeam2D(7, 3), FanBeam2D(7, 3)
    assert (A.domain_shape, A.range_shape, F.range_shape) == ((1, 7, 7), (1, 3, 11), (1, 3, 11))
    assert A.geometry.angles == pytest.approx((0.0, math.pi / 3, 2 * math.pi / 3))
    assert F.geometry.angles == pytest.approx((0.0, 2 * math.pi / 3, 4 * math.pi / 3))
    assert (F.geometry.source_to_center, F.geometry.source_to_detector) == (2.0, 4.0)
    assert A.geometry.detector_pitch == F.geometry.detector_pitch == 1 / 7
    same = ParallelBeam2D(7, torch.tensor(A.geometry.angles, dtype=torch.float64))
    x = registry.rand(1, 1, 7, 7)
    torch.testing.assert_close(same(x), A(x))


def test_lengths_scale_the_matrix() -> None:
    x = registry.rand(1, 1, 12, 12)
    torch.testing.assert_close(parallel(12, 5, pixel_size=3 / 12, detector_pitch=3 / 12)(x), 3 * parallel(12, 5)(x))


# ---- symmetry --------------------------------------------------------------------------------------------------------

SYMMETRIC = [
    (ParallelBeam2D, 8, 12, 8),
    (ParallelBeam2D, 9, 6, 8),
    (ParallelBeam2D, 8, 7, 4),
    (ParallelBeam2D, 24, 20, 8),
    (ParallelBeam2D, 6, torch.tensor([0.1, 0.5]), 2),
    (ParallelBeam2D, 8, torch.linspace(0, math.pi, 13)[:-1], 8),  # rounded to float32
    (FanBeam2D, 8, 12, 8),
    (FanBeam2D, 9, 16, 8),
    (FanBeam2D, 8, 6, 4),
    (FanBeam2D, 8, torch.tensor([0.1, 0.5]), 1),
]


@pytest.mark.parametrize(("projector", "n", "angles", "order"), SYMMETRIC)
def test_symmetry_changes_nothing(projector: Any, n: int, angles: Any, order: int) -> None:
    A, whole = projector(n, angles), projector(n, angles, symmetry="none")
    assert (A.engine.order, whole.engine.order) == (order, 1)
    expected = dense_matrix(whole, whole.domain_shape)
    torch.testing.assert_close(dense_matrix(A, A.domain_shape), expected, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(dense_matrix(whole.adjoint, whole.range_shape), expected.T, rtol=0, atol=0)
    if order == 8:
        assert A.engine.entries < 0.35 * whole.engine.entries


@pytest.mark.parametrize("A", [parallel(10, 8, detector_offset=0.01), fan(10, 8, detector_offset=0.01)])
def test_an_offset_leaves_the_rotations(A: Projector) -> None:
    whole = type(A).from_geometry(A.geometry, symmetry="none")
    assert A.engine.order == (4 if isinstance(A, FanBeam2D) else 1)  # type: ignore[union-attr]
    torch.testing.assert_close(dense_matrix(A, A.domain_shape), dense_matrix(whole, A.domain_shape))


# ---- the contract of operators, beyond test_operators.py -------------------------------------------------------------


def test_an_image_off_the_axis_has_no_symmetry_left() -> None:
    for A in (parallel(10, 8, image_center=(0.01, 0.0)), fan(10, 8, image_center=(0.0, 0.01))):
        assert A.engine.order == 1  # type: ignore[union-attr]
    assert fan(10, 8, detector_shape="curved").engine.order == 8  # type: ignore[union-attr]


def test_rays_of_a_curved_detector_are_those_of_flat_ones() -> None:
    """Each is the only ray of a flat detector, moved to where the ray meets it."""
    curved = fan(11, 3, detectors=9, detector_pitch=0.3, detector_shape="curved", image_center=(0.1, 0.05))
    x = registry.rand(1, *curved.domain_shape)
    expected = curved(x)
    for i, turned in enumerate((torch.arange(9).double() - 4) * 0.3 / 4.0):
        place = 4.0 * math.tan(float(turned))
        one = fan(11, 3, detectors=1, detector_pitch=0.3, detector_offset=place, image_center=(0.1, 0.05))
        torch.testing.assert_close(one(x)[..., 0], expected[..., i], rtol=1e-6, atol=1e-7)


DEAD = (1, 5, 6)


@pytest.mark.parametrize("build", [parallel, fan])
def test_dead_detectors_see_nothing(build: Any) -> None:
    whole, A = build(10, 8, detectors=14), build(10, 8, detectors=14, dead_detectors=[6, 1, np.int64(5)])
    assert A.geometry.dead_detectors == DEAD
    expected = dense_matrix(whole, whole.domain_shape).reshape(8, 14, -1).index_fill(1, torch.tensor(DEAD), 0)
    torch.testing.assert_close(dense_matrix(A, A.domain_shape), expected.flatten(0, 1), rtol=0, atol=0)
    torch.testing.assert_close(dense_matrix(A.adjoint, A.range_shape), expected.flatten(0, 1).T, rtol=1e-14, atol=1e-15)
    assert A.engine.order == whole.engine.order
    assert len(list(A.buffers())) == len(list(whole.buffers())) + 1


def test_what_dead_detectors_hold_changes_no_reconstruction() -> None:
    """The same as weights of zero, for a projector that knows nothing of them."""
    whole, A = parallel(10, 8, detectors=15), parallel(10, 8, detectors=15, dead_detectors=DEAD)
    b = whole(disc(10))
    weights = torch.ones(8, 15, dtype=torch.float64).index_fill(-1, torch.tensor(DEAD), 0)
    regularizer = TotalVariation(0.02, 0.05).double()
    weighted = lr.LowerLevelProblem(whole, regularizer, ridge=1e-2, data_term=lr.WeightedLeastSquares(weights))
    expected = lr.solve(weighted, b, 1e-8).x
    problem = lr.LowerLevelProblem(A, regularizer, ridge=1e-2)
    for value in (0.0, 3.0):
        solution = lr.solve(problem, b.index_fill(-1, torch.tensor(DEAD), value), 1e-8)
        assert solution.bound_kind == "rigorous"
        torch.testing.assert_close(solution.x, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "A",
    [
        ParallelBeam2D(24, 20),
        FanBeam2D(24, 15),
        ParallelBeam2D(20, 1),
        FanBeam2D(9, 2, 41),
        fan(13, 7, detector_shape="curved", image_center=(0.1, -0.05)),
        parallel(12, 6, dead_detectors=range(9, 24)),
        fan(12, 8, dead_detectors=[i for i in range(48) if i != 20]),
    ],
)
def test_norms_and_rows(A: Projector) -> None:
    matrix = dense_matrix(A, A.domain_shape)
    norm = float(torch.linalg.matrix_norm(matrix, 2))
    assert norm <= A.norm_bound() <= 1.05 * norm
    assert A.norm_bound_kind == "rigorous"
    torch.testing.assert_close(torch.as_tensor(A.row_norms(False)).flatten(), matrix.norm(dim=1))


@pytest.mark.parametrize("A", [ParallelBeam2D(12, 10), FanBeam2D(11, 9, 40)])
def test_second_derivatives(A: Projector) -> None:
    x, direction = (
        registry.randn(2, *A.domain_shape, seed=1).requires_grad_(),
        registry.randn(2, *A.domain_shape, seed=2),
    )
    b = registry.randn(2, *A.range_shape, seed=3)
    (gradient,) = torch.autograd.grad(0.5 * (A(x) - b).square().sum(), x, create_graph=True)
    (product,) = torch.autograd.grad((gradient * direction).sum(), x, create_graph=True)
    matrix = dense_matrix(A, A.domain_shape)
    expected = (direction.flatten(1) @ matrix.T @ matrix).reshape(x.shape)
    assert relative(product.detach(), expected) < 1e-10
    assert relative(gradient.detach(), A.adjoint(A(x) - b).detach()) < 1e-12


@pytest.mark.parametrize("symmetry", ["auto", "none"])
@pytest.mark.parametrize("batch", [0, 1, 3, 4, 5, 9, 33])
def test_batches_are_loops(symmetry: Any, batch: int) -> None:
    A = ParallelBeam2D(8, 6, symmetry=symmetry)
    x, y = registry.randn(batch, *A.domain_shape, seed=1), registry.randn(batch, *A.range_shape, seed=2)
    assert A(x).shape == (batch, *A.range_shape)
    for i in range(batch):
        torch.testing.assert_close(A(x)[i : i + 1], A(x[i : i + 1]), rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(A.adjoint(y)[i : i + 1], A.adjoint(y[i : i + 1]), rtol=1e-13, atol=1e-14)
    strided = x.flip(0).transpose(2, 3)
    torch.testing.assert_close(A(strided), A(strided.contiguous()))


def test_precisions_share_one_matrix() -> None:
    A = ParallelBeam2D(32, 24)
    x, y = registry.rand(2, *A.domain_shape), registry.rand(2, *A.range_shape, seed=1)
    assert relative(A(x.float()).double(), A(x)) < 1e-6
    assert relative(A.adjoint(y.float()).double(), A.adjoint(y)) < 1e-6
    for half in (torch.float16, torch.bfloat16):
        with pytest.raises(lr.ShapeError, match="expected float32 or float64"):
            A(x.to(half))
    before, expected = A.nbytes, A(x)
    for moved in (A.double(), A.float(), A.half(), A.to(torch.float64), A.to("cpu")):
        assert moved is A
        assert A.nbytes == before
        assert torch.equal(A(x), expected)


def test_copies_and_files() -> None:
    A = FanBeam2D(12, 8)
    A.norm_bound()
    x = registry.rand(1, *A.domain_shape)
    A(x)
    copied = copy.deepcopy(A)
    assert isinstance(A.engine, SystemMatrix)
    assert isinstance(copied.engine, SystemMatrix)
    assert copied.engine.bits.data_ptr() == A.engine.bits.data_ptr(), "a copy shares the matrix"
    for other in (copied, pickle.loads(pickle.dumps(A))):
        assert torch.equal(other(x), A(x))
        assert other.geometry == A.geometry
        assert other.norm_bound() == A.norm_bound()
    assert A.state_dict() == {}
    assert list(A.parameters()) == []
    assert len(list(A.buffers())) == 10
    copied.to("meta")
    assert torch.equal(A(x), pickle.loads(pickle.dumps(A))(x))


def test_a_reconstruction_is_certified() -> None:
    A = ParallelBeam2D(10, 8)
    problem = lr.LowerLevelProblem(A, TotalVariation(0.02, 0.05).double(), ridge=1e-2)
    x_true = disc(10)
    b = A(x_true) + 0.01 * registry.randn(1, *A.range_shape)
    solution = lr.solve(problem, b, 1e-4)
    exact = lr.solve(problem, b, 1e-9).x
    assert solution.bound_kind == "rigorous"
    assert float((solution.x - exact).square().mean().sqrt()) <= float(solution.error_bound) <= 1e-4
    assert lr.hypergradient(problem, b, lr.SquaredError(x_true), tolerance=1e-2).certified


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    for A in (ParallelBeam2D(8, 6), FanBeam2D(8, 5, symmetry="none")):
        x, y = registry.rand(2, *A.domain_shape).float(), registry.rand(2, *A.range_shape).float()
        expected = A(x), A.adjoint(y)
        with torch.autocast("cpu", dtype=dtype):
            assert torch.equal(A(x), expected[0])
            assert torch.equal(A.adjoint(y), expected[1])
            assert relative(A(x.to(dtype)).float(), expected[0]) < 1e-2


def test_scans_that_no_memory_holds() -> None:
    """Said at once: neither rays nor symmetries are enumerated."""
    with pytest.raises(lr.OperatorError, match="are 90,000,000 rays; a projector has at most 67,108,864"):
        parallel(64, 90_000, detectors=1000)
    for build, center in ((parallel, 0.0), (fan, 0.1)):
        options = {"detectors": 32001, "image_center": (center, 0.0)}
        with pytest.raises(lr.OperatorError, match="an image of 16,384² pixels does not fit"):
            build(16384, 2000, **options)
        with pytest.raises(lr.OperatorError, match=r"more than 2\^31 - 1 entries"):
            build(16384, 2000, backend="matrix", **options)
