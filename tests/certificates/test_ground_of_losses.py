"""What certificates take of a loss is checked: its constant, its precision, that samples are independent."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import registry
import torch
from support.tested_problems import SHAPE, problem_with
from torch import Tensor, nn

import learnreg as lr
from learnreg.operators import Identity


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


NETWORK = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 3))
for number, parameter in enumerate(NETWORK.parameters()):
    parameter.data = 0.3 * registry.randn(*parameter.shape, seed=number).float()
TARGET = registry.rand(2, *SHAPE, seed=5)


def perceptual(z: Tensor) -> Tensor:
    """As LPIPS: distances of the features of a network in float32."""
    return (NETWORK(z) - NETWORK(TARGET.float())).square().flatten(1).mean(1)


def windowed(z: Tensor) -> Tensor:
    """As SSIM by conv2d, whose window is a tensor in float32."""
    window = torch.full((1, 1, 3, 3), 1 / 9)
    return (nn.functional.conv2d(z, window) - nn.functional.conv2d(TARGET.float(), window)).square().mean()


class Perceptual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = NETWORK

    def forward(self, z: Tensor) -> Tensor:
        return perceptual(z)


class Picky:
    """As libraries that look at the dtype."""

    def __call__(self, z: Tensor) -> Tensor:
        if z.dtype != torch.float32:
            raise TypeError(f"expected float32, got {z.dtype}")
        return perceptual(z)


IN_SINGLE: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "function": lambda: perceptual,
    "window": lambda: windowed,
    "module": Perceptual,
    "bound method": lambda: Perceptual().forward,
    "partial": lambda: partial(perceptual),
    "closure": lambda: lambda z: 2.0 * perceptual(z),
    "object": Picky,
    "cast by itself": lambda: lambda z: perceptual(z.float()),
}


@pytest.mark.parametrize("name", IN_SINGLE)
@pytest.mark.parametrize(("dtype", "constant"), [(torch.float32, None), (torch.float64, 1e3)])
@pytest.mark.sampled(share=0.34, by=("name",))
def test_networks_in_float32_are_losses_with_estimates(name: str, dtype: torch.dtype, constant: float | None) -> None:
    problem, b, _ = problem_with(Identity(SHAPE))
    function = IN_SINGLE[name]()
    found = lr.hypergradient(problem, b.to(dtype), lr.UpperLoss(function, constant), tolerance=1e-3)
    assert found.bound_kind == "estimate"
    assert not found.certified
    assert found.loss_interval == (-math.inf, math.inf)
    exact = lr.UpperLoss(lambda z: function(z.float()).double())
    expected = lr.hypergradient(problem, b, exact, tolerance=1e-4)
    distance = sum(float((g - expected.gradient[k]).square().sum()) for k, g in found.gradient.items())
    assert math.sqrt(distance) <= 2e-3 * expected.norm


def test_networks_in_float64_are_certified_at_float32_data() -> None:
    problem, b, _ = problem_with(Identity(SHAPE))
    network = copy.deepcopy(NETWORK).double()
    loss = lr.UpperLoss(lambda z: (network(z) - network(TARGET)).square().flatten(1).mean(1), 1e3)
    assert lr.hypergradient(problem, b.float(), loss, tolerance=1e-2).certified


def test_values_of_losses_in_float32_are_not_certified() -> None:
    problem, b, _ = problem_with(Identity(SHAPE))
    for function, certified in ((perceptual, False), (lambda z: 0.5 * z.square().flatten(1).sum(1), True)):
        objective = lr.BatchObjective(problem, b, lr.UpperLoss(function, 1e3))
        assert objective.value(1e-2).certified is certified
        assert not lr.AdaptiveDescent().step(objective).certified or certified


def test_a_declared_dtype_and_errors_of_the_function_itself() -> None:
    problem, b, _ = problem_with(Identity(SHAPE))
    seen = []
    loss = lr.UpperLoss(lambda z: seen.append(z.dtype) or z.square().sum(), 2.0, dtype=torch.bfloat16)
    found = lr.hypergradient(problem, b, loss, tolerance=0.1)
    assert set(seen) == {torch.bfloat16}
    assert found.reason.startswith("the upper-level loss computes in torch.bfloat16")
    for error in (ValueError("mine"), RuntimeError("mine")):
        with pytest.raises(type(error), match="mine"):
            lr.hypergradient(problem, b, lr.UpperLoss(partial(fail, error)))
    with pytest.raises(lr.ConfigError, match=r"UpperLoss\(dtype=torch.int64\)"):
        lr.UpperLoss(perceptual, dtype=torch.int64)
    for wrong, advice in ((lr.SquaredError(b), "as it is"), (b, "SquaredError"), (None, "expected a function of x")):
        with pytest.raises(lr.ConfigError, match=advice):
            lr.UpperLoss(wrong)  # type: ignore[arg-type]


def fail(error: Exception, z: Tensor) -> Tensor:
    raise error


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
