"""Filter banks: conv2d on padded images, their transposes, and norms of every boundary."""

from __future__ import annotations

import math

import numpy as np
import pytest
import registry
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from truth.spectrum import norm_of

from learnreg.convolutions.correlation import correlate, correlate_adjoint, filter_gradient
from learnreg.convolutions.filter_bank import FilterBank, weighted_norm_bound
from learnreg.convolutions.padding import BOUNDARIES, pad, pad_adjoint
from learnreg.errors import ConfigError, ShapeError
from learnreg.linear.norms import dense_matrix

PAD_MODES = {"zero": "constant", "circular": "wrap", "reflect": "reflect", "replicate": "edge"}
KERNELS = [(1, 1), (3, 3), (2, 2), (2, 5), (4, 3), (5, 6)]


def padded(x: Tensor, k: int, l: int, boundary: str) -> Tensor:
    """By NumPy: (k-1)//2 pixels before, k//2 after."""
    if boundary == "valid":
        return x
    widths = [(0, 0), (0, 0), ((k - 1) // 2, k // 2), ((l - 1) // 2, l // 2)]
    return torch.from_numpy(np.pad(x.numpy(), widths, mode=PAD_MODES[boundary]))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_equals_conv2d(boundary: str, kernel: tuple[int, int]) -> None:
    x, filters = registry.randn(2, 1, 6, 7, seed=1), registry.randn(3, *kernel, seed=2)
    bank = FilterBank(filters, (1, 6, 7), boundary)
    expected = F.conv2d(padded(x, *kernel, boundary), filters[:, None])
    torch.testing.assert_close(bank(x), expected)
    assert tuple(expected.shape[1:]) == bank.range_shape


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_padding_and_its_transpose(boundary: str, kernel: tuple[int, int]) -> None:
    x = registry.randn(2, 1, 6, 7, seed=3)
    image = pad(x, kernel, boundary)
    torch.testing.assert_close(image, padded(x, *kernel, boundary))
    y = registry.randn(*image.shape, seed=4)
    torch.testing.assert_close((image * y).sum(), (x * pad_adjoint(y, kernel, boundary, (6, 7))).sum())


def test_transposed_correlation_and_filter_gradient() -> None:
    x, filters = registry.randn(2, 1, 6, 7, seed=5), registry.randn(3, 2, 3, seed=6).requires_grad_()
    y = registry.randn(2, 3, 5, 5, seed=7)
    torch.testing.assert_close(correlate_adjoint(y, filters), F.conv_transpose2d(y, filters[:, None]))
    (expected,) = torch.autograd.grad((correlate(x, filters) * y).sum(), filters)
    torch.testing.assert_close(filter_gradient(x, y, (2, 3)), expected)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_derivatives_in_image_and_filters(boundary: str) -> None:
    x, filters = registry.randn(1, 1, 4, 4, seed=8).requires_grad_(), registry.randn(2, 2, 3, seed=9).requires_grad_()

    def energy(x: Tensor, filters: Tensor) -> Tensor:
        bank = FilterBank(filters, (1, 4, 4), boundary)
        return (bank(x) ** 3).sum() + bank.adjoint(bank(x)).sin().sum()

    assert torch.autograd.gradcheck(energy, (x, filters))
    assert torch.autograd.gradgradcheck(energy, (x, filters))
    direct = (F.conv2d(pad(x, (2, 3), boundary), filters[:, None]) ** 3).sum()
    ours = (FilterBank(filters, (1, 4, 4), boundary)(x) ** 3).sum()
    for a, b in zip(torch.autograd.grad(direct, (x, filters)), torch.autograd.grad(ours, (x, filters)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_norms_with_channel_weights(boundary: str) -> None:
    for seed in range(4):
        filters, weights = registry.randn(3, 3, 2, seed=seed), registry.rand(3, seed=seed + 9)
        bank = FilterBank(filters, (1, 7, 6), boundary)
        rows = dense_matrix(bank, bank.domain_shape).reshape(3, -1, 42) * weights.sqrt()[:, None, None]
        norm = float(torch.linalg.matrix_norm(rows.flatten(0, 1), 2))
        assert norm <= weighted_norm_bound(bank, weights) <= 1.2 * norm


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("shape", [(1, 33, 33), (1, 3, 400)])
def test_norms_beyond_the_dense_limit_are_bounds(boundary: str, shape: tuple[int, int, int]) -> None:
    for filters in (torch.ones(1, 3, 3).double(), registry.randn(2, 3, 3, seed=1), registry.randn(1, 2, 2, seed=2)):
        bank = FilterBank(filters, shape, boundary)
        norm = norm_of(bank)
        assert norm <= bank.norm_bound()
        if shape[1] == shape[2] and boundary not in ("reflect", "replicate"):
            assert bank.norm_bound() <= 1.1 * norm


def test_circular_spectrum_is_exact() -> None:
    bank = FilterBank(registry.randn(2, 3, 3, seed=3), (1, 5, 6), "circular")
    gram = dense_matrix(bank, (1, 5, 6))
    eigenvalues = torch.linalg.eigvalsh(gram.T @ gram)
    assert bank.norm_bound() == pytest.approx(math.sqrt(float(eigenvalues[-1])), rel=1e-10)
    assert bank.gram_lower_bound() == pytest.approx(float(eigenvalues[0]), rel=1e-8)
    assert bank.gram_lower_bound() <= float(eigenvalues[0])
    zero_mean = FilterBank(
        registry.randn(1, 3, 3, seed=3) - registry.randn(1, 3, 3, seed=3).mean(), (1, 4, 4), "circular"
    )
    assert zero_mean.gram_lower_bound() <= 1e-15


def test_parameter_lipschitz_does_not_vanish_without_gradients() -> None:
    """Filters computed from parameters (minus their means, say) show no requires_grad under no_grad."""
    parameter = nn.Parameter(registry.randn(2, 3, 3))
    with torch.no_grad():
        bank = FilterBank(parameter - parameter.mean(), (1, 5, 5))
    assert bank.parameter_lipschitz() == pytest.approx(3.0)


def test_wrong_arguments() -> None:
    filters = torch.zeros(2, 3, 3)
    with pytest.raises(ConfigError, match=r"boundary='same': expected one of valid, zero, circular, reflect"):
        FilterBank(filters, (1, 4, 4), "same")
    for shape, image in (((2, 2, 3, 3), (1, 4, 4)), ((2, 3), (1, 4, 4)), ((2, 3, 3), (1, 4, 4, 4)), ((2, 3), (4,))):
        with pytest.raises(ShapeError, match=r"for images of shape .*, expected \(n, k, k\)"):
            FilterBank(torch.zeros(shape), image)
    with pytest.raises(ShapeError, match="image 2x9 is smaller than the 3x3 filters"):
        FilterBank(filters, (1, 2, 9))
    with pytest.raises(ShapeError, match="too small to reflect"):
        FilterBank(torch.zeros(1, 7, 7), (1, 3, 9), "reflect")
    assert FilterBank(filters, (1, 3, 3)).range_shape == (2, 1, 1)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_norms_follow_from_those_of_filters_nearby(boundary: str, rotating_generator: torch.Generator) -> None:
    filters, noise = torch.randn(2, 6, 3, 5, dtype=torch.float64, generator=rotating_generator)
    known = FilterBank(filters, (1, 20, 22), boundary)  # type: ignore[arg-type]
    kept = 0
    for size in (0.0, 1e-12, 1e-6, 1e-4, 1e-3, 1e-2, 1.0):
        bank = FilterBank(filters + size * noise, (1, 20, 22), boundary)  # type: ignore[arg-type]
        taken = bank.take_norm_near(known)
        kept += taken
        assert taken or size >= 1e-3
        assert bank.norm_bound_kind == "rigorous"
        assert norm_of(bank) <= bank.norm_bound()
        if taken:
            assert bank.norm_bound() <= 1.01 * known.norm_bound()
    assert kept < 7  # not of filters that are far away
    others = (FilterBank(filters, (1, 20, 23), boundary), FilterBank(filters[:5], (1, 20, 22), boundary))  # type: ignore[arg-type]
    assert not any(other.take_norm_near(known) for other in others)
