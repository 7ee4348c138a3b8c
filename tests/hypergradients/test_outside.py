"""Hypergradients against other people's code: differentiable cone programs in the nonsmooth limit of total variation,
and scikit-learn's logistic regression with finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import learnreg as lr
from learnreg.operators import Identity
from learnreg.regularizers import TotalVariation


@pytest.mark.parametrize("seed", [0, 2])
def test_total_variation_tends_to_what_a_cone_program_says(seed: int) -> None:
    cp = pytest.importorskip("cvxpy")
    pytest.importorskip("diffcp")
    n, weight = 6, 0.06
    random = np.random.RandomState(seed)
    x_true = np.kron(random.rand(2, 2), np.ones((3, 3)))
    b = x_true + 0.1 * random.randn(n, n)
    factor, x = cp.Parameter(nonneg=True, value=weight), cp.Variable((n, n))
    down = cp.vstack([x[1:, :] - x[:-1, :], np.zeros((1, n))])
    right = cp.hstack([x[:, 1:] - x[:, :-1], np.zeros((n, 1))])
    both = cp.vstack([cp.vec(down, order="F"), cp.vec(right, order="F")])
    program = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x - b) + factor * cp.sum(cp.norm(both, 2, axis=0))))
    program.solve(requires_grad=True, eps=1e-10, max_iters=100000)
    x.gradient = x.value - x_true
    program.backward()
    expected = weight * float(factor.gradient)
    truth, data = (torch.tensor(v)[None, None] for v in (x_true, b))
    errors = []
    for smoothing in (1e-3, 1e-5):
        problem = lr.LowerLevelProblem(Identity((1, n, n)), TotalVariation(weight, smoothing).double())
        found = lr.hypergradient(problem, data, lr.SquaredError(truth), tolerance=1e-4)
        assert found.certified
        errors.append(abs(float(found.gradient["log_weight"]) - expected))
    assert errors[1] <= 1e-3 * abs(expected)
    assert errors[1] < 0.1 * errors[0]


def test_the_penalty_of_logistic_regression_against_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    random = np.random.RandomState(1)
    rows, held_out = random.randn(40, 5), random.randn(30, 5)
    truth = random.randn(5)
    labels, held_labels = ((a @ truth + random.randn(len(a)) > 0).astype(float) for a in (rows, held_out))
    data = {"train": (rows, labels), "test": (held_out, held_labels)}
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits

    def lower(x: Tensor, theta: Tensor, d: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        A, y = d["train"]
        return cross_entropy(A @ x, y, reduction="sum") + 0.5 * theta.exp() * x @ x

    def upper(x: Tensor, theta: Tensor, d: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        A, y = d["test"]
        return cross_entropy(A @ x, y)

    problem = lr.BilevelProblem(
        lower,
        upper,
        strong_convexity=lambda theta, _: theta.exp(),
        hessian_lipschitz=0.0963 * float((np.linalg.norm(rows, axis=1) ** 3).sum()),
        cross_lipschitz=lambda theta, _: theta.exp(),
        upper_gradient_lipschitz=0.2501 * np.linalg.norm(held_out, 2) ** 2 / 30,
    )
    tensors = {name: tuple(map(torch.from_numpy, pair)) for name, pair in data.items()}
    theta, start = torch.tensor(0.4, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    found = problem.hypergradient(theta, start, tensors, tolerance=1e-8)
    assert found.certified

    def fitted(log_penalty: float) -> np.ndarray:
        model = linear_model.LogisticRegression(
            C=math.exp(-log_penalty), fit_intercept=False, tol=1e-14, max_iter=10000, solver="newton-cholesky"
        )
        coefficients: np.ndarray = model.fit(rows, labels).coef_[0]
        return coefficients

    def loss(log_penalty: float) -> float:
        logits = held_out @ fitted(log_penalty)
        return float(np.mean(np.logaddexp(0.0, logits) - held_labels * logits))

    assert np.linalg.norm(found.x.numpy() - fitted(0.4)) <= 1e-7
    assert found.loss == pytest.approx(loss(0.4), abs=1e-9)
    assert float(found.gradient["theta"]) == pytest.approx((loss(0.41) - loss(0.39)) / 0.02, rel=1e-4)
