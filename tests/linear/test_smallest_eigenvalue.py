"""Lower bounds of smallest eigenvalues: never above them, and near; the windows that make matrices local."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from learnreg.convolutions.chain import ConvolutionChain
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.convolutions.gradient import Gradient
from learnreg.convolutions.grouped_filter_bank import GroupedFilterBank
from learnreg.linear.local_matrix import LocalMatrix
from learnreg.linear.norms import dense_matrix
from learnreg.linear.smallest_eigenvalue import dense_lower_bound, lanczos_lower_bound, local_lower_bound
from learnreg.operators import Blur, ParallelBeam2D

DOUBLE = torch.float64
SHAPE = (1, 7, 6)


def test_windows_tell_which_pixels_are_coupled() -> None:
    filters = torch.randn(2, 3, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    banks = [FilterBank(filters, SHAPE, boundary) for boundary in ("zero", "valid", "reflect")]
    chain = ConvolutionChain([torch.ones(2, 1, 3, 3), torch.ones(1, 2, 1, 3)], SHAPE)
    blurs = [Blur(filters[0], SHAPE, boundary) for boundary in ("zero", "reflect")]
    for operator in (*banks, chain, *blurs, Gradient(SHAPE)):
        window, (_, height, width) = operator.window(), SHAPE
        assert window is not None
        A = dense_matrix(operator, SHAPE)
        coupled = (A.abs().T @ A.abs()).reshape(height, width, height, width) > 0
        rows, columns = (a.abs() for a in coupled.nonzero().T[:2] - coupled.nonzero().T[2:])
        assert (int(rows.max()) < window[0]) & (int(columns.max()) < window[1])
    for operator in (FilterBank(filters, SHAPE, "circular"), Blur(filters[0], SHAPE, "circular"), ParallelBeam2D(7, 5)):
        assert operator.window() is None


def test_local_and_dense_bounds_keep_their_margins() -> None:
    """A matrix with the eigenvalue 0 is not called positive; Laplace's has its own to a few per cent."""
    height, width = 30, 40
    laplace = torch.zeros(2, 3, height, width, dtype=DOUBLE)
    laplace[0, 1], laplace[0, 2], laplace[1, 1] = 4.0, -1.0, -1.0
    smallest = 4.0 - 2.0 * math.cos(math.pi / (height + 1)) - 2.0 * math.cos(math.pi / (width + 1))
    assert 0.97 * smallest <= local_lower_bound(LocalMatrix(laplace, 0.0), smallest) <= smallest
    assert local_lower_bound(LocalMatrix(laplace, 0.01 * smallest), smallest) < 0.98 * smallest
    assert local_lower_bound(LocalMatrix(laplace, smallest), smallest) == -math.inf
    assert local_lower_bound(LocalMatrix(laplace, 0.0), -1.0) == -math.inf
    neumann = laplace.clone()
    for edge in (neumann[0, 1, 0], neumann[0, 1, -1], neumann[0, 1, :, 0], neumann[0, 1, :, -1]):
        edge -= 1.0
    assert local_lower_bound(LocalMatrix(neumann, 0.0), 1e-15) == -math.inf
    laplace[0, 1, 3, 3] = math.nan
    assert local_lower_bound(LocalMatrix(laplace, 0.0), smallest) == -math.inf
    full = torch.diag(torch.full((50,), 2.0, dtype=DOUBLE)) - torch.diag(torch.ones(49, dtype=DOUBLE), 1)
    full, smallest = full - torch.diag(torch.ones(49, dtype=DOUBLE), -1), 2.0 - 2.0 * math.cos(math.pi / 51)
    assert smallest - 1e-11 <= float(dense_lower_bound(full[None], torch.tensor([4.0], dtype=DOUBLE))) <= smallest


