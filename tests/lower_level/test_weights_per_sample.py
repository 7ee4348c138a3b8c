"""Weights of its own for each sample of a batch: each sample as it would be alone."""

from __future__ import annotations

import pytest
import registry
import torch
from registry import SHAPE
from torch import nn
from truth.dense import distance, norm

import learnreg as lr
from learnreg.linear.operator import LinearOperator
from learnreg.operators import Blur, Identity, Inpainting

OPERATORS = {
    "denoising": lambda: Identity(SHAPE),
    "inpainting": lambda: Inpainting((registry.rand(*SHAPE) > 0.4).double()),
    "learned-blur": lambda: Blur(nn.Parameter(registry.rand(3, 3) / 4), SHAPE, "reflect"),
}
WEIGHTS = 0.1 + registry.rand(3, *SHAPE, seed=11)


def problem_of(operator: LinearOperator, weights: torch.Tensor) -> lr.LowerLevelProblem:
    R = registry.REGULARIZERS["FieldsOfExperts"]()
    return lr.LowerLevelProblem(operator, R, ridge=0.1, data_term=lr.WeightedLeastSquares(weights))


@pytest.mark.parametrize("regularizer", ["FieldsOfExperts", "InputConvexNetwork-lifted"])
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.sampled(share=0.5, by=("regularizer", "name"))
def test_each_sample_is_solved_and_certified_as_alone(name: str, regularizer: str) -> None:
    whole = problem_of(OPERATORS[name](), WEIGHTS)
    whole.regularizer = registry.REGULARIZERS[regularizer]()
    x_true, b = registry.measure(whole, 3)
    solution = lr.solve(whole, b, 1e-6)
    found = lr.hypergradient(whole, b, lr.SquaredError(x_true), tolerance=1e-4)
    assert solution.certified
    assert found.certified
    total: dict[str, torch.Tensor] = {}
    slack = 0.0
    for k in range(3):
        alone = problem_of(whole.operator, WEIGHTS[k])
        alone.regularizer = whole.regularizer
        own = lr.solve(alone, b[k : k + 1], 1e-6)
        apart = (own.x[0] - solution.x[k]).square().mean().sqrt()
        assert float(apart) <= float(own.error_bound[0] + solution.error_bound[k])
        torch.testing.assert_close(alone.energy(x_true[k : k + 1], b[k : k + 1])[0], whole.energy(x_true, b)[k])
        g = lr.hypergradient(alone, b[k : k + 1], lr.SquaredError(x_true[k : k + 1]), tolerance=1e-4)
        total = {n: total.get(n, 0.0) + v / 3 for n, v in g.gradient.items()}
        slack += g.error_bound / 3
    assert distance(found.gradient, total) <= found.error_bound + slack
    assert norm(total) > 0


def test_they_reach_the_layer_and_every_part_of_a_large_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learnreg.lower_level.instance._PART_BYTES", 1)
    whole = problem_of(OPERATORS["learned-blur"](), WEIGHTS)
    x_true, b = registry.measure(whole, 3)
    loss = lr.SquaredError(x_true)
    (loss.value(lr.solution_layer(whole, tolerance=1e-8)(b))).backward()
    found = lr.hypergradient(whole, b, loss, tolerance=1e-6)
    for name, p in whole.learnable().items():
        assert p.grad is not None
        torch.testing.assert_close(p.grad, found.gradient[name], rtol=1e-5, atol=1e-8)


def test_what_is_refused() -> None:
    whole = problem_of(OPERATORS["denoising"](), WEIGHTS)
    with pytest.raises(lr.ShapeError, match="weights for 3 samples, but b has 2"):
        lr.solve(whole, registry.rand(2, *SHAPE))
    with pytest.raises(lr.ShapeError, match="cannot be learned"):
        problem_of(OPERATORS["denoising"](), nn.Parameter(WEIGHTS))
    with pytest.raises(lr.ShapeError, match="do not broadcast"):
        problem_of(OPERATORS["denoising"](), registry.rand(3, 2, 5, 6))
    assert lr.solve(problem_of(OPERATORS["denoising"](), WEIGHTS[:1]), registry.rand(2, *SHAPE), 1e-3).certified
