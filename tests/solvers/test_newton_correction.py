"""Newton corrections of the state, and the outlook that tells how far they must lead."""

from __future__ import annotations

import math

import pytest
import registry
import torch
from torch import Tensor
from truth import dense as dense_truth
from truth.lemma_points import normal

import learnreg as lr
from learnreg.certificates.judgement import OUTLOOK, judge
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.point import Point
from learnreg.solvers.newton_correction import approach_state


def posed(regularizer: str) -> tuple[lr.LowerLevelProblem, Tensor, Tensor, Instance]:
    problem = registry.build("denoising", regularizer)
    x_true, b = registry.measure(problem)
    return problem, x_true, b, problem.instance(b)


def residual(problem: lr.LowerLevelProblem, b: Tensor, x: Tensor) -> Tensor:
    """‖∇E(x)‖ per sample, by autograd of the energy."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(problem.energy(x, b).sum(), x)
    return gradient.flatten(1).norm(dim=1)


@pytest.mark.parametrize("regularizer", ["FieldsOfExperts", "TotalVariation"])
def test_newton_steps_reach_the_goal_without_a_judgement(regularizer: str) -> None:
    problem, _, b, instance = posed(regularizer)
    x = lr.solve(problem, b, 1e-3).x
    start = residual(problem, b, x)
    for factor in (0.5, 1e-2, 1e-6):
        found = approach_state(instance, x, factor * start, 0.03)
        assert found.contracted
        assert found.reached
        assert bool((residual(problem, b, found.point) <= 2.0 * factor * start).all())
        assert found.steps > 0


def test_a_state_that_is_good_enough_stays() -> None:
    problem, _, b, instance = posed("FieldsOfExperts")
    x = lr.solve(problem, b, 1e-3).x
    found = approach_state(instance, x, 1.01 * residual(problem, b, x), 0.03)
    assert found.steps == 0
    assert found.reached
    assert bool((found.point == x).all())


def test_limits_are_kept() -> None:
    problem, _, b, instance = posed("FieldsOfExperts")
    x = lr.solve(problem, b, 1e-3).x
    goal = 1e-8 * residual(problem, b, x)
    found = approach_state(instance, x, goal, 0.03, newton_steps=1)
    assert found.contracted
    assert not found.reached
    assert approach_state(instance, x, goal, 0.03, max_steps=3).steps == 3


def test_steps_that_do_not_contract_are_undone() -> None:
    """Far from the solution, where the Hessian is almost M, full Newton steps go astray."""
    problem = lr.LowerLevelProblem(registry.build("denoising", "TotalVariation").operator, steep())
    b = 10.0 * registry.randn(1, *problem.operator.domain_shape, seed=5)
    instance = problem.instance(b)
    found = approach_state(instance, b, torch.full((1,), 1e-8, dtype=torch.float64), 0.03)
    assert not found.reached
    assert bool((residual(problem, b, found.point) <= residual(problem, b, b)).all())
    assert found.contracted == bool((found.point != b).any())


def steep() -> lr.regularizers.TotalVariation:
    return lr.regularizers.TotalVariation(weight=5.0, smoothing=1e-4).double()


@pytest.mark.parametrize("regularizer", ["FieldsOfExperts", "TotalVariation"])
def test_the_outlook_foresees_the_shares_nearer_to_the_solution(
    regularizer: str, rotating_generator: torch.Generator
) -> None:
    problem, x_true, b, _ = posed(regularizer)
    loss = lr.SquaredError(x_true)
    truth = dense_truth.truth_of(problem, b, loss)
    exact, X = truth.x.reshape(b.shape), truth.X.reshape(b.shape)
    error = 1e-3 * exact.norm() / math.sqrt(exact.numel()) * normal(rotating_generator, *exact.shape)
    X = X + 1e-2 * X.norm() / math.sqrt(X.numel()) * normal(rotating_generator, *X.shape)
    point = Point.of(problem, b, loss, exact + error, X)
    plain = judge(point, "sharp")
    far = judge(point, "sharp", outlook=lambda norm: 0.0)
    assert judge(point, "sharp", outlook=lambda norm: math.inf).outlook is None
    assert far.error_bound == plain.error_bound
    assert plain.outlook is None
    near = judge(Point.of(problem, b, loss, exact + OUTLOOK * error, X), "sharp")
    assert far.outlook is not None
    state, adjoint = far.outlook
    assert 0.3 <= state / near.state_share <= 3.0
    assert 0.3 <= adjoint / near.adjoint_share <= 3.0
