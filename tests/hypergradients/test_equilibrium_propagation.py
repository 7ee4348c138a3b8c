"""Equilibrium propagation: its orders in beta and its bounds against dense truth, and what it refuses."""

from __future__ import annotations

import math

import pytest
import registry
import torch
from torch import Tensor
from truth.dense import distance, norm, truth_of
from truth.draw import Draw, Ranges
from truth.hunt import METHODS, Summary, hunt_methods
from truth.problems import draw_case

import learnreg as lr
from learnreg.hypergradients.base import Goal, evaluate
from learnreg.lower_level.pairing import energy_gradient
from learnreg.lower_level.point import Point
from learnreg.operators import Identity
from learnreg.regularizers import AnalysisOperator, FieldsOfExperts


def posed(
    problem: str = "denoising", regularizer: str = "FieldsOfExperts", constraint: lr.Box | None = None
) -> tuple[lr.LowerLevelProblem, Tensor, lr.SquaredError]:
    built = registry.build(problem, regularizer, constraint)
    x_true, b = registry.measure(built)
    return built, b, lr.SquaredError(x_true)


def exactly(method: lr.EquilibriumPropagation, problem: lr.LowerLevelProblem, b: Tensor, loss: lr.UpperLoss) -> dict:  # type: ignore[type-arg]
    """The method's gradient with states as accurate as rounding allows."""
    x = torch.zeros(len(b), *problem.operator.domain_shape, dtype=b.dtype)
    never = torch.full((len(b),), 1e-15, dtype=b.dtype)
    return evaluate(method, Point.of(problem, b, loss, x, torch.zeros_like(x)), Goal(never, never)).gradient


def coupled(x_true: Tensor) -> lr.UpperLoss:
    return lr.UpperLoss(lambda x: ((1.0 + (x - x_true).mean(0) ** 2).sqrt()).sum(), gradient_lipschitz=1.0)


