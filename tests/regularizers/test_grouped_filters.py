"""Groups of filters: energies written out again, total variation as a special case, dense hypergradients, learned
interpolation that keeps affine images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import registry
import torch
from truth.dense import distance, norm, truth_of
from truth.draw import RANGES
from truth.hunt import hunt
from truth.spectrum import norm_of

import learnreg as lr
from learnreg.commands.common import initial_regularizer
from learnreg.commands.options import DenoiseConfig
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.convolutions.grouped_filter_bank import GroupedFilterBank
from learnreg.linear.operator import LinearOperator
from learnreg.operators import Blur, Identity
from learnreg.regularizers import (
    FieldsOfExperts,
    LearnedTotalVariation,
    MultivariateExperts,
    Regularizer,
    TotalVariation,
)


def by_loops(x: np.ndarray, filters: np.ndarray, weights: np.ndarray, smoothing: np.ndarray) -> float:
    """For one image, already padded."""
    k, l = filters.shape[-2:]
    total = 0.0
    for w, weight, v in zip(filters, weights, smoothing, strict=True):
        for i in range(x.shape[0] - k + 1):
            for j in range(x.shape[1] - l + 1):
                square = sum(float((f * x[i : i + k, j : j + l]).sum()) ** 2 for f in w)
                total += weight * (math.sqrt(square + v**2) - v)
    return total


@pytest.mark.parametrize("members", [1, 2, 3])
def test_energy_is_the_formula(members: int) -> None:
    filters, weights, smoothing = registry.randn(4, members, 3, 2), 0.1 + registry.rand(4), 0.05 + registry.rand(4)
    R = MultivariateExperts.from_arrays(filters.numpy(), weights.numpy(), smoothing.numpy())
    x = registry.randn(2, 1, 6, 7, seed=3)
    expected = [by_loops(image[0].numpy(), *(a.numpy() for a in (filters, weights, smoothing))) for image in x]
    np.testing.assert_allclose(R.value(x).detach(), expected, rtol=1e-12)
    if members == 1:
        scalar = FieldsOfExperts.from_arrays(filters[:, 0], weights, smoothing)
        torch.testing.assert_close(R.value(x), scalar.value(x), rtol=1e-12, atol=0)


def test_learned_energy_is_interpolated_differences() -> None:
    R = LearnedTotalVariation(3, 3, smoothing=0.1, boundary="valid").double()
    with torch.no_grad():
        R.kernels.add_(0.3 * registry.randn(*R.kernels.shape))
    x = registry.randn(1, 1, 7, 8, seed=2)
    kernels = R.kernels.detach()
    kernels = kernels - kernels.mean((-2, -1), keepdim=True) + 1 / 9
    down, across = (x[..., 1:, :-1] - x[..., :-1, :-1]), (x[..., :-1, 1:] - x[..., :-1, :-1])
    fields = [torch.nn.functional.conv2d(d, L[:, None]) for d, L in zip((down, across), kernels, strict=True)]
    square = fields[0] ** 2 + fields[1] ** 2
    expected = (R.weights[:, None, None] * (torch.sqrt(square + 0.01) - 0.1)).sum()
    torch.testing.assert_close(R.value(x).sum(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("positions", [1, 3])
def test_total_variation_is_a_special_case(positions: int) -> None:
    """Border included; also as the start for one position."""
    R, x = LearnedTotalVariation(positions, 5, weight=0.3, smoothing=1e-3).double(), registry.rand(2, 1, 9, 6)
    if positions > 1:
        assert not torch.allclose(R.value(x), TotalVariation(0.3).double().value(x))
        with torch.no_grad():
            R.kernels.zero_()[..., 2, 2] = 1.0
    torch.testing.assert_close(R.value(x), TotalVariation(0.3, 1e-3).double().value(x), rtol=1e-6, atol=0)


def test_affine_images_keep_their_gradient_whatever_is_learned() -> None:
    R = LearnedTotalVariation(7, 3).double()
    with torch.no_grad():
        R.kernels.add_(registry.randn(*R.kernels.shape))
    rows, columns = torch.arange(9.0).double()[:, None], torch.arange(10.0).double()
    responses = R.saddle_terms((1, 9, 10)).operator((0.3 * rows - 0.2 * columns)[None, None])
    inner = responses[0, :, :, 1:-2, 1:-2]
    torch.testing.assert_close(inner[0], torch.full_like(inner[0], 0.3), rtol=0, atol=1e-13)
    torch.testing.assert_close(inner[1], torch.full_like(inner[1], -0.2), rtol=0, atol=1e-13)


def test_first_positions_interpolate() -> None:
    """Exactly where the field is bilinear, as differences of x = r² are."""
    R = LearnedTotalVariation(12, 3, generator=torch.Generator().manual_seed(0)).double()
    assert bool((R.kernels >= 0).all())
    torch.testing.assert_close(R.effective_kernels.sum((-2, -1)), torch.ones(2, 12).double())
    rows = torch.arange(9.0).double()[:, None].expand(9, 9) ** 2
    responses = R.saddle_terms((1, 9, 9)).operator(rows[None, None])[0, 0, :4, 4, 4]
    # the derivative 2 r at r = 4 + (1/2, 0, 0, 1/2)
    torch.testing.assert_close(responses, torch.tensor([9.0, 8.0, 8.0, 9.0]).double())


@pytest.mark.parametrize("k", [3, 5])
def test_the_jacobian_bound_is_that_of_differences(k: int) -> None:
    R = LearnedTotalVariation(2, k).double()
    filters = R.effective_filters.flatten()
    rows = [torch.autograd.grad(entry, R.kernels, retain_graph=True)[0].flatten() for entry in filters]
    exact = float(torch.linalg.matrix_norm(torch.stack(rows), 2))
    assert exact <= R.parameter_jacobian_bounds()["operator"] <= 1.15 * exact


@pytest.mark.parametrize("boundary", ["reflect", "replicate"])
def test_norms_of_repeating_boundaries_are_bounds_on_large_images(boundary: str, rotating_seed: int) -> None:
    for trial in range(2):
        filters = registry.randn(2, 3 + trial % 2, 3, seed=rotating_seed % 10**6 + trial)
        if trial % 2:
            filters = filters - filters.mean((1, 2), keepdim=True)
        bank = FilterBank(filters, (1, 36, 33), boundary)  # type: ignore[arg-type]
        exact = norm_of(bank)
        assert exact <= bank.norm_bound() <= 1.5 * exact
        assert bank.norm_bound_kind == "rigorous"
    start = LearnedTotalVariation().double().saddle_terms((1, 80, 90)).operator
    assert start.norm_bound_kind == "rigorous"
    assert start.norm_bound() <= 1.25 * math.sqrt(8.0)


def test_groups_have_norms_of_their_own() -> None:
    filters = registry.randn(2, 3, 3, 3)
    rows = torch.as_tensor(GroupedFilterBank(filters, (1, 8, 8)).row_norms(True)).flatten()
    exact = torch.linalg.matrix_norm(filters.flatten(2).transpose(0, 1), 2)
    torch.testing.assert_close(rows, exact, rtol=1e-10, atol=0)


SMALL: dict[str, Regularizer] = {
    "multivariate": MultivariateExperts(4, 2, 3, 0.4, 5e-2).double(),
    "multivariate, near TV": MultivariateExperts(3, 2, 3, 0.4, 1e-4, "reflect").double(),
    "learned": LearnedTotalVariation(4, 3, 0.2, 1e-2).double(),
    "learned, near TV": LearnedTotalVariation(4, 3, 0.2, 1e-4).double(),
}


@pytest.mark.parametrize("name", SMALL)
def test_hypergradients_equal_dense_ones(name: str) -> None:
    kind = "denoising" if "near TV" in name else "deblurring"
    x_true = registry.rand(2, 1, 8, 8, seed=1)
    operator: LinearOperator = Identity((1, 8, 8))
    if kind == "deblurring":
        operator = Blur(registry.rand(3, 3) / 5, (1, 8, 8), "reflect")
    b = operator(x_true) + 0.1 * registry.randn(2, 1, 8, 8, seed=2)
    problem = lr.LowerLevelProblem(operator, SMALL[name], ridge=0.0 if kind == "denoising" else 0.1)
    loss = lr.SquaredError(x_true)
    truth = truth_of(problem, b, loss)
    assert truth.usable
    for method in (lr.Implicit(), lr.Piggyback()):
        result = lr.hypergradient(problem, b, loss, method, tolerance=1e-4)
        assert result.certified
        assert result.status is lr.Status.CONVERGED
        assert distance(result.gradient, truth.gradient) <= result.error_bound + truth.gradient_slack
        assert result.error_bound <= 1e-4 * result.norm
    assert result.error_bound <= 1.1e-4 * norm(truth.gradient)


def test_every_bound_holds_on_random_problems(rotating_generator: torch.Generator) -> None:
    summary = hunt(5, rotating_generator, RANGES["grouped"])
    assert not summary.violations, summary.violations
    assert summary.comparisons > 40


def test_options_of_the_command_line() -> None:
    R = initial_regularizer(DenoiseConfig(regularizer="multivariate", filters=9, group_size=3, size=3))
    assert isinstance(R, MultivariateExperts)
    assert R.filters.shape == (3, 3, 3, 3)
    R = initial_regularizer(DenoiseConfig(regularizer="learned-tv", positions=2))
    assert isinstance(R, LearnedTotalVariation)
    assert R.kernels.shape == (2, 2, 5, 5)
    with pytest.raises(lr.ConfigError, match="whole groups"):
        initial_regularizer(DenoiseConfig(regularizer="multivariate", filters=9, group_size=2))


def test_bad_arguments_are_refused() -> None:
    for options in ({"groups": 0}, {"group_size": 0}, {"size": 1}, {"size": 2.5}):
        with pytest.raises(lr.ConfigError, match="expected integers"):
            MultivariateExperts(**options)  # type: ignore[arg-type]
    for options in ({"positions": 0}, {"size": 4}, {"size": 1}):
        with pytest.raises(lr.ConfigError, match="size odd"):
            LearnedTotalVariation(**options)
    for kind in (MultivariateExperts, LearnedTotalVariation):
        with pytest.raises(lr.ConfigError, match="boundary"):
            kind(boundary="mirror")  # type: ignore[arg-type]
        with pytest.raises(lr.ConfigError, match="weight"):
            kind(weight=-1.0)
        with pytest.raises(lr.ConfigError, match="smoothing"):
            kind(smoothing=0.0)
    with pytest.raises(lr.ShapeError, match="group_size, k, k"):
        MultivariateExperts.from_arrays(torch.zeros(2, 3, 3), [1.0], [1.0])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["multivariate", "learned"])
def test_groups_are_drawn(name: str) -> None:
    pytest.importorskip("matplotlib")
    assert lr.plot.filters(SMALL[name]).axes
