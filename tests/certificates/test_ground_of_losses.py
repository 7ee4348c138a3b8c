"""What certificates take of a loss is checked: its constant, its precision, that samples are independent."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import registry
import torch
from torch import Tensor, nn

import learnreg as lr
from learnreg.linear.operator import LinearOperator
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts

SHAPE = (1, 5, 6)


def experts() -> FieldsOfExperts:
    return FieldsOfExperts(3, 3, generator=torch.Generator().manual_seed(1)).double()


def problem_with(operator: LinearOperator, **options: Any) -> tuple[lr.LowerLevelProblem, Tensor, lr.SquaredError]:
    problem = lr.LowerLevelProblem(operator, experts(), ridge=0.1, **options)
    b = registry.rand(2, *operator.range_shape, seed=3)
    return problem, b, lr.SquaredError(registry.rand(2, *operator.domain_shape, seed=4))


def learned(*shape: int) -> nn.Parameter:
    return nn.Parameter(registry.rand(*shape, seed=7) / math.prod(shape))


def test_samples_that_a_loss_couples_only_elsewhere() -> None:
    """No coupling at x, some at the solution: components of 1-Lipschitz gradients."""
    x = torch.zeros(2, *SHAPE, dtype=torch.float64)
    size = math.sqrt(x.numel())

    def coupled(z: Tensor) -> Tensor:
        return (0.5 * torch.relu((z.sum() - 1e-3) / size) ** 2).expand(2)

    loss, error = lr.UpperLoss(coupled, 1.0), torch.full((2,), 0.3, dtype=torch.float64)
    low, high = loss.interval(x, error)
    worst = x + 0.3 / math.sqrt(x[0].numel())
    assert low <= float(loss.value(worst)) <= high
    change = loss.gradient(worst) - loss.gradient(x)
    assert bool((change.flatten(1).norm(dim=1) <= loss.gradient_change(x, error)).all())
    with pytest.raises(lr.ConfigError, match="another sample"):
        lr.UpperLoss(coupled, 1.0, independent=True).examine(worst)


class InNumPy(torch.autograd.Function):
    """½ sum x² in float32, where no torch function shows it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(0.5 * x.numpy().astype("float32") ** 2).double().flatten(1).sum(1)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.from_numpy(x.numpy().astype("float32")).double() * grad[0][:, None, None, None]


def in_autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        flat = x.flatten(1).float()
        return 0.5 * (flat[:, None] @ flat[:, :, None]).flatten().double()


IMPRECISE: dict[str, Callable[[Tensor], Tensor]] = {
    "cast inside": lambda x: 0.5 * (x.float() ** 2).flatten(1).sum(1).double(),
    "cast result": lambda x: 0.5 * (x**2).flatten(1).sum(1).float(),
    "scalar": lambda x: 0.5 * (x.to(torch.float32) ** 2).sum() / 2,
    "half": lambda x: 0.5 * (x.bfloat16().double() ** 2).flatten(1).sum(1),
    "module": lambda x: nn.Flatten()(0.5 * x.float() ** 2).sum(1),
    "autocast": in_autocast,
    "numpy": lambda x: InNumPy.apply(x),  # type: ignore[no-untyped-call]
}


@pytest.mark.parametrize("name", IMPRECISE)
def test_losses_in_less_than_double_precision_are_not_certified(name: str) -> None:
    problem, b, _ = problem_with(Identity(SHAPE))
    found = lr.hypergradient(problem, b, lr.UpperLoss(IMPRECISE[name], 1.0), tolerance=1e-2)
    assert not found.certified
    assert "computes in torch." in found.reason


@pytest.mark.parametrize(
    "function",
    [lambda x: (x * (1 / 3)).flatten(1).sum(1), lambda x: torch.ones(2), lambda x: 0.5 * (x**2).flatten(1).sum(1)],
)
def test_losses_in_double_precision_are_certified(function: Callable[[Tensor], Tensor]) -> None:
    problem, b, _ = problem_with(Identity(SHAPE))
    assert lr.hypergradient(problem, b, lr.UpperLoss(function, 1.0), tolerance=1e-2).certified


FAST: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "square": (lambda x: 0.5 * (x**2).flatten(1).sum(1), 0.5),
    "sharp root": (lambda x: ((x - 0.1) ** 2 + 1e-4).sqrt().flatten(1).sum(1), 50.0),
    "fourth power": (lambda x: (x**4).flatten(1).sum(1), 12.0),
    "one direction": (lambda x: 50.0 * x[:, 0, 0, 0] ** 2, 50.0),
    "kink": (lambda x: 0.5 * torch.relu(x - 0.2).square().flatten(1).sum(1), 0.5),
}


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("independent", [True, False])
def test_constants_that_are_100_times_too_small_are_refused(name: str, independent: bool) -> None:
    function, constant = FAST[name]
    problem, b, _ = problem_with(Identity(SHAPE))
    loss = lr.UpperLoss(function, 0.01 * constant, independent=independent)
    for attempt in (lambda: lr.hypergradient(problem, b, loss), lambda: lr.certify(problem, b, loss, b)):
        with pytest.raises(lr.ConfigError, match=r"gradient_lipschitz=.*pass a constant"):
            attempt()


def test_a_function_is_no_loss() -> None:
    problem, b, _ = problem_with(Identity(SHAPE))
    with pytest.raises(lr.ConfigError, match=r"lr.UpperLoss\(function"):
        lr.hypergradient(problem, b, lambda x: x.sum())  # type: ignore[arg-type]


def test_intervals_of_losses_of_any_size() -> None:
    x, error = registry.rand(2, *SHAPE), torch.full((2,), 0.1, dtype=torch.float64)
    tiny = lr.UpperLoss(lambda x: 1e-200 * x.flatten(1).sum(1), 0.0)
    low, high = tiny.interval(x, error)
    moved = x + 0.1 / math.sqrt(x[0].numel())
    assert low <= float(tiny.value(moved)) <= high
    huge = lr.UpperLoss(lambda x: (x**2).flatten(1).sum(1), 2.0)
    assert huge.interval(1e160 * x, error) == (-math.inf, math.inf)
