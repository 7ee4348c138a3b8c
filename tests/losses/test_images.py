"""Losses of images against a ground truth: values in closed form, constants, and the same loss times a number."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import learnreg as lr
from learnreg.losses import LOSSES

GENERATOR = torch.Generator().manual_seed(2)
TRUTH = torch.rand(3, 1, 4, 5, generator=GENERATOR, dtype=torch.float64)
X = TRUTH + 0.05 * torch.randn(TRUTH.shape, generator=GENERATOR, dtype=torch.float64)

EXPECTED: dict[str, Callable[[float], float]] = {
    "squared": lambda d: 0.5 * d * d,
    "absolute": lambda d: math.hypot(d, 0.01) - 0.01,
}
MADE = {
    **{name: LOSSES[name] for name in LOSSES},
    "times 7": lambda x_true: lr.AbsoluteError(x_true, 0.1).scaled(7.0),
    "squared times .1": lambda x_true: lr.SquaredError(x_true).scaled(0.1),
    "a function times 3": lambda x_true: lr.UpperLoss(
        lambda x: (x - x_true).square().flatten(1).sum(1), gradient_lipschitz=2.0, independent=True
    ).scaled(3.0),
}


@pytest.mark.parametrize("name", LOSSES)
def test_values_in_closed_form(name: str) -> None:
    expected = sum(EXPECTED[name](d) for d in (X - TRUTH).flatten().tolist()) / 3
    assert float(LOSSES[name](TRUTH).value(X)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", MADE)
def test_gradients_and_their_constant(name: str) -> None:
    loss = MADE[name](TRUTH)
    x = X.clone().requires_grad_()
    (exact,) = torch.autograd.grad(loss.value(x), x)
    torch.testing.assert_close(loss.gradient(X), exact, rtol=1e-12, atol=1e-14)
    assert loss.gradient_lipschitz is not None
    fastest = 0.0
    for size in (1e-4, 1e-2, 1.0):
        for start in (X, TRUTH):
            move = size * torch.randn(X.shape, generator=GENERATOR, dtype=torch.float64)
            change = 3.0 * (loss.gradient(start + move) - loss.gradient(start))
            speeds = change.flatten(1).norm(dim=1) / move.flatten(1).norm(dim=1)
            fastest = max(fastest, float(speeds.max()) / loss.gradient_lipschitz)
    assert 0.9 < fastest <= 1.0 + 1e-9
    loss.examine(X)


@pytest.mark.parametrize("name", MADE)
def test_intervals_contain_the_loss_nearby(name: str) -> None:
    loss, error = MADE[name](TRUTH), torch.tensor([0.0, 0.1, 1.0], dtype=torch.float64)
    low, high = loss.interval(X, error)
    for _ in range(20):
        move = torch.randn(X.shape, generator=GENERATOR, dtype=torch.float64)
        move = move / move.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * error.view(-1, 1, 1, 1)
        assert low <= float(loss.value(X + move)) <= high
    still = loss.interval(X, torch.zeros(3, dtype=torch.float64))
    assert still == pytest.approx((float(loss.value(X)),) * 2, rel=1e-10)


@pytest.mark.parametrize("name", MADE)
def test_parts_are_the_losses_of_their_samples(name: str) -> None:
    loss, index = MADE[name](TRUTH), torch.tensor([2, 0])
    part = loss.part(index, 3)
    assert float(part.value(X[index])) == pytest.approx(float(MADE[name](TRUTH[index]).value(X[index])), rel=1e-12)


@pytest.mark.parametrize("loss", [lr.AbsoluteError, lambda x_true: lr.AbsoluteError(x_true, 1e-3).scaled(5.0)])
def test_hypergradients_of_absolute_errors_are_certified(loss: Callable[[Tensor], lr.UpperLoss]) -> None:
    generator = torch.Generator().manual_seed(0)
    problem = lr.LowerLevelProblem(
        lr.operators.Identity((1, 4, 5)),
        lr.regularizers.FieldsOfExperts(2, 3, lr.PseudoHuber(0.05, 0.1), generator=generator).double(),
    )
    close = lr.hypergradient(problem, X, loss(TRUTH), tolerance=1e-6)
    rough = lr.hypergradient(problem, X, loss(TRUTH), tolerance=1e-1)
    assert close.certified
    assert rough.certified
    error = sum(float((rough.gradient[n] - g).square().sum()) for n, g in close.gradient.items()) ** 0.5
    assert error <= rough.error_bound + close.error_bound
    low, high = rough.loss_interval
    assert low <= close.loss <= high


def test_shapes_and_smoothings_that_do_not_fit_are_named() -> None:
    with pytest.raises(lr.ShapeError, match="AbsoluteError"):
        lr.AbsoluteError(TRUTH).value(X[:2])
    for smoothing in (0.0, -1.0, math.nan):
        with pytest.raises(lr.ConfigError, match="smoothing"):
            lr.AbsoluteError(TRUTH, smoothing)
