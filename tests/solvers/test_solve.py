"""Lower-level solutions against dense Newton steps, closed forms and SciPy, and their bounds."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import registry
import torch
from torch import Tensor
from truth import dense as dense_truth

import learnreg as lr
from learnreg.convolutions.gradient import Gradient
from learnreg.linear.norms import dense_matrix
from learnreg.operators import Blur, Identity, Inpainting
from learnreg.regularizers import AnalysisOperator, FieldsOfExperts, Reweighted, TotalVariation

SHAPE = registry.SHAPE
PIXELS = math.prod(SHAPE)


def rms(x: Tensor, y: Tensor) -> Tensor:
    return (x.double() - y.double()).flatten(1).norm(dim=1) / math.sqrt(PIXELS)


def exact(problem: lr.LowerLevelProblem, b: Tensor) -> Tensor:
    with torch.no_grad():
        return dense_truth.Dense(problem, b).solve()[0].reshape(-1, *SHAPE)


@cache
def solved(name: str, regularizer: str) -> tuple[lr.LowerLevelProblem, Tensor, Tensor]:
    problem = registry.build(name, regularizer)
    b = registry.measure(problem)[1]
    return problem, b, exact(problem, b)


@pytest.mark.parametrize("solver", registry.SOLVERS)
@pytest.mark.parametrize("regularizer", registry.regularizers(proximal=True))
@pytest.mark.parametrize("name", registry.PROBLEMS)
@pytest.mark.sampled(share=0.2, by=("name", "regularizer"))
def test_solutions_have_the_certified_accuracy(name: str, regularizer: str, solver: str) -> None:
    problem, b, truth = solved(name, regularizer)
    for tolerance in (1e-2, 1e-8):
        solution = lr.solve(problem, b, tolerance, solver=solver)  # type: ignore[arg-type]
        assert solution.status is lr.Status.CONVERGED
        assert solution.certified
        assert bool((solution.error_bound <= tolerance).all())
        assert bool((rms(solution.x, truth) <= solution.error_bound + 1e-13).all())
        terms = problem.saddle_terms(torch.float64)
        torch.testing.assert_close(solution.y, terms.potential.grad(terms.operator(solution.x)).detach())
    short = lr.solve(problem, b, 1e-8, solver=solver, max_steps=1)  # type: ignore[arg-type]
    assert short.status is lr.Status.MAX_STEPS
    assert short.steps == 1
    assert bool((rms(short.x, truth) <= short.error_bound).all())
    assert bool((short.error_bound > 1e-8).all())


@pytest.mark.parametrize("solver", registry.SOLVERS)
def test_closed_form(solver: str) -> None:
    """Huber's potential with a smoothing no response reaches is a quadratic."""
    problem = lr.LowerLevelProblem(
        Blur(registry.randn(3, 3) / 3, SHAPE),
        AnalysisOperator(Gradient(SHAPE), lr.Huber(1e3, 50.0)).double(),
        ridge=0.1,
    )
    b = registry.measure(problem)[1]
    with torch.no_grad():
        A, D = (dense_matrix(op, SHAPE) for op in (problem.operator, Gradient(SHAPE)))
    weight = float((problem.regularizer.log_weight.exp() / problem.regularizer.log_smoothing.exp()).detach())
    H = A.T @ A + 0.1 * torch.eye(PIXELS, dtype=torch.float64) + weight * D.T @ D
    expected = torch.linalg.solve(H, (b.flatten(1) @ A).T).T.reshape(-1, *SHAPE)
    solution = lr.solve(problem, b, 1e-10, solver=solver)  # type: ignore[arg-type]
    assert bool((rms(solution.x, expected) <= solution.error_bound + 1e-14).all())
    assert float(solution.error_bound.max()) <= 1e-10


