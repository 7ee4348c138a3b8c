"""Weakly convex ridge regularizers: the modulus that remains, certified gradients, and what is refused."""

from __future__ import annotations

import math

import pytest
import registry
import torch
from torch import Tensor
from truth.dense import Dense, distance, norm, truth_of
from truth.draw import RANGES
from truth.hunt import hunt

import learnreg as lr
from learnreg.certificates.point_bound import StateError
from learnreg.certificates.published import PublishedBound
from learnreg.certificates.sharp import SharpBound
from learnreg.certificates.split import GlobalSplit
from learnreg.certificates.state import rounding_floor, state_residual
from learnreg.convolutions.composition import fine_grid, spectral_norm
from learnreg.convolutions.padding import Boundary
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.pairing import evaluate_pairing
from learnreg.lower_level.point import Point
from learnreg.models.names import build_regularizer, describe_regularizer
from learnreg.operators import Blur, Identity
from learnreg.potentials.base import weighted_square
from learnreg.potentials.weakly_convex_spline import WeaklyConvexSpline
from learnreg.regularizers import RidgeRegularizer, Scaled
from learnreg.solvers import PDHG, AdjointPDHG
from learnreg.solvers.choice import make_solver
from learnreg.testing import check_regularizer, examine_regularizer

SHAPE = registry.SHAPE
DOUBLE = torch.float64

pytestmark = pytest.mark.usefixtures("one_thread")


def ridge(seed: int = 0, deep: float = 3.0, **options: object) -> RidgeRegularizer:
    """Away from its start, with deep concave parts."""
    defaults: dict[str, object] = {"channels": (2, 3), "size": 3, "knots": 9, "weight": 0.5, "smoothing": 0.15}
    generator = torch.Generator().manual_seed(seed)
    options = defaults | {"convexity": "convex-nonconvex", "generator": generator} | options
    result = RidgeRegularizer(**options).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for p in result.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=DOUBLE))
        result.log_curvature.sub_(1.0)
        result.logit_depth.add_(deep)
    return result


def problem_with(regularizer: RidgeRegularizer | Scaled, **options: object) -> lr.LowerLevelProblem:
    return lr.LowerLevelProblem(Identity(SHAPE), regularizer, **options)  # type: ignore[arg-type]


# ---- the potential ---------------------------------------------------------------------------------------------------


def spline(seed: int, channels: int = 3, m: int = 5) -> WeaklyConvexSpline:
    random = [torch.rand(channels, n, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed + n)) for n in (1, m)]
    depths = torch.rand(channels, m - 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed + 99))
    smoothing, weight = 0.1 + random[0], torch.tensor([0.05, 0.3, 2.0], dtype=DOUBLE)
    return WeaklyConvexSpline(smoothing[..., None], weight[:, None, None], random[1], depths)


def test_potentials_rise_and_their_concavity_is_attained() -> None:
    for seed in range(20):
        f = spline(seed)
        t = f.smoothing * torch.linspace(0.0, 7.0, 7 * 64 + 1, dtype=DOUBLE)[None, None, :, None]  # type: ignore[operator]
        assert float(f.grad(t).min()) >= -1e-14
        lowest = f.second(t).amin((0, 2, 3)).clamp(max=0.0)
        rho, depth = torch.as_tensor(f.concavity).flatten(), f.depth.flatten()
        torch.testing.assert_close(-lowest, rho, rtol=1e-11, atol=1e-15)
        assert bool((rho <= depth).all())
        far = f.grad(t[:, :, -1:])
        torch.testing.assert_close(far, f.convex_part().grad(t[:, :, -1:]), rtol=1e-12, atol=1e-14)


