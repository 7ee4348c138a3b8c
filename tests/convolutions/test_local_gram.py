"""Gram matrices by few applications equal those of every unit image."""

from __future__ import annotations

import pytest
import registry
import torch

from learnreg.convolutions.chain import ConvolutionChain
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.convolutions.local_gram import local_gram
from learnreg.convolutions.padding import Boundary
from learnreg.convolutions.second_order import SecondOrderOperator
from learnreg.linear.norms import dense_matrix, gram_norm_bound, matrix_norm_bound
from learnreg.linear.operator import LinearOperator


def check(operator: LinearOperator, filter_shape: tuple[int, int]) -> None:
    W = dense_matrix(operator, operator.domain_shape)
    torch.testing.assert_close(local_gram(operator, filter_shape), W.T @ W, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("boundary", ["valid", "zero", "reflect", "replicate"])
@pytest.mark.parametrize(("sides", "filter_shape"), [((5, 6), (3, 2)), ((9, 13), (4, 5)), ((7, 7), (1, 7))])
def test_filter_banks(boundary: Boundary, sides: tuple[int, int], filter_shape: tuple[int, int]) -> None:
    check(FilterBank(registry.randn(3, *filter_shape), (1, *sides), boundary), filter_shape)


@pytest.mark.parametrize("boundary", ["valid", "reflect", "replicate"])
def test_second_order(boundary: Boundary) -> None:
    filters = (registry.randn(2, n, 3, 3, seed=n) for n in (2, 2, 4, 4))
    operator = SecondOrderOperator(*filters, (1, 8, 9), boundary, 0.7)
    check(operator, (3, 3))


def test_chains() -> None:
    kernels = [registry.randn(2, 1, 3, 3, seed=1), registry.randn(3, 2, 5, 1, seed=2)]
    check(ConvolutionChain(kernels, (1, 9, 8)), (7, 3))


@pytest.mark.parametrize("size", [1e-190, 1e-8, 1.0, 1e190])
def test_no_size_is_too_small_or_too_large(size: float) -> None:
    filters = registry.randn(3, 3, 3)
    norm = FilterBank(filters, (1, 9, 8)).norm_bound()
    assert FilterBank(size * filters, (1, 9, 8)).norm_bound() == pytest.approx(size * norm, rel=1e-9)


@pytest.mark.parametrize("shape", [(30, 20), (1100, 1500)])
def test_a_norm_from_its_gram_matrix(shape: tuple[int, int]) -> None:
    A = registry.randn(*shape)
    assert gram_norm_bound(A @ A.T) == pytest.approx(matrix_norm_bound(A), rel=1e-9 if shape[0] == 30 else 0.07)
