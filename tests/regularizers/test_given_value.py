"""Regularizers that say their value alone: solved, differentiated and trained by autograd; and sentences for what
cannot work."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import registry
import torch
from registry import SHAPE
from support.own_values import Declared, Network, problem_of
from support.training_pairs import Pairs
from torch import Tensor, nn
from torch.nn import functional as F
from truth.by_energy import truth_by_energy
from truth.dense import distance, norm

import learnreg as lr
from learnreg.linear.operator import LinearOperator
from learnreg.operators import Identity
from learnreg.regularizers import REGULARIZERS, Regularizer

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- nothing is declared ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operator", "solver"), [("denoising", "newton-cg"), ("inpainting", "lbfgs"), ("learned-blur", "auto")]
)
def test_solution_and_gradient_are_estimated_and_right(operator: str, solver: Any) -> None:
    problem = problem_of(Network(), operator)
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    solution = lr.solve(problem, b, 1e-7, solver=solver)
    assert (solution.status, solution.bound_kind, solution.certified) == (lr.Status.ESTIMATED, "estimate", False)
    assert "Network declares neither convex = True nor a modulus" in solution.reason
    truth = truth_by_energy(problem, b, loss, solution.x)
    assert float((solution.x - truth.x).square().mean().sqrt()) <= 1e-7
    found = lr.hypergradient(problem, b, loss, tolerance=1e-5)
    assert (found.status, found.bound_kind, found.certified) == (lr.Status.ESTIMATED, "estimate", False)
    assert distance(found.gradient, truth.gradient) <= 1e-5 * norm(truth.gradient)
    assert set(found.gradient) == set(problem.learnable())


def test_float32_data_and_a_network_in_float32_are_judged_in_float64() -> None:
    problem = problem_of(Network())
    x_true, b = (t.float() for t in registry.measure(problem))
    solution = lr.solve(problem, b, 1e-6)
    x = solution.x.double().requires_grad_()
    (slope,) = torch.autograd.grad(problem.energy(x, b.double()).sum(), x)
    assert solution.status is lr.Status.ESTIMATED
    assert float(slope.square().mean().sqrt()) <= 2e-6
    assert all(p.dtype == torch.float32 for p in problem.parameters())
    assert lr.hypergradient(problem, b, lr.SquaredError(x_true)).status is lr.Status.ESTIMATED


def test_the_layer_differentiates_through_it() -> None:
    problem = problem_of(Network().double())
    x_true, b = registry.measure(problem)
    x = lr.solution_layer(problem, tolerance=1e-9)(b)
    (0.5 * (x - x_true).square().sum() / len(b)).backward()
    expected = lr.hypergradient(problem, b, lr.SquaredError(x_true), tolerance=1e-7).gradient
    for name, p in problem.regularizer.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-5, atol=1e-9)


def test_a_frozen_problem_keeps_the_parameters_it_was_frozen_at() -> None:
    problem = problem_of(Network())
    _, b = registry.measure(problem)
    frozen, before = problem.frozen(), lr.solve(problem, b, 1e-7).x
    with torch.no_grad():
        for p in problem.regularizer.parameters():
            p.mul_(3.0)
    assert torch.allclose(lr.solve(frozen, b, 1e-7).x, before, atol=1e-6)
    assert not torch.allclose(lr.solve(problem, b, 1e-7).x, before, atol=1e-3)


def test_it_is_trained_stored_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGULARIZERS, "tests/network", Network)
    R = Network(features=3)
    before = R.first.weight.detach().clone()
    problem = lr.LowerLevelProblem(Identity((1, 8, 8)), R)
    lr.train(problem, Pairs(), out=tmp_path, minutes=1.0, batch_size=4, updates=2)
    assert not torch.equal(R.first.weight, before)
    x = registry.rand(2, 1, 8, 8)
    assert torch.equal(lr.load(tmp_path).regularizer.value(x), R.value(x))


@pytest.mark.parametrize("make", [Network, Declared], ids=["network", "declared"])
def test_it_passes_the_checks(make: type[Regularizer]) -> None:
    report = lr.testing.check_regularizer(make(), SHAPE)
    assert ("not checked" in report["convexity"].measures) == (make is Network)


# ---- energies without a minimum --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bend", [-1.0, -0.8], ids=["concave", "saddle"])
def test_an_energy_that_curves_downwards_says_so(bend: float) -> None:
    class Concave(Regularizer):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(1.0))

        def value(self, x: Tensor) -> Tensor:
            differences = x[..., 1:] - x[..., :-1]
            return bend * self.weight * (x.square().sum((1, 2, 3)) + differences.square().sum((1, 2, 3)))

    problem = lr.LowerLevelProblem(Identity(SHAPE), Concave())
    x_true, b = registry.measure(problem)
    solution = lr.solve(problem, b, 1e-4)
    assert solution.status is lr.Status.INDEFINITE
    assert bool(torch.isinf(solution.error_bound).all())
    found = lr.hypergradient(problem, b, lr.SquaredError(x_true))
    assert (found.status, found.bound_kind) == (lr.Status.INDEFINITE, "none")
    with pytest.raises(lr.SolverError, match="curves downwards"):
        lr.solution_layer(problem)(b).sum().backward()


# ---- sentences -------------------------------------------------------------------------------------------------------


def _value(function: Any) -> Regularizer:
    class Own(Regularizer):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.5))
            self.norm = nn.BatchNorm2d(1, affine=False, track_running_stats=False)
            self.drop = nn.Dropout()

        def value(self, x: Tensor) -> Tensor:
            result: Tensor = function(self, x)
            return result

    return Own()


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "one number": (lambda s, x: x.square().sum(), lr.ShapeError, r"returned \(\) .*expected \(2,\)"),
    "an image": (lambda s, x: x.square(), lr.ShapeError, "sum over all axes but the first"),
    "a float": (lambda s, x: 0.0, lr.ShapeError, "returned float"),
    "detached": (lambda s, x: x.detach().square().sum((1, 2, 3)), lr.ConfigError, "cut off from autograd"),
    "numpy": (lambda s, x: torch.from_numpy(x.detach().numpy() ** 2).sum((1, 2, 3)), lr.ConfigError, "cut off"),
    "parameter detached": (
        lambda s, x: s.weight.detach() * x.square().sum((1, 2, 3)), lr.ConfigError, "depends on weight, but autograd",
    ),
    "batch": (lambda s, x: s.norm(x).pow(4).sum((1, 2, 3)), lr.ConfigError, "depends on other samples"),
    "random": (lambda s, x: s.drop(x.square()).sum((1, 2, 3)), lr.ConfigError, "two calls differ"),
    "relu": (lambda s, x: s.weight * torch.relu(x).sum((1, 2, 3)), lr.ConfigError, "piecewise linear"),
    "norm": (lambda s, x: s.weight * x.flatten(1).square().sum(1).sqrt(), lr.ConfigError, "smooth roots"),
    "infinite": (lambda s, x: s.weight * x.sum((1, 2, 3)).log(), lr.ConfigError, "NaN or infinite"),
    "other dtype": (
        lambda s, x: F.conv2d(x, torch.ones(1, 1, 3, 3)).square().sum((1, 2, 3)), lr.ConfigError, "dtype of x",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_work_is_said(name: str) -> None:
    function, error, words = WRONG[name]
    problem = lr.LowerLevelProblem(Identity(SHAPE), _value(function))
    with pytest.raises(error, match=words):
        lr.solve(problem, registry.rand(2, *SHAPE).float(), 1e-3)


def test_what_is_no_regularizer_is_said() -> None:
    with pytest.raises(lr.ConfigError, match=r"subclass lr.Regularizer instead of nn.Module, and define value"):
        lr.LowerLevelProblem(Identity(SHAPE), nn.Conv2d(1, 1, 3))  # type: ignore[arg-type]
    with pytest.raises(lr.ConfigError, match=r"got Softplus, expected a potential such as lr.PseudoHuber"):
        lr.regularizers.AnalysisOperator(Identity(SHAPE), nn.Softplus())  # type: ignore[arg-type]
    with pytest.raises(lr.ConfigError, match=r"got Conv2d, expected a LinearOperator"):
        lr.regularizers.AnalysisOperator(nn.Conv2d(1, 1, 3), lr.Huber(0.1))  # type: ignore[arg-type]

    class Nothing(Regularizer):
        pass

    class Forward(Regularizer):
        def forward(self, x: Tensor) -> Tensor:
            return x.square().sum((1, 2, 3))

    for kind, words in ((Nothing, r"define value\(self, x\)"), (Forward, "Its forward is not asked: call it value")):
        with pytest.raises(lr.ConfigError, match=words):
            lr.solve(lr.LowerLevelProblem(Identity(SHAPE), kind()), registry.rand(1, *SHAPE))


def test_a_declaration_that_contradicts_itself_is_refused() -> None:
    class Both(Network):
        convex = True
        modulus = -0.1

    class Infinite(Network):
        gradient_lipschitz = math.inf

    for kind, words in ((Both, "contradict each other"), (Infinite, "expected a finite number")):
        with pytest.raises(lr.ConfigError, match=words):
            lr.solve(lr.LowerLevelProblem(Identity(SHAPE), kind()), registry.rand(1, *SHAPE))


def test_without_parameters_there_is_nothing_to_train() -> None:
    class Fixed(Regularizer):
        def value(self, x: Tensor) -> Tensor:
            return x.square().sum((1, 2, 3))

    problem = lr.LowerLevelProblem(Identity((1, 8, 8)), Fixed())
    assert lr.solve(problem, registry.rand(1, 1, 8, 8), 1e-4).status is lr.Status.ESTIMATED
    with pytest.raises(lr.ConfigError, match="modules in a plain list are not seen"):
        lr.train(problem, Pairs(), minutes=0.1)


# ---- images of other shapes ------------------------------------------------------------------------------------------


class Differences(LinearOperator):
    """Forward differences along all axes but that of the channels: a W of one's own for colour and volumes."""

    def __init__(self, domain_shape: tuple[int, ...]) -> None:
        super().__init__(domain_shape, (len(domain_shape) - 1, *domain_shape))

    def forward(self, x: Tensor) -> Tensor:
        parts = [x.roll(-1, axis) - x for axis in range(2, x.dim())]
        return torch.stack(parts, 1)

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.stack([p.roll(1, k + 2) - p for k, p in enumerate(y.unbind(1))]).sum(0)


@pytest.mark.parametrize("shape", [(3, 5, 6), (2, 4, 4), (1, 3, 4, 5), (1, 12)], ids=str)
def test_other_images_are_certified_with_an_operator_of_your_own(shape: tuple[int, ...]) -> None:
    operator = Identity(shape)
    with pytest.raises(lr.ShapeError, match=r"expected \(1, height, width\).*AnalysisOperator\(W, potential\)"):
        lr.solve(lr.LowerLevelProblem(operator, lr.regularizers.TotalVariation()), registry.rand(2, *shape))
    R = lr.regularizers.AnalysisOperator(Differences(shape), lr.PseudoHuber(0.1, 0.2)).double()
    problem = lr.LowerLevelProblem(operator, R)
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    found = lr.hypergradient(problem, b, loss, tolerance=1e-3)
    truth = truth_by_energy(problem, b, loss, b)
    assert found.certified
    assert distance(found.gradient, truth.gradient) <= found.error_bound <= 1e-3 * found.norm