def test_parts_are_derivatives_and_obey_their_excess(rotating_seed: int) -> None:
    """s = ∂f' in the logarithms of weight, smoothing and depths, and how far each moves with t."""
    generator = torch.Generator().manual_seed(rotating_seed)
    for seed in range(10):
        f = spline(seed)
        t = 6.0 * torch.randn(1, 3, 40, 1, dtype=DOUBLE, generator=generator) * f.smoothing  # type: ignore[operator]
        moved = t + 0.3 * torch.randn(t.shape, dtype=DOUBLE, generator=generator) * f.smoothing  # type: ignore[operator]
        zero = torch.zeros((), dtype=DOUBLE)

        def slope(weight: Tensor, smoothing: Tensor, depth: Tensor, f: WeaklyConvexSpline = f, t: Tensor = t) -> Tensor:
            scaled = f.weight * weight.exp(), f.smoothing * smoothing.exp()
            depths = f.depths * depth.exp()
            return WeaklyConvexSpline(scaled[1], scaled[0], f.convex_coefficients, depths).grad(t)

        jacobians = torch.autograd.functional.jacobian(slope, (zero, zero, torch.zeros(4, dtype=DOUBLE)))
        expected = (f.weight_gradient(t), f.smoothing_gradient(t), f.depth_gradients(t).movedim(0, -1))
        for found, exact in zip(expected, jacobians, strict=True):
            torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)
        assert bool((f.depth_gradients(t).norm(dim=0) <= f.depth_gradient_size(t)).all())
        way, radius = (moved - t).abs(), (moved - t).abs() * (1.0 + 1e-12)
        high = f.curvature_bounds(t, radius)[1] + f.concavity
        for change, excess in (
            (f.weight_gradient(moved) - f.weight_gradient(t), f.weight_excess),
            (f.depth_gradients(moved) - f.depth_gradients(t), f.depth_excess),
            (f.grad(moved) - f.grad(t), f.concavity),
        ):
            size = change.abs() if change.dim() == t.dim() else change.abs().sum(0)
            mean = (f.grad(moved) - f.grad(t)) / (moved - t) + f.concavity  # Dbar + rho
            assert bool((size <= (mean + excess) * way + 1e-13).all())
            assert bool((mean <= high + 1e-12).all())
        change = (f.smoothing_gradient(moved) - f.smoothing_gradient(t)).abs()
        assert bool((change <= f.smoothing_slope(t, radius) * way + 1e-13).all())


def test_a_fine_grid_sees_all_frequencies(rotating_seed: int) -> None:
    generator = torch.Generator().manual_seed(rotating_seed)
    for side in (2, 5, 13):
        grid, overshoot = fine_grid(side)
        assert overshoot <= 1.1
        for _ in range(3):
            filters = torch.randn(2, 1, side, side, dtype=DOUBLE, generator=generator)
            squares = [float(spectral_norm(filters, count)) ** 2 for count in (grid, 4 * grid + 1)]
            assert squares[1] <= squares[0] * overshoot


@pytest.mark.parametrize("boundary", ["zero", "valid", "circular", "reflect"])
def test_the_deepest_potentials_take_no_more_than_they_may(boundary: Boundary) -> None:
    for seed in range(4):
        regularizer = ridge(seed, deep=60.0, boundary=boundary, nonconvexity=0.8)
        with torch.no_grad():
            regularizer.log_weights.sub_(12.0)  # nothing convex is left to make up for it
        for sides in ((8, 8), (9, 31), (40, 37)):
            terms = regularizer.saddle_terms((1, *sides))
            taken = weighted_square(terms.operator, terms.potential.concavity)
            assert taken <= 0.8
            assert boundary == "reflect" or taken > 0.2


def test_the_energy_is_as_convex_as_it_says() -> None:
    """Never less over many images; hardly more at a ramp, whose responses all sit where f'' is least."""
    b = registry.rand(1, *SHAPE)
    for seed in range(5):
        problem = problem_with(ridge(seed, deep=9.0))
        modulus, dense = problem.strong_convexity, Dense(problem, b)
        assert 0.1 <= modulus < 0.9
        for scale in range(40):
            x = 10.0 ** (-2.0 + 0.1 * scale) * registry.randn(1, math.prod(SHAPE), seed=scale)
            assert modulus <= float(torch.linalg.eigvalsh(dense.hessian(x)[0])[0])
    problem = problem_with(ridge(3, deep=9.0, channels=(1,), size=2, boundary="valid"))
    terms, dense = problem.saddle_terms(DOUBLE), Dense(problem, b)
    assert isinstance(terms.potential, WeaklyConvexSpline)
    lowest = int(terms.potential.coefficients.argmin()) * float(terms.potential.detached().smoothing)
    rows, columns = torch.arange(5.0, dtype=DOUBLE), torch.arange(6.0, dtype=DOUBLE)
    ramp = (rows[:, None] + 0.5 * columns[None])[None, None]
    x = lowest / float(terms.operator(ramp).detach()[0, 0, 0, 0]) * ramp
    least = float(torch.linalg.eigvalsh(dense.hessian(x.flatten(1))[0])[0])
    assert problem.strong_convexity <= least <= problem.strong_convexity + 0.25


