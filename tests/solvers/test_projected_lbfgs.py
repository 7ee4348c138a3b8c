"""Solvers within a box in its corners: all pixels at a bound, far starts, no data, batches, rejected steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import registry
import torch
from torch import Tensor
from truth import dense as dense_truth

import learnreg as lr
from learnreg.lower_level.instance import Instance
from learnreg.operators import Blur, Inpainting
from learnreg.regularizers import FieldsOfExperts, TotalVariation
from learnreg.solvers import LBFGS, NewtonCG, ProjectedLBFGS, iterate
from learnreg.solvers.base import Solver
from learnreg.solvers.solve import initial_point

SHAPE = (1, 7, 6)
PIXELS = 42

SOLVERS: dict[str, Callable[[], Solver]] = {
    "lbfgs": ProjectedLBFGS,
    "lbfgs, no preconditioner": lambda: ProjectedLBFGS(precondition=False),
    "lbfgs, one pair": lambda: ProjectedLBFGS(memory=1),
    "newton-cg": NewtonCG,
    "newton-cg, no preconditioner": lambda: NewtonCG(precondition=False),
}


def blurred(constraint: lr.Box, smoothing: float = 0.02) -> lr.LowerLevelProblem:
    filters = registry.randn(4, 3, 3, seed=1)
    R = FieldsOfExperts.from_arrays(filters, [0.02] * 4, [smoothing] * 4)
    blur = Blur(torch.ones(3, 3, dtype=torch.float64) / 9, SHAPE)
    return lr.LowerLevelProblem(blur, R, ridge=1e-3, constraint=constraint)


def data(batch: int = 1) -> Tensor:
    return registry.rand(batch, *SHAPE, seed=5) - 0.2


def run(
    solver: Solver, problem: lr.LowerLevelProblem, b: Tensor, tolerance: float, start: Tensor | None = None
) -> Tensor:
    """The point that ends with a bound below the tolerance, in the 2-norm."""
    instance = problem.instance(b)
    goal = torch.full((b.shape[0],), tolerance, dtype=b.dtype)
    result = iterate(
        solver, instance, initial_point(instance, instance.q) if start is None else start, 0.0 * goal, goal
    )
    assert result.status is lr.Status.CONVERGED
    assert bool((result.bound <= goal).all())
    assert problem.constraint is not None
    assert torch.equal(problem.constraint.prox(result.x), result.x)
    return result.x


def scipy_solution(problem: lr.LowerLevelProblem, b: Tensor) -> Tensor:
    """By L-BFGS-B, for one sample."""
    optimize = pytest.importorskip("scipy.optimize")
    assert problem.constraint is not None
    free = lr.LowerLevelProblem(problem.operator, problem.regularizer, ridge=problem.ridge_value)

    def energy(x: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(x.reshape(b.shape)).requires_grad_()
        value = free.energy(point, b).sum()
        return float(value.detach()), torch.autograd.grad(value, point)[0].numpy().ravel()

    bounds = [(float(problem.constraint.lower), float(problem.constraint.upper))] * PIXELS
    options = {"ftol": 1e-16, "gtol": 1e-11, "maxiter": 5000, "maxcor": 30}
    found = optimize.minimize(energy, np.full(PIXELS, 0.4), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return torch.from_numpy(found.x).reshape(b.shape)


@pytest.mark.parametrize("constraint", [lr.Nonnegative(), lr.Box(0.2, 0.5), lr.Box(0.3, 0.30001), lr.Box(-50.0, 50.0)])
@torch.no_grad()
def test_agrees_with_scipy(constraint: lr.Box) -> None:
    problem, b = blurred(constraint), data()
    with torch.enable_grad():
        expected = scipy_solution(problem, b)
    for name, solver in SOLVERS.items():
        x = run(solver(), problem, b, 1e-7)
        assert float((x - expected).norm()) <= 1e-5, name


@pytest.mark.parametrize("solver", list(SOLVERS))
@torch.no_grad()
def test_all_pixels_at_a_bound(solver: str) -> None:
    for bound, constraint in ((5.0, lr.Box(5.0, 6.0)), (-3.0, lr.Box(-4.0, -3.0))):
        x = run(SOLVERS[solver](), blurred(constraint), data(2), 1e-12)
        assert torch.equal(x, torch.full_like(x, bound))


@pytest.mark.parametrize("solver", list(SOLVERS))
@torch.no_grad()
def test_starts_outside_the_box(solver: str) -> None:
    problem, b = blurred(lr.Box(0.2, 0.5)), data(2)
    far = 1e3 * registry.randn(2, *SHAPE, seed=7)
    torch.testing.assert_close(
        run(SOLVERS[solver](), problem, b, 1e-8, far), run(SOLVERS[solver](), problem, b, 1e-8), rtol=0, atol=2e-8
    )


@pytest.mark.parametrize("solver", list(SOLVERS))
@torch.no_grad()
def test_no_data(solver: str) -> None:
    x = run(SOLVERS[solver](), blurred(lr.Nonnegative()), torch.zeros(2, *SHAPE, dtype=torch.float64), 1e-12)
    assert torch.equal(x, torch.zeros_like(x))
    start = registry.rand(2, *SHAPE)
    x = run(SOLVERS[solver](), blurred(lr.Nonnegative()), torch.zeros_like(start), 1e-6, start)
    assert float(x.norm()) <= 2e-6


@pytest.mark.parametrize("solver", list(SOLVERS))
@torch.no_grad()
@pytest.mark.sampled(share=0.4, by=("solver",))
def test_a_batch_with_different_active_sets(solver: str) -> None:
    """Among them one whose pixels are all active and one without any."""
    problem = blurred(lr.Box(0.1, 0.8))
    b = torch.cat([data(2), -3.0 + data(), torch.full((1, *SHAPE), 0.4, dtype=torch.float64)])
    together = run(SOLVERS[solver](), problem, b, 1e-6)
    counts = [int(((x <= 0.1) | (x >= 0.8)).sum()) for x in together]
    assert counts[2] == PIXELS
    assert 0 < counts[0] < PIXELS
    for i in range(4):
        alone = run(SOLVERS[solver](), problem, b[i : i + 1], 1e-6)
        assert float((alone[0] - together[i]).norm()) <= 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", list(SOLVERS))
@torch.no_grad()
def test_a_tolerance_below_rounding_ends_honestly(solver: str, dtype: torch.dtype) -> None:
    problem, b = blurred(lr.Box(0.2, 0.5)), data(2).to(dtype)
    exact = dense_truth.Dense(problem, b).solve()[0]
    problem = problem.to(dtype)
    instance, never = problem.instance(b), torch.zeros(2, dtype=dtype)
    result = iterate(SOLVERS[solver](), instance, initial_point(instance, instance.q), never, never)
    assert result.status is lr.Status.PRECISION
    assert bool(torch.isfinite(result.bound).all())
    error = (result.x.double().flatten(1) - exact).norm(dim=1)
    slack = 1e-4 if dtype == torch.float32 else 1e-10  # rounding over the ridge
    assert bool((error <= result.bound.double() + slack).all())


@pytest.mark.parametrize("solver", ["lbfgs", "newton-cg"])
@torch.no_grad()
def test_kinks_so_sharp_that_most_steps_are_rejected(solver: str) -> None:
    problem, b = blurred(lr.Box(0.2, 0.5), 1e-5), data(2)
    instance, never = problem.instance(b), torch.zeros(2, dtype=torch.float64)
    result = iterate(SOLVERS[solver](), instance, initial_point(instance, instance.q), never, never, 200)
    assert result.status in (lr.Status.MAX_STEPS, lr.Status.STAGNATED)
    assert bool(torch.isfinite(result.x).all())
    assert bool(torch.isfinite(result.bound).all())


def kinked(smoothing: float) -> lr.LowerLevelProblem:
    """Curvatures so large that float32 pixels cannot be moved by as little as the steps need."""
    blur = Blur(torch.ones(3, 3, dtype=torch.float64) / 9, SHAPE)
    R = TotalVariation(1.0, smoothing).double()
    return lr.LowerLevelProblem(blur, R, ridge=smoothing, constraint=lr.Box(-0.5, 1.5))


@torch.no_grad()
def test_float32_that_stagnates_goes_on_in_float64() -> None:
    problem = kinked(1e-3)
    b = data() + 0.2 * registry.randn(1, *SHAPE, seed=2)
    exact = lr.solve(problem, b.float().double(), 1e-6)
    problem, b = problem.float(), b.float()
    instance, never = problem.instance(b), torch.zeros(1)
    stuck = iterate(ProjectedLBFGS(), instance, initial_point(instance, instance.q), never, never)
    assert stuck.status is lr.Status.STAGNATED
    solution = lr.solve(problem, b, 1e-4)
    assert solution.status is lr.Status.CONVERGED
    assert float((solution.x - exact.x).norm()) <= 7 * float(solution.error_bound) + 1e-5


def steps_of(solver: ProjectedLBFGS, instance: Instance, count: int) -> int:
    """Steps of one sample that were rejected, with a check after each: what is kept are the latest pairs taken."""
    state, rejected = solver.init(instance, initial_point(instance, instance.q)), 0
    taken: list[Tensor] = []
    for _ in range(count):
        before = state
        state = solver.step(instance, state)
        if torch.equal(state.point.x, before.point.x):
            rejected += 1
        else:
            taken.append(state.s[-1])
        state = solver.adapt(instance, state)
        kept = [s for s, w in zip(state.s, state.inverse_curvature, strict=True) if float(w) > 0]
        assert len(state.s) <= solver.memory
        assert len(kept) == min(len(taken), solver.memory)
        assert all(torch.equal(a, b) for a, b in zip(kept, taken[len(taken) - len(kept) :], strict=True))
    return rejected


@torch.no_grad()
def test_rejected_steps_keep_the_pairs() -> None:
    instance = kinked(1e-3).instance(data() + 0.2 * registry.randn(1, *SHAPE, seed=2))
    assert steps_of(ProjectedLBFGS(memory=3), instance, 40) > 3


@torch.no_grad()
def test_a_sample_that_is_rejected_does_not_hold_up_others() -> None:
    """Their pairs go on."""
    instance, start = kinked(1e-3).instance(data(2)), data(2)
    solver = ProjectedLBFGS(memory=2)
    pairs = tuple(torch.full((2, 1, 1, 1), float(k)) for k in (1, 2, 3))
    weights = tuple(torch.tensor(w) for w in ([1.0, 1.0], [1.0, 1.0], [1.0, 0.0]))
    state = replace(solver.init(instance, start), s=pairs, d=pairs, inverse_curvature=weights)
    kept = solver._forget(state)
    assert [p.flatten().tolist() for p in kept.s] == [[2.0, 1.0], [3.0, 2.0]]
    assert [w.tolist() for w in kept.inverse_curvature] == [[1.0, 1.0], [1.0, 1.0]]


@torch.no_grad()
def test_a_mask_without_a_modulus_of_its_own() -> None:
    """Missing pixels within the box, held by the regularizer and a small ridge."""
    mask = (registry.rand(*SHAPE, seed=9) > 0.5).double()
    problem = lr.LowerLevelProblem(
        Inpainting(mask), TotalVariation(0.1, 0.01).double(), ridge=1e-4, constraint=lr.Box(0.0, 0.5)
    )
    b = mask * data(2)
    found = [run(make(), problem, b, 1e-6) for make in SOLVERS.values()]
    for x in found[1:]:
        torch.testing.assert_close(x, found[0], rtol=0, atol=2e-6)


def test_the_unconstrained_solver_refuses_a_box() -> None:
    problem = registry.build("denoising", "FieldsOfExperts", lr.Nonnegative())
    b = registry.measure(problem)[1]
    with pytest.raises(lr.AssumptionError, match="use ProjectedLBFGS"):
        LBFGS().init(problem.instance(b), b)
