"""``TransmissionLeastSquares``: weights that follow from each measurement, against problems with given weights."""

from __future__ import annotations

import math

import pytest
import registry
import torch
from torch import Tensor, nn
from truth import dense as dense_truth

import learnreg as lr
from learnreg.datasets import PhotonNoise, statistical_weights
from learnreg.operators import Blur, Identity
from learnreg.regularizers import FieldsOfExperts

SHAPE = (1, 8, 7)


def operator() -> Blur:
    return Blur(nn.Parameter(registry.rand(3, 3, seed=1) / 4), SHAPE, "zero")


def regularizer() -> FieldsOfExperts:
    return FieldsOfExperts.from_arrays(registry.randn(3, 2, 2, seed=2), [0.1, 0.2, 0.15], [0.1, 0.2, 0.05])


def measured(batch: int = 3) -> tuple[Tensor, Tensor]:
    x_true = registry.rand(batch, *SHAPE, seed=3)
    with torch.no_grad():
        return x_true, operator()(x_true) + 0.1 * registry.randn(batch, *SHAPE, seed=4)


TERM = lr.TransmissionLeastSquares(photons=200.0, attenuation=3.0, electronic=4.0, reference=0.3)


@pytest.mark.parametrize("electronic", [0.0, 5.0])
def test_weights_are_those_of_the_counts(electronic: float) -> None:
    photons, attenuation = 3e3, 2.0
    counts = 10.0 + 3e3 * registry.rand(2, *SHAPE, seed=5)
    b = -(counts / photons).log() / attenuation
    term = lr.TransmissionLeastSquares(photons, attenuation, electronic, reference=0.2)
    expected = statistical_weights(counts, electronic=electronic, normalise=False)
    torch.testing.assert_close(term.inverse_variance(b), expected)
    at_reference = statistical_weights(torch.full((1, 1), photons * math.exp(-0.4)), 0.0, electronic, normalise=False)
    torch.testing.assert_close(term.at(b).weights_for(b), expected / at_reference.double(), rtol=1e-6, atol=0.0)


def test_the_variance_is_that_of_simulated_counts() -> None:
    noise = PhotonNoise(photons=2e3, attenuation=2.0, electronic=20.0)
    clean = torch.full((1, 1, 200_000), 0.4, dtype=torch.float64)
    b = noise.apply(clean, torch.Generator().manual_seed(0))
    term = lr.TransmissionLeastSquares(noise.photons, noise.attenuation, noise.electronic)
    variance = float((noise.attenuation * b).var())
    assert variance == pytest.approx(float(1.0 / term.inverse_variance(clean).mean()), rel=0.01)


@pytest.mark.parametrize("solver", ["pdhg", "lbfgs", "newton-cg"])
@pytest.mark.parametrize("forward", ["identity", "blur"])
def test_each_sample_is_a_weighted_problem_of_its_own(solver: str, forward: str) -> None:
    A = Identity(SHAPE) if forward == "identity" else operator()
    _, b = measured()
    problem = lr.LowerLevelProblem(A, regularizer(), ridge=0.1, data_term=TERM, constraint=lr.Nonnegative())
    found = lr.solve(problem, b, tolerance=1e-7, solver=solver)  # type: ignore[arg-type]
    assert found.certified
    x = registry.rand(*b.shape, seed=6)
    for i in range(len(b)):
        one = b[i : i + 1]
        own = lr.WeightedLeastSquares(TERM.at(one).weights_for(one)[0])
        alone = lr.LowerLevelProblem(A, regularizer(), ridge=0.1, data_term=own, constraint=lr.Nonnegative())
        torch.testing.assert_close(problem.energy(x, b)[i], alone.energy(x[i : i + 1], one)[0])
        exact = dense_truth.Dense(alone, one).solve()[0].reshape(1, *SHAPE)
        error = float((found.x[i] - exact[0]).square().mean().sqrt())
        assert error <= float(found.error_bound[i]) <= 1e-7


@pytest.mark.parametrize("method", [lr.Implicit(), lr.Piggyback()])
@pytest.mark.parametrize("certificate", ["published", "sharp"])
def test_hypergradients_equal_dense_ones(method: lr.Implicit | lr.Piggyback, certificate: str) -> None:
    """In the regularizer's, the operator's and the ridge's parameters."""
    ridge = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
    problem = lr.LowerLevelProblem(operator(), regularizer(), ridge=ridge, data_term=TERM)
    x_true, b = measured()
    loss = lr.SquaredError(x_true)
    truth = dense_truth.truth_of(problem, b, loss)
    result = lr.hypergradient(problem, b, loss, method, 1e-4, certificate=certificate)  # type: ignore[arg-type]
    assert truth.usable
    assert result.certified
    assert {"ridge", "operator.kernel"} <= set(result.gradient)
    error = dense_truth.distance(result.gradient, truth.gradient)
    assert error <= result.error_bound + truth.gradient_slack
    assert error <= 1e-4 * dense_truth.norm(truth.gradient)


def test_the_layer_s_gradient_knows_that_weights_depend_on_the_measurement() -> None:
    problem = lr.LowerLevelProblem(operator(), regularizer(), ridge=0.1, data_term=TERM)
    _, b = measured()
    layer = lr.solution_layer(problem, tolerance=1e-9)
    direction, weight = registry.randn(*b.shape, seed=7), registry.randn(*b.shape, seed=8)
    own = b.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((layer(own) * weight).sum(), own)
    h = 1e-4
    ends = [lr.solve(problem, b + s * h * direction, tolerance=1e-11).x for s in (1.0, -1.0)]
    difference = float(((ends[0] - ends[1]) * weight).sum()) / (2 * h)
    assert float((gradient * direction).sum()) == pytest.approx(difference, rel=1e-4)


@pytest.mark.parametrize(
    "options", [{"photons": 0.0}, {"attenuation": -1.0}, {"electronic": -1.0}, {"reference": math.nan}]
)
def test_values_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(lr.ConfigError, match=next(iter(options))):
        lr.TransmissionLeastSquares(**{"photons": 1e4, **options})


def test_counts_that_overflow() -> None:
    problem = lr.LowerLevelProblem(Identity(SHAPE), regularizer(), data_term=TERM)
    with pytest.raises(lr.DataError, match="line integral -1000"):
        lr.solve(problem, torch.full((1, *SHAPE), -1000.0, dtype=torch.float64))