@pytest.mark.parametrize("boundary", ["zero", "circular", "reflect"])
@pytest.mark.parametrize("deep", [-1.0, 3.0])
@pytest.mark.parametrize("members", [1, 3])
def test_how_much_of_the_nonconvexity_is_used(boundary: Boundary, deep: float, members: int) -> None:
    """At least the largest eigenvalue of W^T diag(rho) W on an image, and, but for reflections, hardly more."""
    regularizer = ridge(deep=deep, boundary=boundary, channels=(2, 2 * members), group_size=members)
    used, shape = regularizer.nonconvexity_used, (1, 12, 13)
    terms = regularizer.saddle_terms(shape)
    concavity = torch.as_tensor(terms.potential.concavity).detach()
    basis = torch.eye(12 * 13, dtype=DOUBLE).reshape(-1, *shape)
    K = (concavity.sqrt() * terms.operator(basis)).flatten(1).detach()
    largest = float(torch.linalg.matrix_norm(K, 2)) ** 2
    assert largest <= used <= regularizer.nonconvexity
    assert boundary == "reflect" or 0 < used <= 1.5 * largest
    assert RidgeRegularizer((2, 3), 3, 9).nonconvexity_used == 0.0


def test_the_regularizer_keeps_its_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    for make in CASES.values():
        regularizer = make()
        assert check_regularizer(regularizer, SHAPE).ok
        assert check_regularizer(regularizer, SHAPE, torch.float32).ok
    monkeypatch.setattr(WeaklyConvexSpline, "concavity", 0.0)
    failed = examine_regularizer(ridge(), SHAPE).failed
    assert failed is not None
    assert failed.name == "convexity"


# ---- certificates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"shared": True, "noise_conditioned": True}], ids=["default", "shared"])
def test_hypergradients_equal_dense_ones_at_the_smallest_size(options: dict[str, bool]) -> None:
    regularizer = ridge(0, 2.0, channels=(4, 8, 32), size=5, knots=21, weight=0.15, smoothing=1e-2, **options)
    x_true = registry.rand(2, 1, 8, 8, seed=1)
    b, loss = x_true + 0.1 * registry.randn(2, 1, 8, 8, seed=2), lr.SquaredError(x_true)
    problem = lr.LowerLevelProblem(Identity((1, 8, 8)), regularizer, noise_level=0.06)
    assert problem.strong_convexity < 1.0
    truth = truth_of(problem, b, loss)
    assert truth.usable
    result = lr.hypergradient(problem, b, loss, tolerance=1e-6)
    assert result.certified
    assert result.status is lr.Status.CONVERGED
    error = distance(result.gradient, truth.gradient)
    assert error <= min(result.error_bound + truth.gradient_slack, 1e-6 * norm(truth.gradient))
    for name, gradient in truth.gradient.items():
        assert float(gradient.norm()) > 0, name


CASES = {
    "per channel": lambda: ridge(),
    "shared": lambda: ridge(shared=True, boundary="valid"),
    "noise": lambda: ridge(noise_conditioned=True).at(0.2),
    "scaled": lambda: Scaled(ridge(), 1.2).double().requires_grad_(),
    "groups": lambda: ridge(channels=(2, 4), group_size=2),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["sharp", "published"])
