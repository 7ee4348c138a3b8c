"""The algebra of linear operators, black-box linear maps, and the cache of norms."""

from __future__ import annotations

import pytest
import registry
import torch
from torch import Tensor, nn

import learnreg as lr
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.convolutions.gradient import Gradient
from learnreg.errors import OperatorError
from learnreg.linear.norms import dense_matrix
from learnreg.linear.operator import LinearOperator, linear_map
from learnreg.operators import Blur, Identity, Inpainting, from_callables

SHAPE = (1, 4, 5)


def matrix(operator: LinearOperator) -> Tensor:
    with torch.no_grad():
        return dense_matrix(operator, operator.domain_shape)


@pytest.fixture
def first() -> LinearOperator:
    return Blur(registry.randn(3, 3, seed=1), SHAPE)


@pytest.fixture
def second() -> LinearOperator:
    return Blur(registry.randn(3, 3, seed=2), SHAPE, "circular")


def test_algebra_is_that_of_matrices(first: LinearOperator, second: LinearOperator) -> None:
    A, B = matrix(first), matrix(second)
    for operator, expected in (
        (first @ second, A @ B),
        (first + second, A + B),
        (first - second, A - B),
        (-first, -A),
        (3 * first, 3 * A),
        (first * -0.5, -0.5 * A),
        (first.T, A.T),
        (first.T.T, A),
        ((first @ second).T, B.T @ A.T),
        (lr.vstack(first, second, 2 * first), torch.cat([A, B, 2 * A])),
        (lr.vstack(first), A),
    ):
        torch.testing.assert_close(matrix(operator), expected)
        torch.testing.assert_close(matrix(operator.T), expected.T)


def test_shapes_must_fit(first: LinearOperator) -> None:
    with pytest.raises(OperatorError, match=r"Blur @ Gradient: the left operator takes \(1, 4, 5\)") as caught:
        first @ Gradient(SHAPE)
    assert caught.value.failed_property == "composition"
    with pytest.raises(OperatorError, match=r"\(1, 4, 5\) -> \(2, 4, 5\) differ"):
        first + Gradient(SHAPE)
    with pytest.raises(OperatorError, match=r"domains \(1, 4, 5\) and \(1, 4, 6\) differ"):
        lr.vstack(first, Identity((1, 4, 6)))
    with pytest.raises(OperatorError, match="at least one operator"):
        lr.vstack()


def test_lower_bounds_of_combined_operators(second: LinearOperator) -> None:
    lowest = second.gram_lower_bound()
    assert lowest > 0
    assert (second @ second).gram_lower_bound() == pytest.approx(lowest**2)
    assert (2 * second).gram_lower_bound() == pytest.approx(4 * lowest)
    assert lr.vstack(second, Identity(SHAPE)).gram_lower_bound() == pytest.approx(1 + lowest)
    assert (second + Identity(SHAPE)).gram_lower_bound() == 0.0


def test_an_inexact_adjoint_is_passed_on(
    first: LinearOperator, second: LinearOperator, monkeypatch: pytest.MonkeyPatch
) -> None:
    combined = (first.T, 2 * first, second @ first, first @ second, first - second, lr.vstack(second, first))
    assert all(operator.adjoint_mismatch() == 0.0 for operator in combined)
    monkeypatch.setattr(first, "adjoint_mismatch", lambda: 1e-3)
    assert all(operator.adjoint_mismatch() == 1e-3 for operator in combined)


