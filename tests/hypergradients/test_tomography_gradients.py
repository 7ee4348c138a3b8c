"""Hypergradients of computed tomography against dense float64 solves, and how sharp their certificates are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import registry
import torch
from torch import Tensor, nn
from truth import dense as dense_truth
from truth.effectivity import Setting, row, scans

import learnreg as lr
from learnreg.operators import FanBeam2D, ParallelBeam2D
from learnreg.regularizers import FieldsOfExperts, Regularizer, TotalVariation

pytest.importorskip("astra")

SIDE = 8

SCANS: dict[str, Callable[[], ParallelBeam2D | FanBeam2D]] = {
    "parallel, 5 views": lambda: ParallelBeam2D(SIDE, 5),
    "parallel, 12 views": lambda: ParallelBeam2D(SIDE, 12),
    "fan": lambda: FanBeam2D(SIDE, torch.tensor([0.3, 1.1, 2.5, 3.0, 4.4]), 23),
}


def experts() -> Regularizer:
    filters = registry.randn(4, 3, 3, seed=1)
    return FieldsOfExperts.from_arrays(filters, [2e-3, 4e-3, 3e-3, 5e-3], [0.05, 0.1, 0.08, 0.2])


REGULARIZERS: dict[str, Callable[[], Regularizer]] = {
    "experts": experts,
    "total variation": lambda: TotalVariation(4e-3, 0.05).double(),
}


def ct_problem(A: Any, regularizer: Regularizer, constraint: lr.Box | None = None) -> lr.LowerLevelProblem:
    """With a learnable ridge and learnable weights, those of a fifth of the rays 0."""
    weights = (0.3 + registry.rand(*A.range_shape, seed=2)) * (registry.rand(*A.range_shape, seed=3) > 0.2)
    return lr.LowerLevelProblem(
        A,
        regularizer,
        ridge=nn.Parameter(torch.tensor(5e-3, dtype=torch.float64)),
        data_term=lr.WeightedLeastSquares(nn.Parameter(weights)),
        constraint=constraint,
    )


def measured(A: Any, batch: int = 2) -> tuple[Tensor, Tensor]:
    """Discs on an empty background, so that nonnegativity holds pixels at 0, and noisy sinograms."""
    rows, cols = torch.meshgrid(*[torch.linspace(-1, 1, SIDE, dtype=torch.float64)] * 2, indexing="ij")
    x_true = torch.stack([((rows - 0.2 * i) ** 2 + cols**2 < 0.4).double() for i in range(batch)])[:, None]
    return x_true, A(x_true) + 0.02 * registry.randn(batch, *A.range_shape, seed=4)


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("regularizer", list(REGULARIZERS))
@pytest.mark.parametrize("scan", list(SCANS))
@pytest.mark.sampled(share=0.5, by=("scan", "regularizer", "nonnegative"))
def test_hypergradients_equal_dense_ones(scan: str, regularizer: str, nonnegative: bool) -> None:
    A = SCANS[scan]()
    problem = ct_problem(A, REGULARIZERS[regularizer](), lr.Nonnegative() if nonnegative else None)
    x_true, b = measured(A)
    loss = lr.SquaredError(x_true)
    truth = dense_truth.truth_of(problem, b, loss)
    assert truth.usable
    if nonnegative:
        active, slope = truth.x <= 0, dense_truth.Dense(problem, b).gradient(truth.x).detach()
        assert 0.1 < float(active.double().mean()) < 0.9
        assert float(slope[active].min()) > 1e-8  # decided
    size = dense_truth.norm(truth.gradient)
    for name in ("ridge", "data_term.weights"):
        assert float(truth.gradient[name].norm()) > 1e-6 * size
    methods = [lr.Implicit()] if regularizer == "experts" else [lr.Implicit(), lr.Piggyback()]
    for method in methods:
        result = lr.hypergradient(problem, b, loss, method, tolerance=1e-7)
        error = dense_truth.distance(result.gradient, truth.gradient)
        assert result.certified
        assert result.status is lr.Status.CONVERGED
        assert error <= result.error_bound + truth.gradient_slack
        assert error <= 1e-6 * size
        for name, exact in truth.gradient.items():
            assert float((result.gradient[name] - exact).norm()) <= 1e-6 * float(exact.norm()) + 1e-7 * size


@pytest.mark.parametrize("setting", list(scans()), ids=lambda s: f"ridge {s.ridge:g}")
def test_the_sharp_certificate_is_sharp_for_small_ridges(setting: Setting) -> None:
    entry = row(setting, 1)
    assert entry["violations"] == 0
    assert entry["sharp, median"] <= 10.0
