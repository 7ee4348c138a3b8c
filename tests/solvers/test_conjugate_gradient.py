"""Conjugate gradients on the adjoint equation: better than any linear rate that the condition number allows."""

from __future__ import annotations

import math

import pytest
import torch
from truth.adjoint import dense_hessian, equation_of, solution_of

from learnreg.solvers import ConjugateGradient


@pytest.mark.parametrize("problem", ["denoising", "circular-blur", "learned-blur"])
@torch.no_grad()
def test_errors_fall_superlinearly(problem: str) -> None:
    """In the energy norm they are below the bound for the condition number, and their rate falls on the way."""
    equation = equation_of(problem)
    H, exact = dense_hessian(equation)[:1], solution_of(equation)[:1]
    values = torch.linalg.eigvalsh(H)[0]
    root = math.sqrt(float(values[-1] / values[0]))
    linear = (root - 1.0) / (root + 1.0)
    solver = ConjugateGradient(precondition=False)
    state = solver.init(equation, torch.zeros_like(equation.rhs))

    def energy(X: torch.Tensor) -> float:
        error = (X[:1] - exact).flatten()
        return math.sqrt(float(error @ H[0] @ error))

    errors = [energy(state.X)]
    while errors[-1] > 1e-9 * errors[0]:
        assert len(errors) <= 2 * exact.numel()
        state = solver.step(equation, state)
        errors.append(energy(state.X))
        assert errors[-1] <= 2.0 * linear ** (len(errors) - 1) * errors[0] * (1.0 + 1e-9)
    third = len(errors) // 3
    first, last = errors[third] / errors[0], errors[-1] / errors[-1 - third]
    assert last < 0.5 * first