@pytest.mark.parametrize("solver", registry.SOLVERS)
def test_a_batch_is_its_samples_one_by_one(solver: str) -> None:
    problem = registry.build("denoising", "FieldsOfExperts")
    b = registry.measure(problem, 4)[1] * torch.tensor([0.1, 1.0, 3.0, 10.0]).double()[:, None, None, None]
    together = lr.solve(problem, b, 1e-6, solver=solver)  # type: ignore[arg-type]
    for i in range(4):
        alone = lr.solve(problem, b[i : i + 1], 1e-6, solver=solver)  # type: ignore[arg-type]
        assert float(rms(alone.x, together.x[i : i + 1])) <= float(alone.error_bound + together.error_bound[i])
        assert alone.steps <= together.steps
    # A step of a batch is the same step of each sample.
    for steps in (1, 3):
        together = lr.solve(problem, b, 1e-12, solver=solver, max_steps=steps)  # type: ignore[arg-type]
        for i in range(4):
            alone = lr.solve(problem, b[i : i + 1], 1e-12, solver=solver, max_steps=steps)  # type: ignore[arg-type]
            torch.testing.assert_close(alone.x[0], together.x[i], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("solver", registry.SOLVERS)
def test_warm_starts(solver: str) -> None:
    problem = registry.build("learned-blur", "TotalVariation")
    b = registry.measure(problem)[1]
    kept = b.clone()
    cold = lr.solve(problem, b, 1e-8, solver=solver)  # type: ignore[arg-type]
    start = cold.x.clone()
    warm = lr.solve(problem, b, 1e-7, solver=solver, start=start)  # type: ignore[arg-type]
    assert warm.steps < cold.steps
    assert torch.equal(start, cold.x)
    assert torch.equal(b, kept)
    again = lr.solve(problem, b, 1e-8, solver=solver)  # type: ignore[arg-type]
    assert torch.equal(again.x, cold.x)


@pytest.mark.parametrize("name", ["denoising", "learned-blur", "inpainting"])
@pytest.mark.parametrize("regularizer", ["FieldsOfExperts", "TotalVariation"])
def test_constraints_against_scipy(name: str, regularizer: str) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    lower, upper = 0.35, 0.6
    problem = registry.build(name, regularizer, lr.Box(lower, upper))
    b = registry.measure(problem, 1)[1]
    free = registry.build(name, regularizer)

    def energy(x: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(x.reshape(1, *SHAPE)).requires_grad_()
        value = free.energy(point, b).sum()
        (gradient,) = torch.autograd.grad(value, point)
        return float(value.detach()), gradient.numpy().ravel()

    bounds = [(lower, upper)] * PIXELS
    options = {"ftol": 1e-16, "gtol": 1e-12, "maxiter": 5000, "maxcor": 30}
    found = optimize.minimize(energy, np.full(PIXELS, 0.5), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    for solver in registry.SOLVERS:
        solution = lr.solve(problem, b, 1e-6, solver=solver)  # type: ignore[arg-type]
        assert solution.status is lr.Status.CONVERGED
        assert solution.solver == solver
        assert bool(torch.isfinite(problem.energy(solution.x, b)).all())
        active = int(((solution.x == lower) | (solution.x == upper)).sum())
        assert 0 < active < PIXELS
        difference = float(np.linalg.norm(solution.x.numpy().ravel() - found.x)) / math.sqrt(PIXELS)
        assert difference <= float(solution.error_bound) + 1e-6


def test_nonnegativity() -> None:
    problem = registry.build("denoising", "FieldsOfExperts", lr.Nonnegative())
    b = registry.randn(2, *SHAPE, seed=3)
    solution = lr.solve(problem, b, 1e-7)
    assert float(solution.x.min()) == 0.0
    assert bool((rms(solution.x, exact(problem, b)) <= solution.error_bound + 1e-13).all())


@pytest.mark.parametrize(("lower", "upper"), [(0.1, 0.9), (0.3, 0.7), (0.35, 0.6)])
def test_float32_solutions_are_in_the_box_in_float64(lower: float, upper: float) -> None:
    """0.1 is no float32 number: its rounding must not put a solution outside, or an active pixel inside."""
    R = FieldsOfExperts(3, 3)
    problem = lr.LowerLevelProblem(Identity(SHAPE), R, constraint=lr.Box(lower, upper))
    x_true, b = registry.measure(registry.build("denoising", "FieldsOfExperts"))
    b = (1.5 * b - 0.2).float()
    truth = exact(problem, b.double())
    for tolerance in (1e-2, 1e-4, 1e-6):
        solution = lr.solve(problem, b, tolerance)
        assert bool(torch.isfinite(problem.energy(solution.x.double(), b.double())).all())
        assert bool((rms(solution.x, truth) <= solution.error_bound.double()).all())
    result = lr.hypergradient(problem, b, lr.SquaredError(x_true.float()), tolerance=1e-2)
    assert result.status is lr.Status.CONVERGED
    assert result.certified
    assert bool(torch.isfinite(problem.energy(result.x.double(), b.double())).all())


def test_without_a_modulus_the_error_is_an_estimate() -> None:
    mask = (registry.rand(*SHAPE) > 0.4).double()
    problem = lr.LowerLevelProblem(Inpainting(mask), TotalVariation(0.1, 0.05).double())
    b = registry.measure(problem)[1]
    truth = exact(problem, b)
    for solver in registry.SOLVERS:
        solution = lr.solve(problem, b, 1e-5, solver=solver)  # type: ignore[arg-type]
        assert solution.bound_kind == "estimate"
        assert not solution.certified
        assert solution.status is lr.Status.ESTIMATED
        assert float(rms(solution.x, truth).max()) <= 2e-5


def test_failures_have_a_status_and_raise_on_request() -> None:
    problem = registry.build("denoising", "FieldsOfExperts")
    b = registry.measure(problem)[1]
    with pytest.raises(lr.SolverError, match=r"solve\(tolerance=1e-08\).*raise max_steps") as caught:
        lr.solve(problem, b, 1e-8, max_steps=2, on_failure="raise")
    assert caught.value.result.steps == 2
    assert bool((rms(caught.value.result.x, exact(problem, b)) <= caught.value.result.error_bound).all())
    assert lr.solve(problem, b, 1e-3, on_failure="raise").status is lr.Status.CONVERGED


@pytest.mark.parametrize("name", ["denoising", "inpainting"])
def test_without_a_certificate_the_error_is_estimated(name: str) -> None:
    """Of smooth energies, chains and local minimisers; bounds of others cost nothing more."""
    problem = registry.build(name, "FieldsOfExperts")
    b = registry.measure(problem)[1]
    found = lr.solve(problem, b, 1e-5, certificate="none")
    assert (found.bound_kind, found.certified, found.status) == ("estimate", False, lr.Status.ESTIMATED)
    assert "certificate='none'" in found.reason
    assert float(rms(found.x, exact(problem, b)).max()) <= 2e-5
    local = lr.LowerLevelProblem(problem.operator, problem.regularizer, minimiser="local", ridge=problem.ridge)
    near = lr.solve(local, b, 1e-5, certificate="none")
    assert near.bound_kind == "estimate"
    assert float(rms(near.x, found.x).max()) <= 2e-5
    chain = lr.LowerLevelProblem(problem.operator, Reweighted(problem.regularizer, steps=1), ridge=problem.ridge)
    certified = lr.solve(chain, b, 1e-5)
    guessed = lr.solve(chain, b, 1e-5, certificate="none")
    assert guessed.bound_kind != "rigorous"
    assert not guessed.certified
    assert float(rms(guessed.x, certified.x).max()) <= 3e-5
    analysis = AnalysisOperator(Gradient(SHAPE), lr.AbsoluteValue(0.1))
    kinked = lr.LowerLevelProblem(problem.operator, analysis, ridge=problem.ridge)
    assert lr.solve(kinked, b, 1e-2, certificate="none").certified


@pytest.mark.parametrize("solver", registry.SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tolerance_below_rounding_ends_with_a_valid_bound(solver: str, dtype: torch.dtype) -> None:
    problem = registry.build("learned-blur", "FieldsOfExperts").to(dtype)
    b = registry.measure(problem.double())[1].to(dtype)
    problem = problem.to(dtype)
    solution = lr.solve(problem, b, 1e-18, solver=solver)  # type: ignore[arg-type]
    assert solution.status in (lr.Status.PRECISION, lr.Status.STAGNATED)
    assert solution.x.dtype == solution.error_bound.dtype == dtype
    error = rms(solution.x, exact(problem, b.double()))
    assert bool((error <= solution.error_bound.double() + 1e-14).all())
    assert float(solution.error_bound.max()) < (1e-4 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("regularizer", ["FieldsOfExperts", "TotalVariation"])
@pytest.mark.parametrize("name", registry.PROBLEMS)
def test_bounds_hold_for_float32_data(name: str, regularizer: str) -> None:
    problem = registry.build(name, regularizer).float()
    b = registry.measure(registry.build(name, regularizer))[1].float()
    truth = exact(problem, b.double())
    for tolerance in (1e-1, 1e-3, 1e-5, 1e-7):
        solution = lr.solve(problem, b, tolerance)
        assert bool((rms(solution.x, truth) <= solution.error_bound.double()).all())


def test_wrong_arguments() -> None:
    problem = lr.LowerLevelProblem(Identity(SHAPE), FieldsOfExperts(2, 3))
    b = torch.rand(1, *SHAPE)
    for bad in (0.0, -1.0, math.nan, "1e-3"):
        with pytest.raises(lr.ConfigError, match=r"tolerance=.*positive number"):
            lr.solve(problem, b, bad)  # type: ignore[arg-type]
    with pytest.raises(lr.ConfigError, match=r"solver='adam': expected 'auto', 'pdhg', 'lbfgs', 'newton-cg'"):
        lr.solve(problem, b, solver="adam")  # type: ignore[arg-type]
    with pytest.raises(lr.ConfigError, match="max_steps=0"):
        lr.solve(problem, b, max_steps=0)
    with pytest.raises(lr.ConfigError, match="on_failure='ignore'"):
        lr.solve(problem, b, on_failure="ignore")  # type: ignore[arg-type]
    with pytest.raises(lr.ConfigError, match="certificate='sharp'"):
        lr.solve(problem, b, certificate="sharp")  # type: ignore[arg-type]
    with pytest.raises(lr.ShapeError, match="start for Identity"):
        lr.solve(problem, b, start=torch.rand(1, 1, 4, 4))
    with pytest.raises(lr.DataError):
        lr.solve(problem, b * math.inf)


def test_solvers_are_objects_wherever_a_name_is_accepted() -> None:
    problem = registry.build("denoising", "FieldsOfExperts")
    x_true, b = registry.measure(problem)
    for name, solver in (("newton-cg", lr.solvers.NewtonCG()), ("pdhg", lr.solvers.PDHG())):
        found, named = lr.solve(problem, b, 1e-6, solver=solver), lr.solve(problem, b, 1e-6, solver=name)  # type: ignore[arg-type]
        assert found.solver == name
        assert torch.equal(found.x, named.x)
    loss = lr.SquaredError(x_true)
    objects = lr.Implicit(lr.solvers.ConjugateGradient(), state_solver=lr.solvers.NewtonCG())
    found, named = (
        lr.hypergradient(problem, b, loss, m) for m in (objects, lr.Implicit("cg", state_solver="newton-cg"))
    )
    assert found.error_bound == named.error_bound
    assert found.operator_applications == named.operator_applications


def test_solver_objects_that_do_not_fit_are_refused() -> None:
    problem = registry.build("denoising", "FieldsOfExperts", lr.Nonnegative())
    _, b = registry.measure(problem)
    with pytest.raises(lr.ConfigError, match=r"use ProjectedLBFGS\(\)"):
        lr.solve(problem, b, solver=lr.solvers.LBFGS())
    assert lr.solve(problem, b, solver=lr.solvers.ProjectedLBFGS()).status is lr.Status.CONVERGED
    with pytest.raises(lr.ConfigError, match="or an object of"):
        lr.solve(problem, b, solver="newton")  # type: ignore[arg-type]