@pytest.mark.sampled(share=0.5, by=("case", "kind"))
def test_each_group_alone_is_certified(case: str, kind: str) -> None:
    problem = problem_with(CASES[case]())
    x_true, b = registry.measure(problem)
    loss, roles = lr.SquaredError(x_true), problem.frozen().parameter_roles()
    truth = truth_of(problem, b, loss)
    for role in set(roles.values()):
        for name, p in problem.regularizer.named_parameters():
            p.requires_grad_(roles[name] == role)
        for tolerance in (10.0, 1e-2, 1e-5):
            result = lr.hypergradient(problem, b, loss, tolerance=tolerance, certificate=kind)  # type: ignore[arg-type]
            assert result.certified
            expected = {name: truth.gradient[name] for name in result.gradient}
            assert distance(result.gradient, expected) <= result.error_bound + truth.gradient_slack, role


@pytest.mark.parametrize("kind", [SharpBound, PublishedBound], ids=["sharp", "published"])
def test_lemma_4_holds_for_the_true_errors(kind: type[SharpBound | PublishedBound], rotating_seed: int) -> None:
    """With the errors themselves in the place of their bounds, every group of parameters for itself."""
    generator = torch.Generator().manual_seed(rotating_seed)
    tightest = math.inf
    for trial in range(12):
        problem = problem_with(list(CASES.values())[trial % len(CASES)]())
        x_true, b = registry.measure(problem, batch=1)
        loss, instance, roles = lr.SquaredError(x_true), problem.instance(b), problem.frozen().parameter_roles()
        truth, dense = truth_of(problem, b, loss), Dense(problem, b)
        size = 10.0 ** (-3.0 + 3.0 * float(torch.rand((), generator=generator)))
        dx, dX = (size * torch.randn(truth.x.shape, generator=generator, dtype=DOUBLE) for _ in range(2))
        if trial % 3 == 0:  # along the least curvature, where concave parts act
            dx = dX = size * torch.linalg.eigh(dense.hessian(truth.x)[0])[1][:, :1].T
        x, X = ((u + d).reshape(-1, *SHAPE) for u, d in ((truth.x, dx), (truth.X, dX)))
        for role in sorted(set(roles.values())):
            for name, p in problem.regularizer.named_parameters():
                p.requires_grad_(roles[name] == role)
            gradient, responses = evaluate_pairing(Point(problem.frozen(), instance, b, loss, x, X))
            pullback = instance.adjoint(responses.y)
            residual = state_residual(instance, x, pullback)
            state_norm = residual.flatten(1).norm(dim=1) + rounding_floor(instance, x, pullback)
            e, none = dx.norm(dim=1), torch.zeros(1, dtype=DOUBLE)
            state = StateError(state_norm, e, GlobalSplit(instance.strong_convexity))
            bound = kind(problem.frozen(), instance, x, X, responses, state, pullback, none)
            t = instance.apply(truth.x.reshape(-1, *SHAPE))
            equation = AdjointEquation.at(instance, x, t, loss.gradient(x))
            V = instance.apply(dX.reshape(-1, *SHAPE))
            energy = ((equation.at_response + instance.potential.concavity) * V * V).sum().sqrt().reshape(1)
            allowed = float(bound.groups()[0].at(dX.norm(dim=1), energy))
            exact = {name: truth.gradient[name] for name in gradient}
            error = distance(gradient, exact)
            assert error <= allowed * (1.0 + 1e-9) + truth.gradient_slack, (role, trial)
            if error > 10.0 * truth.gradient_slack:
                tightest = min(tightest, allowed / error)
    assert tightest < 60.0


def test_random_problems(rotating_generator: torch.Generator) -> None:
    summary = hunt(5, rotating_generator, RANGES["nonconvex"])
    assert not summary.violations, "\n".join(summary.violations)
    assert summary.comparisons > 50


# ---- solvers and problems --------------------------------------------------------------------------------------------


