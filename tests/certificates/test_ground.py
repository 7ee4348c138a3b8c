"""What certificates rest on is checked or known: weights, grad modes, reparametrized and changed modules, losses and
operators of one's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import registry
import torch
from support.tested_problems import SHAPE, experts, learned, problem_with
from torch import Tensor, nn
from torch.nn.utils import parametrize
from truth import dense as dense_truth

import learnreg as lr
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.linear.operator import LinearOperator
from learnreg.operators import Blur, Identity, Inpainting, from_callables
from learnreg.regularizers import AnalysisOperator

# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-1e-12, -0.05, -0.0999, -0.2])
def test_negative_weights_are_refused(value: float) -> None:
    data_term = lr.WeightedLeastSquares(nn.Parameter(torch.ones(SHAPE, dtype=torch.float64)))
    problem, b, loss = problem_with(Inpainting(torch.ones(SHAPE).double()), data_term=data_term)
    with torch.no_grad():
        data_term.weights[0, 1, 2] = value
    for attempt in (
        lambda: lr.hypergradient(problem, b, loss),
        lambda: lr.certify(problem, b, loss, b),
        lambda: lr.solve(problem, b),
        lambda: problem.strong_convexity,
    ):
        with pytest.raises(lr.AssumptionError, match="project_"):
            attempt()
    problem.project_()
    assert lr.hypergradient(problem, b, loss).certified


# ---- grad modes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regularizer", ["FieldsOfExperts", "TotalVariation", "RidgeRegularizer", "InputConvexNetwork"])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_derivatives_are_the_same_in_every_grad_mode(regularizer: str, mode: Callable[[], Any]) -> None:
    problem = lr.LowerLevelProblem(Identity(registry.SHAPE), registry.REGULARIZERS[regularizer]())
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    expected = lr.hypergradient(problem, b, loss, tolerance=1e-3)
    with mode():
        found = lr.hypergradient(problem, b.clone(), loss, tolerance=1e-3)
        judged = lr.certify(problem, b.clone(), loss, found.x)
        step = lr.AdaptiveDescent().step(lr.BatchObjective(problem, b, loss))
    for name, gradient in expected.gradient.items():
        torch.testing.assert_close(found.gradient[name], gradient, rtol=1e-12, atol=1e-14)
    assert found.certified
    assert dense_truth.distance(judged.gradient, found.gradient) <= judged.gradient_error_bound + found.error_bound
    assert step.accepted
    assert not step.stationary


def test_what_was_made_in_inference_mode_works_outside() -> None:
    with torch.inference_mode():
        regularizer, b = experts(), registry.rand(2, *SHAPE, seed=3)
    loss = lr.UpperLoss(lambda x: 0.5 * ((x - 0.1) ** 2).flatten(1).sum(1), 1.0)
    found = lr.hypergradient(lr.LowerLevelProblem(Identity(SHAPE), regularizer), b, loss)
    expected = lr.hypergradient(lr.LowerLevelProblem(Identity(SHAPE), experts()), b.clone(), loss)
    assert found.certified
    assert dense_truth.distance(found.gradient, expected.gradient) <= 1e-14


# ---- reparametrized modules ------------------------------------------------------------------------------------------


class Times(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1e6 * x

    def right_inverse(self, x: Tensor) -> Tensor:
        return x / 1e6


def parametrized(module: Any, name: str) -> Any:
    return parametrize.register_parametrization(module, name, Times())


def hooked(module: Any, name: str) -> Any:
    module.register_forward_hook(lambda module, inputs, output: output)
    return module


def weight_norm(module: Any, name: str) -> Any:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return torch.nn.utils.weight_norm(module, name)


@pytest.mark.parametrize("change", [parametrized, hooked, weight_norm, torch.nn.utils.parametrizations.weight_norm])
@pytest.mark.parametrize("place", ["forward", "analysis", "weights", "composed"])
def test_parameters_of_parameters_are_not_certified(place: str, change: Callable[[Any, str], Any]) -> None:
    """Neither where torch's parametrizations stand between a parameter and what it does, nor where hooks may."""
    if place == "weights":
        data_term = change(lr.WeightedLeastSquares(learned(*SHAPE)), "weights")
        problem, b, loss = problem_with(Identity(SHAPE), data_term=data_term)
    else:
        blur = change(Blur(learned(3, 3), SHAPE), "kernel")
        operator = {"forward": blur, "composed": 2.0 * blur}.get(place, Identity(SHAPE))
        problem, b, loss = problem_with(operator)
        if place == "analysis":
            problem = lr.LowerLevelProblem(operator, AnalysisOperator(blur, lr.PseudoHuber(0.1, 0.1)).double())
    found = lr.hypergradient(problem, b, loss)
    assert not found.certified
    assert "computed from other parameters" in found.reason or "parameter_roles" in found.reason
    assert found.bound_kind == "estimate"