# ---- the difference ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [lr.SquaredError, coupled])
@pytest.mark.parametrize("nudges", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("regularizer", ["FieldsOfExperts", "FieldsOfExperts-LogCosh"])
@pytest.mark.sampled(share=0.3, by=("regularizer", "nudges", "loss"))
def test_errors_fall_with_the_power_of_beta(regularizer: str, nudges: int, loss: type[lr.SquaredError]) -> None:
    problem, b, squared = posed("learned-blur", regularizer)
    criterion = loss(squared.x_true)
    truth = truth_of(problem, b, criterion).gradient
    coarse, fine = 4e-3, 1e-3
    errors = [
        distance(exactly(lr.EquilibriumPropagation(beta, nudges), problem, b, criterion), truth) / norm(truth)
        for beta in (coarse, fine)
    ]
    assert errors[0] < 0.5
    floor = 1e-9  # of rounding over beta
    assert errors[1] <= 1.3 * errors[0] * (fine / coarse) ** nudges + floor
    assert errors[1] >= 0.5 * errors[0] * (fine / coarse) ** nudges - floor


@pytest.mark.parametrize("regularizer", registry.regularizers())
@pytest.mark.sampled(share=0.3, by=("regularizer",))
def test_derivatives_of_the_energy_are_those_of_autograd(regularizer: str) -> None:
    """Of every term, at two states at once whose difference counts, and in every learnable parameter."""
    problem, b, loss = posed("weights-and-blur", regularizer)
    x = torch.stack([loss.x_true, 0.9 * loss.x_true + 0.01])
    point = Point.of(problem, b, loss, x[0], torch.zeros_like(x[0]))
    latent = point.instance.latent
    states, weights = torch.stack([latent.extend(v) for v in x]), torch.tensor([2.0, -2.0], dtype=torch.float64)
    point = Point.of(problem, b, loss, states[0], torch.zeros_like(states[0]))
    found = energy_gradient(point, states, weights[:, None])
    learned = problem.learnable()
    energy = 2.0 * (problem.energy(x[0], b) - problem.energy(x[1], b)).sum()
    expected = torch.autograd.grad(energy, list(learned.values()), allow_unused=True, materialize_grads=True)
    assert distance(found, dict(zip(learned, expected, strict=True))) <= 1e-9 * norm(found)
    assert norm(found) > 0


def test_complex_nudges_take_sums_of_regularizers() -> None:
    sum_ = registry.REGULARIZERS["FieldsOfExperts"]() + 0.5 * registry.REGULARIZERS["GeneralisedTikhonov"]()
    problem = lr.LowerLevelProblem(Identity(registry.SHAPE), sum_)
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    expected = lr.hypergradient(problem, b, loss, lr.Implicit(), 1e-8).gradient
    error = distance(exactly(lr.EquilibriumPropagation(0.01, 4), problem, b, loss), expected)
    assert error <= 1e-6 * norm(expected)


@pytest.mark.parametrize("name", ["PseudoHuber", "LogCosh", "Square"])
def test_continuations_are_holomorphic(name: str) -> None:
    """On the real axis f and its derivatives; off it f' the derivative of f in every direction."""
    f = registry.POTENTIALS[name](0.3, 1.7)
    t = torch.tensor([-900.0, -1.0, -0.2, 0.0, 0.1, 2.0, 900.0], dtype=torch.float64)[:, None]
    along, across = t.to(torch.complex128), torch.complex(t, torch.full_like(t, 0.2))
    for at in (along, across):
        slope, curvature = f.continued_derivatives(at)
        h = 1e-5
        for step in (h, 1j * h):
            low, high = (f.continued_derivatives(at + sign * step)[0] for sign in (-1, 1))
            assert torch.allclose((high - low) / (2 * step), curvature + 0j, rtol=1e-6, atol=1e-6)
            low, high = (f.continued(at + sign * step)[:, None] for sign in (-1, 1))
            assert torch.allclose((high - low) / (2 * step), slope, rtol=1e-6, atol=1e-6)
    assert torch.allclose(f.continued(along).real, f.value(t))
    assert torch.allclose(f.continued_derivatives(along)[0].real, f.grad(t))
    assert torch.allclose(f.continued_derivatives(along)[1].real, f.second(t))


# ---- what is said of its error -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.sampled(share=0.25, by=("seed",))
def test_errors_are_within_their_bounds(seed: int) -> None:
    draw = Draw(torch.Generator().manual_seed(seed), Ranges((1e-2, 1.0), (1e-2, 1.0), (0.1, 1.0), constrained=0.3))
    summary = Summary()
    hunt_methods(draw_case(draw), draw, summary, [name for name in METHODS if name.startswith("equilibrium")])
    assert summary.violations == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("nudges", [1, 2, 4])
def test_beta_is_chosen_to_meet_the_tolerance(nudges: int, dtype: torch.dtype) -> None:
    problem, b, loss = posed("denoising-learned-ridge")
    problem, b, loss = problem.to(dtype), b.to(dtype), lr.SquaredError(loss.x_true.to(dtype))
    truth = truth_of(problem, b.double(), loss)
    found = lr.hypergradient(problem, b, loss, lr.EquilibriumPropagation(nudges=nudges), 1e-4)
    assert found.status is lr.Status.CONVERGED
    assert found.x.dtype is dtype
    assert all(g.dtype is dtype for g in found.gradient.values())
    assert distance(found.gradient, truth.gradient) <= found.error_bound + truth.gradient_slack


def test_a_beta_that_is_too_large_says_so() -> None:
    problem, b, loss = posed()
    found = lr.hypergradient(problem, b, loss, lr.EquilibriumPropagation(0.3, 1), 1e-3)
    assert found.status is lr.Status.METHOD_ERROR
    assert found.certified
    truth = truth_of(problem, b, loss)
    error = distance(found.gradient, truth.gradient)
    assert 1e-3 * found.norm < error <= found.error_bound <= 1.2 * error
    assert distance(found.corrected_gradient, truth.gradient) <= found.corrected_error_bound <= 1e-3 * found.norm


@pytest.mark.parametrize("problem", ["denoising", "learned-blur"])
def test_pixels_at_bounds_stay_there(problem: str) -> None:
    free, b, loss = posed(problem)
    lower, upper = lr.solve(free, b).x.quantile(torch.tensor([0.3, 0.8]).double()).tolist()
    built, b, loss = posed(problem, constraint=lr.Box(lower, upper))
    truth = truth_of(built, b, loss)
    found = lr.hypergradient(built, b, loss, lr.EquilibriumPropagation(), 1e-4)
    assert 0 < int(((found.x == lower) | (found.x == upper)).sum()) < found.x.numel()
    assert distance(found.gradient, truth.gradient) <= 1e-4 * norm(truth.gradient)


def test_the_layer_backpropagates_it() -> None:
    problem, b, loss = posed()
    gradients = []
    for method in (lr.EquilibriumPropagation(), lr.Implicit()):
        problem.zero_grad()
        measurement = b.clone().requires_grad_()
        loss.value(lr.solution_layer(problem, method, tolerance=1e-7)(measurement)).backward()
        gradients.append({"b": measurement.grad} | {n: p.grad.clone() for n, p in problem.learnable().items()})
    assert distance(*gradients) <= 1e-5 * norm(gradients[1])


# ---- what it refuses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(0.0,), (-1.0,), (math.nan,), (None, 0), (None, 2.5), (None, True)])
def test_bad_numbers_are_refused(arguments: tuple[object, ...]) -> None:
    with pytest.raises(lr.ConfigError, match=r"beta|nudges"):
        lr.EquilibriumPropagation(*arguments)  # type: ignore[arg-type]


def test_a_beta_beyond_the_modulus_is_refused() -> None:
    problem, b, loss = posed()  # mu = 1 and L = 1/2 of a batch of 2
    with pytest.raises(lr.ConfigError, match="beta below 2"):
        lr.hypergradient(problem, b, loss, lr.EquilibriumPropagation(2.0))
    assert lr.hypergradient(problem, b, loss, lr.EquilibriumPropagation(1.9), 10.0).certified


def test_a_loss_of_unknown_constant_that_does_not_contract_says_so() -> None:
    problem, b, loss = posed()
    steep = lr.UpperLoss(lambda x: 100.0 * ((x - loss.x_true) ** 4).flatten(1).sum(1))
    found = lr.hypergradient(problem, b, steep, lr.EquilibriumPropagation(10.0), 1e-3)
    assert found.status is lr.Status.METHOD_ERROR
    chosen = lr.hypergradient(problem, b, steep, lr.EquilibriumPropagation(), 1e-3)
    assert chosen.status is lr.Status.ESTIMATED
    assert distance(chosen.gradient, lr.hypergradient(problem, b, steep, tolerance=1e-6).gradient) <= 2e-3 * chosen.norm


def test_complex_nudges_need_a_continuation() -> None:
    method = lr.EquilibriumPropagation(nudges=4)
    huber, b, loss = posed("denoising", "FieldsOfExperts-Huber")
    constrained = registry.build("denoising", "FieldsOfExperts", lr.Nonnegative())
    latent = registry.REGULARIZERS[registry.regularizers(latent=True)[0]]()
    lifted = lr.LowerLevelProblem(Identity(registry.SHAPE), latent)
    for problem in (huber, constrained, lifted):
        assert not method.fits(problem.instance(b))
        assert lr.EquilibriumPropagation().fits(problem.instance(b))
        with pytest.raises(lr.ConfigError, match="use nudges=2"):
            lr.hypergradient(problem, b, loss, method)


def test_complex_nudges_out_of_the_strip_are_refused() -> None:
    """f' of a small smoothing branches near; beta=None stays inside."""
    sharp = FieldsOfExperts(2, 2, lr.PseudoHuber(1e-3, 0.01), generator=torch.Generator().manual_seed(0)).double()
    problem = lr.LowerLevelProblem(Identity(registry.SHAPE), sharp)
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    with pytest.raises(lr.ConfigError, match="leave the strip"):
        lr.hypergradient(problem, b, loss, lr.EquilibriumPropagation(0.5, 4))
    assert lr.hypergradient(problem, b, loss, lr.EquilibriumPropagation(nudges=4), 1e-3).status is lr.Status.CONVERGED


def test_complex_nudges_are_exact_for_quadratic_energies() -> None:
    regularizer = AnalysisOperator(registry.OPERATORS["Gradient"](), lr.Square(0.3))
    problem = lr.LowerLevelProblem(Identity(registry.SHAPE), regularizer.double())
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    truth = truth_of(problem, b, loss).gradient
    assert distance(exactly(lr.EquilibriumPropagation(0.1, 3), problem, b, loss), truth) <= 1e-10 * norm(truth)
