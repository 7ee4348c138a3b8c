"""What every linear operator owes: an exact adjoint, derivatives of all orders, and bounds that are bounds."""

from __future__ import annotations

import math

import pytest
import registry
import torch
from torch import Tensor
from truth.spectrum import norm_of

from learnreg.errors import ConfigError, OperatorError, ShapeError
from learnreg.linear.norms import dense_matrix
from learnreg.linear.operator import LinearOperator
from learnreg.linear.stack import Stack
from learnreg.operators import Blur, Identity, Inpainting


@pytest.fixture(params=registry.OPERATORS)
def operator(request: pytest.FixtureRequest) -> LinearOperator:
    return registry.OPERATORS[request.param]()


@torch.no_grad()
def dense(operator: LinearOperator) -> Tensor:
    return dense_matrix(operator, operator.domain_shape)


def inputs(operator: LinearOperator, batch: int = 2) -> tuple[Tensor, Tensor]:
    return registry.randn(batch, *operator.domain_shape, seed=1), registry.randn(batch, *operator.range_shape, seed=2)


def test_adjoint_is_exact(operator: LinearOperator) -> None:
    x, y = inputs(operator, 3)
    with torch.no_grad():
        image, back = operator(x), operator.adjoint(y)
    left, right = (image * y).flatten(1).sum(1), (x * back).flatten(1).sum(1)
    scale = image.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1) + 1e-300
    assert float(((left - right).abs() / scale).max()) <= 1e-12
    adjoint = dense_matrix(operator.adjoint, operator.range_shape).detach()
    torch.testing.assert_close(adjoint, dense(operator).T, rtol=1e-13, atol=1e-14)