@pytest.mark.parametrize("places", ["regularizer", "operator and regularizer", "ridge and operator"])
def test_parameters_in_several_places_count_once(places: str) -> None:
    kernel = learned(3, 3)
    if places == "operator and regularizer":
        analysis = AnalysisOperator(Blur(kernel, SHAPE), lr.PseudoHuber(0.1, 0.1)).double()
        problem, names = lr.LowerLevelProblem(Blur(kernel, SHAPE), analysis, ridge=0.1), {"operator.kernel"}
    elif places == "regularizer":
        regularizer = experts()
        regularizer.log_smoothing = regularizer.log_weights
        problem, names = lr.LowerLevelProblem(Identity(SHAPE), regularizer), {"log_smoothing", "log_weights"}
    else:
        number = nn.Parameter(torch.tensor([[0.1]], dtype=torch.float64))
        problem = lr.LowerLevelProblem(Blur(number, SHAPE), experts(), ridge=number)
        names = {"ridge"}
    b = registry.rand(2, *SHAPE, seed=3)
    loss = lr.SquaredError(registry.rand(2, *SHAPE, seed=4))
    found = lr.hypergradient(problem, b, loss, tolerance=1e-6)
    expected = dense_truth.truth_of(problem, b, loss)
    assert len({id(p) for p in problem.learnable().values()}) == len(found.gradient)
    assert dense_truth.distance(found.gradient, expected.gradient) <= 1e-5 * found.norm
    assert not found.certified
    assert "several places" in found.reason
    assert any(name in found.reason for name in names)


# ---- units and extremes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-10, 1e-6, 1e6, 1e10])
def test_descent_in_any_units(scale: float) -> None:
    losses = []
    for unit in (1.0, scale):
        regularizer = experts()
        with torch.no_grad():
            regularizer.log_weights.add_(math.log(unit))
            regularizer.log_smoothing.add_(math.log(unit))
        regularizer.filters.requires_grad_(False)
        problem = lr.LowerLevelProblem(Identity(SHAPE), regularizer)
        x = unit * registry.rand(2, *SHAPE, seed=5)
        objective = lr.BatchObjective(problem, x + 0.1 * unit * registry.randn(2, *SHAPE, seed=6), lr.SquaredError(x))
        descent = lr.AdaptiveDescent()
        steps = [descent.step(objective) for _ in range(4)]
        assert all(step.accepted and step.certified for step in steps)
        losses.append([step.loss / unit**2 for step in steps])
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)


def test_rejected_steps_go_on_from_the_smallest_size() -> None:
    x = registry.rand(2, *SHAPE, seed=5)
    objective = lr.BatchObjective(
        lr.LowerLevelProblem(Identity(SHAPE), experts()),
        x + 0.1 * registry.randn(2, *SHAPE, seed=6),
        lr.SquaredError(x),
    )
    descent = lr.AdaptiveDescent(first_step=1e9)
    steps = [descent.step(objective) for _ in range(8)]
    assert not steps[0].accepted
    assert any(step.accepted for step in steps)
    assert descent.tolerance >= 1e-9


@pytest.mark.parametrize("value", [400.0, 800.0, -800.0])
@pytest.mark.parametrize("method", [lr.Implicit(), lr.Piggyback(), lr.Piggyback(mode="interleaved")])
@pytest.mark.sampled(share=0.34, by=("value",))
def test_extreme_parameters_end_without_false_bounds(value: float, method: lr.Implicit) -> None:
    problem, b, loss = problem_with(Identity(SHAPE))
    with torch.no_grad():
        problem.regularizer.log_weights.fill_(value)
    for result in (lr.hypergradient(problem, b, loss, method), lr.solve(problem, b), lr.certify(problem, b, loss, b)):
        bound = torch.as_tensor(result.error_bound, dtype=torch.float64)
        assert bool(torch.isfinite(bound).all()) or not result.certified
        assert getattr(result, "status", None) is not lr.Status.CONVERGED or result.certified


