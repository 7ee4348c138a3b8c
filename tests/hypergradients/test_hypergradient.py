"""Hypergradients of every regularizer, problem and method against implicit differentiation and finite differences."""

from __future__ import annotations

import itertools
import math
from functools import cache

import pytest
import registry
import torch
from torch import Tensor
from truth import dense as dense_truth

import learnreg as lr
from learnreg.hypergradients.automatic import better_method
from learnreg.hypergradients.base import Goal, evaluate
from learnreg.lower_level.point import Point
from learnreg.operators import Blur, Identity, Inpainting
from learnreg.regularizers import FieldsOfExperts, InputConvexNetwork, Regularizer, TotalVariation

SHAPE = registry.SHAPE
SMOOTH = registry.regularizers(smooth=True, proximal=True)


def latin_square() -> list[object]:
    """All combinations; those beyond two methods for each problem and regularizer (in turn) are slow, and most of
    unrolling, which has tests of its own for each of them."""

    def is_quick(i: int, j: int, k: int) -> bool:
        turn = (i + j - k) % len(registry.METHODS)
        return turn == 0 or (turn == 2 and list(registry.METHODS)[k] != "Unrolled")

    names = itertools.product(
        enumerate(registry.PROBLEMS), enumerate(registry.regularizers(proximal=True)), enumerate(registry.METHODS)
    )
    return [
        pytest.param(p, r, m, marks=() if is_quick(i, j, k) else pytest.mark.slow) for (i, p), (j, r), (k, m) in names
    ]


