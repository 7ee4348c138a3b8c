"""Lemma 5, and what certify() and the sharp certificate promise."""

from __future__ import annotations

import math
from typing import cast

import pytest
import registry
import torch
from torch import Tensor
from truth import dense as dense_truth
from truth.draw import Draw
from truth.lemma_points import PIXELS, SHAPE, at_most, normal
from truth.problems import DenseMatrix

import learnreg as lr
from learnreg.operators import Blur, Identity
from learnreg.regularizers import AnalysisOperator, TotalVariation

# ---- Lemma 5, and what certify() promises ----------------------------------------------------------------------------


def denoising(regularizer: str = "FieldsOfExperts") -> tuple[lr.LowerLevelProblem, Tensor, lr.SquaredError]:
    problem = registry.build("denoising", regularizer)
    x_true, b = registry.measure(problem)
    return problem, b, lr.SquaredError(x_true)


def noisy(truth: dense_truth.Truth, generator: torch.Generator, size: float) -> tuple[Tensor, Tensor]:
    x, X = (
        (t + size * t.norm() * normal(generator, *t.shape) / math.sqrt(t.numel())).reshape(-1, *SHAPE)
        for t in (truth.x, truth.X)
    )
    return x, X


def test_lemma_5_effectivity(rotating_generator: torch.Generator) -> None:
    effectivities = []
    for name in registry.regularizers(proximal=True):
        if "Huber" in name:
            continue
        problem, b, loss = denoising(name)
        truth = dense_truth.truth_of(problem, b, loss)
        for size in (1e-1, 1e-2, 1e-4):
            x, X = noisy(truth, rotating_generator, size)
            found = lr.certify(problem, b, loss, x, X)
            assert found.certified
            error = dense_truth.distance(found.gradient, truth.gradient)
            at_most(error, found.gradient_error_bound, truth.gradient_slack)
            corrected = dense_truth.distance(found.corrected_gradient, truth.gradient)
            at_most(corrected, found.corrected_error_bound, truth.gradient_slack)
            errors = (x.flatten(1) - truth.x).norm(dim=1) / math.sqrt(PIXELS)
            at_most(errors, found.error_bound, float(truth.x_slack.max()))
            at_most(errors * 0.99, found.error_bound)
            assert bool((found.error_bound <= 2.0 * errors).all())
            adjoint_errors = (X.flatten(1) - truth.X).norm(dim=1)
            at_most(adjoint_errors, found.adjoint_error_bound, float(truth.X_slack.max()))
            assert found.loss_interval[0] <= truth.loss <= found.loss_interval[1]
            effectivities.append(found.gradient_error_bound / error)
    assert float(torch.tensor(effectivities).median()) <= 2.0


@pytest.mark.parametrize("certificate", ["published", "sharp", "auto"])
def test_certificates_by_name(certificate: str, rotating_generator: torch.Generator) -> None:
    problem, b, loss = denoising()
    truth = dense_truth.truth_of(problem, b, loss)
    x, X = noisy(truth, rotating_generator, 1e-3)
    found = lr.certify(problem, b, loss, x, X, certificate)  # type: ignore[arg-type]
    assert found.certified
    assert found.bound_kind == "rigorous"
    assert found.reason == ""
    error = dense_truth.distance(found.gradient, truth.gradient)
    at_most(error, found.gradient_error_bound, truth.gradient_slack)
    if certificate == "published":  # the point alone: nothing is corrected
        assert dense_truth.distance(found.gradient, found.corrected_gradient) == 0.0
        assert found.gradient_error_estimate == 0.0
    else:
        assert found.gradient_error_estimate == pytest.approx(error, rel=0.1)
        assert found.gradient_error_bound <= 2.0 * error
        first_order = float(loss.gradient(x).norm() * (x.flatten(1) - truth.x).norm())
        assert abs(found.loss_estimate - truth.loss) <= 0.1 * first_order


def test_certify_without_X(rotating_generator: torch.Generator) -> None:
    problem, b, loss = denoising()
    truth = dense_truth.truth_of(problem, b, loss)
    found = lr.certify(problem, b, loss, noisy(truth, rotating_generator, 1e-4)[0])
    assert found.certified
    assert float((found.X.flatten(1) - truth.X).norm()) <= 0.05 * float(truth.X.norm())
    at_most((found.X.flatten(1) - truth.X).norm(dim=1), found.adjoint_error_bound)