@pytest.mark.parametrize(
    ("b", "what"),
    [
        (torch.zeros(0, *SHAPE), "empty batch"),
        (torch.zeros(2, *SHAPE, dtype=torch.float16), "float16, expected float32"),
        (torch.zeros(2, *SHAPE, dtype=torch.bfloat16), "bfloat16, expected float32"),
        (torch.zeros(2, *SHAPE).numpy(), "got ndarray, .*from_numpy"),
        (None, "got NoneType"),
    ],
)
def test_measurements_that_are_none_are_named(b: Any, what: str) -> None:
    problem, _, loss = problem_with(Identity(SHAPE))
    for attempt in (
        lambda: lr.solve(problem, b),
        lambda: lr.hypergradient(problem, b, loss),
        lambda: lr.solution_layer(problem)(b),
    ):
        with pytest.raises((lr.ShapeError, lr.DataError), match=what):
            attempt()


# ---- what changes without a trace ------------------------------------------------------------------------------------


class Matrix(LinearOperator):
    """A matrix in a buffer, or in an array that is no tensor."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__((matrix.shape[1],), (matrix.shape[0],))
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T.to(x.dtype)

    def adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix.to(y.dtype)


@pytest.mark.parametrize("rows", [7, 3000])
def test_norms_of_tensors_that_change_behind_torch(rows: int) -> None:
    operator = Matrix(registry.randn(rows, 64, seed=2))
    for _ in range(2):
        norm = float(torch.linalg.matrix_norm(operator.matrix, 2))
        assert norm <= operator.norm_bound() <= 1.5 * norm
        operator.matrix.data.mul_(1e3)
    filters = registry.rand(144, 1, 1, seed=8)
    for shape in ((144, 1, 1), (1, 12, 12)):
        bank = FilterBank(filters.reshape(shape), (1, 20, 21))
        assert bank.norm_bound() == pytest.approx(
            FilterBank(filters.reshape(shape).clone(), (1, 20, 21)).norm_bound(), rel=1e-12
        )


@pytest.mark.parametrize("change", ["norm", "adjoint", "eigenvalue"])
def test_closures_that_change_withdraw_the_bound(change: str) -> None:
    scale = {"forward": 1.0, "adjoint": 1.0}
    operator = from_callables(
        lambda x: scale["forward"] * x, lambda y: scale["adjoint"] * y, SHAPE, SHAPE, gram_lower_bound=0.9
    )
    problem, b, loss = problem_with(operator)
    assert lr.hypergradient(problem, b, loss).certified
    assert lr.solve(problem, b).certified
    if change == "norm":
        scale.update(forward=1e3, adjoint=1e3)
    elif change == "adjoint":
        scale.update(adjoint=1.01)
    else:
        scale.update(forward=0.5, adjoint=0.5)
    found, solved, judged = lr.hypergradient(problem, b, loss), lr.solve(problem, b), lr.certify(problem, b, loss, b)
    for result in (found, solved, judged):
        assert not result.certified
        assert "from_callables" in result.reason
        assert result.bound_kind == "estimate"


# ---- operators of one's own ------------------------------------------------------------------------------------------

_mixing = registry.randn(30, 30, seed=11)


def mixed(t: Tensor, matrix: Tensor) -> Tensor:
    return (t.flatten(1) @ matrix.to(t)).reshape(t.shape)


WRONG: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "adjoint 1.2 times": (lambda x: x, lambda y: 1.2 * y),
    "adjoint slightly off": (lambda x: x, lambda y: (1 + 1e-6) * y),
    "adjoint negative": (lambda x: x, lambda y: -y),
    "adjoint not transposed": (lambda x: mixed(x, _mixing), lambda y: mixed(y, _mixing)),
    "adjoint shifted": (lambda x: x.roll(1, -1), lambda y: y.roll(1, -1)),
    "adjoint flipped": (lambda x: x, lambda y: y.flip(-1)),
    "adjoint is zero": (lambda x: x, lambda y: 0 * y),
    "one pixel dropped": (lambda x: x, lambda y: y * (torch.arange(30).reshape(SHAPE) > 0)),
    "absolute value": (lambda x: x.abs(), lambda y: y),
    "clipping": (lambda x: x.clamp(-1e6, 1e6), lambda y: y),
    "clipping at 0": (lambda x: x.clamp(min=0), lambda y: y),
    "threshold": (lambda x: torch.where(x.abs() < 1e-9, 0 * x, x), lambda y: y),
    "offset": (lambda x: x + 1e-3, lambda y: y),
    "adjoint with offset": (lambda x: x, lambda y: y + 1e-3),
    "square root": (lambda x: x.sign() * x.abs().sqrt(), lambda y: y),
    "normalised": (lambda x: x / x.flatten(1).norm(dim=1)[:, None, None, None], lambda y: y),
    "batch mean": (lambda x: x - 1e-3 * x.mean(0), lambda y: y),
    "noise": (lambda x: x + 1e-6 * torch.randn_like(x), lambda y: y),
    "rounded": (lambda x: (x * 256).round() / 256, lambda y: y),
}


@pytest.mark.parametrize("place", ["forward", "analysis"])
@pytest.mark.parametrize("name", WRONG)
@pytest.mark.sampled(share=0.5, by=("name", "place"))
def test_wrong_operators_are_refused(name: str, place: str) -> None:
    operator = from_callables(*WRONG[name], SHAPE, SHAPE)
    problem, b, loss = problem_with(operator)
    if place == "analysis":
        problem = lr.LowerLevelProblem(Identity(SHAPE), AnalysisOperator(operator, lr.PseudoHuber(0.1, 0.1)))
    for attempt in (lambda: lr.hypergradient(problem, b, loss), lambda: lr.solve(problem, b)):
        with pytest.raises(lr.OperatorError, match=f"the {place} operator from_callables") as caught:
            attempt()
        assert caught.value.failed_property in ("linearity", "adjoint")
    operator.examine = False
    found = lr.hypergradient(problem, b, loss, max_steps=20)
    assert not found.certified
    assert "not examined" in found.reason


@pytest.mark.parametrize(("place", "n"), [("forward", 5), ("analysis", 12)])
@pytest.mark.sampled(share=0.5, by=("place",))
def test_what_stagnates_with_an_unexamined_operator_is_put_down_to_it(place: str, n: int) -> None:
    matrix = registry.randn(n, n, seed=4).double()
    operator = from_callables(lambda x: x @ matrix.T, lambda y: y @ matrix, (n,), (n,))
    wrong = from_callables(lambda x: x @ matrix.T, lambda y: y.roll(1, -1) @ matrix, (n,), (n,))
    for own in (operator, wrong):
        own.examine = False
        first, second = (own, Identity((n,))) if place == "forward" else (Identity((n,)), own)
        problem = lr.LowerLevelProblem(first, AnalysisOperator(second, lr.PseudoHuber(0.1, 0.1)), ridge=0.01)
        b = registry.rand(2, n, seed=5).double()
        solution = lr.solve(problem, b, 1e-6)
        gradient = lr.hypergradient(problem, b, lr.SquaredError(b), tolerance=1e-3)
        assert not any(found.certified for found in (solution, gradient))
        if own is operator:
            assert solution.status is gradient.status is lr.Status.ESTIMATED
        else:
            assert all("is not the transpose" in found.reason for found in (solution, gradient))
            assert float(solution.error_bound.min()) == gradient.error_bound == float("inf")


class Detached(Matrix):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


def test_operators_that_autograd_does_not_see_are_refused() -> None:
    operator = Detached(registry.randn(9, 6, seed=2).double())
    problem = lr.LowerLevelProblem(operator, AnalysisOperator(Matrix(registry.randn(5, 6)), lr.PseudoHuber(0.1, 0.1)))
    with pytest.raises(lr.OperatorError, match="cut off from autograd"):
        lr.solve(problem, registry.rand(2, 9))


def test_an_operator_is_examined_once_with_few_applications() -> None:
    calls = [0, 0]

    def counted(which: int) -> Callable[[Tensor], Tensor]:
        def apply(t: Tensor) -> Tensor:
            calls[which] += 1
            return 2.0 * t.flip(-1)

        return apply

    operator = from_callables(counted(0), counted(1), SHAPE, SHAPE)
    problem, b, loss = problem_with(operator)
    calls[:] = [0, 0]
    problem.instance(b)
    first = sum(calls)
    assert first - 1 <= 10, "one A^T b, and the examination"
    calls[:] = [0, 0]
    problem.instance(b)
    assert sum(calls) == 1
    assert lr.hypergradient(problem, b, loss).certified
