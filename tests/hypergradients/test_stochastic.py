"""The family of bilevel stochastic gradients: their formulas against autograd, their orders and bounds against dense
truth, and what keeps BSG-1 away from 0/0."""

from __future__ import annotations

import math
import warnings

import pytest
import registry
import torch
from torch import Tensor
from truth.dense import distance, norm, truth_of
from truth.draw import Draw, Ranges
from truth.problems import draw_case

import learnreg as lr
from learnreg.hypergradients.base import Goal, HypergradientMethod, evaluate
from learnreg.lower_level.point import Point

pytestmark = pytest.mark.usefixtures("one_thread")


def stepped(problem: lr.LowerLevelProblem, b: Tensor, x: Tensor, steps: int) -> Tensor:
    """Projected gradient steps by autograd of the energy."""
    box, L = problem.frozen().constraint, problem.instance(b).gradient_lipschitz()
    for _ in range(steps):
        x = box.prox(x - slope_of(problem, b, x) / L)
    return x


def free_energy(problem: lr.LowerLevelProblem) -> lr.LowerLevelProblem:
    return lr.LowerLevelProblem(problem.operator, problem.regularizer, ridge=problem.ridge, data_term=problem.data_term)


def slope_of(problem: lr.LowerLevelProblem, b: Tensor, x: Tensor) -> Tensor:
    point = x.detach().clone().requires_grad_()
    return torch.autograd.grad(free_energy(problem).energy(point, b).sum(), point)[0]


@pytest.mark.parametrize("constraint", [None, lr.Box(0.3, 0.7)], ids=["free", "box"])
@pytest.mark.parametrize("name", registry.PROBLEMS)
def test_the_rank_one_formula(name: str, constraint: lr.Box | None) -> None:
    problem = registry.build(name, "FieldsOfExperts", constraint)
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    start = Point.of(problem, b, loss, problem.frozen().constraint.prox(x_true + 0.1), torch.zeros_like(x_true))
    never = torch.zeros(len(b), dtype=b.dtype)
    found = evaluate(lr.BSG1(steps=2, clip=1e9), start, Goal(never, never))
    x = stepped(problem, b, start.x, 2)
    inside = problem.frozen().constraint.interior(x)
    g, u = inside.restrict(slope_of(problem, b, x)), inside.restrict(loss.gradient(x))
    quotient = (g * u).flatten(1).sum(1) / (g * g).flatten(1).sum(1)
    learned = problem.learnable()
    energy = -(quotient * free_energy(problem).energy(x, b)).sum()
    expected = torch.autograd.grad(energy, list(learned.values()), materialize_grads=True)
    assert float((found.point.x - x).norm()) <= 1e-12 * float(x.norm())
    assert distance(found.gradient, dict(zip(learned, expected, strict=True))) <= 1e-10 * norm(found.gradient)
    assert norm(found.gradient) > 0


@pytest.mark.parametrize("constraint", [None, lr.Nonnegative()], ids=["free", "nonnegative"])
@pytest.mark.parametrize("name", registry.PROBLEMS)
@pytest.mark.parametrize(
    ("kind", "accuracy"), [(lr.BSGHessian, 1e-8), (lr.BSGNewtonFD, 1e-7)], ids=["hessian", "newton-fd"]
)
@pytest.mark.sampled(share=1 / 3, by=("name", "kind"))
def test_many_steps_lead_to_the_hypergradient(
    kind: type[lr.BSGHessian], accuracy: float, name: str, constraint: lr.Box | None
) -> None:
    """For learnable operators, data terms and ridges, too."""
    problem = registry.build(name, "FieldsOfExperts", constraint)
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    near = lr.solve(problem, b, 1e-13).x
    point = Point.of(problem, b, loss, near, torch.zeros_like(near))
    never = torch.zeros(len(b), dtype=b.dtype)
    found = evaluate(kind(steps=0, adjoint_steps=200), point, Goal(never, never))
    exact = lr.hypergradient(problem, b, loss, tolerance=1e-11).gradient
    assert distance(found.gradient, exact) <= accuracy * norm(exact)


