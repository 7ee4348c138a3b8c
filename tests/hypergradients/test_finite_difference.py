"""Finite differences of the loss against dense truth, in every kind of parameter, and the bounds of their errors."""

from __future__ import annotations

import math

import pytest
import registry
import torch
from torch import Tensor, nn
from truth.dense import distance, norm, truth_of
from truth.draw import Draw, Ranges
from truth.hunt import Summary, hunt_methods
from truth.problems import draw_case

import learnreg as lr
from learnreg.hypergradients.base import Goal, evaluate
from learnreg.lower_level.elsewhere import with_parameters
from learnreg.lower_level.point import Point
from learnreg.operators import Blur, Identity
from learnreg.regularizers import TotalVariation


def posed(name: str = "denoising-learned-ridge") -> tuple[lr.LowerLevelProblem, Tensor, lr.SquaredError]:
    problem = registry.build(name, "TotalVariation")
    x_true, b = registry.measure(problem)
    return problem, b, lr.SquaredError(x_true)


@pytest.mark.parametrize("name", ["denoising-learned-ridge", "learned-scalar-weight", "learned-blur"])
@pytest.mark.sampled(share=0.4, by=("name",))
def test_the_gradient_meets_the_tolerance(name: str) -> None:
    problem, b, loss = posed(name)
    truth = truth_of(problem, b, loss)
    found = lr.hypergradient(problem, b, loss, lr.FiniteDifference(), 1e-4)
    assert found.status is lr.Status.CONVERGED
    assert distance(found.gradient, truth.gradient) <= 1e-4 * norm(truth.gradient)
    assert list(found.gradient) == list(problem.learnable())


def test_errors_fall_with_the_square_of_the_step() -> None:
    problem, b, loss = posed()
    truth, x = truth_of(problem, b, loss).gradient, torch.zeros_like(loss.x_true)
    accurate = torch.full((len(b),), 1e-13, dtype=b.dtype)
    errors = []
    for step in (0.04, 0.01):
        point = Point.of(problem, b, loss, x, x)
        found = evaluate(lr.FiniteDifference(step), point, Goal(accurate, accurate)).gradient
        errors.append(distance(found, truth) / norm(truth))
    assert 0.9 * 16 <= errors[0] / errors[1] <= 1.1 * 16


@pytest.mark.parametrize("place", ["ridge", "weight"])
def test_numbers_that_are_0_and_may_not_be_less(place: str) -> None:
    """Differences from inside, of the same order."""
    zero = nn.Parameter(torch.zeros((), dtype=torch.float64))
    weights = torch.tensor([[0.0], [1.0], [2.0], [0.0], [0.5]], dtype=torch.float64)
    problem = lr.LowerLevelProblem(
        Identity(registry.SHAPE), TotalVariation(0.2, 0.1).double().requires_grad_(place == "ridge"),
        ridge=zero if place == "ridge" else 0.2,
        data_term=None if place == "ridge" else lr.WeightedLeastSquares(nn.Parameter(weights)),
    )  # fmt: skip
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    truth = truth_of(problem, b, loss).gradient
    found = lr.hypergradient(problem, b, loss, lr.FiniteDifference(), 1e-4)
    assert distance(found.gradient, truth) <= 1e-4 * norm(truth)


class OwnValue(lr.Regularizer):
    """Somebody's regularizer, which says its value alone and is not cloned."""

    def __init__(self) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.tensor(-1.0, dtype=torch.float64))

    def value(self, x: Tensor) -> Tensor:
        return self.log_weight.exp() * (1.0 + x.diff(dim=-1) ** 2).sqrt().flatten(1).sum(1)


def test_foreign_and_latent_regularizers_and_constraints() -> None:
    latent = registry.REGULARIZERS[registry.regularizers(latent=True)[-1]]()
    fewest = min(latent.parameters(), key=lambda p: p.numel())
    for p in latent.parameters():
        p.requires_grad_(p is fewest)
    for regularizer in (OwnValue(), latent):
        box = None if regularizer is latent else lr.Box(0.3, 0.7)
        problem = lr.LowerLevelProblem(Identity(registry.SHAPE), regularizer, ridge=0.1, constraint=box)
        x_true, b = registry.measure(problem)
        before = {name: p.detach().clone() for name, p in problem.learnable().items()}
        found, expected = (
            lr.hypergradient(problem, b, lr.SquaredError(x_true), method, 1e-5)
            for method in (lr.FiniteDifference(1e-3), lr.Implicit())
        )
        assert distance(found.gradient, expected.gradient) <= 1e-4 * expected.norm > 0
        assert all(torch.equal(p, before[name]) for name, p in problem.learnable().items())


def test_problems_elsewhere_are_those_with_other_parameters() -> None:
    problem, b, _ = posed("learned-blur")
    frozen = problem.frozen()
    values = {name: p.detach() + 0.1 for name, p in problem.learnable().items()}
    found = with_parameters(frozen, values, lambda moved: lr.solve(moved, b, 1e-9).x)
    with torch.no_grad():
        for p in problem.learnable().values():
            p.add_(0.1)
    assert torch.allclose(found, lr.solve(problem, b, 1e-9).x, rtol=0, atol=1e-8)


# ---- what is said of its error -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.sampled(share=0.2, by=("seed",))
def test_errors_are_within_their_bounds(seed: int) -> None:
    draw = Draw(torch.Generator().manual_seed(seed), Ranges((1e-2, 1.0), (1e-2, 1.0), (0.1, 1.0), constrained=0.3))
    summary = Summary()
    hunt_methods(draw_case(draw), draw, summary, ["finite-difference", "finite-difference-given-step"])
    assert summary.violations == []


def test_float32_and_a_coarse_step() -> None:
    problem, b, loss = posed()
    problem, b, loss = problem.float(), b.float(), lr.SquaredError(loss.x_true.float())
    truth = truth_of(problem, b.double(), loss)
    found = lr.hypergradient(problem, b, loss, lr.FiniteDifference(), 1e-3)
    assert found.status is lr.Status.CONVERGED
    assert all(g.dtype is torch.float32 for g in (*found.gradient.values(), found.x))
    coarse = lr.hypergradient(problem, b, loss, lr.FiniteDifference(0.5), 1e-3)
    assert coarse.status is lr.Status.METHOD_ERROR
    error = distance(coarse.gradient, truth.gradient)
    assert 1e-3 * coarse.norm < error <= coarse.error_bound


@pytest.mark.parametrize("step", [0.0, -0.1, 1.0, math.nan])
def test_bad_steps_are_refused(step: float) -> None:
    with pytest.raises(lr.ConfigError, match="step"):
        lr.FiniteDifference(step)


def test_many_numbers_are_refused() -> None:
    kernel = nn.Parameter(torch.ones(33, 33, dtype=torch.float64) / 33**2)
    problem = lr.LowerLevelProblem(Blur(kernel, (1, 40, 40)), TotalVariation(0.1, 0.1).double(), ridge=0.1)
    x_true, b = registry.measure(problem)
    with pytest.raises(lr.ConfigError, match=r"1090 learned numbers .* use Implicit\(\)"):
        lr.hypergradient(problem, b, lr.SquaredError(x_true), lr.FiniteDifference())
