"""Bounds of operator norms: never below the norm, and close to it."""

from __future__ import annotations

import pytest
import registry
import torch
from torch import nn
from truth.spectrum import norm_of

from learnreg.convolutions.filter_bank import FilterBank
from learnreg.linear.norms import (
    circulant_bound,
    dense_matrix,
    gram_norm_bound,
    lanczos_estimate,
    matrix_norm_bound,
    power_estimate,
    probabilistic_norm_bound,
)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (7, 3), (20, 20)])
def test_small_matrices(shape: tuple[int, int]) -> None:
    for seed in range(5):
        A = registry.randn(*shape, seed=seed)
        norm = float(torch.linalg.matrix_norm(A, 2))
        assert norm <= matrix_norm_bound(A) <= norm * (1 + 1e-9)
    assert matrix_norm_bound(torch.zeros(*shape)) == 0.0
    low_rank = registry.randn(shape[0], 1) @ registry.randn(1, shape[1], seed=1)
    norm = float(torch.linalg.matrix_norm(low_rank, 2))
    assert norm * (1 - 1e-15) <= matrix_norm_bound(low_rank) <= norm * (1 + 1e-9)


def test_large_matrices_by_repeated_squaring() -> None:
    n = 1100
    flat = torch.eye(n, dtype=torch.float64) * 3.0  # all singular values equal: the worst case of a Schatten norm
    assert 3.0 <= matrix_norm_bound(flat) <= 3.0 * 1.07
    A = registry.randn(n, n + 50)
    norm = float(torch.linalg.eigvalsh(A @ A.T)[-1]) ** 0.5
    assert norm <= matrix_norm_bound(A) <= 1.07 * norm
    for scale in (1e-120, 1e120):
        assert scale * 3.0 <= matrix_norm_bound(flat * scale) <= 3.3 * scale
    assert matrix_norm_bound(torch.zeros(n, n)) == 0.0


def test_dense_matrix_in_blocks() -> None:
    A = registry.randn(5, 12)
    apply = lambda x: x.flatten(1) @ A.T  # noqa: E731
    torch.testing.assert_close(dense_matrix(apply, (3, 4), block=5), A)
    assert dense_matrix(lambda x: x, (2, 2), dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("kind", ["flat", "gap", "decay"])
def test_probabilistic_bound(kind: str) -> None:
    n = 5000
    values = {
        "flat": torch.ones(n, dtype=torch.float64),
        "gap": torch.cat([torch.tensor([1.0]), torch.full((n - 1,), 0.1)]).double(),
        "decay": torch.linspace(1.0, 0.0, n, dtype=torch.float64),
    }[kind]
    bound = probabilistic_norm_bound(lambda v: values**2 * v, (n,))
    assert 1.0 <= bound <= 1.3
    assert probabilistic_norm_bound(lambda v: 0.0 * v, (7,)) == 0.0


@pytest.mark.parametrize("norm", [1e-150, 1e-100, 1e-45, 1e100, 1e150])
def test_bounds_where_squares_leave_the_range_of_numbers(norm: float) -> None:
    """One large singular value, in any units."""
    gains = torch.zeros(2000, dtype=torch.float64)
    gains[0] = norm**2
    assert norm <= probabilistic_norm_bound(lambda v: gains * v, (2000,)) <= 1.5 * norm
    assert power_estimate(lambda v: gains * v, (2000,)) == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize("rank", [1, 3, 400])
@pytest.mark.parametrize("size", [1e-150, 1.0, 1e150])
def test_gram_matrices_are_bounded_by_cholesky_factors(rank: int, size: float) -> None:
    for n in (257, 400):
        A = registry.randn(rank, n)
        norm = float(torch.linalg.matrix_norm(A, 2)) * size
        assert norm <= gram_norm_bound((size * A.T) @ (size * A)) <= norm * (1.0 + 1e-3)


def test_gram_matrices_whose_largest_eigenvalues_are_close() -> None:
    values = torch.cat([1.0 - 1e-9 * torch.arange(50), torch.linspace(0.0, 1.0, 450)]).double()
    Q = torch.linalg.qr(registry.randn(500, 500)).Q
    assert 1.0 <= gram_norm_bound((Q * values) @ Q.T) <= 1.0001


def test_one_eigenvector_among_equals_is_found() -> None:
    """However small its share of the start: Lanczos steps from this start alone end before they see it."""
    start = torch.randn(1, 4096, dtype=torch.float64, generator=torch.Generator().manual_seed(20130731))
    for pixel in start.abs().argsort()[0, :5].tolist():
        gains = torch.ones(4096, dtype=torch.float64)
        gains[pixel] = 4.0
        assert 2.0 <= probabilistic_norm_bound(lambda v: v * gains, (4096,)) <= 3.0  # noqa: B023
    generator = torch.Generator().manual_seed(1)
    for n in (1100, 3000):
        for _ in range(100):
            v = torch.randn(1, n, dtype=torch.float64, generator=generator)
            v /= v.norm()
            assert probabilistic_norm_bound(lambda x: x + 0.4 * (x * v).sum() * v, (n,)) >= 1.4**0.5  # noqa: B023


@pytest.mark.parametrize("n", [1, 2, 7, 30, 31, 300])
def test_lanczos_steps_end_where_the_space_is_exhausted(n: int) -> None:
    for rank in {1, min(2, n), n}:
        A = registry.randn(rank, n)
        largest = float(torch.linalg.matrix_norm(A, 2)) ** 2
        found = lanczos_estimate(lambda v: v @ A.T @ A, (n,))  # noqa: B023
        assert 0.99 * largest <= found <= largest * (1.0 + 1e-6)


@pytest.mark.parametrize("shape", [(4, 4), (5, 6), (2, 3)])
def test_circulant_bound_is_the_spectrum_on_the_torus(shape: tuple[int, int]) -> None:
    filters = registry.randn(2, 3, 3)
    rows = []
    for i in range(shape[0]):
        for j in range(shape[1]):
            image = torch.zeros(2, *shape, dtype=torch.float64)
            for a in range(3):
                for b in range(3):
                    image[:, (i + a) % shape[0], (j + b) % shape[1]] += filters[:, a, b]
            rows.append(image.flatten(1))
    matrix = torch.stack(rows, 1).flatten(0, 1)
    eigenvalues = torch.linalg.eigvalsh(matrix.T @ matrix)
    largest, smallest = circulant_bound(filters, shape)
    assert largest == pytest.approx(float(eigenvalues[-1]), rel=1e-12)
    assert smallest == pytest.approx(float(eigenvalues[0]), rel=1e-9, abs=1e-13)


def test_norm_bound_follows_changes_behind_the_version_counter() -> None:
    bank = FilterBank(nn.Parameter(torch.randn(3, 3, 3, dtype=torch.float64)), (1, 8, 8))
    before = bank.norm_bound()
    bank.filters.data.mul_(2.0)
    assert bank.norm_bound() == pytest.approx(2.0 * before)


@pytest.mark.parametrize(
    ("sides", "boundary", "seed"),
    [((40, 40), "reflect", 0), ((40, 40), "reflect", 1), ((600, 2), "reflect", 2), ((2, 600), "zero", 3)],
)
def test_norm_bound_stays_within_its_promise_where_the_torus_is_loose(
    sides: tuple[int, int], boundary: str, seed: int
) -> None:
    kernel = registry.randn(1, 3, 3, seed=seed)
    bank = FilterBank(kernel, (1, *sides), boundary)
    norm = norm_of(bank)
    assert norm * (1 - 1e-12) <= bank.norm_bound() <= 1.5 * norm
    assert bank.norm_bound_kind == "rigorous"