@pytest.mark.parametrize("sides", [(9, 7), (40, 31), (26, 55)], ids=str)
def test_decompositions_run_to_the_smallest_eigenvalue(
    sides: tuple[int, int], rotating_generator: torch.Generator
) -> None:
    """Of filter banks with weights of either sign, for all boundaries and windows, from their entries and probed."""
    for boundary in ("valid", "zero", "reflect", "replicate"):
        k, l = (int(torch.randint(1, 6, (), generator=rotating_generator)) for _ in range(2))
        filters = torch.randn(2, 3, k, l, dtype=DOUBLE, generator=rotating_generator)
        bank = GroupedFilterBank(filters, (1, *sides), boundary)
        weights = torch.randn(bank.range_shape, dtype=DOUBLE, generator=rotating_generator)
        K = dense_matrix(bank, bank.domain_shape)
        matrix = K.T @ (weights.flatten()[:, None] * K)
        entries = bank.gram_entries(weights)
        assert entries is not None
        for found in (entries, LocalMatrix.probed(_weighed(bank, weights), sides, (k, l), weights, 0.0)):
            assert float(torch.linalg.matrix_norm(_dense(found) - matrix, 2)) <= entries.rounding < 1e-6
        shifted = entries + LocalMatrix.probed(lambda v: 3.0 * v, sides, (1, 1), weights, 0.0)
        lowest = 3.0 + float(torch.linalg.eigvalsh(matrix)[0])
        assert shifted.decomposes(lowest - 1e-6)
        assert not shifted.decomposes(lowest + 1e-6)


@pytest.mark.parametrize(("sides", "reach"), [((48, 48), 1), ((83, 83), 12), ((49, 30), 2), ((24, 300), 3)], ids=str)
def test_operations_are_counted_along_the_longest_way(sides: tuple[int, int], reach: int) -> None:
    """Of the strips of pixels that are eliminated one after the other."""

    def longest(height: int, width: int) -> int:
        divided = [n for n in (height, width) if n >= max(3 * reach, 24)]
        if not divided:
            return height * width
        long = max(divided)
        other = height + width - long
        first = (long - reach) // 2
        return reach * other + max(longest(first, other), longest(long - reach - first, other))

    matrix = LocalMatrix(torch.zeros(reach + 1, 2 * reach + 1, *sides, dtype=DOUBLE), 0.0)
    assert longest(*sides) <= matrix.terms <= longest(*sides) + 40


def test_entries_of_weights_that_are_matrices(rotating_generator: torch.Generator) -> None:
    for boundary in ("valid", "zero", "reflect", "replicate"):
        filters = torch.randn(3, 2, 3, 4, dtype=DOUBLE, generator=rotating_generator)
        bank = GroupedFilterBank(filters, (1, 9, 8), boundary)
        weights = torch.randn(3, *bank.range_shape, dtype=DOUBLE, generator=rotating_generator)
        weights = weights + weights.transpose(0, 1)
        K = dense_matrix(bank, bank.domain_shape)
        whole = torch.zeros(*2 * bank.range_shape, dtype=DOUBLE)
        for g, i, j in itertools.product(*map(range, bank.range_shape[1:])):
            whole[:, g, i, j, :, g, i, j] = weights[:, :, g, i, j]
        matrix = K.T @ whole.reshape(len(K), -1) @ K
        entries = bank.gram_entries(weights)
        assert entries is not None
        assert float(torch.linalg.matrix_norm(_dense(entries) - matrix, 2)) <= entries.rounding < 1e-6


def _weighed(bank: FilterBank, weights: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda v: bank.adjoint(weights * bank(v))


def _dense(matrix: LocalMatrix) -> torch.Tensor:
    (k, l), (height, width) = matrix.window, matrix.sides
    found = torch.zeros(height, width, height, width, dtype=DOUBLE)
    for a, b in itertools.product(range(k), range(1 - l, l)):
        if a > 0 or b >= 0:
            i = torch.arange(max(0, height - a))[:, None]
            j = torch.arange(max(0, -b), max(0, -b, width - max(0, b)))
            found[i, j, i + a, j + b] = found[i + a, j + b, i, j] = matrix.entries[a, l - 1 + b, i, j]
    return found.view(height * width, -1)


def test_lanczos_fails_as_seldom_as_it_says(rotating_seed: int) -> None:
    """At a failure probability that can be seen, over many starts."""
    generator = torch.Generator().manual_seed(rotating_seed)
    values = torch.cat(
        [torch.tensor([0.3], dtype=DOUBLE), 1.0 + 9.0 * torch.rand(119, dtype=DOUBLE, generator=generator)]
    )
    starts = torch.randn(400, 120, dtype=DOUBLE, generator=generator)
    likely = lanczos_lower_bound(lambda v: v * values, starts, 0.2, 15)
    assert float((likely.lower > 0.3).double().mean()) <= 0.2 + 4.0 * math.sqrt(0.2 * 0.8 / 400)
    sure = lanczos_lower_bound(lambda v: v * values, starts[:20], 1e-12, 90)
    assert bool((sure.lower <= 0.3).all())
    assert bool((sure.lower >= 0.2).all())