def test_samples_are_independent_and_inputs_unchanged(operator: LinearOperator) -> None:
    x, y = inputs(operator, 3)
    kept_x, kept_y = x.clone(), y.clone()
    with torch.no_grad():
        torch.testing.assert_close(operator(x)[1:2], operator(x[1:2]), rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(operator.adjoint(y)[1:2], operator.adjoint(y[1:2]), rtol=1e-13, atol=1e-14)
    assert torch.equal(x, kept_x)
    assert torch.equal(y, kept_y)
    with torch.no_grad():
        operator(x).add_(1.0)
        operator.adjoint(y).add_(1.0)
    assert torch.equal(x, kept_x), "the result shares memory with the input"
    assert torch.equal(y, kept_y), "the result shares memory with the input"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_have_the_dtype_of_the_input(operator: LinearOperator, dtype: torch.dtype) -> None:
    x, y = (t.to(dtype) for t in inputs(operator))
    assert operator(x).dtype == dtype
    assert operator.adjoint(y).dtype == dtype
    moved = operator.to(dtype)
    assert moved(x).dtype == dtype
    assert moved(x.double()).dtype == torch.float64


def test_derivatives_of_first_and_second_order(operator: LinearOperator) -> None:
    x, y = (t.requires_grad_() for t in inputs(operator, 1))
    parameters = [p for p in operator.parameters() if p.requires_grad]

    def forward(x: Tensor, *_: Tensor) -> Tensor:
        return operator(x)

    def adjoint(y: Tensor, *_: Tensor) -> Tensor:
        return operator.adjoint(y)

    for function, point in ((forward, x), (adjoint, y)):
        assert torch.autograd.gradcheck(function, (point, *parameters), fast_mode=True)
        assert torch.autograd.gradgradcheck(function, (point, *parameters), fast_mode=True)


def test_norm_bound_is_a_bound_and_close(operator: LinearOperator) -> None:
    norm = float(torch.linalg.matrix_norm(dense(operator), 2))
    bound = operator.norm_bound()
    assert operator.norm_bound_kind == "rigorous"
    assert norm <= bound <= 1.5 * norm


def test_gram_lower_bound_is_a_lower_bound(operator: LinearOperator) -> None:
    A = dense(operator)
    lowest = float(torch.linalg.eigvalsh(A.T @ A)[0])
    largest = float(torch.linalg.matrix_norm(A, 2)) ** 2
    assert 0.0 <= operator.gram_lower_bound() <= max(0.0, lowest) + 1e-14 * largest


def test_diagonal_is_the_operator(operator: LinearOperator) -> None:
    diagonal = operator.diagonal()
    if diagonal is not None:
        assert tuple(diagonal.shape) == operator.domain_shape
        torch.testing.assert_close(torch.diag(diagonal.double().flatten()), dense(operator))


def test_row_norms_are_bounds(operator: LinearOperator) -> None:
    rows = dense(operator).norm(dim=1).reshape(operator.range_shape)
    bound = torch.as_tensor(operator.row_norms(False), dtype=torch.float64).expand(operator.range_shape)
    assert bool((bound >= rows * (1 - 1e-14)).all())
    bound = torch.as_tensor(operator.row_norms(True), dtype=torch.float64).expand(operator.range_shape)
    whole = [(operator, bound)]
    stacked = isinstance(operator, Stack)  # whose groups are those of its parts
    for part, own in [(part, share.within(bound[None])[0]) for part, share in operator.pairs()] if stacked else whole:
        groups = dense(part).reshape(part.range_shape[0], -1, math.prod(part.domain_shape))
        norms = torch.linalg.matrix_norm(groups.transpose(0, 1), 2)
        assert bool((own.reshape(part.range_shape[0], -1).amin(0) >= norms * (1 - 1e-14)).all())


def test_parameter_lipschitz_is_a_bound(operator: LinearOperator) -> None:
    parameters = [p for p in operator.parameters() if p.requires_grad]
    constant = operator.parameter_lipschitz()
    if constant is None or not parameters:
        return
    for seed in range(6):
        u, p = (
            registry.randn(1, *operator.domain_shape, seed=seed),
            registry.randn(1, *operator.range_shape, seed=99 - seed),
        )
        u = u + seed % 5  # smooth images excite all windows alike
        if seed % 2:
            u = torch.zeros_like(u).flatten().scatter(0, torch.tensor([seed % u.numel()]), 1.0).reshape(u.shape)
        for _ in range(2):  # alternate: the p that is worst for this u
            grads = torch.autograd.grad((operator(u) * p).sum(), parameters)
            size = math.sqrt(sum(float(g.square().sum()) for g in grads))
            assert size <= constant * float(u.norm() * p.norm()) * (1 + 1e-12)
            with torch.no_grad():
                kept = [q.clone() for q in parameters]
                for q, g in zip(parameters, grads, strict=True):
                    q.copy_(g)
                p = operator(u)
                for q, k in zip(parameters, kept, strict=True):
                    q.copy_(k)


def test_batched_shapes_are_checked() -> None:
    for operator in (Identity((1, 4, 5)), Inpainting(torch.ones(1, 4, 5)), Blur(torch.ones(3, 3), (1, 4, 5))):
        with pytest.raises(ShapeError, match=r"Add a batch axis with tensor\[None\]"):
            operator(torch.zeros(1, 4, 5))
        with pytest.raises(ShapeError, match=r"got shape \(2, 1, 5, 4\), expected \(batch, 1, 4, 5\)"):
            operator.adjoint(torch.zeros(2, 1, 5, 4))
        with pytest.raises(ShapeError, match=r"call \.float\(\)"):
            operator(torch.zeros(2, 1, 4, 5, dtype=torch.int64))


def test_blur_equals_conv2d() -> None:
    kernel, x = registry.randn(3, 3, seed=3), registry.randn(2, 2, 6, 7, seed=4)
    expected = torch.nn.functional.conv2d(x.reshape(4, 1, 6, 7), kernel[None, None], padding=1).reshape(x.shape)
    torch.testing.assert_close(Blur(kernel, (2, 6, 7))(x), expected)
    torch.testing.assert_close(Blur(kernel[None, None], (2, 6, 7))(x), expected)


def test_integer_kernels_and_masks_are_converted() -> None:
    assert Blur(torch.ones(3, 3, dtype=torch.int64), (1, 4, 4)).kernel.is_floating_point()
    mask = torch.tensor([[[True, False]]])
    assert Inpainting(mask)(torch.ones(1, 1, 1, 2)).tolist() == [[[[1.0, 0.0]]]]


def test_wrong_arguments() -> None:
    with pytest.raises(ConfigError, match=r"boundary='valid'.*'zero', 'circular' or 'reflect'"):
        Blur(torch.ones(3, 3), (1, 4, 4), "valid")
    with pytest.raises(ShapeError, match=r"\(2, 1, 3, 3\)"):
        Blur(torch.ones(2, 1, 3, 3), (1, 4, 4))
    with pytest.raises(ShapeError, match=r"\(channels, height, width\)"):
        Blur(torch.ones(3, 3), (4, 4))
    with pytest.raises(ShapeError, match="too small to reflect"):
        Blur(torch.ones(9, 9), (1, 4, 4), "reflect")
    with pytest.raises(OperatorError, match="NaN") as caught:
        Inpainting(torch.tensor([[float("nan")]]))
    assert caught.value.failed_property == "finite"
    with pytest.raises(ShapeError, match=r"Inpainting\(mask\): got str"):
        Inpainting("mask")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="positive sizes"):
        Identity(())
    with pytest.raises(ShapeError, match="positive sizes"):
        Identity((1, 0, 4))


@pytest.mark.parametrize("shape", [(1, 2, 600), (1, 40, 40)])
@pytest.mark.parametrize("boundary", ["zero", "circular", "reflect"])
def test_norm_of_a_blur_on_large_and_thin_images(shape: tuple[int, int, int], boundary: str) -> None:
    for kernel in (torch.ones(3, 3).double() / 9, registry.randn(3, 3, seed=5)):
        blur = Blur(kernel, shape, boundary)
        norm = norm_of(blur)
        assert norm <= blur.norm_bound()
        if boundary == "circular" or (boundary == "zero" and shape == (1, 40, 40)):
            assert blur.norm_bound() <= 1.5 * norm
