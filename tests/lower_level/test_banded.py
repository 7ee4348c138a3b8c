"""Regularizers by bands of rows: the same numbers as by whole responses, at every border and band."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

import learnreg as lr
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.convolutions.padding import BOUNDARIES, Boundary
from learnreg.lower_level import banded
from learnreg.lower_level.banded import BandedPotential, in_bands
from learnreg.lower_level.instance import Instance
from learnreg.operators import Blur, Identity
from learnreg.regularizers import (
    AnalysisOperator,
    FieldsOfExperts,
    InputConvexNetwork,
    LearnedTotalGeneralizedVariation,
    MultivariateExperts,
    Regularizer,
    RidgeRegularizer,
    TotalVariation,
)
from learnreg.solvers import banded_lbfgs
from learnreg.solvers.banded_lbfgs import BandedLBFGS
from learnreg.solvers.preconditioner import UniformPreconditioner

SHAPE = (1, 17, 14)
BATCH = 3


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


REGULARIZERS: dict[str, Callable[[Boundary], Regularizer]] = {
    "experts": lambda boundary: FieldsOfExperts(5, 4, lr.PseudoHuber(0.02, 0.3), boundary, generator=generator()),
    "log-cosh": lambda boundary: FieldsOfExperts(3, 3, lr.LogCosh(0.05, 0.3), boundary, generator=generator()),
    "ridge": lambda boundary: RidgeRegularizer((2, 6), 3, boundary=boundary, generator=generator()),
    "weakly convex": lambda boundary: RidgeRegularizer(
        (2, 6), 3, convexity="convex-nonconvex", nonconvexity=0.5, boundary=boundary, generator=generator()
    ),
    "groups": lambda boundary: MultivariateExperts(3, 2, 3, boundary=boundary, generator=generator()),
}


def instance(regularizer: Regularizer, batch: int = 2) -> Instance:
    problem = lr.LowerLevelProblem(Identity(SHAPE), regularizer)
    return problem.instance(torch.rand(batch, *SHAPE, dtype=torch.float64, generator=generator()))


@pytest.fixture(params=[1, 4000, 10**9], ids=["single rows", "a few rows", "one band"])
def band_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(banded, "_BAND_BYTES", request.param)
    return int(request.param)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("name", REGULARIZERS)
@pytest.mark.usefixtures("band_bytes")
def test_bands_are_the_whole(name: str, boundary: Boundary) -> None:
    whole = instance(REGULARIZERS[name](boundary))
    bands = in_bands(whole)
    K, f, g = whole.analysis, whole.potential, bands.potential
    assert isinstance(g, BandedPotential)
    x, v = torch.randn(2, 2, *SHAPE, dtype=torch.float64, generator=generator())
    t, step = K(x), torch.full((2, 1, 1, 1), 0.3, dtype=torch.float64)
    pairs: dict[str, tuple[Tensor, Tensor]] = {
        "value": (g.value(x), f.value(t)),
        "gradient": (g.grad(x), K.adjoint(f.grad(t))),
        "full gradient": (bands.full_gradient(x), whole.full_gradient(x)),
        "Hessian": (g.hess_vec(x, v), K.adjoint(f.hess_vec(t, K(v)))),
        "mean majorant": (g.mean_majorant(x), f.majorant(t).flatten(1, -3).mean((2, 3))),
        "majorant": (g.majorant_along(x, v), (K(v) ** 2 * f.majorant(t)).flatten(1).sum(1)),
        "slope": (g.slope(x, v, step), f.slope(t, K(v), step.reshape(2, *(1,) * (t.dim() - 1)))),
    }
    for what, (found, expected) in pairs.items():
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11, msg=lambda m, what=what: f"{what}: {m}")


@pytest.mark.parametrize("name", REGULARIZERS)
def test_diagonals_and_bounds(name: str) -> None:
    """Against the dense Hessian of the regularizer."""
    whole = instance(REGULARIZERS[name]("zero"), batch=1)
    g = in_bands(whole).potential
    x = torch.rand(1, *SHAPE, dtype=torch.float64, generator=generator())
    units = torch.eye(x.numel(), dtype=torch.float64).view(-1, 1, *SHAPE)
    dense = torch.stack([g.hess_vec(x, unit).flatten() for unit in units])
    if name != "groups":  # whose cross terms are left out
        torch.testing.assert_close(g.second_diagonal(x).flatten(), dense.diagonal(), rtol=1e-9, atol=1e-10)
    extremes = torch.linalg.eigvalsh(dense)
    low, high = g.curvature_bounds(x, 0.0)
    assert float(low) <= float(extremes[0]) + 1e-12
    assert float(extremes[-1]) <= float(high)
    assert g.convex == whole.potential.convex
    assert float(g.majorant(x).min()) >= 0


def test_applications_count_as_before() -> None:
    whole = instance(REGULARIZERS["experts"]("reflect"))
    bands = in_bands(whole)
    before = whole.counter.applications
    bands.full_gradient(torch.zeros(2, *SHAPE, dtype=torch.float64))
    assert whole.counter.applications == before + 2


class Mine(FilterBank):
    """A user's class, whose forward nothing is known of."""

    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return -super().adjoint(y)


