"""Hypergradients through chains of problems against finite differences of dense chains."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import registry
import torch
from registered.chains import CHAIN_CASES, away, chain_data, chain_problem, few_experts
from registered.chains import CHAIN_SHAPE as SHAPE
from truth.chain import chain_gradient_of, chain_of

import learnreg as lr
from learnreg.errors import ConfigError
from learnreg.operators import Identity
from learnreg.regularizers import Reweighted


def by_differences(problem: lr.LowerLevelProblem, loss: Callable[[], float], seed: int) -> tuple[dict, float]:  # type: ignore[type-arg]
    """A direction of all parameters, and the derivative of the loss along it."""
    learned = problem.learnable()
    direction = {n: registry.randn(*p.shape, seed=seed + k) for k, (n, p) in enumerate(learned.items())}

    def at(h: float) -> float:
        with torch.no_grad():
            for n, p in learned.items():
                p.add_(h * direction[n])
            value = loss()
            for n, p in learned.items():
                p.sub_(h * direction[n])
        return value

    h = 1e-5
    return direction, (at(h) - at(-h)) / (2 * h)


def distance(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    return sum(float((found[n] - g).square().sum()) for n, g in exact.items()) ** 0.5


@pytest.mark.parametrize(("name", "constrained"), CHAIN_CASES)
def test_gradients_are_those_of_the_whole_chain(name: str, constrained: bool) -> None:
    problem, b = chain_problem(name, constrained), chain_data()
    loss = lr.SquaredError(chain_data(seed=5).clamp(0.1, 0.7))
    found = lr.hypergradient(problem, b, loss, tolerance=1e-5)
    assert found.status is lr.Status.CONVERGED
    assert found.bound_kind == "rigorous"
    assert found.certified
    shape = (2, *SHAPE)
    direction, exact = by_differences(problem, lambda: float(loss.value(chain_of(problem, b)[-1].reshape(shape))), 60)
    along = sum(float((found.gradient[n] * d).sum()) for n, d in direction.items())
    size = sum(float((d * d).sum()) for d in direction.values()) ** 0.5
    assert abs(along - exact) <= size * found.error_bound + 1e-6 * abs(exact) + 1e-8
    low, high = found.loss_interval
    assert low <= float(loss.value(chain_of(problem, b)[-1].reshape(shape))) <= high


@pytest.mark.parametrize(("name", "constrained"), CHAIN_CASES)
@pytest.mark.parametrize("tolerance", [0.5, 1e-3])
def test_bounds_hold_at_the_tolerance_asked_for(name: str, constrained: bool, tolerance: float) -> None:
    problem, b = chain_problem(name, constrained), chain_data()
    loss = lr.SquaredError(chain_data(seed=5).clamp(0.1, 0.7))
    exact = chain_gradient_of(problem, b, loss)
    found = lr.hypergradient(problem, b, loss, tolerance=tolerance)
    assert found.certified
    assert found.error_bound <= tolerance * found.norm
    assert distance(found.gradient, exact) <= found.error_bound
    from_there = lr.hypergradient(problem, b, loss, tolerance=tolerance, start=lr.Start.after(found))
    assert distance(from_there.gradient, exact) <= from_there.error_bound


def test_without_a_certificate_the_error_is_an_estimate() -> None:
    problem, b = chain_problem("experts"), chain_data()
    loss = lr.SquaredError(chain_data(seed=5))
    found = lr.hypergradient(problem, b, loss, tolerance=1e-3, certificate="none")
    assert found.status is lr.Status.ESTIMATED
    assert found.bound_kind == "estimate"
    assert not found.certified
    assert "estimated" in found.reason


def test_what_joins_the_terms_of_a_chain_leaves_an_estimate() -> None:
    R = away(Reweighted(few_experts(), scale=0.2))
    data = lr.SmoothedL1(0.1)
    problem = lr.LowerLevelProblem(Identity(SHAPE), R, ridge=0.5, data_term=data)
    found = lr.hypergradient(problem, chain_data(), lr.SquaredError(chain_data(seed=5)), tolerance=1e-2)
    assert found.status is lr.Status.ESTIMATED
    assert "no square" in found.reason


def test_gradients_at_a_fixed_point() -> None:
    problem = lr.LowerLevelProblem(Identity(SHAPE), away(Reweighted(few_experts(smoothing=0.2), scale=1.0, steps=None)))
    b, loss = chain_data(), lr.SquaredError(chain_data(seed=5))
    found = lr.hypergradient(problem, b, loss, tolerance=1e-4)
    assert found.status is lr.Status.ESTIMATED
    assert "fixed point" in found.reason
    shape = (2, *SHAPE)
    direction, exact = by_differences(
        problem, lambda: float(loss.value(chain_of(problem, b, 20)[-1].reshape(shape))), 60
    )
    along = sum(float((found.gradient[n] * d).sum()) for n, d in direction.items())
    assert along == pytest.approx(exact, rel=1e-3)


def test_estimates_cover_the_error_at_loose_tolerances() -> None:
    problem, b = chain_problem("experts"), chain_data()
    loss = lr.SquaredError(chain_data(seed=5))
    exact = lr.hypergradient(problem, b, loss, tolerance=1e-4)
    rough = lr.hypergradient(problem, b.float(), loss, tolerance=0.3, start=lr.Start(exact.x, exact.X))
    assert rough.x.dtype == torch.float32
    error = sum(float((rough.gradient[n] - g).square().sum()) for n, g in exact.gradient.items()) ** 0.5
    assert error <= 0.3 * exact.norm


def test_methods_without_an_adjoint_chain_are_refused() -> None:
    problem, b = chain_problem("experts"), chain_data()
    with pytest.raises(ConfigError, match="Implicit"):
        lr.hypergradient(problem, b, lr.SquaredError(b), method=lr.Unrolled(steps=3))
