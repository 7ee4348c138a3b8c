"""MINRES against dense solves and SciPy's, on definite, indefinite and singular equations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import registry
import torch
from scipy.sparse import linalg
from truth.adjoint import dense_hessian, equation_of, indefinite, solution_of

import learnreg as lr
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.solvers import MINRES, ConjugateGradient, iterate


def solved(equation: AdjointEquation, solver: MINRES | ConjugateGradient, relative: float) -> torch.Tensor:
    rhs = equation.rhs
    goal = relative * rhs.flatten(1).norm(dim=1)
    found = iterate(solver, equation, torch.zeros_like(rhs), goal, torch.zeros_like(goal), 2000)
    assert found.status is lr.Status.CONVERGED
    return found.x


@pytest.mark.parametrize("precondition", [True, False])
@pytest.mark.parametrize("shift", [0.0, 1.5, 4.0], ids=["definite", "indefinite", "more negative"])
def test_signs_of_eigenvalues_do_not_matter(shift: float, precondition: bool) -> None:
    equation = indefinite(equation_of(), shift)
    values = torch.linalg.eigvalsh(dense_hessian(equation))
    assert (float(values.min()) < -0.1) == (shift > 0)
    assert float(values.max()) > 0
    X, expected = solved(equation, MINRES(precondition=precondition), 1e-9), solution_of(equation)
    assert float((X - expected).norm()) <= 1e-6 * float(expected.norm())


def test_the_iterates_are_those_of_scipy() -> None:
    equation = indefinite(equation_of(), 1.5)
    H, rhs = dense_hessian(equation), equation.rhs
    for k in (1, 2, 5, 9):
        state = (solver := MINRES(precondition=False)).init(equation, torch.zeros_like(rhs))
        for _ in range(k):
            state = solver.step(equation, state)
        for sample in range(len(rhs)):
            expected = linalg.minres(H[sample].numpy(), rhs[sample].flatten().numpy(), rtol=1e-300, maxiter=k)[0]
            torch.testing.assert_close(state.X[sample].flatten(), torch.from_numpy(expected), rtol=1e-8, atol=1e-10)
        exact = rhs.flatten(1) - (H @ state.X.flatten(1)[..., None])[..., 0]
        torch.testing.assert_close(state.r.flatten(1), exact, rtol=1e-9, atol=1e-11)


def test_residuals_never_grow_and_are_below_those_of_conjugate_gradients() -> None:
    equation = equation_of()
    start, before = torch.zeros_like(equation.rhs), torch.inf
    solvers = MINRES(precondition=False), ConjugateGradient(precondition=False)
    states = [solver.init(equation, start) for solver in solvers]
    for _ in range(15):
        ours, theirs = (solver.report(equation, state).residual for solver, state in zip(solvers, states, strict=True))
        assert bool((ours <= theirs * (1 + 1e-10)).all())
        assert bool((ours <= before * (1 + 1e-12)).all())
        states = [solver.step(equation, state) for solver, state in zip(solvers, states, strict=True)]
        before = ours


def test_singular_equations() -> None:
    """H of rank 1 less, for a right-hand side in its range and one that is not."""
    equation = equation_of()
    values, vectors = torch.linalg.eigh(dense_hessian(equation)[0])
    one = equation.select(torch.tensor([0]))
    one = indefinite(one, float(values[3]))
    kernel = vectors[:, 3].reshape(one.rhs.shape)
    solvable = replace(one, rhs=one.rhs - (one.rhs * kernel).sum() * kernel)
    X, expected = solved(solvable, MINRES(precondition=False), 1e-9), solution_of(solvable)
    assert float((X - expected).norm()) <= 1e-6 * float(expected.norm())
    never = torch.zeros(1, dtype=torch.float64)
    found = iterate(MINRES(precondition=False), one, 0 * one.rhs, never + 1e-9, never, 2000)
    assert found.status in (lr.Status.PRECISION, lr.Status.STAGNATED)  # whichever rounding lets happen first
    assert bool(torch.isfinite(found.x).all())
    least = float((one.rhs * kernel).sum().abs())
    assert float(found.residual) == pytest.approx(least, rel=1e-3)
    assert float(one.residual_norm(found.x)) == pytest.approx(least, rel=1e-2)


@pytest.mark.parametrize("problem", ["denoising", "inpainting", "learned-blur"])
def test_held_pixels_and_a_warm_start(problem: str) -> None:
    equation = equation_of(problem, "FieldsOfExperts", lr.Box(0.2, 0.7))
    expected = solution_of(equation)
    held = expected == 0
    assert 0 < int(held.sum()) < held.numel()
    goal = 1e-9 * equation.rhs.flatten(1).norm(dim=1)
    start = registry.rand(*expected.shape, seed=5)
    found = iterate(MINRES(), equation, start, goal, 0 * goal)
    assert found.status is lr.Status.CONVERGED
    assert bool((found.x[held] == 0).all())
    assert float((found.x - expected).norm()) <= 1e-6 * float(expected.norm())


def test_zero_is_solved_at_once() -> None:
    equation = equation_of()
    equation = replace(equation, rhs=0 * equation.rhs)
    state = (solver := MINRES()).init(equation, equation.rhs)
    state = solver.step(equation, solver.step(equation, state))
    assert float(state.X.abs().max()) == float(solver.report(equation, state).residual.max()) == 0.0


def test_rounding_in_float32_is_reported() -> None:
    """What float32 cannot reach ends soon, and not as if it had been reached."""
    equation = equation_of("circular-blur", "FieldsOfExperts", None, torch.float32)
    goal = 1e-9 * equation.rhs.flatten(1).norm(dim=1)
    found = iterate(MINRES(), equation, torch.zeros_like(equation.rhs), goal, 0 * goal, 2000)
    assert found.status is lr.Status.PRECISION
    assert found.steps < 200
    assert bool((equation.residual_norm(found.x) <= 1e-4 * equation.rhs.flatten(1).norm(dim=1)).all())
