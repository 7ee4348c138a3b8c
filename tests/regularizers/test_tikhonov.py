"""Generalised Tikhonov regularization against its closed form: solution, adjoint state and hypergradient are linear
systems."""

from __future__ import annotations

import pytest
import registry
import torch
from registry import SHAPE
from truth.dense import distance, norm, truth_of

import learnreg as lr
from learnreg.linear.norms import dense_matrix
from learnreg.models.model import describe_regularizer
from learnreg.operators import Blur
from learnreg.regularizers import GeneralisedTikhonov


def problem() -> lr.LowerLevelProblem:
    R = registry.REGULARIZERS["GeneralisedTikhonov"]()
    return lr.LowerLevelProblem(Blur(registry.rand(3, 3) / 9, SHAPE), R, ridge=0.2)


@pytest.mark.parametrize("method", [lr.Implicit(), lr.Piggyback()])
def test_hypergradient_is_that_of_the_closed_form_and_of_the_dense_truth(method: object) -> None:
    tikhonov = problem()
    x_true, b = registry.measure(tikhonov)
    result = lr.hypergradient(tikhonov, b, lr.SquaredError(x_true), method=method, tolerance=1e-8)  # type: ignore[arg-type]
    assert result.certified
    W, A = (dense_matrix(op, SHAPE) for op in (tikhonov.saddle_terms(torch.float64).operator, tikhonov.operator))
    assert W.requires_grad
    R = tikhonov.regularizer
    assert isinstance(R, GeneralisedTikhonov)
    l = R.weights.repeat_interleave(SHAPE[1] * SHAPE[2])
    x = torch.linalg.solve(
        A.T @ A + 0.2 * torch.eye(30, dtype=torch.float64) + W.T @ (l[:, None] * W), A.T @ b.flatten(1).T
    )
    loss = 0.5 * ((x.T - x_true.flatten(1)) ** 2).sum() / len(b)
    exact = dict(zip(result.gradient, torch.autograd.grad(loss, [R.filters, R.log_weights]), strict=True))
    truth = truth_of(tikhonov, b, lr.SquaredError(x_true))
    assert distance(truth.gradient, exact) <= 1e-10 * norm(exact)
    assert distance(result.gradient, exact) <= result.error_bound <= 1e-8 * norm(exact)


def test_nothing_stands_for_a_smoothing() -> None:
    R = GeneralisedTikhonov(3, 3)
    assert [name for name, _ in R.named_parameters()] == ["filters", "log_weights"]
    assert "minimum_smoothing" not in R.config()
    rebuilt = GeneralisedTikhonov.from_config(R.config())
    rebuilt.load_state_dict(R.state_dict())
    x = torch.rand(1, 1, 8, 9)
    assert torch.equal(rebuilt.value(x), R.value(x))
    assert describe_regularizer(R)["name"] == "tikhonov"
