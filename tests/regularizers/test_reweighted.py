"""Chains of reweighted problems against dense ones to rounding: iterates, weights, energies, bounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from registered.chains import CHAIN_CASES, CHAINS, away, chain_data, chain_problem, few_experts
from registered.chains import CHAIN_SHAPE as SHAPE
from truth.chain import DenseChain, chain_of, chain_weights
from truth.chain_hunt import hunt_chains

import learnreg as lr
from learnreg.errors import AssumptionError, ConfigError
from learnreg.operators import Blur, Identity
from learnreg.regularizers import (
    FieldsOfExperts,
    InputConvexNetwork,
    Regularizer,
    Reweighted,
    RidgeRegularizer,
    TotalVariation,
)


@pytest.mark.parametrize(("name", "constrained"), CHAIN_CASES)
def test_bounds_hold_for_the_exact_chain(name: str, constrained: bool) -> None:
    problem, b = chain_problem(name, constrained), chain_data()
    exact = chain_of(problem, b)
    for tolerance in (3e-2, 1e-5):
        found = lr.solve(problem, b, tolerance)
        assert len(found.chain) == len(exact) == problem.regularizer.steps + 1  # type: ignore[operator]
        assert torch.equal(found.chain[-1], found.x)
        error = (found.x.flatten(1) - exact[-1]).square().mean(1).sqrt()
        assert bool((error <= found.error_bound + 1e-12).all())
        given = DenseChain(problem, b)
        given.places = chain_weights(problem.regularizer, given, found.chain[-2].flatten(1))  # type: ignore[arg-type]
        step = (found.x.flatten(1) - given.solve(found.x.flatten(1))[0]).square().mean(1).sqrt()
        assert bool((step <= found.step_error_bound + 1e-12).all())
        assert bool((found.step_error_bound <= found.error_bound).all())
    assert found.certified
    assert found.status is lr.Status.CONVERGED
    assert found.weights is not None
    assert bool((found.weights > 0).all() and (found.weights <= 1).all())


@pytest.mark.parametrize(("name", "steps"), [("experts", None), ("windows", 4), ("groups", 4)])
def test_majorising_chains_lower_their_energy(name: str, steps: int | None) -> None:
    problem, b = chain_problem(name), chain_data()
    problem.regularizer.steps = steps  # type: ignore[assignment]
    found = lr.solve(problem, b, 1e-3 if steps is None else 1e-6)
    with torch.no_grad():
        energies = torch.stack([problem.energy(x, b) for x in found.chain])
    assert bool((energies[1:] <= energies[:-1] + 1e-9).all())
    if steps is None:
        assert found.certified  # by a ball in which the energy is convex
        exact = chain_of(problem, b, 60)[-1]
        error = (found.x.flatten(1) - exact).square().mean(1).sqrt()
        assert bool((error <= found.error_bound).all() and (found.error_bound <= 1e-3).all())


def test_random_chains(rotating_generator: torch.Generator) -> None:
    """More by ``benchmarks/chain_hunt.py``."""
    summary = hunt_chains(1, rotating_generator)
    assert summary.comparisons >= 8
    assert not summary.violations, "\n".join(summary.violations)


def test_the_energy_is_that_of_the_logarithm() -> None:
    R, x = away(CHAINS["experts"]()), chain_data()
    s = R.weights.log_scale.detach().exp()[:, None, None]  # type: ignore[operator, union-attr]
    terms = R.base.saddle_terms(SHAPE)
    u = terms.potential.density(terms.operator(x)).detach()  # type: ignore[attr-defined]
    torch.testing.assert_close(R.value(x).detach(), (s * (1 + u / s).log()).flatten(1).sum(1))
    assert torch.autograd.gradcheck(R.value, (x[:, :, :4, :4].clone().requires_grad_(),))


def test_contracting_chains_have_certified_fixed_points() -> None:
    problem = lr.LowerLevelProblem(Identity(SHAPE), away(Reweighted(few_experts(smoothing=0.3), scale=2.0, steps=None)))
    b = chain_data()
    found = lr.solve(problem, b, 1e-4)
    exact = chain_of(problem, b, 30)
    assert found.certified
    assert float(found.error_bound.max()) <= 1e-4
    error = (found.x.flatten(1) - exact[-1]).square().mean(1).sqrt()
    assert bool((error <= found.error_bound + 1e-12).all())


def test_unknown_moduli_leave_the_chain_without_bounds() -> None:
    """A blur without a ridge."""
    kernel = torch.full((3, 3), 1 / 9).double()
    problem = lr.LowerLevelProblem(Blur(kernel, SHAPE), away(CHAINS["experts"]()))
    found = lr.solve(problem, chain_data(), 1e-3)
    assert not found.certified
    assert bool(torch.isinf(found.error_bound).all())


def test_what_has_no_chain_is_refused() -> None:
    with pytest.raises(AssumptionError, match="lower no energy"):
        CHAINS["free"]().value(chain_data().float())
    with pytest.raises(AssumptionError, match="cannot be reweighted"):
        Reweighted(InputConvexNetwork(features=2))
    with pytest.raises(AssumptionError, match="not convex, which weights='free' and 'responses' alone allow"):
        Reweighted(RidgeRegularizer(convexity="convex-nonconvex"))
    with pytest.raises(AssumptionError, match="is a sum"):
        Reweighted(few_experts() + TotalVariation())
    for options in ({"steps": 0}, {"window": 2}, {"weights": "heavy"}, {"scale": -1.0}, {"features": 0}):
        with pytest.raises(ConfigError):
            Reweighted(few_experts(), **options)  # type: ignore[arg-type]
    problem = chain_problem("experts")
    with pytest.raises(ConfigError, match="stands for a chain"):
        lr.certify(problem, chain_data(), lr.SquaredError(chain_data()), chain_data())
    with pytest.raises(ConfigError, match="minimiser='global'"):
        lr.solve(chain_problem("experts", minimiser="local"), chain_data())


def test_a_regularizer_that_is_no_longer_convex_is_refused_majorising_weights() -> None:
    """At first its concave parts are smaller than what the convex ones curve by."""
    ridge = RidgeRegularizer((2, 4), 3, 5, "convex-nonconvex", weight=1.0, generator=torch.Generator().manual_seed(1))
    problem = lr.LowerLevelProblem(Identity(SHAPE), Reweighted(ridge.double(), steps=1))
    with torch.no_grad():
        ridge.log_curvature[:, 1:] -= 6.0
        ridge.log_weights -= 2.0
    with pytest.raises(AssumptionError, match="not convex at these parameters"):
        lr.solve(problem, chain_data())


def test_hypergradients_of_chains_are_about_global_minimisers() -> None:
    problem = chain_problem("nonconvex, free", minimiser="local")
    with pytest.raises(ConfigError, match="minimiser='global'"):
        lr.hypergradient(problem, chain_data(), lr.SquaredError(chain_data()))


def test_other_precisions_and_batches_of_one() -> None:
    problem, b = chain_problem("experts"), chain_data()
    whole = lr.solve(problem, b, 1e-5)
    single = lr.solve(problem, b[:1].float(), 1e-3)
    assert single.x.dtype == torch.float32
    assert single.error_bound.shape == (1,)
    assert single.certified
    assert float((single.x - whole.x[:1]).square().mean().sqrt()) <= 1.1e-3


def test_a_part_is_no_copy() -> None:
    base: Regularizer = few_experts()
    R = Reweighted(base)
    assert R.base is base
    assert {"base.filters", "weights.log_scale"} <= dict(R.named_parameters()).keys()


@pytest.mark.parametrize("options", [{"weights": "free"}, {"weights": "responses"}, {"window": 3}])
def test_windows_and_free_weights_are_for_responses_of_one_axis_of_channels(options: dict[str, Any]) -> None:
    base = FieldsOfExperts(3, 3, channels=2, coupling="complex")
    with pytest.raises(ConfigError, match="window=1"):
        Reweighted(base, **options)
    assert Reweighted(base).weights.log_scale.shape == (1,)


@pytest.mark.parametrize("name", ["experts", "levels, free"])
def test_errors_that_are_not_carried(name: str) -> None:
    """The error of the whole chain is unknown, and only the bound given the last weights is left."""
    problem, b = chain_problem(name), chain_data()
    problem.regularizer.carry_errors = False  # type: ignore[assignment]
    found = lr.solve(problem, b, 1e-3)
    assert (found.status, found.bound_kind, found.certified) == (lr.Status.ESTIMATED, "none", False)
    assert bool(torch.isinf(found.error_bound).all())
    assert "carry_errors=False" in found.reason
    given = DenseChain(problem, b)
    given.places = chain_weights(problem.regularizer, given, found.chain[-2].flatten(1))  # type: ignore[arg-type]
    step = (found.x.flatten(1) - given.solve(found.x.flatten(1))[0]).square().mean(1).sqrt()
    assert bool((step <= found.step_error_bound + 1e-12).all())
    assert float(found.step_error_bound.max()) <= 1e-3
    assert lr.hypergradient(problem, b, lr.SquaredError(chain_data(seed=5)), tolerance=0.1).certified
