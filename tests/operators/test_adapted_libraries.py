"""What is particular to each library that operators come from, and operators given back to them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import registry
import torch
from support import adapted_operators as adapted_operators
from support.adapted_operators import SHAPE, Physics
from torch import Tensor

import learnreg as lr
from learnreg.linear.norms import dense_matrix
from learnreg.linear.operator import LinearOperator
from learnreg.operators import (
    Blur,
    Identity,
    from_astra,
    from_deepinv,
    from_odl,
    from_pylops,
    from_scipy,
    to_odl,
    to_scipy,
)
from learnreg.operators.adapters.black_box import BlackBox
from learnreg.operators.adapters.sparse import SparseOperator


@torch.no_grad()
def dense(operator: LinearOperator) -> Tensor:
    return dense_matrix(operator, operator.domain_shape)


# ---- each library ----------------------------------------------------------------------------------------------------


def test_from_scipy_is_the_matrix() -> None:
    pytest.importorskip("scipy")
    for fmt in ("csr", "csc", "coo", "bsr", "dia", "lil", "dok"):
        matrix = adapted_operators.random_sparse(20, 30).asformat(fmt)
        A = from_scipy(matrix, SHAPE, (20,))
        assert isinstance(A, SparseOperator)
        torch.testing.assert_close(dense(A), torch.from_numpy(matrix.toarray()), rtol=0, atol=0)


def test_sparse_rows_are_summed_when_given_twice() -> None:
    scipy_sparse = pytest.importorskip("scipy.sparse")
    matrix = scipy_sparse.coo_array(([1.0, 2.0, 4.0], ([0, 0, 1], [1, 1, 0])), shape=(2, 2))
    torch.testing.assert_close(dense(from_scipy(matrix, (2,), (2,))), torch.tensor([[0.0, 3.0], [4.0, 0.0]]).double())


@pytest.mark.parametrize("signed", [False, True])
def test_norms_of_large_sparse_matrices(signed: bool) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    linalg = pytest.importorskip("scipy.sparse.linalg")
    matrix = sparse.random(5000, 4200, density=2e-2, format="csr", random_state=3)
    matrix.data = matrix.data - 0.5 if signed else matrix.data
    A = from_scipy(matrix, (4200,), (5000,))
    norm = float(linalg.svds(matrix, k=1, return_singular_vectors=False)[0])
    assert norm * (1 - 1e-9) <= A.norm_bound() <= 1.5 * norm
    assert A.norm_bound_kind == ("probabilistic" if signed else "rigorous")
    assert not signed or 0 < A.norm_failure_probability <= 1e-9
    rows = np.sqrt(np.asarray(matrix.power(2).sum(1))).ravel()
    np.testing.assert_allclose(torch.as_tensor(A.row_norms(False)).numpy(), rows, rtol=1e-11)


def test_from_scipy_refuses() -> None:
    scipy_linalg = pytest.importorskip("scipy.sparse.linalg")
    matrix = adapted_operators.random_sparse(20, 30)
    cases: list[tuple[Any, Any, str]] = [
        (matrix, ((1, 5, 5), (20,)), r"20 x 30, so domain_shape must hold 30 numbers, but \(1, 5, 5\) holds 25"),
        (matrix, (SHAPE, (4, 4)), "range_shape must hold 20 numbers"),
        (matrix.astype(complex), (SHAPE, (20,)), "two channels"),
        (scipy_linalg.LinearOperator((20, 30), matvec=lambda x: matrix @ x, dtype=float), (SHAPE, (20,)), "adjoint"),
        (scipy_linalg.aslinearoperator(np.full((20, 30), np.nan)), (SHAPE, (20,)), "NaN"),
        (matrix * np.nan, (SHAPE, (20,)), "NaN"),
        ([[1.0]], ((1,), (1,)), "expected a two-dimensional"),
    ]
    for operator, shapes, message in cases:
        with pytest.raises(lr.OperatorError, match=message):
            from_scipy(operator, *shapes)
    with pytest.raises(lr.ConfigError, match="declare none"):
        from_scipy(matrix, SHAPE, (20,), norm_bound=1.0)
    wrong = scipy_linalg.LinearOperator((20, 30), matvec=lambda x: matrix @ x, rmatvec=lambda y: 2 * (matrix.T @ y))
    assert from_scipy(wrong, SHAPE, (20,)).domain_shape == SHAPE
    with pytest.raises(lr.OperatorError, match="adjoint is not the transpose") as caught:
        from_scipy(wrong, SHAPE, (20,), check=True)
    assert caught.value.failed_property == "adjoint"


def test_from_pylops_shapes_and_refusals() -> None:
    pylops = pytest.importorskip("pylops")
    assert from_pylops(pylops.Gradient((5, 6))).range_shape == (2, 5, 6)
    assert from_pylops(pylops.Gradient((5, 6)), SHAPE, (60,)).range_shape == (60,)
    with pytest.raises(lr.OperatorError, match="complex"):
        from_pylops(pylops.signalprocessing.FFT2D((5, 6)), SHAPE, SHAPE)
    with pytest.raises(lr.OperatorError, match="must hold 30 numbers"):
        from_pylops(pylops.Identity(30), (1, 5, 5), (30,))
    with pytest.raises(lr.OperatorError, match=r"expected a pylops\.LinearOperator"):
        from_pylops(np.eye(3), (3,), (3,))


def test_from_astra_matrix_is_what_astra_computes() -> None:
    astra = pytest.importorskip("astra")
    volume = astra.create_vol_geom(8, 8)
    projector = astra.create_projector("strip", astra.create_proj_geom("parallel", 1.0, 11, [0.1, 1.0, 2.0]), volume)
    A = from_astra(projector)
    assert (A.domain_shape, A.range_shape) == ((1, 8, 8), (1, 3, 11))
    x = registry.rand(1, 1, 8, 8)
    expected = astra.OpTomo(projector) @ x.numpy().ravel()
    np.testing.assert_allclose(A(x).numpy().ravel(), expected, rtol=2e-6, atol=1e-6)
    assert torch.equal(from_astra(astra.OpTomo(projector), (1, 8, 8), (1, 3, 11))(x), A(x))
    with pytest.raises(lr.OperatorError, match="expected the id of an ASTRA projector"):
        from_astra(10_000)
    with pytest.raises(lr.OperatorError, match="domain_shape must hold 64 numbers"):
        from_astra(projector, (1, 9, 9))
    if not astra.use_cuda():
        geometry = astra.create_proj_geom("parallel3d", 1.0, 1.0, 4, 5, [0.0])
        solid = astra.create_projector("cuda3d", geometry, astra.create_vol_geom(4, 4, 4))
        with pytest.raises(lr.OperatorError, match="needs a GPU"):
            from_astra(solid)


def test_from_odl_is_euclidean_for_weighted_spaces() -> None:
    odl = pytest.importorskip("odl")
    pytest.importorskip("astra")
    ray = adapted_operators.ray_transform()
    A = from_odl(ray)
    assert (A.domain_shape, A.range_shape) == (SHAPE, (1, *ray.range.shape))
    assert ray.domain.weighting.const != ray.range.weighting.const
    x = registry.rand(1, *SHAPE).float()
    np.testing.assert_array_equal(A(x)[0, 0].numpy(), ray(x[0, 0].numpy()).asarray())
    naive = dense_matrix(lambda y: torch.from_numpy(np.stack([ray.adjoint(r[0].numpy()).asarray() for r in y])),
                         A.range_shape, dtype=torch.float32)  # fmt: skip
    assert float((naive.double() - dense(A).T).norm() / dense(A).norm()) > 0.5, "the weights make no difference here"
    assert odl is not None


def test_from_odl_refuses() -> None:
    odl = pytest.importorskip("odl")
    space = odl.uniform_discr([-1, -1], [1, 1], (8, 8))
    image = pytest.importorskip("odl.applications.tomo")
    cases = [
        (odl.functionals.L2Norm(space), "not linear"),
        (odl.IdentityOperator(odl.cn(3)), "complex"),
        (np.eye(3), r"expected an odl\.Operator"),
    ]
    for operator, message in cases:
        with pytest.raises(lr.OperatorError, match=message):
            from_odl(operator)
    with pytest.raises(lr.OperatorError, match="must hold 64 numbers"):
        from_odl(odl.IdentityOperator(space), (1, 8, 9))
    pytest.importorskip("skimage")
    ray = image.RayTransform(space, image.parallel_beam_geometry(space, num_angles=5), impl="skimage")
    with pytest.raises(lr.OperatorError, match="its adjoint is none") as caught:
        from_odl(ray)
    assert caught.value.failed_property == "adjoint"
    exact = from_odl(ray, assembled=True)
    torch.testing.assert_close(dense(exact.T), dense(exact).T, rtol=0, atol=0)
    with pytest.raises(lr.ConfigError, match="declare none"):
        from_odl(ray, assembled=True, norm_bound=10.0)


def test_from_odl_names_the_dtype_astra_wants() -> None:
    odl = pytest.importorskip("odl")
    pytest.importorskip("astra")
    tomo = pytest.importorskip("odl.applications.tomo")
    space = odl.uniform_discr([-1, -1], [1, 1], (8, 8))
    ray = tomo.RayTransform(space, tomo.parallel_beam_geometry(space, num_angles=5), impl="astra_cpu")
    with pytest.raises(lr.OperatorError, match="dtype='float32'"):
        from_odl(ray)


def test_deepinv_by_duck_type() -> None:
    A = from_deepinv(Physics(), SHAPE)
    assert isinstance(A, BlackBox)
    assert A.range_shape == (1, 3, 6)
    assert A.compute_dtype == torch.float32
    assert "float32" in repr(A)
    x = registry.randn(2, *SHAPE)
    expected = Physics().double().A(x)
    torch.testing.assert_close(A(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(A.double()(x), expected, rtol=1e-7, atol=1e-7)
    assert A.norm_bound() == pytest.approx(float(torch.linalg.matrix_norm(dense(A), 2)), rel=1e-4)


def test_from_deepinv_refuses() -> None:
    class Other:
        def __init__(self, A: Callable[[Tensor], Any], A_adjoint: Callable[[Tensor], Any] | None = None) -> None:
            self.A = A
            if A_adjoint is not None:
                self.A_adjoint = A_adjoint

    with pytest.raises(lr.OperatorError, match="has no A_adjoint"):
        from_deepinv(Other(lambda x: x), SHAPE)
    with pytest.raises(lr.OperatorError, match=r"A returned list, expected one tensor.*vstack"):
        from_deepinv(Other(lambda x: [x, x], lambda y: y[0]), SHAPE)
    with pytest.raises(lr.OperatorError, match="two channels"):
        from_deepinv(Other(lambda x: torch.fft.fft2(x), lambda y: torch.fft.ifft2(y)), SHAPE)
    with pytest.raises(lr.OperatorError, match=r"not linear.*A\(0\) is subtracted"):
        from_deepinv(Other(lambda x: x + 1, lambda y: y), SHAPE)
    with pytest.raises(lr.OperatorError, match="adjoint is not the transpose"):
        from_deepinv(Other(lambda x: 2 * x, lambda y: y), SHAPE)
    with pytest.raises(lr.OperatorError, match=r"Check domain_shape"):
        from_deepinv(Other(lambda x: x.reshape(1, 2, 3), lambda y: y), SHAPE)


# ---- back ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_to_scipy(dtype: Any) -> None:
    pytest.importorskip("scipy")
    A = Blur(registry.randn(3, 3), SHAPE)
    S, M = to_scipy(A, dtype), dense(A).numpy()
    x, y = np.random.default_rng(0).standard_normal((2, 30, 4))
    tolerance = 1e-5 if dtype is np.float32 else 1e-13
    for found, expected in (
        (S.matvec(x[:, 0]), M @ x[:, 0]),
        (S.rmatvec(y[:, 0]), M.T @ y[:, 0]),
        (S.matmat(x), M @ x),
        (S.rmatmat(y), M.T @ y),
        (S.matvec(x[:, :1]), M @ x[:, :1]),
        ((S.T @ S) @ x, M.T @ M @ x),
    ):
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
        assert found.dtype == dtype
    back = from_scipy(S, SHAPE, SHAPE, check=True)
    torch.testing.assert_close(dense(back), torch.from_numpy(M), rtol=tolerance, atol=tolerance)
    with pytest.raises(lr.OperatorError, match="expected float32 or float64"):
        to_scipy(A, complex)


def test_to_scipy_feeds_scipys_solvers() -> None:
    linalg = pytest.importorskip("scipy.sparse.linalg")
    A = lr.vstack(Blur(registry.randn(3, 3), SHAPE), Identity(SHAPE))
    b = registry.randn(60).numpy()
    found = linalg.lsqr(to_scipy(A), b, atol=1e-14, btol=1e-14)[0]
    np.testing.assert_allclose(found, np.linalg.lstsq(dense(A).numpy(), b, rcond=None)[0], atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_to_odl(dtype: str) -> None:
    odl = pytest.importorskip("odl")
    A = Blur(registry.randn(3, 4), SHAPE)
    options = np.get_printoptions()
    O, M = to_odl(A, dtype), dense(A).numpy()
    assert np.get_printoptions() == options
    assert isinstance(O, odl.Operator)
    assert O.is_linear
    x = np.random.default_rng(0).standard_normal(30)
    tolerance = 1e-5 if dtype == "float32" else 1e-13
    element = O.domain.element(x.reshape(SHAPE).astype(dtype))
    for found, expected in ((O(element), M @ x), (O.adjoint(element), M.T @ x), (O.adjoint.adjoint(element), M @ x)):
        np.testing.assert_allclose(found.asarray().ravel(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(dense(from_odl(O)), torch.from_numpy(M), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("package", "call"), [
    ("odl", lambda: to_odl(Identity(SHAPE))),
    ("scipy", lambda: to_scipy(Identity(SHAPE))),
    ("scipy", lambda: from_scipy(np.eye(30), SHAPE, SHAPE)),
    ("astra", lambda: from_astra(1)),
])  # fmt: skip
def test_a_missing_library_is_named(package: str, call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(lr.ConfigError, match=rf"needs the package {package}.*pip install"):
        call()
