"""One-step differentiation against autograd through that step, and its error against the rate of the iteration."""

from __future__ import annotations

import pytest
import registry
import torch
from torch import Tensor
from truth.dense import distance, norm, truth_of
from truth.draw import Draw, Ranges
from truth.problems import draw_case

import learnreg as lr
from learnreg.hypergradients.base import Goal, evaluate
from learnreg.lower_level.point import Point
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts


def one_step(
    problem: lr.LowerLevelProblem, b: Tensor, loss: lr.UpperLoss, x: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """x and the gradient after a projected gradient step on ``problem.energy`` from x, by autograd."""
    free = lr.LowerLevelProblem(problem.operator, problem.regularizer, ridge=problem.ridge, data_term=problem.data_term)
    box, x = problem.frozen().constraint, x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(free.energy(x, b).sum(), x, create_graph=True)
    moved = x.detach() - slope / problem.instance(b).gradient_lipschitz()
    moved = moved.clamp(float(box.lower), float(box.upper))
    learned = problem.learnable()
    found = torch.autograd.grad(loss.value(moved), list(learned.values()), allow_unused=True, materialize_grads=True)
    return moved.detach(), dict(zip(learned, found, strict=True))


@pytest.mark.parametrize("box", [None, lr.Box(0.3, 0.7)], ids=["free", "box"])
@pytest.mark.parametrize("name", registry.PROBLEMS)
def test_the_gradient_is_that_of_one_step_at_the_solution(name: str, box: lr.Box | None) -> None:
    problem = registry.build(name, "FieldsOfExperts", box)
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    solution = lr.solve(problem, b, 1e-12)
    start = Point.of(problem, b, loss, problem.frozen().constraint.prox(b), torch.zeros_like(x_true))
    goal = torch.full((len(b),), 1e-11, dtype=b.dtype)
    found = evaluate(lr.OneStep(), start, Goal(goal, goal))
    x, expected = one_step(problem, b, loss, solution.x)
    assert float((found.point.x - x).norm()) <= 1e-9 * float(x.norm())
    assert distance(found.gradient, expected) <= 1e-8 * norm(expected)


def weak(weight: float) -> lr.LowerLevelProblem:
    """Denoising by experts of this weight: the smaller it is, the better the condition."""
    torch.manual_seed(0)
    experts = FieldsOfExperts(3, 3, lr.PseudoHuber(0.1, weight))
    return lr.LowerLevelProblem(Identity(registry.SHAPE), experts).double()


def test_errors_are_of_the_order_of_the_rate() -> None:
    rates, errors = [], []
    for weight in (3e-4, 3e-3, 3e-2):
        problem = weak(weight)
        x_true, b = registry.measure(problem)
        loss = lr.SquaredError(x_true)
        truth, instance = truth_of(problem, b, loss), problem.instance(b)
        rates.append(1.0 - instance.strong_convexity / instance.gradient_lipschitz())
        found = lr.hypergradient(problem, b, loss, lr.OneStep(), 1e-8)
        assert found.certified
        errors.append(distance(found.gradient, truth.gradient) / norm(truth.gradient))
        assert distance(found.gradient, truth.gradient) <= found.error_bound
        own = lr.hypergradient(problem, b, loss, lr.OneStep(), 1e-8, certificate="none")
        off = (own.X.flatten(1) - truth.X).norm(dim=1)
        assert bool((off <= 1.01 * rates[-1] * truth.X.norm(dim=1)).all())
    assert 8 <= rates[1] / rates[0] <= 10
    assert 3 <= errors[1] / errors[0] <= 12
    assert 3 <= errors[2] / errors[1] <= 12
    assert all(error <= rate for error, rate in zip(errors, rates, strict=True))


def test_the_status_blames_the_method() -> None:
    problem = registry.build("denoising", "FieldsOfExperts")
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    found = lr.hypergradient(problem, b, loss, lr.OneStep(), tolerance=1e-3)
    assert found.status is lr.Status.METHOD_ERROR
    assert not found.status.converged
    assert found.certified
    assert found.relative_error_bound > 1e-3
    assert found.corrected_error_bound <= 1e-3 * norm(found.corrected_gradient)
    assert lr.hypergradient(problem, b, loss, lr.OneStep(), tolerance=20.0).status is lr.Status.CONVERGED
    plain = lr.hypergradient(problem, b, loss, lr.OneStep(), tolerance=1e-3, certificate="none")
    assert plain.status is lr.Status.METHOD_ERROR
    assert not plain.certified
    assert distance(plain.gradient, found.gradient) <= 1e-2 * norm(found.gradient)
    few = lr.hypergradient(problem, b, loss, lr.OneStep("pdhg"), tolerance=1e-3, max_steps=1)
    assert few.steps == 1
    assert few.status is lr.Status.MAX_STEPS
    with pytest.raises(lr.SolverError, match="own approximation"):
        lr.hypergradient(problem, b, loss, lr.OneStep(), tolerance=1e-3, on_failure="raise")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_precision_is_that_of_the_data(dtype: torch.dtype) -> None:
    problem = registry.build("denoising", "FieldsOfExperts").to(dtype)
    x_true, b = (t.to(dtype) for t in registry.measure(registry.build("denoising", "FieldsOfExperts")))
    found = lr.hypergradient(problem, b, lr.SquaredError(x_true), lr.OneStep(), 10.0)
    assert {found.x.dtype, *(g.dtype for g in found.gradient.values())} == {dtype}
    assert found.status is lr.Status.CONVERGED


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.sampled(share=0.2, by=("seed",))
def test_errors_are_within_their_bounds(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    case = draw_case(Draw(generator, Ranges((1e-2, 1.0), (1e-2, 1.0), (0.1, 1.0))))
    truth = truth_of(case.problem, case.b, case.loss)
    if not truth.usable:
        pytest.skip("the truth is known too coarsely")
    for tolerance in (1e-3, 1.0):
        found = lr.hypergradient(case.problem, case.b, case.loss, lr.OneStep(), tolerance)
        assert found.status.converged == (found.error_bound <= tolerance * found.norm)
        if found.certified:
            assert distance(found.gradient, truth.gradient) <= found.error_bound + truth.gradient_slack
            error = distance(found.corrected_gradient, truth.gradient)
            assert error <= found.corrected_error_bound + truth.gradient_slack


def test_latent_variables_and_unknown_solvers_are_refused() -> None:
    problem = lr.LowerLevelProblem(
        Identity(registry.SHAPE), registry.REGULARIZERS[registry.regularizers(latent=True)[0]]()
    )
    x_true, b = registry.measure(problem)
    with pytest.raises(lr.ConfigError, match=r"OneStep: .*use Implicit\(\)"):
        lr.hypergradient(problem, b, lr.SquaredError(x_true), lr.OneStep())
    assert not lr.OneStep().fits(problem.instance(b))
    with pytest.raises(lr.ConfigError, match=r"OneStep\(state_solver=3\)"):
        lr.OneStep(3)  # type: ignore[arg-type]
