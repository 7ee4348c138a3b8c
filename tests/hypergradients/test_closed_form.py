"""Quadratic lower levels by one linear system each way, against dense truth."""

from __future__ import annotations

import pytest
import registry
import torch
from torch import Tensor
from truth.dense import distance, norm, truth_of
from truth.draw import RANGES, Draw
from truth.hunt import Summary, hunt_methods
from truth.problems import draw_case

import learnreg as lr
from learnreg.hypergradients.base import Goal, evaluate
from learnreg.lower_level.point import Point
from learnreg.operators import Identity
from learnreg.regularizers import AnalysisOperator, GeneralisedTikhonov

QUADRATIC = {
    "filters": lambda: GeneralisedTikhonov(3, 3, 0.9, "zero"),
    "differences": lambda: AnalysisOperator(registry.OPERATORS["Gradient"](), lr.Square(0.3)),
    "sum": lambda: GeneralisedTikhonov(2, 2) + 2.0 * QUADRATIC["differences"](),
}


def posed(regularizer: str, problem: str) -> tuple[lr.LowerLevelProblem, Tensor, lr.SquaredError]:
    case = registry.PROBLEMS[problem]
    built = lr.LowerLevelProblem(
        case.operator(), QUADRATIC[regularizer]().double(), ridge=case.ridge(), data_term=case.data_term()
    )
    x_true, b = registry.measure(built)
    return built, b, lr.SquaredError(x_true)


@pytest.mark.parametrize("problem", registry.PROBLEMS)
@pytest.mark.parametrize("regularizer", QUADRATIC)
def test_one_run_is_exact_whatever_the_tolerance(regularizer: str, problem: str) -> None:
    built, b, loss = posed(regularizer, problem)
    truth = truth_of(built, b, loss) if regularizer != "sum" else None
    gradient = lr.hypergradient(built, b, loss, lr.Implicit(), 1e-9).gradient if truth is None else truth.gradient
    start = Point.of(built, b, loss, torch.zeros_like(loss.x_true), torch.zeros_like(loss.x_true))
    loose = torch.ones(len(b), dtype=b.dtype)
    found = evaluate(lr.ClosedForm(), start, Goal(loose, loose))
    assert distance(found.gradient, gradient) <= (1e-8 if truth is None else 1e-11) * norm(gradient) > 0
    certified = lr.hypergradient(built, b, loss, lr.ClosedForm(), 1e-6)
    assert certified.status is lr.Status.CONVERGED
    assert certified.certified


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.sampled(share=0.5, by=("seed",))
def test_errors_are_within_their_bounds(seed: int) -> None:
    draw = Draw(torch.Generator().manual_seed(seed), RANGES["quadratic"])
    summary = Summary()
    hunt_methods(draw_case(draw), draw, summary, ["closed-form", "equilibrium-propagation-holomorphic"])
    assert summary.violations == []


def test_float32_stays_float32_and_steps_are_limited() -> None:
    built, b, loss = posed("filters", "learned-blur")
    exact = lr.hypergradient(built, b, loss, lr.ClosedForm(), 1e-6)
    built, b, loss = built.float(), b.float(), lr.SquaredError(loss.x_true.float())
    found = lr.hypergradient(built, b, loss, lr.ClosedForm(), 1e-2)
    assert found.x.dtype is torch.float32
    assert found.status is lr.Status.CONVERGED
    assert distance(found.gradient, exact.gradient) <= found.error_bound + exact.error_bound + 1e-5 * exact.norm
    few = lr.hypergradient(built, b, loss, lr.ClosedForm(), 1e-6, max_steps=2)
    assert few.steps <= 2
    assert few.status is lr.Status.MAX_STEPS


def test_other_lower_levels_are_refused() -> None:
    square = AnalysisOperator(registry.OPERATORS["Gradient"](), lr.Square(0.3)).double()
    latent = registry.REGULARIZERS[registry.regularizers(latent=True)[0]]()
    for problem in (
        registry.build("denoising", "FieldsOfExperts"),
        lr.LowerLevelProblem(Identity(registry.SHAPE), square, constraint=lr.Nonnegative()),
        lr.LowerLevelProblem(Identity(registry.SHAPE), latent),
    ):
        x_true, b = registry.measure(problem)
        assert not lr.ClosedForm().fits(problem.instance(b))
        with pytest.raises(lr.ConfigError, match=r"use Implicit\(\)"):
            lr.hypergradient(problem, b, lr.SquaredError(x_true), lr.ClosedForm())
