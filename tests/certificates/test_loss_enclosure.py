"""Lemma V: the loss of the exact solution lies in its interval, for any state and adjoint state."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from truth.dense import Truth, truth_of
from truth.draw import RANGES, Draw
from truth.problems import Case, draw_case

import learnreg as lr
from learnreg.certificates.loss_enclosure import LossEnclosure, enclose_loss
from learnreg.lower_level.point import Point
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts
from learnreg.upper_level.evaluation import evaluate_batch
from learnreg.upper_level.objective import Accuracy

pytestmark = pytest.mark.usefixtures("one_thread")


def at_distance(case: Case, truth: Truth, draw: Draw, size: float, adjoint: float) -> LossEnclosure:
    """At a state and an adjoint state of these relative errors."""
    shape = (-1, *case.problem.operator.domain_shape)
    scale = truth.x.norm(dim=1, keepdim=True) / math.sqrt(truth.x.shape[1])
    x = (truth.x + size * scale * draw.normal(*truth.x.shape)).reshape(shape)
    X = truth.X.reshape(shape)
    X = X + adjoint * X.norm() / math.sqrt(X.numel()) * draw.normal(*X.shape)
    return enclose_loss(Point.of(case.problem, case.b.double(), case.loss, x, X))


@pytest.mark.parametrize("kind", ["ordinary", "extreme", "constrained", "nonconvex", "grouped", "networks"])
def test_the_loss_lies_in_its_interval(kind: str, rotating_generator: torch.Generator) -> None:
    narrower = 0
    for _ in range(6):
        draw = Draw(rotating_generator, RANGES[kind])
        case = draw_case(draw)
        truth = truth_of(case.problem, case.b, case.loss)
        if not truth.usable:
            continue
        for size in (1e-6, 1e-4, 1e-2, 0.3):
            found = at_distance(case, truth, draw, size, draw.log_uniform(1e-6, 1.0))
            slack = 1e-12 * (1.0 + abs(truth.loss))
            if found.certified:
                assert found.lower - slack <= truth.loss <= found.upper + slack, f"{case.label}, {size:g}"
                narrower += not found.first_order
    assert narrower or kind == "constrained"


def test_the_width_is_of_second_order(rotating_generator: torch.Generator) -> None:
    generator = rotating_generator
    problem = lr.LowerLevelProblem(Identity((1, 8, 8)), FieldsOfExperts(3, 3, lr.PseudoHuber(0.3, 0.1)).double())
    b = torch.rand(2, 1, 8, 8, generator=generator, dtype=torch.float64)
    loss = lr.SquaredError(torch.rand(b.shape, generator=generator, dtype=torch.float64))
    exact = lr.hypergradient(problem, b, loss, tolerance=1e-9)
    direction = torch.randn(b.shape, generator=generator, dtype=torch.float64)
    widths = []
    for size in (1e-3, 1e-4, 1e-5):
        found = enclose_loss(Point.of(problem, b, loss, exact.x + size * direction, exact.X * (1.0 + size)))
        assert found.certified
        assert not found.first_order
        widths.append(found.upper - found.lower)
    for wide, narrow in pairwise(widths):
        assert narrow == pytest.approx(0.01 * wide, rel=0.1)


def test_a_loss_without_a_constant_has_no_interval() -> None:
    problem = lr.LowerLevelProblem(Identity((1, 6, 6)), FieldsOfExperts(2, 3, lr.PseudoHuber(0.3, 0.1)).double())
    b = torch.rand(1, 1, 6, 6, dtype=torch.float64)
    found = enclose_loss(Point.of(problem, b, lr.UpperLoss(lambda x: (x**2).sum()), b, torch.zeros_like(b)))
    assert not found.certified
    assert (found.lower, found.upper) == (-math.inf, math.inf)


@torch.no_grad()
def test_a_norm_that_may_fail_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = lr.LowerLevelProblem(Identity((1, 6, 5)), FieldsOfExperts(4, 3, lr.LogCosh(1e-3)).double())
    generator = torch.Generator().manual_seed(0)
    x_true, b = (torch.rand(2, 1, 6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    found = lr.hypergradient(problem, b, lr.SquaredError(x_true), tolerance=1e-6)
    x = found.x + 1e-7 * torch.randn(found.x.shape, generator=generator, dtype=torch.float64)
    point = Point.of(problem, b, lr.SquaredError(x_true), x, found.X)
    by_norm = enclose_loss(point)
    monkeypatch.setattr(type(point.instance.analysis), "norm_bound_kind", "probabilistic")
    without = enclose_loss(point)
    assert not by_norm.first_order
    assert without.lower <= by_norm.lower
    assert by_norm.upper <= without.upper
    assert without.state_part > by_norm.state_part


def test_a_constant_of_a_loss_is_probed_from_warm_starts_too() -> None:
    problem = lr.LowerLevelProblem(Identity((1, 6, 5)), FieldsOfExperts(4, 3).double())
    generator = torch.Generator().manual_seed(0)
    x_true, b = (torch.rand(2, 1, 6, 5, generator=generator, dtype=torch.float64) for _ in range(2))

    def steep(x: torch.Tensor) -> torch.Tensor:
        return 100.0 * ((x - x_true) ** 2).sum()

    frozen, loss = problem.frozen(), lr.UpperLoss(steep, gradient_lipschitz=1.0)
    for start in (None, lr.Start(b, torch.zeros_like(b))):
        with pytest.raises(lr.ConfigError, match="gradient_lipschitz"):
            evaluate_batch(frozen, b, loss, lr.Implicit(), start, Accuracy())
