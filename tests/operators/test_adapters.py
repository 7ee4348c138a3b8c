"""Operators of other libraries: exact adjoints, all derivatives, bounds that are bounds, and errors that help."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import registry
import torch
from support import adapted_operators as adapted_operators
from support.adapted_operators import EXACT, SHAPE, SINGLE
from torch import Tensor

import learnreg as lr
from learnreg.certificates.state import rounding_floor, state_residual
from learnreg.linear.norms import dense_matrix
from learnreg.linear.operator import LinearOperator
from learnreg.operators import (
    Blur,
    Identity,
    assemble,
    from_callables,
    from_scipy,
)
from learnreg.operators.adapters.black_box import BlackBox
from learnreg.regularizers import AnalysisOperator, TotalVariation


def built(name: str) -> LinearOperator:
    packages, factory = (EXACT | SINGLE)[name]
    for package in packages:
        pytest.importorskip(package)
    return factory()


@torch.no_grad()
def dense(operator: LinearOperator) -> Tensor:
    return dense_matrix(operator, operator.domain_shape)


def compositions(A: LinearOperator) -> dict[str, LinearOperator]:
    return {
        "itself": A,
        "composition": A @ Blur(registry.randn(3, 3, seed=50), SHAPE) if A.domain_shape == SHAPE else A @ A.T,
        "stack": lr.vstack(A, 2.0 * Identity(A.domain_shape), A),
    }


@pytest.fixture(params=EXACT)
def exact(request: pytest.FixtureRequest) -> LinearOperator:
    return built(request.param)


def hessian_vector_error(A: LinearOperator) -> float:
    """Of E(x) = sum (Ax)^4 / 12, whose Hessian is A^T diag((Ax)²) A, relative to dense arithmetic."""
    M = dense(A)
    x = registry.randn(2, *A.domain_shape, seed=51).requires_grad_()
    v = registry.randn(2, *A.domain_shape, seed=52)
    (gradient,) = torch.autograd.grad((A(x) ** 4).sum() / 12, x, create_graph=True)
    (found,) = torch.autograd.grad((gradient * v).sum(), x)
    image = x.detach().flatten(1) @ M.T
    expected = (image.square() * (v.flatten(1) @ M.T)) @ M
    return float((found.flatten(1) - expected).norm() / expected.norm())


def adjoint_error(A: LinearOperator) -> float:
    """‖B - A^T‖ / ‖A‖ in the Frobenius norm, from both dense matrices."""
    with torch.no_grad():
        back = dense_matrix(A.adjoint, A.range_shape)
    return float((back - dense(A).T).norm() / back.norm())


@pytest.mark.parametrize("kind", ["itself", "composition", "stack"])
@pytest.mark.sampled(share=0.5, by=("kind",))
def test_adjoints_and_second_derivatives_are_exact(exact: LinearOperator, kind: str) -> None:
    A = compositions(exact)[kind]
    assert adjoint_error(A) <= 1e-12
    assert hessian_vector_error(A) <= 1e-10


@pytest.mark.parametrize("name", SINGLE)
def test_float32_operators_are_exact_to_float32(name: str) -> None:
    for A in compositions(built(name)).values():
        assert adjoint_error(A) <= 1e-6
        assert hessian_vector_error(A) <= 1e-5


@pytest.mark.parametrize("name", [*EXACT, *SINGLE])
def test_dtype_memory_and_batches(name: str) -> None:
    A = built(name)
    for apply, shape in ((A, A.domain_shape), (A.adjoint, A.range_shape)):
        double = registry.randn(3, *shape, seed=53)
        kept = double.clone()
        results = apply(double)
        single = apply(double.float())
        assert (results.dtype, single.dtype) == (torch.float64, torch.float32)
        torch.testing.assert_close(single, results.float(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(apply(double[1:2]), results[1:2], rtol=1e-5, atol=1e-5)
        again = results.clone()
        results.add_(1.0)
        torch.testing.assert_close(apply(double), again, rtol=0, atol=0)
        assert torch.equal(double, kept)
        assert apply(double[:0]).shape == (0, *results.shape[1:])


@pytest.mark.parametrize("name", [*EXACT, *SINGLE])
@pytest.mark.sampled(share=0.34, by=("name",))
def test_norm_bounds(name: str) -> None:
    for A in compositions(built(name)).values():
        M = dense(A)
        norm = float(torch.linalg.matrix_norm(M, 2))
        rounding = 1e-6 if name in SINGLE else 0.0  # of a matrix whose columns are rounded to float32
        assert norm * (1.0 - rounding) <= A.norm_bound() <= 1.5 * norm
        assert A.norm_bound_kind == "rigorous"
        lowest = float(torch.linalg.eigvalsh(M.T @ M)[0])
        assert 0.0 <= A.gram_lower_bound() <= max(0.0, lowest) + 1e-14 * norm**2


@pytest.mark.parametrize("name", [*EXACT, *SINGLE])
def test_pickles_and_copies(name: str) -> None:
    A = built(name)
    x = registry.randn(2, *A.domain_shape, seed=54)
    for what, remake in (("pickled", lambda a: pickle.loads(pickle.dumps(a))), ("copied", copy.deepcopy)):
        if name in adapted_operators.STUCK[what]:
            with pytest.raises(lr.OperatorError, match=f"cannot be {what}, because what it wraps cannot"):
                remake(A)
            continue
        other = remake(A)
        assert torch.equal(other(x), A(x))
        assert torch.equal(other.adjoint(A(x)), A.adjoint(A(x)))
    kept = pickle.loads(pickle.dumps(assemble(A)))
    torch.testing.assert_close(kept(x), A(x), rtol=1e-5, atol=1e-5)


# ---- the lower level -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["callables-derived", "scipy-csr", "pylops-convolution", "odl-cells-to-weights"])
def test_hypergradients_equal_those_of_the_dense_matrix(name: str) -> None:
    adapted = built(name)
    M = dense(adapted)

    class Dense(LinearOperator):
        def forward(self, x: Tensor) -> Tensor:
            return (x.flatten(1) @ M.T).reshape(-1, *self.range_shape)

        def adjoint(self, y: Tensor) -> Tensor:
            return (y.flatten(1) @ M).reshape(-1, *self.domain_shape)

    results = []
    for A in (adapted, Dense(adapted.domain_shape, adapted.range_shape)):
        problem = lr.LowerLevelProblem(A, TotalVariation(0.1, 0.1).double(), ridge=0.1)
        x_true, b = registry.measure(problem)
        solution = lr.solve(problem, b, tolerance=1e-9)
        assert solution.certified
        hg = lr.hypergradient(problem, b, lr.SquaredError(x_true), tolerance=1e-6)
        assert hg.certified
        results.append((solution.x, torch.cat([g.flatten() for g in hg.gradient.values()])))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-8)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=2e-6, atol=0)


def test_energy_of_an_adapted_operator_has_second_derivatives() -> None:
    A = built("callables-numpy")
    problem = lr.LowerLevelProblem(A, TotalVariation(0.1, 0.1).double())
    x_true, b = registry.measure(problem, batch=1)
    x = x_true.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: problem.energy(x, b).sum(), (x,), fast_mode=True)


# ---- callables -------------------------------------------------------------------------------------------------------


def test_from_callables_names_what_is_wrong() -> None:
    half = lambda x: x[..., ::2]  # noqa: E731
    spread = lambda y: y.repeat_interleave(2, -1)  # noqa: E731

    def build(forward: Any, adjoint: Any = spread, **options: Any) -> LinearOperator:
        return from_callables(forward, adjoint, SHAPE, (1, 5, 3), name="mine", **options)

    def touch(x: Tensor) -> Tensor:
        return half(x.mul_(2.0))

    assert build(half).range_shape == (1, 5, 3)
    weight = torch.ones(3, requires_grad=True)
    cases: list[tuple[Any, Any, str, str]] = [
        (lambda x: x, spread, r"mine: its forward returned shape \(2, 1, 5, 6\).*expected \(2, 1, 5, 3\)", "shape"),
        (half, lambda y: y, r"mine: its adjoint returned shape \(2, 1, 5, 3\).*correct domain_shape", "shape"),
        (lambda x: half(x)[0], spread, "torch.vmap", "shape"),
        (lambda x: half(x) * float("nan"), spread, "forward returned NaN", "finite"),
        (half, lambda y: spread(y) / 0.0, "adjoint returned NaN or infinite", "finite"),
        (lambda x: 1 / 0, spread, "forward raised ZeroDivisionError", "forward"),
        (half, lambda y: None, "adjoint returned NoneType", "adjoint"),
        (lambda x: (half(x), x), spread, r"returned tuple.*vstack", "forward"),
        (lambda x: half(x) * 1j, spread, "complex.*two channels", "real"),
        (touch, spread, "in place", "purity"),
        (lambda x: half(x) * weight, spread, "depends on tensors that require a gradient", "fixed"),
        (torch.nn.Linear(6, 3), spread, "parameters require a gradient", "fixed"),
        (lambda x: torch.from_numpy(half(x).numpy().copy()), None, "no adjoint can be derived; pass", "adjoint"),
    ]
    for forward, adjoint, message, failed in cases:
        with pytest.raises(lr.OperatorError, match=message) as caught:
            build(forward, adjoint)
        assert caught.value.failed_property == failed, message
    assert build(half, check=False) is not None
    with pytest.raises(lr.OperatorError, match="adjoint is not the transpose"):
        build(half, check=True)
    with pytest.raises(lr.OperatorError, match=r"not linear"):
        build(lambda x: half(x).abs(), None, check=True)


def test_an_operator_that_fails_later_says_so() -> None:
    calls = {"broken": False}

    def forward(x: Tensor) -> Tensor:
        if calls["broken"]:
            raise RuntimeError("the scanner is off")
        return 2.0 * x

    A = from_callables(forward, lambda y: 2.0 * y, SHAPE, SHAPE, name="scanner")
    calls["broken"] = True
    with pytest.raises(lr.OperatorError, match=r"scanner: its forward raised RuntimeError.*the scanner is off"):
        A(torch.zeros(1, *SHAPE))
    with pytest.raises(lr.ShapeError, match=r"expected \(batch, 1, 5, 6\)"):
        A.adjoint(torch.zeros(2, 5, 6))


def test_declared_bounds_are_labelled_and_held_against_estimates() -> None:
    def build(**bounds: Any) -> LinearOperator:
        scale = torch.linspace(1.0, 2.0, 6, dtype=torch.float64)
        return from_callables(lambda x: scale * x, lambda y: scale * y, SHAPE, SHAPE, **bounds)

    A = build(norm_bound=2.2, gram_lower_bound=0.9)
    assert (A.norm_bound(), A.norm_bound_kind, A.gram_lower_bound()) == (2.2, "declared", 0.9)
    assert (2.0 * A).gram_lower_bound() == pytest.approx(3.6)
    assert build().norm_bound_kind == "rigorous"
    with pytest.raises(lr.OperatorError, match=r"norm_bound=1\.9 is declared, but the norm is at least 1\.99"):
        build(norm_bound=1.9)
    with pytest.raises(lr.OperatorError, match=r"gram_lower_bound=1\.2 is declared, but the smallest eigenvalue"):
        build(gram_lower_bound=1.2)
    for bounds in ({"norm_bound": -1.0}, {"norm_bound": float("nan")}, {"gram_lower_bound": float("inf")}):
        with pytest.raises(lr.ConfigError, match="expected a finite number >= 0"):
            build(**bounds)
    problem = lr.LowerLevelProblem(A, TotalVariation(0.1, 0.1).double())
    x_true, b = registry.measure(problem)
    hg = lr.hypergradient(problem, b, lr.SquaredError(x_true), tolerance=1e-2)
    assert hg.certified
    large = from_callables(lambda x: x, lambda y: y, (70, 70), (70, 70), norm_bound=1.0)
    combined = lr.vstack(large, Identity((70, 70)))
    combined.norm_bound()
    assert combined.norm_bound_kind == "declared"


def test_modules_move_with_the_operator() -> None:
    linear = torch.nn.Linear(6, 3, bias=False).requires_grad_(False)
    A = from_callables(linear, None, (1, 6), (1, 3))
    x = registry.randn(2, 1, 6)
    torch.testing.assert_close(A.double()(x), x @ linear.weight.double().T)
    assert [name for name, _ in A.named_parameters()] == ["wrapped.0.weight"]
    assert A.parameter_lipschitz() == 0.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["scipy-csr", "scipy-dense", "pylops-convolution", "deepinv-double"])
def test_results_stay_on_the_device(name: str) -> None:
    A = built(name).to("cuda")
    x = registry.randn(2, *A.domain_shape).cuda()
    assert A(x).device == x.device
    torch.testing.assert_close(A(x).cpu(), built(name)(x.cpu()))


def test_norms_of_operators_that_return_nan_are_refused() -> None:
    for shape in (SHAPE, (70, 70)):
        A = BlackBox(lambda x: x * float("nan"), lambda y: y, shape, shape)
        with pytest.raises(lr.OperatorError, match="NaN or infinite numbers while its norm was computed"):
            A.norm_bound()


@pytest.mark.parametrize("name", SINGLE)
@torch.no_grad()
def test_certificates_allow_for_operators_that_compute_in_float32(name: str) -> None:
    """The floor covers how far a float64 residual is from that of the exact matrix."""
    A = built(name)
    assert A.unit_roundoff == torch.finfo(torch.float32).eps
    regularizer = AnalysisOperator(Identity(A.domain_shape), lr.PseudoHuber(0.1, 0.1)).double()
    problem = lr.LowerLevelProblem(2.0 * A, regularizer, ridge=0.1)
    exact = lr.LowerLevelProblem(2.0 * assemble(A), problem.regularizer, ridge=0.1)
    _, b = registry.measure(exact, batch=50)
    x = registry.randn(50, *A.domain_shape, seed=60)
    found, true = problem.instance(b), exact.instance(b)
    pullback = found.adjoint(found.apply(x))
    error = (state_residual(found, x, pullback) - state_residual(true, x, pullback)).flatten(1).norm(dim=1)
    assert bool((error <= rounding_floor(found, x, pullback)).all())
    assert bool((error > rounding_floor(true, x, pullback)).all()), "float64 rounding alone would explain the error"
    solution = lr.solve(problem, b[:2], tolerance=1e-9)
    assert solution.certified
    assert float(solution.error_bound.min()) > 1e-9, "a float32 operator cannot certify this"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["sparse", "dense", "torch"])
def test_autocast_changes_nothing(kind: str, dtype: torch.dtype) -> None:
    """And half precision is computed in float32 where it is given."""
    sparse = pytest.importorskip("scipy.sparse")
    matrix = sparse.random(7, 12, 0.5, random_state=0, dtype=np.float32)
    weights = torch.from_numpy(matrix.toarray())
    builds: dict[str, Callable[[], Any]] = {
        "sparse": lambda: from_scipy(matrix, (3, 4), (7,)),
        "dense": lambda: from_scipy(matrix.toarray(), (3, 4), (7,)),
        "torch": lambda: from_callables(lambda x: x.flatten(1) @ weights.T.to(x), None, (3, 4), (7,)),
    }
    A = builds[kind]()
    x, y = registry.randn(2, 3, 4).float(), registry.randn(2, 7, seed=1).float()
    expected = A(x), A.adjoint(y)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(A(x), expected[0])
        assert torch.equal(A.adjoint(y), expected[1])
        image = A(x.to(dtype))
    torch.testing.assert_close(image, expected[0], rtol=2e-2, atol=2e-2)