def test_certify_counts_what_it_does() -> None:
    problem, b, loss = denoising()
    x = torch.zeros_like(b)
    few = lr.certify(problem, b, loss, x, x, "published")
    many = lr.certify(problem, b, loss, x, x)
    assert 0 < few.operator_applications <= 12
    assert isinstance(many.operator_applications, int)
    assert many.operator_applications > few.operator_applications


def test_certify_limits_its_steps(rotating_generator: torch.Generator) -> None:
    problem, b, loss = denoising()
    truth = dense_truth.truth_of(problem, b, loss)
    x, X = noisy(truth, rotating_generator, 0.3)
    short = lr.certify(problem, b, loss, x, X, max_steps=2)
    assert short.operator_applications < lr.certify(problem, b, loss, x, X).operator_applications
    at_most(dense_truth.distance(short.gradient, truth.gradient), short.gradient_error_bound)


@pytest.mark.parametrize("name", ["x", "X"])
def test_certify_refuses_bad_input(name: str) -> None:
    problem, b, loss = denoising()
    good = {"x": torch.zeros_like(b), "X": torch.zeros_like(b)}
    with pytest.raises(lr.ShapeError, match=name):
        lr.certify(problem, b, loss, **(good | {name: good[name][0]}))
    with pytest.raises(lr.ShapeError, match=name):
        lr.certify(problem, b, loss, **(good | {name: good[name][..., 1:]}))
    for value in (math.nan, math.inf):
        bad = good[name].clone()
        bad[0, 0, 0, 0] = value
        with pytest.raises(lr.DataError, match="NaN"):
            lr.certify(problem, b, loss, **(good | {name: bad}))
    with pytest.raises(lr.ConfigError, match="certificate"):
        lr.certify(problem, b, loss, **good, certificate="blunt")  # type: ignore[arg-type]


@pytest.mark.parametrize("obstacle", ["modulus", "loss"])
def test_certify_without_a_bound(obstacle: str) -> None:
    """certified is False, with a reason, and the numbers are estimates."""
    if obstacle == "modulus":
        problem = lr.LowerLevelProblem(Blur(registry.rand(3, 3) / 9, SHAPE), TotalVariation(0.2, 0.05).double())
    else:
        problem = registry.build("denoising", "TotalVariation")
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true) if obstacle == "modulus" else lr.UpperLoss(lambda x: (x**4).sum())
    x = lr.solve(problem, b, 1e-6).x
    found = lr.certify(problem, b, loss, x)
    assert not found.certified
    assert found.bound_kind == "estimate"
    assert ("ridge" if obstacle == "modulus" else "gradient_lipschitz") in found.reason
    assert math.isfinite(found.gradient_error_bound)
    assert found.loss_interval == (-math.inf, math.inf)


class InexactBlur(Blur):
    """Its adjoint is slightly wrong, and it says so."""

    def adjoint(self, y: Tensor) -> Tensor:
        return super().adjoint(y).roll(1, -1) * 1e-3 + super().adjoint(y)

    def adjoint_mismatch(self) -> float:
        return 1e-3


def test_nothing_is_certified_with_an_inexact_adjoint() -> None:
    operator = InexactBlur(registry.rand(3, 3) / 9, SHAPE)
    problem = lr.LowerLevelProblem(operator, TotalVariation(0.2, 0.05).double(), ridge=0.1)
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    solution = lr.solve(problem, b, 1e-3)
    assert solution.bound_kind == "estimate"
    assert float((solution.x - lr.solve(problem, b, 1e-6).x).abs().max()) < 0.1, "it still solves, nearly"
    for found in (
        lr.hypergradient(problem, b, loss, tolerance=1e-1, max_steps=200),
        lr.certify(problem, b, loss, solution.x, max_steps=200),
    ):
        assert not found.certified
        assert found.bound_kind != "rigorous"
        assert "adjoint of the forward operator is inexact (adjoint_mismatch() is 1.0e-03)" in found.reason
    exact = lr.LowerLevelProblem(Blur(operator.kernel, SHAPE), problem.regularizer, ridge=0.1)
    assert lr.certify(exact, b, loss, solution.x).certified


def test_nothing_is_certified_with_an_inexact_analysis_operator() -> None:
    regularizer = AnalysisOperator(InexactBlur(registry.rand(3, 3), SHAPE), lr.PseudoHuber(0.2, 0.3)).double()
    problem = lr.LowerLevelProblem(Identity(SHAPE), regularizer)
    x_true, b = registry.measure(problem)
    found = lr.certify(problem, b, lr.SquaredError(x_true), x_true, max_steps=50)
    assert not found.certified
    assert "analysis operator is inexact" in found.reason