def test_linear_map_is_differentiable_any_number_of_times() -> None:
    A = registry.randn(4, 3, seed=3)

    def apply(x: Tensor) -> Tensor:
        return linear_map(x, lambda v: v @ A.T, lambda v: v @ A)

    x = registry.randn(2, 3, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(apply, (x,))
    assert torch.autograd.gradgradcheck(apply, (x,))
    cubed = lambda x: (apply(x) ** 3).sum()  # noqa: E731
    third = torch.autograd.functional.hessian(lambda x: torch.autograd.grad(cubed(x), x, create_graph=True)[0].sum(), x)
    assert bool(torch.isfinite(third).all())


def test_norms_follow_the_parameters() -> None:
    kernel = nn.Parameter(registry.rand(3, 3))
    blur, bank = Blur(kernel, SHAPE), FilterBank(nn.Parameter(registry.rand(2, 3, 3)), SHAPE)
    for operator, parameter in ((blur, kernel), (bank, bank.filters)):
        before, below = operator.norm_bound(), (operator @ Identity(SHAPE)).norm_bound()
        composed = operator @ Identity(SHAPE)
        composed.norm_bound()
        with torch.no_grad():
            parameter.mul_(10.0)
        assert operator.norm_bound() == pytest.approx(10 * before)
        assert composed.norm_bound() == pytest.approx(10 * below)


def test_the_norm_of_a_large_black_box_is_probabilistic() -> None:
    class Black(LinearOperator):
        def forward(self, x: Tensor) -> Tensor:
            return 3.0 * x

        def adjoint(self, y: Tensor) -> Tensor:
            return 3.0 * y

    small, large = Black((32, 32), (32, 32)), Black((70, 70), (70, 70))
    assert 3.0 <= small.norm_bound() <= 3.0 * 1.1
    assert (small.norm_bound_kind, small.norm_failure_probability) == ("rigorous", 0.0)
    assert 3.0 <= large.norm_bound() <= 4.5
    assert large.norm_bound_kind == "probabilistic"
    assert 0 < large.norm_failure_probability <= 1e-9
    for outer in (2 * large, large.T, lr.vstack(large, Identity((70, 70)))):
        outer.norm_bound()
        assert outer.norm_bound_kind == "probabilistic"
        assert outer.norm_failure_probability > 0
    for rigorous in (Identity((70, 70)) @ Inpainting(torch.ones(70, 70)), 2 * Identity((70, 70))):
        rigorous.norm_bound()
        assert rigorous.norm_bound_kind == "rigorous"


@pytest.mark.parametrize("side", [33, 64, 100])
def test_the_norm_of_a_large_black_box_takes_sixty_applications(side: int) -> None:
    symbol = torch.fft.rfft2(registry.rand(side, side)).abs()
    calls = []

    def apply(x: Tensor) -> Tensor:
        calls.append(len(x))
        return torch.fft.irfft2(symbol * torch.fft.rfft2(x), s=(side, side))

    black = from_callables(apply, apply, (1, side, side), (1, side, side))
    calls.clear()
    norm = float(symbol.max())
    assert norm <= black.norm_bound() <= 1.5 * norm
    assert sum(calls) <= 60


def test_gradient_is_the_difference_and_its_norm_exact() -> None:
    x = registry.randn(2, 1, 4, 5, seed=5)
    result = Gradient(SHAPE)(x)
    torch.testing.assert_close(result[:, 0, :-1], x[:, 0].diff(dim=1))
    torch.testing.assert_close(result[:, 1, :, :-1], x[:, 0].diff(dim=2))
    assert float(result[:, 0, -1].abs().max()) == 0.0
    assert float(result[:, 1, :, -1].abs().max()) == 0.0
    for shape in ((1, 4, 5), (1, 1, 6), (1, 8, 8), (1, 7), (3, 4, 4), (2, 3, 4, 3)):
        norm = float(torch.linalg.matrix_norm(matrix(Gradient(shape)), 2))
        assert Gradient(shape).norm_bound() == pytest.approx(norm, rel=1e-11)
    with pytest.raises(lr.ShapeError, match=r"one to three sides"):
        Gradient((3,))


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # by torch's own import of decompositions
def test_linear_map_works_under_torch_func() -> None:
    A = registry.randn(4, 3, seed=3)
    matrix = A.numpy()  # the maps leave torch: no transform can look inside

    def apply(x: Tensor) -> Tensor:
        return linear_map(
            x,
            lambda v: torch.from_numpy(v.numpy() @ matrix.T),
            lambda v: torch.from_numpy(v.numpy() @ matrix),
        )

    x, v = registry.randn(2, 3, seed=4), registry.randn(2, 3, seed=5)
    torch.testing.assert_close(torch.func.jvp(apply, (x,), (v,)), (x @ A.T, v @ A.T))
    energy, expected = (lambda x: (apply(x) ** 4).sum()), (lambda x: ((x @ A.T) ** 4).sum())
    hessian = torch.func.hessian(expected)(x)
    for derivative in (
        torch.func.hessian(energy)(x),
        torch.func.jacfwd(torch.func.jacfwd(energy))(x),
        torch.func.jacrev(torch.func.jacrev(energy))(x),
        torch.autograd.functional.hessian(energy, x),
    ):
        torch.testing.assert_close(derivative, hessian)
    third = torch.func.jacfwd(torch.func.hessian(energy))(x)
    torch.testing.assert_close(third, torch.func.jacfwd(torch.func.hessian(expected))(x))
    stacked = registry.randn(2, 5, 3, seed=6)
    torch.testing.assert_close(torch.func.vmap(apply, in_dims=1, out_dims=1)(stacked), stacked @ A.T)
    per_sample = torch.func.vmap(torch.func.grad(lambda x: energy(x[None])))(x)
    torch.testing.assert_close(per_sample, torch.func.grad(expected)(x))
    x.requires_grad_()
    assert torch.autograd.gradcheck(apply, (x,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(apply, (x,), check_fwd_over_rev=True)
