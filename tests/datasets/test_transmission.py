"""Counts, line integrals, statistical weights, and the noise of simulated measurements."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from learnreg.datasets import PhotonNoise, RelativeNoise, line_integrals, statistical_weights
from learnreg.datasets.seeding import item_generator
from learnreg.errors import ConfigError, DataError, ShapeError
from learnreg.lower_level.data_terms import WeightedLeastSquares


def integers(shape: tuple[int, ...], low: int, high: int) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=item_generator("counts"))


# ------------------------------------------------------------------------------------------------------ line integrals


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32])
def test_flat_and_dark_fields(dtype: torch.dtype) -> None:
    counts = integers((2, 1, 5, 7), 200, 4000).to(dtype)
    flat, dark = integers((7,), 4100, 5000), integers((5, 1), 10, 90)
    found = line_integrals(counts, flat, dark)
    i, f, d = (t.numpy().astype(np.float64) for t in (counts, flat, dark))
    np.testing.assert_allclose(found.values.numpy(), -np.log((i - d) / (f - d)), rtol=1e-5, atol=1e-6)
    assert found.values.dtype == (torch.float32 if dtype == torch.float32 else torch.float64)
    assert found.values.shape == counts.shape
    assert (found.floored, found.floored_fraction) == (0, 0.0)


def test_the_law_of_beer_and_lambert_is_inverted() -> None:
    p = torch.linspace(0, 8, 60, dtype=torch.float64).reshape(1, 6, 10)
    found = line_integrals(1e5 * torch.exp(-p) + 12.5, 1e5 + 12.5, 12.5)
    torch.testing.assert_close(found.values, p, atol=1e-9, rtol=0)


def test_counts_without_a_logarithm_are_floored_and_counted() -> None:
    counts = torch.tensor([[0.0, 3.0, 10.0, 10.05, 11.0, 200.0]], dtype=torch.float64)
    found = line_integrals(counts, 110.0, 10.0)
    expected = [math.log(1000)] * 4 + [math.log(100), math.log(100 / 190)]
    np.testing.assert_allclose(found.values[0].numpy(), expected, rtol=1e-12, atol=1e-12)
    assert (found.floored, found.floor) == (4, 0.1)
    assert found.floored_fraction == pytest.approx(4 / 6)
    assert float(found.values[0, -1]) < 0  # brighter than the flat field: kept
    assert line_integrals(counts, 110.0, 10.0, floor=2.0).values.max() == pytest.approx(math.log(50))


def test_dead_detectors_are_not_looked_at() -> None:
    counts = integers((2, 1, 5, 7), 200, 4000).double()
    flat, dark = torch.full((7,), 5000.0), torch.full((7,), 10.0)
    expected = line_integrals(counts, flat, dark)
    weights = statistical_weights(counts[..., [0, 1, 3, 5, 6]], 10.0)
    counts[..., 2], counts[..., 4] = math.nan, -3.0
    flat[2], flat[4], dark[4] = 0.0, math.inf, 1e9
    found = line_integrals(counts, flat, dark, dead_detectors=[4, 2])
    live = [0, 1, 3, 5, 6]
    torch.testing.assert_close(found.values[..., live], expected.values[..., live])
    assert not found.values[..., [2, 4]].any()
    assert found.floored == 0
    weighted = statistical_weights(counts, dark, dead_detectors=[2, 4])
    torch.testing.assert_close(weighted[..., live], weights)
    assert not weighted[..., [2, 4]].any()
    assert line_integrals(torch.ones(1, 3), 2.0, dead_detectors=(0,)).values.tolist()[0][0] == 0.0


@pytest.mark.parametrize(
    ("dead", "match"),
    [
        ([7], "no number 7; the 7 detectors"),
        ([1, 1], "1 is named twice"),
        (range(7), "all 7"),
        ([0.5], "whole numbers"),
    ],
)
def test_dead_detectors_that_are_none(dead: Any, match: str) -> None:
    for function in (
        lambda: line_integrals(torch.ones(5, 7), 2.0, dead_detectors=dead),
        lambda: statistical_weights(torch.ones(5, 7), dead_detectors=dead),
    ):
        with pytest.raises(ConfigError, match=match):
            function()


def test_a_dead_detector_is_named_with_what_to_do() -> None:
    flat = torch.full((95,), 1000.0)
    flat[[40, 7]] = 0
    advice = r"Detectors, counted from 0: 7, 40\..*dead_detectors=\[\.\.\.\] .*geometry.*--dead-detectors"
    with pytest.raises(DataError, match=advice):
        line_integrals(torch.full((1, 60, 95), 500.0), flat)
    assert line_integrals(torch.full((1, 60, 95), 500.0), flat, dead_detectors=[40, 7]).values.isfinite().all()


@pytest.mark.parametrize(
    ("counts", "flat", "dark", "error", "match"),
    [
        (torch.full((3, 4), math.nan), 10.0, 0.0, DataError, "counts: 12 of 12 values are NaN"),
        (torch.ones(3, 4), math.inf, 0.0, DataError, "flat: 1 of 1 values are NaN or infinite"),
        (torch.tensor([[1.0, -2.0]]), 10.0, 0.0, DataError, "counts: 1 of 2 values are negative, the smallest is -2"),
        (torch.ones(3, 4), 10.0, -1.0, DataError, "dark: .* negative"),
        (torch.ones(3, 4), 10.0, 10.0, DataError, "flat <= dark at 1 of 1 places: flat is 10, dark is 10"),
        (torch.ones(3, 4), torch.tensor([5.0, 5, 2, 5]), 3.0, DataError, "flat <= dark at 1 of 4 places"),
        (torch.ones(3, 4), torch.ones(3), 0.0, ShapeError, r"flat of shape \(3,\) does not broadcast .* \(3, 4\)"),
        (torch.ones(3, 4), torch.full((2, 3, 4), 9.0), 0.0, ShapeError, "does not broadcast"),
        (torch.ones(4), 10.0, 0.0, ShapeError, r"got shape \(4,\), expected a tensor \(\.\.\., angles, detectors\)"),
        (torch.ones(0, 4), 10.0, 0.0, ShapeError, r"got shape \(0, 4\)"),
        (np.ones((3, 4)), 10.0, 0.0, ShapeError, "got ndarray"),
        (torch.ones(3, 4, dtype=torch.complex64), 10.0, 0.0, ShapeError, "complex64"),
    ],
)
def test_line_integrals_reject(counts: Any, flat: Any, dark: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        line_integrals(counts, flat, dark)


@pytest.mark.parametrize("floor", [0.0, -1.0, math.nan, math.inf])
def test_floors_are_positive(floor: float) -> None:
    with pytest.raises(ConfigError, match="floor"):
        line_integrals(torch.ones(2, 2), 10.0, floor=floor)
    with pytest.raises(ConfigError, match="floor"):
        statistical_weights(torch.ones(2, 2), floor=floor)


# ------------------------------------------------------------------------------------------------------------- weights


def test_weights_of_pure_counts_are_the_counts() -> None:
    counts = integers((1, 6, 8), 5, 900).double()
    weights = statistical_weights(counts)
    torch.testing.assert_close(weights, counts / counts.mean())
    assert float(weights.mean()) == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(statistical_weights(counts + 20, 20.0, normalise=False), counts)


@pytest.mark.parametrize(("photons", "electronic"), [(400.0, 0.0), (400.0, 15.0), (3000.0, 60.0)])
def test_weights_are_inverse_variances(photons: float, electronic: float) -> None:
    generator = item_generator("variance")
    expected = torch.full((400, 500), photons, dtype=torch.float64)
    counts = torch.poisson(expected, generator=generator)
    counts += electronic * torch.randn(counts.shape, generator=generator, dtype=torch.float64)
    variance = float(line_integrals(counts + 500, 1e4 + 500, 500.0).values.var())
    predicted = 1 / float(statistical_weights(expected, electronic=electronic, normalise=False).mean())
    assert variance == pytest.approx(predicted, rel=0.02)  # second order: about 1/photons
    assert predicted == pytest.approx((photons + electronic**2) / photons**2)


def test_weights_of_starved_rays_are_small_and_positive() -> None:
    counts = torch.tensor([[0.0, 1.0, 100.0]], dtype=torch.float64)
    weights = statistical_weights(counts, electronic=5.0, normalise=False)[0]
    np.testing.assert_allclose(weights.numpy(), [0.01 / 25.1, 1 / 26, 1e4 / 125], rtol=1e-12)
    assert bool((statistical_weights(torch.zeros(2, 3)) == 1).all())


def test_weights_fit_weighted_least_squares() -> None:
    """½ sum w (p - b)² with w = 1/variance is the negative log-likelihood, up to the factor of the mean."""
    counts = integers((1, 4, 5), 20, 300).double()
    inverse_variance = statistical_weights(counts, electronic=3.0, normalise=False)
    data_term = WeightedLeastSquares(statistical_weights(counts, electronic=3.0))
    residual = torch.randn((2, 1, 4, 5), generator=item_generator("residual"), dtype=torch.float64)
    expected = 0.5 * (inverse_variance * residual**2).flatten(1).sum(1) / inverse_variance.mean()
    torch.testing.assert_close(data_term.value(residual), expected)


@pytest.mark.parametrize("electronic", [-1.0, math.nan])
def test_weights_reject_electronic_noise(electronic: float) -> None:
    with pytest.raises(ConfigError, match="electronic"):
        statistical_weights(torch.ones(2, 2), electronic=electronic)


def test_weights_reject_counts() -> None:
    with pytest.raises(DataError, match="negative"):
        statistical_weights(torch.tensor([[-1.0, 2.0]]))


# --------------------------------------------------------------------------------------------------------------- noise


def test_relative_noise_is_relative_to_the_mean() -> None:
    clean = torch.rand((1, 300, 400), generator=item_generator("clean"))
    noise = RelativeNoise(0.01).apply(clean, item_generator("noise")) - clean
    assert float(noise.std()) == pytest.approx(0.01 * float(clean.mean()), rel=0.01)
    assert abs(float(noise.mean())) < 5 * 0.01 * float(clean.mean()) / math.sqrt(clean.numel())
    assert torch.equal(RelativeNoise(0.0).apply(clean, item_generator("noise")), clean)


def test_photon_noise_has_the_variance_of_counts() -> None:
    noise = PhotonNoise(photons=2000.0, attenuation=3.0, electronic=20.0)
    clean = torch.full((1, 300, 400), 0.4)
    measured = noise.apply(clean, item_generator("photons")).double()
    expected = 2000 * math.exp(-1.2)
    assert float(measured.var()) == pytest.approx((expected + 400) / expected**2 / 9, rel=0.03)
    # E[-log N] = -log E[N] + var/2 to second order
    assert float(measured.mean()) == pytest.approx(0.4 + 3 * float(measured.var()) / 2, abs=2e-4)
    assert measured.shape == clean.shape


def test_counts_are_photons() -> None:
    counts = PhotonNoise(photons=50.0, attenuation=1.0).counts(torch.zeros(1, 200, 300), item_generator("counts"))
    assert counts.dtype == torch.float64
    assert torch.equal(counts, counts.round())
    assert float(counts.mean()) == pytest.approx(50, rel=5e-3)
    assert float(counts.var()) == pytest.approx(50, rel=2e-2)


def test_no_photon_reaches_the_detector() -> None:
    noise = PhotonNoise(photons=10.0, attenuation=2.0)
    measured = noise.apply(torch.full((1, 3, 4), 50.0, dtype=torch.float64), item_generator(0))
    np.testing.assert_allclose(measured.numpy(), math.log(100) / 2)


def test_photon_noise_rejects_impossible_rays() -> None:
    with pytest.raises(DataError, match="line integral -10"):
        PhotonNoise().apply(torch.full((1, 2, 2), -10.0), item_generator(0))
    with pytest.raises(DataError, match="line integral nan"):
        PhotonNoise().apply(torch.full((1, 2, 2), math.nan), item_generator(0))


@pytest.mark.parametrize(
    "options", [{"photons": 0.0}, {"photons": math.inf}, {"attenuation": -1.0}, {"electronic": -0.1}]
)
def test_photon_noise_rejects_options(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        PhotonNoise(**options)


@pytest.mark.parametrize("fraction", [-0.01, 1.5, math.nan])
def test_relative_noise_rejects_options(fraction: float) -> None:
    with pytest.raises(ConfigError, match="fraction"):
        RelativeNoise(fraction)