def relative(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return dense_truth.distance(a, b) / dense_truth.norm(b)


@cache
def truth(problem: str, regularizer: str) -> tuple[lr.LowerLevelProblem, Tensor, lr.UpperLoss, dense_truth.Truth]:
    built = registry.build(problem, regularizer)
    x_true, b = registry.measure(built)
    loss = lr.SquaredError(x_true)
    return built, b, loss, dense_truth.truth_of(built, b, loss)


@cache
def rounded_truth(regularizer: str) -> tuple[lr.LowerLevelProblem, Tensor, lr.UpperLoss, dense_truth.Truth]:
    """Of parameters and data in float32."""
    problem = registry.build("learned-blur", regularizer).float()
    x_true, b = (t.float() for t in registry.measure(registry.build("learned-blur", regularizer)))
    loss = lr.SquaredError(x_true)
    return problem, b, loss, dense_truth.truth_of(problem, b.double(), loss)


def loss_of_parameters(problem: lr.LowerLevelProblem, b: Tensor, loss: lr.UpperLoss, start: Tensor) -> float:
    with torch.no_grad():
        x = dense_truth.Dense(problem, b).solve(start)[0]
        return float(loss.value(x.reshape(-1, *problem.operator.domain_shape)))


@pytest.mark.parametrize("regularizer", registry.regularizers(proximal=True))
@pytest.mark.parametrize("problem", registry.PROBLEMS)
@pytest.mark.sampled(share=0.2, by=("problem", "regularizer"))
def test_the_truth_is_the_derivative_of_the_loss(problem: str, regularizer: str) -> None:
    """Implicit differentiation of dense solves against central differences along a random direction per parameter."""
    built, b, loss, expected = truth(problem, regularizer)
    h = 1e-5
    for seed, (name, p) in enumerate(built.learnable().items()):
        direction = registry.randn(*p.shape, seed=seed)
        kept, values = p.detach().clone(), []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                p.copy_(kept + sign * h * direction)
            values.append(loss_of_parameters(built, b, loss, expected.x))
        with torch.no_grad():
            p.copy_(kept)
        slope = (values[0] - values[1]) / (2 * h)
        inner = float((expected.gradient[name] * direction).sum())
        size = float(expected.gradient[name].norm() * direction.norm())
        assert abs(slope - inner) <= 1e-6 * size + 1e-9, name


@pytest.mark.parametrize(("problem", "regularizer", "method"), latin_square())
@pytest.mark.sampled(share=0.2, by=("problem", "regularizer"))
def test_every_method_agrees_with_implicit_differentiation(problem: str, regularizer: str, method: str) -> None:
    built, b, loss, expected = truth(problem, regularizer)
    result = lr.hypergradient(built, b, loss, registry.METHODS[method](), 1e-6)
    assert set(result.gradient) == set(built.learnable())
    assert relative(result.gradient, expected.gradient) <= 1e-6
    assert result.certified
    assert result.bound_kind == "rigorous"
    assert result.reason == ""
    assert result.status is lr.Status.CONVERGED
    error = dense_truth.distance(result.gradient, expected.gradient)
    assert error <= result.error_bound + expected.gradient_slack
    assert result.error_bound <= 1e-6 * result.norm
    low, high = result.loss_interval
    assert low - 1e-13 <= expected.loss <= high + 1e-13
    assert low <= result.loss <= high
    for name, p in built.learnable().items():
        assert result.gradient[name].shape == p.shape
        assert result.gradient[name].dtype == p.dtype
        assert not result.gradient[name].requires_grad
        assert p.grad is None


def per_sample(x_true: Tensor) -> lr.UpperLoss:
    return lr.UpperLoss(lambda x: (((x - x_true) ** 2 + 0.01).sqrt()).flatten(1).sum(1), gradient_lipschitz=10.0)


def coupled(x_true: Tensor) -> lr.UpperLoss:
    return lr.UpperLoss(lambda x: 0.5 * ((x - x_true).mean(0) ** 2).sum(), gradient_lipschitz=1 / x_true.shape[0])


@pytest.mark.parametrize("method", registry.METHODS)
@pytest.mark.parametrize("kind", [per_sample, coupled])
@pytest.mark.sampled(share=0.5, by=("method",))
def test_losses_per_sample_and_of_the_whole_batch(kind: object, method: str) -> None:
    built = registry.build("learned-blur", "FieldsOfExperts")
    x_true, b = registry.measure(built, 3)
    loss = kind(x_true)  # type: ignore[operator]
    expected = dense_truth.truth_of(built, b, loss)
    result = lr.hypergradient(built, b, loss, registry.METHODS[method](), 1e-5)
    assert result.certified
    error = dense_truth.distance(result.gradient, expected.gradient)
    assert error <= result.error_bound <= 1e-5 * result.norm
    assert result.loss_interval[0] <= expected.loss <= result.loss_interval[1]


@pytest.mark.parametrize("method", registry.METHODS)
def test_a_loss_without_a_lipschitz_constant_is_not_certified(method: str) -> None:
    built, b, _, _ = truth("denoising", "FieldsOfExperts")
    x_true = registry.measure(built)[0]
    loss = lr.UpperLoss(lambda x: ((x - x_true) ** 4).flatten(1).sum(1))
    expected = dense_truth.truth_of(built, b, loss)
    result = lr.hypergradient(built, b, loss, registry.METHODS[method](), 1e-4)
    assert not result.certified
    assert result.bound_kind == "estimate"
    assert "gradient_lipschitz" in result.reason
    assert result.status is lr.Status.ESTIMATED
    assert result.loss_interval == (-math.inf, math.inf)
    assert relative(result.gradient, expected.gradient) <= 1e-4


@pytest.mark.parametrize("regularizer", ["FieldsOfExperts", "TotalVariation"])
@pytest.mark.parametrize("method", registry.METHODS)
@pytest.mark.sampled(share=0.5, by=("regularizer", "method"))
def test_without_a_modulus_the_error_is_estimated(method: str, regularizer: str) -> None:
    problem = lr.LowerLevelProblem(
        Inpainting((registry.rand(*SHAPE) > 0.4).double()), registry.REGULARIZERS[regularizer]()
    )
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    dense = dense_truth.Dense(problem, b)
    with torch.no_grad():
        x = dense.solve()[0]
        expected = dense_truth.gradient_by_autograd(problem, b, x, dense.adjoint(x, loss))
    result = lr.hypergradient(problem, b, loss, registry.METHODS[method](), 1e-3)
    assert not result.certified
    assert "ridge" in result.reason
    assert relative(result.corrected_gradient, expected) <= 1e-3
    estimate = 1.01 * result.relative_error_bound  # relative to another norm
    assert relative(result.gradient, expected) <= (1e-3 if result.status.converged else estimate)


@pytest.mark.parametrize("method", ["Piggyback", "Piggyback-interleaved", "Implicit"])
@pytest.mark.parametrize("regularizer", ["FieldsOfExperts", "TotalVariation", "AnalysisOperator-FilterBank"])
@pytest.mark.parametrize("problem", ["denoising", "learned-weights", "learned-blur"])
def test_constraints_with_active_pixels(problem: str, regularizer: str, method: str) -> None:
    free = registry.build(problem, regularizer)
    x_true, b = registry.measure(free)
    with torch.no_grad():
        lower, upper = dense_truth.Dense(free, b).solve()[0].quantile(torch.tensor([0.3, 0.8]).double()).tolist()
    built = registry.build(problem, regularizer, lr.Box(lower, upper))
    loss = lr.SquaredError(x_true)
    expected = dense_truth.truth_of(built, b, loss)
    result = lr.hypergradient(built, b, loss, registry.METHODS[method](), 1e-5)
    active = (result.x == lower) | (result.x == upper)
    assert 0 < int(active.sum()) < active.numel()
    assert float(result.X[active].abs().max()) == 0.0
    assert relative(result.gradient, expected.gradient) <= 1e-5
    if result.certified:
        assert dense_truth.distance(result.gradient, expected.gradient) <= result.error_bound
    else:
        assert "active set" in result.reason


@pytest.mark.parametrize("method", registry.METHODS)
@pytest.mark.sampled(share=0.5, by=("method",))
def test_kinks_of_huber_are_excluded_or_reported(method: str) -> None:
    built, b, loss, expected = truth("denoising", "FieldsOfExperts-Huber")
    certified = lr.hypergradient(built, b, loss, registry.METHODS[method](), 1e-5)
    assert certified.certified
    assert relative(certified.gradient, expected.gradient) <= 1e-5
    # A response exactly on the kink stays undecided at any accuracy.
    filters = torch.zeros(1, 2, 2, dtype=torch.float64)
    filters[0, 0, 0] = 1.0
    R = FieldsOfExperts.from_arrays(filters, [1.0], [0.5], potential=lr.Huber(1.0))
    problem = lr.LowerLevelProblem(Identity((1, 3, 3)), R)
    data = torch.full((1, 1, 3, 3), 1.5, dtype=torch.float64)  # minimiser: x + clamp(x/v) = b, x = v = 0.5
    result = lr.hypergradient(problem, data, lr.SquaredError(torch.zeros_like(data)), registry.METHODS[method]())
    assert not result.certified
    assert "kink" in result.reason


@pytest.mark.parametrize("method", registry.METHODS)
@pytest.mark.parametrize("regularizer", ["FieldsOfExperts", "TotalVariation"])
@pytest.mark.sampled(share=0.5, by=("regularizer", "method"))
def test_loose_tolerances_and_few_steps_have_valid_bounds(method: str, regularizer: str) -> None:
    built, b, loss, expected = truth("learned-blur", regularizer)
    for tolerance, max_steps in ((30.0, None), (1.0, None), (1e-6, 1), (1e-6, 5), (0.1, 20)):
        result = lr.hypergradient(built, b, loss, registry.METHODS[method](), tolerance, max_steps=max_steps)
        error = dense_truth.distance(result.gradient, expected.gradient)
        assert error <= result.error_bound
        if max_steps is None:
            assert result.status is lr.Status.CONVERGED
            assert result.error_bound <= tolerance * result.norm
        else:
            assert result.steps <= max_steps
            assert result.status in (lr.Status.MAX_STEPS, lr.Status.CONVERGED)
        low, high = result.loss_interval
        assert low <= expected.loss <= high


def test_absolute_tolerance() -> None:
    built, b, loss, expected = truth("denoising", "FieldsOfExperts")
    tight = lr.hypergradient(built, b, loss, tolerance=1e-6)
    loose = lr.hypergradient(built, b, loss, tolerance=1e-6, absolute_tolerance=0.1 * tight.norm)
    assert loose.status is lr.Status.CONVERGED
    assert loose.operator_applications < tight.operator_applications
    assert dense_truth.distance(loose.gradient, expected.gradient) <= loose.error_bound <= 0.1 * tight.norm


def test_frozen_parameters_are_absent() -> None:
    built = registry.build("learned-blur", "FieldsOfExperts")
    expected = truth("learned-blur", "FieldsOfExperts")[3]
    _, b, loss, _ = truth("learned-blur", "FieldsOfExperts")
    for name, p in built.learnable().items():
        if name != "log_weights":
            p.requires_grad_(False)
    result = lr.hypergradient(built, b, loss, tolerance=1e-5)
    assert list(result.gradient) == ["log_weights"]
    error = float((result.gradient["log_weights"] - expected.gradient["log_weights"]).norm())
    assert error <= result.error_bound <= 1e-5 * result.norm
    for p in built.parameters():
        p.requires_grad_(False)
    nothing = lr.hypergradient(built, b, loss, tolerance=1e-2, max_steps=50)
    assert nothing.gradient == {}


@pytest.mark.parametrize("method", registry.METHODS)
@pytest.mark.sampled(share=0.5, by=("method",))
def test_warm_starts(method: str) -> None:
    built, b, loss, _ = truth("denoising", "FieldsOfExperts")
    cold = lr.hypergradient(built, b, loss, registry.METHODS[method](), 1e-4)
    start = lr.Start(cold.x, cold.X)
    warm = lr.hypergradient(built, b, loss, registry.METHODS[method](), 1e-4, start=start)
    fixed = method == "Unrolled"  # takes its steps wherever it starts
    assert warm.operator_applications < cold.operator_applications or fixed
    assert warm.status is lr.Status.CONVERGED


class WithoutRoles(TotalVariation):
    def parameter_roles(self) -> dict:  # type: ignore[type-arg]
        return {}


def test_a_regularizer_that_declares_no_roles_is_not_certified() -> None:
    regularizer: Regularizer = WithoutRoles(0.2, 0.05).double()
    problem = lr.LowerLevelProblem(Identity(SHAPE), regularizer)
    _, b, loss, expected = truth("denoising", "TotalVariation")
    result = lr.hypergradient(problem, b, loss, tolerance=1e-3)
    assert not result.certified
    assert "log_weight" in result.reason
    assert relative(result.gradient, expected.gradient) <= 1e-3


@pytest.mark.parametrize("method", ["Piggyback", "Piggyback-interleaved", "Implicit"])
@pytest.mark.parametrize("regularizer", SMOOTH)
@pytest.mark.sampled(share=1 / 3, by=("regularizer", "method"))
def test_bounds_hold_for_float32_data_and_parameters(regularizer: str, method: str) -> None:
    problem, b, loss, expected = rounded_truth(regularizer)
    for tolerance in (1.0, 1e-5):
        result = lr.hypergradient(problem, b, loss, registry.METHODS[method](), tolerance)
        assert all(g.dtype == torch.float32 for g in result.gradient.values())
        error = dense_truth.distance(result.gradient, expected.gradient)
        for name, exact in (("x", expected.x), ("X", expected.X)):
            errors = (getattr(result, name).double().flatten(1) - exact).norm(dim=1)
            bounds = result.state_error_bound if name == "x" else result.adjoint_error_bound
            assert bool((errors <= bounds).all()), name
        # the truth's own float32 gradients are rounded, too
        assert error <= result.error_bound + 3e-7 * dense_truth.norm(expected.gradient)
        assert result.loss_interval[0] <= expected.loss <= result.loss_interval[1]


def test_failures_raise_on_request() -> None:
    built, b, loss, _ = truth("denoising", "FieldsOfExperts")
    with pytest.raises(lr.SolverError, match=r"hypergradient\(tolerance=1e-06\): relative error bound") as caught:
        lr.hypergradient(built, b, loss, tolerance=1e-6, max_steps=1, on_failure="raise")
    assert caught.value.result.status is lr.Status.MAX_STEPS


def test_wrong_arguments() -> None:
    built, b, loss, _ = truth("denoising", "FieldsOfExperts")
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(lr.ConfigError, match="tolerance="):
            lr.hypergradient(built, b, loss, tolerance=bad)
    with pytest.raises(lr.ConfigError, match="absolute_tolerance=-1"):
        lr.hypergradient(built, b, loss, absolute_tolerance=-1.0)
    with pytest.raises(lr.ConfigError, match="certificate='best'"):
        lr.hypergradient(built, b, loss, certificate="best")  # type: ignore[arg-type]
    with pytest.raises(lr.ConfigError, match="mode='parallel'"):
        lr.Piggyback(mode="parallel")  # type: ignore[arg-type]
    with pytest.raises(lr.ShapeError, match="x_true"):
        lr.hypergradient(built, b, lr.SquaredError(torch.zeros(1, *SHAPE)))
    with pytest.raises(lr.ShapeError, match=r"start\.X"):
        lr.hypergradient(built, b, loss, start=lr.Start(b, b[:, :, 1:]))
    with pytest.raises(lr.ShapeError, match=r"expected a scalar or \(2,\)"):
        lr.hypergradient(built, b, lr.UpperLoss(lambda x: x))
    with pytest.raises(lr.ConfigError, match="gradient_lipschitz=-1"):
        lr.UpperLoss(lambda x: x.sum(), gradient_lipschitz=-1.0)


@pytest.mark.parametrize(("smoothing", "precise"), [(0.1, False), (1e-6, True)])
@torch.no_grad()
def test_piggyback_works_in_float64_where_float32_would_not_reach_the_goal(smoothing: float, precise: bool) -> None:
    problem = lr.LowerLevelProblem(Identity((1, 12, 12)), TotalVariation(0.1, smoothing))
    x_true = registry.rand(2, 1, 12, 12, seed=3).float().round()
    b, loss = x_true + 0.1 * registry.randn(2, 1, 12, 12, seed=4).float(), lr.SquaredError(x_true)
    start = Point.of(problem, b, loss, b, torch.zeros_like(b))
    goal = Goal(1e-3 * b.flatten(1).norm(dim=1), 0.1 * start.loss_gradient.flatten(1).norm(dim=1))
    outcome = lr.Piggyback().run(start, goal)
    assert outcome.status.converged
    assert outcome.x.dtype == outcome.after(start).instance.q.dtype == (torch.float64 if precise else torch.float32)
    exact = lr.solve(problem.double(), b.double(), 1e-8).x
    assert bool(((outcome.x - exact).flatten(1).norm(dim=1) <= goal.state).all())
    found = evaluate(lr.Piggyback(), start, goal)
    assert found.point.x.dtype == torch.float32
    assert all(g.dtype == torch.float32 for g in found.gradient.values())


def experts_of_smoothing(smoothing: float, boundary: str) -> FieldsOfExperts:
    filters = registry.randn(6, 3, 3, seed=8)
    return FieldsOfExperts.from_arrays(filters, torch.full((6,), 0.1), torch.full((6,), smoothing), boundary)  # type: ignore[arg-type]


def lifted_of_smoothing(smoothing: float) -> InputConvexNetwork:
    return InputConvexNetwork(1, 4, 2, 3, "lifted", smoothing=smoothing)


@pytest.mark.parametrize(
    ("problem", "warm", "name"),
    [
        (lr.LowerLevelProblem(Identity((1, 16, 16)), TotalVariation(0.1, 1e-3)), False, "piggyback"),
        (lr.LowerLevelProblem(Identity((1, 16, 16)), TotalVariation(0.1, 1e-3)), True, "implicit"),
        (lr.LowerLevelProblem(Identity((1, 16, 16)), TotalVariation(0.1), constraint=lr.Box(0.0)), False, "implicit"),
        (lr.LowerLevelProblem(Inpainting(torch.eye(16)[None]), TotalVariation(0.1), ridge=0.1), False, "piggyback"),
        (lr.LowerLevelProblem(Blur(torch.ones(3, 3) / 9, (1, 16, 16)), TotalVariation(0.1)), False, "implicit"),
        (lr.LowerLevelProblem(Identity((1, 16, 16)), experts_of_smoothing(1e-4, "valid")), False, "piggyback"),
        (lr.LowerLevelProblem(Identity((1, 16, 16)), experts_of_smoothing(1e-4, "reflect")), False, "implicit"),
        (lr.LowerLevelProblem(Identity((1, 16, 16)), experts_of_smoothing(10.0, "valid")), False, "implicit"),
        (lr.LowerLevelProblem(Identity((1, 16, 16)), InputConvexNetwork(features=4)), False, "implicit"),
        (lr.LowerLevelProblem(Identity((1, 16, 16)), lifted_of_smoothing(1e-1)), True, "implicit"),
        (lr.LowerLevelProblem(Identity((1, 16, 16)), lifted_of_smoothing(1e-6)), True, "piggyback"),
    ],
)
def test_the_default_method_follows_from_the_problem(problem: lr.LowerLevelProblem, warm: bool, name: str) -> None:
    instance = problem.instance(registry.rand(1, *problem.operator.range_shape, seed=1))
    assert better_method(instance, warm).name == name