@pytest.mark.parametrize(
    "regularizer",
    [
        TotalVariation(),
        InputConvexNetwork(1, 4, 1, 3),
        LearnedTotalGeneralizedVariation(),
        AnalysisOperator(Mine(torch.randn(2, 3, 3, dtype=torch.float64), SHAPE), lr.PseudoHuber(0.1)),
        AnalysisOperator(
            FilterBank(torch.randn(2, 3, 3, dtype=torch.float64), SHAPE, "zero"),
            lr.PseudoHuber(0.1, torch.rand(2, *SHAPE[1:], dtype=torch.float64) + 0.5),
        ),
    ],
    ids=lambda r: type(r).__name__,
)
def test_what_has_no_bands_stays_whole(regularizer: Regularizer) -> None:
    whole = instance(regularizer, batch=1)
    assert in_bands(whole) is whole


# ---------------------------------------------------------------------------------------------------------------- solve


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image counts as large, and nobody may form its responses."""
    monkeypatch.setattr(banded, "_WHOLE_BYTES", 0)
    monkeypatch.setattr(banded, "_BAND_BYTES", 4000)

    forward = FilterBank.forward

    def of_few(self: FilterBank, x: Tensor) -> Tensor:  # norms of small images are found so
        assert len(x) != BATCH, "whole responses"
        return forward(self, x)

    monkeypatch.setattr(FilterBank, "forward", of_few)


@cache
def solved(name: str) -> tuple[lr.LowerLevelProblem, Tensor, Tensor]:
    """A problem, data that float32 holds exactly, and the solution."""
    problem = lr.LowerLevelProblem(
        Identity(SHAPE), REGULARIZERS[name]("reflect" if name != "weakly convex" else "zero")
    )
    b = torch.rand(BATCH, *SHAPE, dtype=torch.float32, generator=generator())
    exact = lr.solve(problem, b.double(), tolerance=1e-11)
    assert exact.status.converged
    return problem, b, exact.x


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", REGULARIZERS)
def test_the_bound_is_that_of_the_whole_image(
    name: str, dtype: torch.dtype, tolerance: float, request: pytest.FixtureRequest
) -> None:
    problem, b, exact = solved(name)
    request.getfixturevalue("large")
    found = lr.solve(problem, b.to(dtype), tolerance=tolerance)
    assert (found.status, found.solver, found.bound_kind) == (lr.Status.CONVERGED, "lbfgs", "rigorous")
    error = (found.x.double() - exact).square().mean((1, 2, 3)).sqrt()
    assert bool((error <= found.error_bound.double() + 1e-11).all())
    assert bool((found.error_bound <= tolerance).all())
    request.getfixturevalue("monkeypatch").undo()
    K, f = problem.frozen().fixed.operator, problem.frozen().potential(dtype)
    torch.testing.assert_close(found.y, f.grad(K(found.x)))


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("constraint", [None, lr.Box(0.3, 0.6)], ids=["free", "box"])
def test_other_problems_are_solved_by_bands_too(constraint: lr.Box | None) -> None:
    """With a blur, a ridge, a constraint, and from a start."""
    kernel = torch.full((3, 3), 1 / 9, dtype=torch.float64)
    R = REGULARIZERS["experts"]("circular")
    problem = lr.LowerLevelProblem(Blur(kernel, SHAPE, "circular"), R, ridge=0.05, constraint=constraint)
    b = torch.rand(1, *SHAPE, dtype=torch.float64, generator=generator())
    found = lr.solve(problem, b, tolerance=1e-5)
    assert found.status.converged
    again = lr.solve(problem, b, tolerance=1e-5, start=found.x)
    assert again.steps <= found.steps
    if constraint is not None:
        assert bool((found.x >= 0.3).all() and (found.x <= 0.6).all())


def test_steps_that_are_too_long_are_rejected() -> None:
    """Strong kinks far from the start: the energy falls from check to check all the same."""
    R = FieldsOfExperts(3, 3, lr.PseudoHuber(1e-4, 30.0), "reflect", generator=generator())
    problem = lr.LowerLevelProblem(Identity(SHAPE), R)
    b = torch.rand(2, *SHAPE, dtype=torch.float64, generator=generator())
    whole = problem.instance(b)
    bands, solver = in_bands(whole), BandedLBFGS()
    state = solver.init(bands, b)
    energies = [problem.energy(b, b)]
    for _ in range(60):
        state = solver.step(bands, state)
        energies.append(problem.energy(state.x, b))
        torch.testing.assert_close(state.grad, whole.full_gradient(state.x), rtol=1e-8, atol=1e-8)
    falls = torch.stack(energies).detach()
    assert bool((falls[1:] <= falls[:-1] * (1 + 1e-9)).all())
    assert bool((falls[-1] < 0.9 * falls[0]).all())
    assert len(state.s) == 3


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_the_preconditioner_inverts_a_hessian_of_one_curvature(boundary: Boundary) -> None:
    """Exactly on a torus; elsewhere it is symmetric and positive definite."""
    whole = instance(FieldsOfExperts(3, 3, lr.PseudoHuber(0.05, 0.3), boundary, generator=generator()))
    mean = torch.rand(2, 3, dtype=torch.float64, generator=generator()) + 0.5
    precondition = UniformPreconditioner.of(whole, whole.analysis, mean)
    assert precondition is not None
    v, w = torch.randn(2, 2, *SHAPE, dtype=torch.float64, generator=generator())
    if boundary == "circular":
        bent = whole.analysis.adjoint(mean[:, :, None, None] * whole.analysis(v))
        torch.testing.assert_close(precondition(whole.quadratic(v) + bent), v, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close((precondition(v) * w).sum(), (v * precondition(w)).sum())
    assert float((precondition(v) * v).sum()) > 0


@pytest.mark.parametrize("name", ["ridge", "weakly convex", "groups"])
def test_a_preconditioner_saves_steps_and_changes_no_minimiser(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(banded, "_WHOLE_BYTES", 0)
    problem = lr.LowerLevelProblem(Identity(SHAPE), REGULARIZERS[name]("reflect"))
    b = torch.rand(2, *SHAPE, dtype=torch.float64, generator=generator())
    found = []
    for dear in (0, 10**9):
        monkeypatch.setattr(banded_lbfgs, "_DEAR_COEFFICIENTS", dear)
        found.append(lr.solve(problem, b, tolerance=1e-6))
        assert found[-1].status.converged
    assert bool(((found[0].x - found[1].x).square().mean((1, 2, 3)).sqrt() <= 2e-6).all())
    assert found[0].operator_applications <= found[1].operator_applications