def test_solvers_agree_with_the_truth_under_constraints() -> None:
    for constraint in (None, lr.Box(0.2, 0.7)):
        problem = problem_with(ridge(2), constraint=constraint)
        x_true, b = registry.measure(problem)
        truth = truth_of(problem, b, lr.SquaredError(x_true))
        for name in ("auto", "lbfgs", "newton-cg"):
            found = lr.solve(problem, b, 1e-8, solver=name)  # type: ignore[arg-type]
            assert found.certified
            assert found.status is lr.Status.CONVERGED
            error = (found.x.flatten(1) - truth.x).norm(dim=1) / math.sqrt(truth.x.shape[1])
            assert bool((error <= found.error_bound + truth.x_slack).all())


def test_dual_methods_are_for_convex_regularizers() -> None:
    problem = problem_with(ridge(), ridge=0.1)
    x_true, b = registry.measure(problem)
    loss, instance = lr.SquaredError(x_true), problem.instance(b)
    assert make_solver("auto", instance).name == "lbfgs"
    with pytest.raises(lr.ConfigError, match="weakly convex"):
        lr.solve(problem, b, solver="pdhg")
    with pytest.raises(lr.ConfigError, match="use 'auto' or 'cg'"):
        lr.hypergradient(problem, b, loss, lr.Implicit("piggyback"))
    with pytest.raises(lr.AssumptionError, match="weakly convex"):
        PDHG().init(instance, b)
    with pytest.raises(lr.AssumptionError, match="weakly convex"):
        AdjointPDHG().init(AdjointEquation.at(instance, b, instance.apply(b), b), b)
    truth = truth_of(problem, b, loss)
    with pytest.raises(lr.ConfigError, match=r"use Piggyback\(\) or Implicit\(\)"):
        lr.hypergradient(problem, b, loss, lr.Piggyback("interleaved"))
    result = lr.hypergradient(problem, b, loss, lr.Piggyback(), tolerance=1e-4)
    assert result.certified
    assert result.status is lr.Status.CONVERGED
    assert distance(result.gradient, truth.gradient) <= result.error_bound + truth.gradient_slack


def test_problems_without_a_modulus_are_refused() -> None:
    regularizer = ridge(0, deep=9.0)
    blur = Blur(torch.ones(3, 3, dtype=DOUBLE) / 9, SHAPE)
    b = registry.rand(1, *SHAPE)
    with pytest.raises(lr.AssumptionError, match=r"modulus of 0\.1, .* use a ridge above 0\.[3-9]"):
        lr.solve(lr.LowerLevelProblem(blur, regularizer, ridge=0.1), b)
    with pytest.raises(lr.AssumptionError, match="smaller nonconvexity"):
        lr.solve(problem_with(Scaled(regularizer, 20.0).double()), b)
    assert lr.LowerLevelProblem(blur, regularizer, ridge=0.1).strong_convexity == 0.0
    assert lr.solve(lr.LowerLevelProblem(blur, regularizer, ridge=1.0), b).certified


def test_training_keeps_parameters_admissible() -> None:
    """With steps of Adam that are far too long."""
    problem = problem_with(ridge())
    x_true, b = registry.measure(problem)
    objective = lr.BatchObjective(problem, b, lr.SquaredError(x_true))
    optimizer = torch.optim.Adam(problem.parameters(), lr=0.5)
    for _ in range(12):
        optimizer.step(objective.closure(0.3))
        assert problem.strong_convexity >= 0.1 - 1e-12
    assert objective.gradient(1e-2).certified


def test_configuration_rebuilds_it() -> None:
    regularizer = ridge(shared=True, noise_conditioned=True, boundary="circular", nonconvexity=0.4)
    rebuilt = build_regularizer(describe_regularizer(regularizer)).double()
    rebuilt.load_state_dict(regularizer.state_dict())
    x = registry.randn(1, *SHAPE)
    assert torch.equal(rebuilt.value(x), regularizer.value(x))
    assert "nonconvexity=0.4" in repr(regularizer)


@pytest.mark.parametrize("name", ["nonconvexity", "convexity"])
def test_bad_options_are_refused(name: str) -> None:
    value: object = "concave" if name == "convexity" else 0.0
    with pytest.raises(lr.ConfigError, match=name):
        RidgeRegularizer(**{"convexity": "convex-nonconvex", name: value})  # type: ignore[arg-type]
