"""The Nyström estimate against dense matrices, by its rank; and conjugate gradients from it on."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from truth.adjoint import dense_hessian, equation_of, indefinite, solution_of

import learnreg as lr
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.solvers import ConjugateGradient, Nystrom, iterate
from learnreg.solvers.nystrom import NystromInverse


@torch.no_grad()
def estimate(equation: AdjointEquation, rank: int) -> torch.Tensor:
    """The first answer, before any step."""
    never = torch.zeros(len(equation.rhs), dtype=equation.rhs.dtype)
    found = iterate(Nystrom(rank), equation, torch.zeros_like(equation.rhs), never, never, 0)
    assert found.steps == 0
    return found.x


@torch.no_grad()
def dense_inverse(equation: AdjointEquation, rank: int) -> torch.Tensor:
    """(batch, n, n)."""
    inverse, rhs = NystromInverse.of(equation, rank, 0), equation.rhs
    units = torch.eye(rhs[0].numel(), dtype=rhs.dtype).unflatten(1, rhs.shape[1:])
    columns = [inverse(equation.project(e.expand_as(rhs).contiguous())).flatten(1) for e in units]
    return torch.stack(columns, 2)


def test_the_estimate_is_the_published_one() -> None:
    """(mu + B Omega (Omega^T B Omega)^-1 Omega^T B)^-1 from dense matrices and the span of the same test images."""
    equation, rank = equation_of(), 7
    H, mu = dense_hessian(equation), equation.instance.strong_convexity
    n = H.shape[1]
    generator = torch.Generator().manual_seed(0)
    omega = torch.randn((rank, n), generator=generator, dtype=torch.float64).T
    B = H - mu * torch.eye(n, dtype=H.dtype)
    Y = B @ omega
    approximation = Y @ torch.linalg.solve(omega.T @ Y, Y.mT)
    expected = torch.linalg.inv(mu * torch.eye(n, dtype=H.dtype) + approximation)
    torch.testing.assert_close(dense_inverse(equation, rank), expected, rtol=1e-7, atol=1e-9)
    X = (expected @ equation.rhs.flatten(1)[..., None]).reshape(equation.rhs.shape)
    torch.testing.assert_close(estimate(equation, rank), X, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("problem", ["denoising", "learned-blur"])
@pytest.mark.parametrize("box", [None, lr.Box(0.2, 0.7)], ids=["free", "box"])
def test_errors_fall_with_the_rank(problem: str, box: lr.Box | None) -> None:
    equation = equation_of(problem, "FieldsOfExperts", box)
    exact, n = solution_of(equation), equation.rhs[0].numel()
    free = int((exact[0] != 0).sum())
    assert (free < n) == (box is not None)
    inverse = torch.linalg.pinv(dense_hessian(equation), hermitian=True)
    mask = (exact != 0).flatten(1).to(inverse)
    errors, norms = [], []
    for rank in (1, n // 8, n // 4, n // 2, n):
        errors.append(float((estimate(equation, rank) - exact).norm() / exact.norm()))
        off = mask[:, :, None] * (dense_inverse(equation, rank) - inverse)
        norms.append(float(torch.linalg.matrix_norm(off, 2).max()))
    assert all(later <= earlier * (1 + 1e-9) + 1e-11 for earlier, later in pairwise(norms))
    assert errors[0] > 1e-2
    assert errors[3] < 0.7 * errors[0]
    assert errors[-1] <= 1e-11, "exact at full rank"
    assert estimate(equation, 10 * n).equal(estimate(equation, n)), "as many images as there are unknowns at most"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_go_on_to_a_tolerance_and_are_fewer(dtype: torch.dtype) -> None:
    equation = equation_of("circular-blur", "FieldsOfExperts", None, dtype)
    relative = 1e-4 if dtype == torch.float32 else 1e-9
    goal = relative * equation.rhs.flatten(1).norm(dim=1)
    steps = []
    for solver in (ConjugateGradient(1, precondition=False), Nystrom(4, check_every=1), Nystrom(30, check_every=1)):
        found = iterate(solver, equation, torch.zeros_like(equation.rhs), goal, 0 * goal)
        assert found.status is lr.Status.CONVERGED
        assert bool((equation.residual_norm(found.x) <= 1.1 * goal).all())
        steps.append(found.steps)
    assert steps[0] > steps[1] > steps[2]


def test_without_a_modulus_full_rank_is_exact_too() -> None:
    equation = equation_of()
    equation = replace(equation, instance=replace(equation.instance, strong_convexity=0.0))
    exact, n = solution_of(equation), equation.rhs[0].numel()
    assert float((estimate(equation, n) - exact).norm()) <= 1e-10 * float(exact.norm())
    for rank in (1, 5):
        inverse = dense_inverse(equation, rank)
        assert float(torch.linalg.eigvalsh(inverse).min()) > 0, "a preconditioner has to be positive definite"


def test_negative_curvature_is_left_out_and_reported() -> None:
    equation = indefinite(equation_of(), 2.0)
    assert float(torch.linalg.eigvalsh(dense_hessian(equation)).min()) < 0
    assert float(torch.linalg.eigvalsh(dense_inverse(equation, 12)).min()) > 0
    goal = 1e-9 * equation.rhs.flatten(1).norm(dim=1)
    found = iterate(Nystrom(12), equation, torch.zeros_like(equation.rhs), goal, 0 * goal)
    assert found.status is lr.Status.INDEFINITE


def test_it_is_seeded_and_each_sample_stands_alone() -> None:
    equation = equation_of()
    whole = estimate(equation, 5)
    assert whole.equal(estimate(equation, 5))
    alone = estimate(equation.select(torch.tensor([1])), 5)
    torch.testing.assert_close(whole[1:], alone, rtol=1e-10, atol=1e-12)
    other = Nystrom(5, seed=1).init(equation, torch.zeros_like(equation.rhs)).X
    assert not torch.allclose(whole, other)


def test_the_rank_it_takes_is_counted() -> None:
    equation = equation_of()
    for rank, expected in ((3, 3), (None, None), (10**6, equation.rhs[0].numel())):
        counter, solver = equation.instance.counter, Nystrom(rank)
        before = counter.applications
        state = solver.init(equation, torch.zeros_like(equation.rhs))
        sketched = state.preconditioner.inverse.shape[1]  # type: ignore[union-attr]
        assert counter.applications - before == 2 * sketched + 2, "and 2 for the residual of the estimate"
        if expected is None:
            root = equation.instance.condition_bound() ** 0.5
            assert sketched == min(20, int(root) + 1)
        else:
            assert sketched == expected


def test_numbers_that_are_not_finite_are_reported() -> None:
    equation = equation_of()
    equation = replace(equation, at_response=equation.at_response * torch.inf)
    goal = 1e-9 * equation.rhs.flatten(1).norm(dim=1)
    found = iterate(Nystrom(3), equation, torch.zeros_like(equation.rhs), goal, 0 * goal)
    assert found.status is lr.Status.NOT_FINITE