def test_errors_fall_linearly_in_the_steps() -> None:
    problem = registry.build("denoising", "FieldsOfExperts")
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    exact = truth_of(problem, b, loss).gradient
    rate = 1.0 - 1.0 / problem.instance(b).condition_bound()
    errors = []
    for steps in (10, 20, 40):
        found = lr.hypergradient(problem, b, loss, lr.BSGHessian(steps, 60), tolerance=1e-12)
        errors.append(distance(found.gradient, exact))
        assert errors[-1] <= found.error_bound
    assert errors[1] <= 5 * rate**10 * errors[0]
    assert errors[2] <= 5 * rate**20 * errors[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", [lr.BSG1(), lr.BSGHessian(), lr.BSGNewtonFD()], ids=lambda m: m.name)
def test_precision_stays(method: HypergradientMethod, dtype: torch.dtype) -> None:
    problem = registry.build("denoising", "FieldsOfExperts")
    x_true, b = (t.to(dtype) for t in registry.measure(problem))
    problem.to(dtype)
    found = lr.hypergradient(problem, b, lr.SquaredError(x_true), method)
    assert {found.x.dtype, *(g.dtype for g in found.gradient.values())} == {dtype}
    assert found.certified


# ---- what is said of their errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.sampled(share=0.2, by=("seed",))
@pytest.mark.filterwarnings("ignore:BSG1")
def test_errors_are_within_their_bounds(seed: int) -> None:
    case = draw_case(Draw(torch.Generator().manual_seed(seed), Ranges((1e-2, 1.0), (1e-2, 1.0), (0.1, 1.0))))
    truth = truth_of(case.problem, case.b, case.loss)
    if not truth.usable:
        pytest.skip("the truth is known too coarsely")
    for method in (lr.BSG1(3), lr.BSGHessian(1), lr.BSGHessian(100, 30), lr.BSGNewtonFD(1), lr.BSGNewtonFD(100, 30)):
        found = lr.hypergradient(case.problem, case.b, case.loss, method, tolerance=1e-3)
        assert found.status.converged == (found.error_bound <= 1e-3 * found.norm)
        if found.certified:
            assert distance(found.gradient, truth.gradient) <= found.error_bound + truth.gradient_slack
            errors = (found.x.flatten(1) - truth.x).norm(dim=1)
            assert bool((errors <= found.state_error_bound + truth.x_slack).all())


def posed() -> tuple[lr.BilevelProblem, Tensor, Tensor]:
    """A quadratic whose hypergradient BSG-1 gets worse and worse."""
    generator = torch.Generator().manual_seed(1)
    A = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    B, aim = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((6, 3), (6,)))
    H = A @ A.T / 6 + 0.5 * torch.eye(6, dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(H)
    problem = lr.BilevelProblem(
        lambda x, theta, data: 0.5 * x @ H @ x - x @ (B @ theta),
        lambda x, theta, data: 0.5 * (x - aim).square().sum() + 0.1 * theta.square().sum(),
        float(eigenvalues[0]),
        gradient_lipschitz=float(eigenvalues[-1]),
        hessian_lipschitz=0.0,
        cross_lipschitz=0.0,
        upper_gradient_lipschitz=1.0,
    )
    return problem, torch.ones(3, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)


def test_the_rank_one_quotient_grows_without_bound_and_is_cut() -> None:
    problem, theta, x = posed()
    exact = problem.hypergradient(theta, x, tolerance=1e-10).gradient["theta"]
    errors = []
    for steps in (1, 30, 100):
        found = problem.hypergradient(theta, x, method=lr.BSG1(steps, clip=1e300), tolerance=1e-2)
        errors.append(float((found.gradient["theta"] - exact).norm() / exact.norm()))
        assert found.status is lr.Status.METHOD_ERROR
        assert float((found.gradient["theta"] - exact).norm()) <= found.error_bound
        assert float((found.corrected_gradient["theta"] - exact).norm()) <= found.corrected_error_bound + 1e-12
    assert errors[0] < errors[1] < errors[2]
    assert errors[2] > 10.0
    with pytest.warns(UserWarning, match=r"within .* of its solution.*cut at 10"):
        cut = problem.hypergradient(theta, x, method=lr.BSG1(100), tolerance=1e-2)
    assert float((cut.gradient["theta"] - exact).norm() / exact.norm()) < 0.5 * errors[2]


def test_an_exact_state_gives_no_nan() -> None:
    problem, theta, x = posed()
    solution = problem.solve(theta, x, tolerance=1e-15).x
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = problem.hypergradient(theta, solution, method=lr.BSG1(0), tolerance=1e-2)
    assert bool(torch.isfinite(found.gradient["theta"]).all())
    assert found.status is lr.Status.METHOD_ERROR


def test_adaptive_tightening_is_refused() -> None:
    problem, theta, x = posed()
    objective = lr.BilevelObjective(problem.at(theta, x), lr.BSG1())
    with pytest.raises(lr.ConfigError, match="StochasticDescent"):
        lr.AdaptiveDescent().step(objective)
    images = registry.build("denoising", "FieldsOfExperts")
    x_true, b = registry.measure(images)
    with pytest.raises(lr.ConfigError, match="StochasticDescent"):
        lr.solution_layer(images, lr.BSG1())
    with pytest.raises(lr.ConfigError, match="StochasticDescent"):
        lr.train(images, list(zip(b, x_true, strict=True)), method=lr.BSG1(), updates=1, tune=False)


@pytest.mark.parametrize("kind", [lr.BSG1, lr.BSGHessian, lr.BSGNewtonFD])
def test_refusals(kind: type[HypergradientMethod]) -> None:
    latent = registry.build("denoising", "LearnedTotalGeneralizedVariation")
    x_true, b = registry.measure(latent)
    assert not kind().fits(latent.instance(b))
    with pytest.raises(lr.ConfigError, match="latent"):
        lr.hypergradient(latent, b, lr.SquaredError(x_true), kind())
    with pytest.raises(lr.ConfigError, match="steps"):
        kind(steps=1.5)  # type: ignore[call-arg]
    with pytest.raises(lr.ConfigError, match="clip"):
        lr.BSG1(clip=math.nan)


# ---- constraints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["equality", "inequality"])
@pytest.mark.parametrize("method", [lr.BSG1(2), lr.BSGHessian(2, 2), lr.BSGNewtonFD(2, 2)], ids=lambda m: m.name)
def test_constrained_gradients_are_those_of_the_coordinates(method: HypergradientMethod, kind: str) -> None:
    """Of the same problem in an orthonormal basis of the tangent space of the active constraints."""
    problem, theta, x = posed()
    row = torch.tensor([[1.0, 2.0, 0.0, -1.0, 0.0, 1.0]], dtype=torch.float64)
    free = problem.solve(theta, x, tolerance=1e-12).x
    side = float(row @ free) - 0.5  # cuts the solution off
    Z = torch.linalg.svd(row)[2][1:].T
    base = (row.T * side / row.square().sum())[:, 0]
    constants = problem.functions.constants
    constrained = lr.BilevelProblem(
        problem.functions.lower,
        problem.functions.upper,
        **constants,
        constraint=lr.LinearConstraints(row, side, kind),  # type: ignore[arg-type]
    )
    reduced = lr.BilevelProblem(
        lambda w, t, d: problem.functions.lower(base + Z @ w, t, d),
        lambda w, t, d: problem.functions.upper(base + Z @ w, t, d),
        **constants,
    )
    found = constrained.hypergradient(theta, x, method=method)
    expected = reduced.hypergradient(theta, torch.zeros(5, dtype=torch.float64), method=method)
    torch.testing.assert_close(found.gradient["theta"], expected.gradient["theta"], rtol=1e-7, atol=1e-9)
    assert found.certified
