"""Masked Fourier transforms against NumPy's, and their exact spectra."""

from __future__ import annotations

import numpy as np
import pytest
import registry
import torch
from torch import Tensor, nn

import learnreg as lr
from learnreg.linear.norms import dense_matrix
from learnreg.operators import FourierSampling
from learnreg.regularizers import TotalVariation

MASKS = {
    "binary": lambda h, w: (registry.rand(h, w, seed=1) > 0.5).double(),
    "weights": lambda h, w: registry.randn(h, w, seed=2),
    "full": lambda h, w: torch.ones(h, w, dtype=torch.float64),
    "half": lambda h, w: (torch.arange(w) <= w // 2).double().expand(h, w),
    "one": lambda h, w: 2.0 * (torch.arange(h * w) == w + 2).double().reshape(h, w),
}


def as_complex(x: Tensor) -> np.ndarray:
    array: np.ndarray = x[:, 0].numpy()
    return array if x.shape[1] == 1 else array + 1j * x[:, 1].numpy()


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(6, 4), (5, 7), (1, 8), (4, 5)])
def test_equals_numpys_transform(channels: int, height: int, width: int) -> None:
    mask, x = registry.randn(height, width, seed=3), registry.randn(2, channels, height, width, seed=4)
    A = FourierSampling(mask, (channels, height, width))
    expected = mask.numpy() * np.fft.fft2(as_complex(x), norm="ortho")
    np.testing.assert_allclose(as_complex(A(x)), expected, atol=1e-14)
    y = registry.randn(2, 2, height, width, seed=5)
    back = np.fft.ifft2(mask.numpy() * as_complex(y), norm="ortho")
    np.testing.assert_allclose(as_complex(A.adjoint(y)), back.real if channels == 1 else back, atol=1e-14)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("height", "width"), [(6, 4), (5, 7), (4, 5)])
def test_bounds_are_the_extreme_singular_values(mask: str, channels: int, height: int, width: int) -> None:
    A = FourierSampling(MASKS[mask](height, width), (channels, height, width))
    M = dense_matrix(A, A.domain_shape)
    values = torch.linalg.eigvalsh(M.T @ M)
    assert float(values[-1]) * (1 - 1e-14) <= A.norm_bound() ** 2 <= float(values[-1]) * (1 + 1e-12)
    lowest = max(0.0, float(values[0]))
    assert lowest - 1e-13 <= A.gram_lower_bound() <= lowest + 1e-13
    spectrum = A.eigenvalues().flatten().repeat(channels).sort().values
    torch.testing.assert_close(spectrum, values, rtol=1e-12, atol=1e-13)
    rows = M.norm(dim=1).reshape(A.range_shape)
    torch.testing.assert_close(torch.as_tensor(A.row_norms(False)), rows, rtol=1e-12, atol=1e-15)


def test_a_half_sampled_real_image_is_strongly_convex() -> None:
    A = FourierSampling(MASKS["half"](6, 6))
    assert A.gram_lower_bound() == pytest.approx(0.5)
    problem = lr.LowerLevelProblem(A, TotalVariation(0.05, 0.05).double())
    x_true = registry.rand(2, 1, 6, 6)
    b = A(x_true) + 0.02 * registry.randn(2, 2, 6, 6)
    solution = lr.solve(problem, b, tolerance=1e-6)
    assert solution.certified
    assert float(solution.error_bound.max()) <= 1e-6


def test_a_sampling_pattern_is_learned() -> None:
    mask = nn.Parameter(0.5 + registry.rand(4, 5))
    problem = lr.LowerLevelProblem(FourierSampling(mask), TotalVariation(0.05, 0.1).double(), ridge=0.1)
    x_true, b = registry.measure(problem)
    hg = lr.hypergradient(problem, b, lr.SquaredError(x_true), tolerance=1e-4)
    assert hg.certified

    def loss(delta: float) -> float:
        with torch.no_grad():
            mask[1, 2] += delta
        value = lr.hypergradient(problem, b, lr.SquaredError(x_true), tolerance=1e-6).loss
        with torch.no_grad():
            mask[1, 2] -= delta
        return value

    difference = (loss(1e-4) - loss(-1e-4)) / 2e-4
    assert float(hg.gradient["operator.mask"][1, 2]) == pytest.approx(difference, rel=1e-4)


def test_boolean_masks_and_single_precision() -> None:
    A = FourierSampling(torch.tensor([[True, False], [False, True]]))
    x = registry.randn(1, 1, 2, 2).float()
    assert A(x).dtype == torch.float32
    torch.testing.assert_close(A(x), A(x.double()).float())


def test_bad_input() -> None:
    with pytest.raises(lr.ShapeError, match=r"got \(1, 4, 4\), expected a tensor \(H, W\)"):
        FourierSampling(torch.ones(1, 4, 4))
    with pytest.raises(lr.ShapeError, match=r"got list .*expected a tensor"):
        FourierSampling(["mask"])  # type: ignore[arg-type]
    with pytest.raises(lr.ShapeError, match=r"expected \(1, 4, 5\) for real or \(2, 4, 5\) for complex"):
        FourierSampling(torch.ones(4, 5), (3, 4, 5))
    with pytest.raises(lr.OperatorError, match="NaN or infinite"):
        FourierSampling(torch.full((2, 2), float("nan")))
    with pytest.raises(lr.OperatorError, match="complex weights"):
        FourierSampling(torch.ones(2, 2, dtype=torch.complex64))
    with pytest.raises(lr.ShapeError, match=r"expected \(batch, 2, 4, 5\)"):
        FourierSampling(torch.ones(4, 5)).adjoint(torch.zeros(1, 1, 4, 5))
