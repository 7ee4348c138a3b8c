"""The Neumann series against dense powers of I - s H, and its rate."""

from __future__ import annotations

import pytest
import registry
import torch
from truth.adjoint import dense_hessian, equation_of, solution_of

import learnreg as lr
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.solvers import Neumann, iterate
from learnreg.solvers.choice import make_adjoint_solver


def truncated(equation: AdjointEquation, terms: int) -> torch.Tensor:
    never = torch.zeros(len(equation.rhs), dtype=equation.rhs.dtype)
    found = iterate(Neumann(check_every=1), equation, torch.zeros_like(equation.rhs), never, never, terms)
    assert found.status is lr.Status.MAX_STEPS
    assert found.steps == terms
    return found.x


@pytest.mark.parametrize("box", [None, lr.Box(0.2, 0.7)], ids=["free", "box"])
def test_the_limit_of_steps_truncates_the_series(box: lr.Box | None) -> None:
    equation = equation_of("denoising", "FieldsOfExperts", box)
    L, mu = equation.instance.gradient_lipschitz(), equation.instance.strong_convexity
    H, s = dense_hessian(equation), 2.0 / (L + mu)
    total, power = torch.zeros_like(equation.rhs.flatten(1)), equation.rhs.flatten(1)
    for terms in range(1, 8):
        total = total + s * power
        power = power - s * (H @ power[..., None])[..., 0]
        torch.testing.assert_close(truncated(equation, terms).flatten(1), total, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("problem", ["denoising", "circular-blur", "learned-blur"])
@torch.no_grad()
def test_errors_fall_linearly(problem: str) -> None:
    """By (L - mu)/(L + mu) <= 1 - mu/L in each step, and in the end by the largest eigenvalue of I - s H."""
    equation = equation_of(problem)
    exact, instance = solution_of(equation), equation.instance
    L, mu = instance.gradient_lipschitz(), instance.strong_convexity
    values = torch.linalg.eigvalsh(dense_hessian(equation))
    rate = float((1.0 - 2.0 / (L + mu) * values).abs().max())
    assert rate <= (L - mu) / (L + mu) <= 1.0 - mu / L
    solver, before = Neumann(), float("inf")
    state = solver.init(equation, torch.zeros_like(exact))
    for _ in range(200):
        error = float((state.X - exact).norm())
        assert error <= (L - mu) / (L + mu) * before + 1e-12
        before, state = error, solver.step(equation, state)
        report = solver.report(equation, state)
        errors = (state.X - exact).flatten(1).norm(dim=1)
        assert bool((errors <= report.bound + 1e-12).all())
    later = state
    for _ in range(20):
        later = solver.step(equation, later)
    observed = (float((later.X - exact).norm()) / float((state.X - exact).norm())) ** (1 / 20)
    if float((later.X - exact).norm()) > 1e-10:
        assert observed == pytest.approx(rate, abs=0.03)
    else:
        assert rate**200 <= 1e-9


def test_without_a_modulus_the_steps_are_shorter() -> None:
    problem = lr.LowerLevelProblem(
        lr.operators.Inpainting((registry.rand(*registry.SHAPE) > 0.4).double()),
        registry.REGULARIZERS["FieldsOfExperts"](),
    )
    b = registry.measure(problem)[1]
    instance = problem.instance(b)
    assert instance.strong_convexity == 0.0
    equation = AdjointEquation.at(instance, b, instance.apply(b), b)
    state = Neumann().init(equation, 0 * b)
    assert state.size == 1.0 / instance.gradient_lipschitz()


def test_what_it_needs_to_know() -> None:
    """A Hessian without a known bound is refused, with what to use."""
    problem = registry.build("denoising", "FieldsOfExperts")
    _, b = registry.measure(problem)
    instance = problem.instance(b)
    assert lr.Implicit("neumann").fits(instance)
    object.__setattr__(instance, "gradient_lipschitz", lambda: float("inf"))
    assert not lr.Implicit("neumann").fits(instance)
    with pytest.raises(lr.ConfigError, match=r"no bound of the Hessian's norm is known.*use 'auto' or 'cg'"):
        make_adjoint_solver("neumann", instance, False, 0.1)
