"""Lower bounds of smallest eigenvalues: never above them, and near; the windows that make matrices banded."""

from __future__ import annotations

import math

import numpy as np
import torch

from learnreg.convolutions.chain import ConvolutionChain
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.convolutions.gradient import Gradient
from learnreg.linear.norms import dense_matrix
from learnreg.linear.smallest_eigenvalue import banded_lower_bound, dense_lower_bound, lanczos_lower_bound
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


def test_banded_and_dense_bounds_keep_their_margins() -> None:
    """A matrix with the eigenvalue 0 is not called positive; tridiagonal ones have theirs to a few per cent."""
    laplace = np.zeros((2, 50))
    laplace[0], laplace[1, :-1] = 2.0, -1.0
    smallest = 2.0 - 2.0 * math.cos(math.pi / 51)
    assert 0.97 * smallest <= banded_lower_bound(laplace, smallest) <= smallest
    neumann = laplace.copy()
    neumann[0, 0] = neumann[0, -1] = 1.0
    assert banded_lower_bound(neumann, 1e-17) == -math.inf
    assert banded_lower_bound(laplace, -1.0) == -math.inf
    random = np.random.default_rng(0)
    for n, width in ((57, 5), (23, 22), (40, 0)):
        band = random.normal(size=(width + 1, n))
        band[0] = 3.0 + 2 * width
        matrix = sum(np.diag(band[d, : n - d], -d) + np.diag(band[d, : n - d], d) * (d > 0) for d in range(width + 1))
        lowest = float(np.linalg.eigvalsh(matrix)[0])
        assert 0.97 * lowest <= banded_lower_bound(band, lowest) <= lowest
    full = torch.diag(torch.full((50,), 2.0, dtype=DOUBLE)) - torch.diag(torch.ones(49, dtype=DOUBLE), 1)
    full = full - torch.diag(torch.ones(49, dtype=DOUBLE), -1)
    assert smallest - 1e-11 <= float(dense_lower_bound(full[None], torch.tensor([4.0], dtype=DOUBLE))) <= smallest


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