def test_certify_kinks_within_the_error() -> None:
    """Huber at a rough x: whatever comes out certified is a bound."""
    problem, b, loss = denoising("FieldsOfExperts-Huber")
    truth = dense_truth.truth_of(problem, b, loss)
    for x in (torch.zeros_like(b), truth.x.reshape(b.shape)):
        found = lr.certify(problem, b, loss, x)
        if found.certified:
            error = dense_truth.distance(found.gradient, truth.gradient)
            at_most(error, found.gradient_error_bound, truth.gradient_slack)
        else:
            assert "kink" in found.reason


@pytest.mark.parametrize("parameters", ["float32", "float64"])
def test_certify_float32(parameters: str, rotating_generator: torch.Generator) -> None:
    problem, b, loss = denoising()
    if parameters == "float32":
        problem = problem.float()
    b = b.float()
    loss = lr.SquaredError(loss.x_true.float())
    truth = dense_truth.truth_of(problem, b, loss)
    x, X = (t.float() for t in noisy(truth, rotating_generator, 1e-4))
    found = lr.certify(problem, b, loss, x, X)
    assert found.certified
    assert all(g.dtype == p.dtype for g, p in zip(found.gradient.values(), problem.learnable().values(), strict=True))
    error = dense_truth.distance(found.gradient, truth.gradient)
    at_most(error, found.gradient_error_bound, truth.gradient_slack)
    assert found.gradient_error_bound <= 3.0 * error


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_certify_with_a_constraint(dtype: torch.dtype) -> None:
    problem = registry.build("denoising", "FieldsOfExperts", lr.Box(0.3, 0.6))
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    truth = dense_truth.truth_of(problem, b, loss)
    assert bool((truth.x <= 0.3).any())
    x = truth.x.reshape(b.shape).to(dtype)
    found = lr.certify(problem, b, loss, x)
    assert found.certified
    at_most(dense_truth.distance(found.gradient, truth.gradient), found.gradient_error_bound, truth.gradient_slack)
    errors = (x.double().flatten(1) - truth.x).norm(dim=1) / math.sqrt(PIXELS)
    at_most(errors, found.error_bound, float(truth.x_slack.max()))


class TestSharpHypergradients:
    @pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-6])
    def test_converges(self, tolerance: float) -> None:
        problem, b, loss = denoising()
        truth = dense_truth.truth_of(problem, b, loss)
        found = lr.hypergradient(problem, b, loss, tolerance=tolerance, certificate="sharp")
        assert found.status is lr.Status.CONVERGED
        assert found.certified
        assert found.relative_error_bound <= tolerance
        at_most(dense_truth.distance(found.gradient, truth.gradient), found.error_bound, truth.gradient_slack)

    def test_counts(self) -> None:
        problem, b, loss = denoising()
        rough = lr.hypergradient(problem, b, loss, tolerance=1.0, certificate="sharp")
        fine = lr.hypergradient(problem, b, loss, tolerance=1e-8, certificate="sharp")
        assert 0 < rough.operator_applications < fine.operator_applications
        assert 0 < rough.steps <= fine.steps

    @pytest.mark.parametrize("max_steps", [1, 3])
    def test_stops_at_the_step_limit_with_a_valid_bound(self, max_steps: int) -> None:
        problem, b, loss = denoising()
        truth = dense_truth.truth_of(problem, b, loss)
        options = {"tolerance": 1e-8, "max_steps": max_steps, "certificate": "sharp"}
        found = lr.hypergradient(problem, b, loss, **options)  # type: ignore[arg-type]
        assert found.status is lr.Status.MAX_STEPS
        assert found.steps <= 3 * max_steps
        assert found.certified
        at_most(dense_truth.distance(found.gradient, truth.gradient), found.error_bound)
        with pytest.raises(lr.SolverError) as failure:
            lr.hypergradient(problem, b, loss, on_failure="raise", **options)  # type: ignore[arg-type]
        assert cast(lr.Hypergradient, failure.value.result).status is lr.Status.MAX_STEPS


def test_random_matrices_have_the_norm_they_declare(rotating_generator: torch.Generator) -> None:
    """The dense operator of the random problems: ‖C(u, p)‖ = ‖u‖ ‖p‖."""
    draw = Draw(rotating_generator)
    matrix = DenseMatrix(draw.normal(4, 30), SHAPE, learnable=True)
    u, p = draw.normal(1, *SHAPE), draw.normal(1, 4)
    (gradient,) = torch.autograd.grad((matrix(u) * p).sum(), matrix.matrix)
    assert float(gradient.norm()) == pytest.approx(float(u.norm() * p.norm()))
