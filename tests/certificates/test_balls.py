"""The lemmas that balls around local minimisers rest on, held against dense truths."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import registry
import torch
from registered.local_problems import DOUBLE, OPERATORS, SHAPE, blur, deep, mask, near, problem_with
from torch import Tensor
from truth.dense import Dense, distance, truth_of
from truth.draw import RANGES, Draw
from truth.hunt import hunt, hunt_local
from truth.problems import draw_case
from truth.summary import Summary

import learnreg as lr
from learnreg.certificates import lowest_curvature
from learnreg.certificates.ball import find_ball
from learnreg.certificates.interval import response_radius
from learnreg.certificates.lowest_curvature import LowestCurvature
from learnreg.certificates.point_bound import StateError
from learnreg.certificates.published import PublishedBound
from learnreg.certificates.sharp import SharpBound
from learnreg.certificates.split import BallSplit
from learnreg.certificates.state import rounding_floor, state_residual
from learnreg.linear.samples import norm_samples
from learnreg.lower_level.pairing import evaluate_pairing
from learnreg.lower_level.point import Point
from learnreg.operators import Identity
from learnreg.potentials.curvature import CurvatureFloor
from learnreg.regularizers import (
    RidgeRegularizer,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.sampled(share=0.5, by=("name",))
def test_curvatures_are_below_the_smallest_eigenvalue(
    name: str, rotating_seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By every way, and near it."""
    operator = OPERATORS[name]()
    images = {} if operator.domain_shape[0] == 1 else {"image_channels": 2, "coupling": "complex"}
    problem = problem_with(operator, deep(**images), ridge=0.05)
    _, b = registry.measure(problem)
    instance = problem.instance(b)
    s = 0.05 * torch.randn(
        len(b), *instance.analysis.range_shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(rotating_seed)
    )
    lowest, dense = LowestCurvature(instance), Dense(problem, b)
    exact = torch.linalg.eigvalsh(dense.M + torch.einsum("mi,bm,mj->bij", dense.K, s.flatten(1), dense.K))[:, 0]
    assert lowest.by_norms(CurvatureFloor(s)) <= float(exact.min())
    torch.testing.assert_close(lowest.estimate(CurvatureFloor(s)), exact, rtol=1e-10, atol=1e-12)
    for limit in (1024, 1):
        monkeypatch.setattr(lowest_curvature, "_DENSE_PIXELS", limit)
        monkeypatch.setattr(lowest_curvature, "_FEW_PIXELS", limit)
        found, failure = LowestCurvature(instance).bound(CurvatureFloor(s), exact)
        assert (failure > 0) == (limit == 1 and name not in ("identity", "inpainting", "blur"))
        assert bool((found <= exact).all())
        assert bool((found >= 0.5 * exact.clamp_min(0.0)).all() | (exact < 0).any())


@pytest.mark.parametrize("shape", [(1, 12), (1, 3, 4, 2), (2, 4, 3)])
def test_signals_volumes_and_colours_have_no_bands(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    ridge = RidgeRegularizer((2, 2), 2, 9, image_channels=shape[0], dimensions=len(shape) - 1).double()
    problem = lr.LowerLevelProblem(Identity(shape), ridge, ridge=0.05)
    _, b = registry.measure(problem)
    instance, dense = problem.instance(b), Dense(problem, b)
    s = 0.05 * registry.randn(len(b), *instance.analysis.range_shape)
    exact = torch.linalg.eigvalsh(dense.M + torch.einsum("mi,bm,mj->bij", dense.K, s.flatten(1), dense.K))[:, 0]
    monkeypatch.setattr(lowest_curvature, "_DENSE_PIXELS", 1)
    found, failure = LowestCurvature(instance).bound(CurvatureFloor(s), exact)
    assert failure > 0
    assert bool((found <= exact).all())


def test_splits_keep_half_of_the_curvature(rotating_seed: int) -> None:
    """M + K^T sigma K >= m/2 with sigma <= f'' in the ball, and the ball's curvature is one at random points of it."""
    generator = torch.Generator().manual_seed(rotating_seed)
    for name in ("identity", "inpainting", "tomography"):
        problem = problem_with(OPERATORS[name](), deep())
        _, b = registry.measure(problem)
        x, instance, dense = near(problem, b).reshape(len(b), 1, 7, -1), problem.instance(b), Dense(problem, b)
        residual = torch.full((len(b),), 1e-6, dtype=DOUBLE)
        ball = find_ball(instance, x, instance.apply(x), residual)
        assert ball.hindrance is None, name
        split = ball.split(instance)
        assert isinstance(split, BallSplit)
        assert bool((split.sigma <= ball.low).all())
        moved = dense.M + torch.einsum("mi,bm,mj->bij", dense.K, split.sigma.flatten(1), dense.K)
        assert split.modulus <= float(torch.linalg.eigvalsh(moved).min()) * (1.0 + 1e-9)
        for _ in range(5):
            way = torch.randn(x.flatten(1).shape, dtype=DOUBLE, generator=generator)
            z = x.flatten(1) + ball.radius[:, None] * way / way.norm(dim=1, keepdim=True)
            assert bool((torch.linalg.eigvalsh(dense.hessian(z))[:, 0] >= ball.curvature).all())


@pytest.mark.parametrize("kind", [SharpBound, PublishedBound], ids=["sharp", "published"])
@pytest.mark.sampled(share=0.5, by=("kind",))
def test_lemma_4_holds_for_the_true_errors(kind: type[SharpBound | PublishedBound], rotating_seed: int) -> None:
    """With the errors themselves in the place of their bounds, every group of parameters for itself."""
    generator, judged = torch.Generator().manual_seed(rotating_seed), 0
    for trial in range(5):
        problem = problem_with((Identity(SHAPE), mask(), blur())[trial % 3], deep(3.0, trial))
        x_true, b = registry.measure(problem, batch=1)
        loss, instance, roles = lr.SquaredError(x_true), problem.instance(b), problem.frozen().parameter_roles()
        truth, dense = truth_of(problem, b, loss, near(problem, b)), Dense(problem, b)
        size = 10.0 ** (-4.0 + 2.5 * float(torch.rand((), generator=generator)))
        dx, dX = (size * torch.randn(truth.x.shape, generator=generator, dtype=DOUBLE) for _ in range(2))
        if trial % 2:  # along the least curvature
            dx = dX = size * torch.linalg.eigh(dense.hessian(truth.x)[0])[1][:, :1].T
        x, X, e = (truth.x + dx).reshape(-1, *SHAPE), (truth.X + dX).reshape(-1, *SHAPE), dx.norm(dim=1)
        t = instance.apply(x)
        low, _ = instance.potential.curvature_bounds(t, response_radius(instance, e, t))
        least = torch.linalg.eigvalsh(dense.M + torch.einsum("mi,bm,mj->bij", dense.K, low.flatten(1), dense.K))[:, 0]
        if float(least) <= 0:
            continue
        known = LowestCurvature(instance)
        split = BallSplit.of(low, least, known.by_norms(CurvatureFloor(low)), instance.potential.concavity)
        for role in sorted(set(roles.values())):
            for name, p in problem.regularizer.named_parameters():
                p.requires_grad_(roles[name] == role)
            gradient, responses = evaluate_pairing(Point(problem.frozen(), instance, b, loss, x, X))
            pullback = instance.adjoint(responses.y)
            residual = norm_samples(state_residual(instance, x, pullback)) + rounding_floor(instance, x, pullback)
            state, none = StateError(residual, e, split), torch.zeros(1, dtype=DOUBLE)
            bound = kind(problem.frozen(), instance, x, X, responses, state, pullback, none)
            bent = instance.potential.second(instance.apply(truth.x.reshape(-1, *SHAPE))) - split.sigma
            V = instance.apply(dX.reshape(-1, *SHAPE))
            energy = (bent * V * V).sum().clamp_min(0.0).sqrt().reshape(1)
            allowed = float(bound.groups()[0].at(dX.norm(dim=1), energy))
            error = distance(gradient, {name: truth.gradient[name] for name in gradient})
            assert error <= allowed * (1.0 + 1e-9) + truth.gradient_slack, (role, trial)
            judged += 1
    assert judged >= 5


@pytest.mark.parametrize("ranges", ["local", "local-extreme"])
@pytest.mark.sampled(share=0.5, by=("ranges",))
def test_hunt(ranges: str, rotating_seed: int) -> None:
    summary = hunt(1, torch.Generator().manual_seed(rotating_seed), RANGES[ranges])
    assert summary.violations == []
    assert summary.indefinite == summary.problems


@pytest.mark.slow
@pytest.mark.parametrize("ranges", ["local", "local-extreme"])
def test_long_hunt(ranges: str, rotating_seed: int) -> None:
    summary = hunt(100, torch.Generator().manual_seed(rotating_seed), RANGES[ranges])
    assert summary.violations == []


@pytest.mark.parametrize("seed", [219345987, 323637710])
def test_x_outside_of_its_constraint_has_a_ball_only_where_the_minimiser_is_in_it(seed: int) -> None:
    """A ball around the projection is one around x, if it reaches as far; where it does not, nothing is certified.
    Problems that a hunt found: their minimisers were outside of the ball."""
    summary, draw = Summary(), Draw(torch.Generator().manual_seed(seed), RANGES["local-extreme"])
    hunt_local(draw_case(draw), draw, summary)
    assert summary.comparisons > 20
    assert summary.violations == []


def test_x_outside_of_its_constraint_has_no_ball_beside_an_undecided_active_set() -> None:
    """Whatever else keeps the gradient from having a bound."""
    undecided = 0
    for seed in range(8):
        problem = problem_with(Identity(SHAPE), deep(2.0, seed), constraint=lr.Box(0.2, 0.7))
        x_true, b = registry.measure(problem)
        x, noise = lr.solve(problem, b, 1e-6).x, registry.randn(len(b), *SHAPE, seed=seed)
        held = (x < 0.201) | (x > 0.699)
        x = x + torch.where(held, 0.03 * noise.abs() * (x - 0.5).sign(), 1e-3 * noise)
        found = lr.certify(problem, b, lr.SquaredError(x_true), x, certificate="published")
        reaches = math.sqrt(42) * found.error_bound <= found.radius * (1.0 + 1e-12)
        assert bool((reaches | (found.radius == 0)).all())
        undecided += not found.locally_certified
    assert undecided > 0


def grouped(generator: torch.Generator) -> RidgeRegularizer:
    """Two groups of three filters, with deep concave parts."""
    ridge = RidgeRegularizer(
        (2, 6), 3, 9, "convex-nonconvex", nonconvexity=4.0, weight=0.5, smoothing=0.1, depth=0.95, group_size=3,
        generator=generator,
    ).double()  # fmt: skip
    with torch.no_grad():
        for p in ridge.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator, dtype=DOUBLE))
    return ridge.requires_grad_(False)


def test_floors_of_groups_are_below_all_hessians(rotating_generator: torch.Generator) -> None:
    """As matrices; and they say more than numbers do where a group is longer than the ball around it."""
    problem = lr.LowerLevelProblem(Identity((1, 4, 5)), grouped(rotating_generator), minimiser="local")
    potential, gained = problem.saddle_terms(DOUBLE).potential, 0
    for _ in range(200):
        size, ball = (10.0 ** (-3.0 + 3.0 * float(torch.rand((), generator=rotating_generator))) for _ in range(2))
        t = size * torch.randn(2, 3, 2, 2, 3, generator=rotating_generator, dtype=DOUBLE)
        radius = ball * torch.rand(2, 1, 2, 2, 3, generator=rotating_generator, dtype=DOUBLE)
        floor, (low, _) = potential.curvature_floor(t, radius), potential.curvature_bounds(t, radius)
        gained += int((torch.as_tensor(floor.dip) != 0).any())
        assert bool((floor.low >= low - 1e-9).all())
        for share in (0.0, 0.5, 1.0, 1.0):
            way = torch.randn(t.shape, generator=rotating_generator, dtype=DOUBLE)
            there = t + share * radius * way / way.norm(dim=1, keepdim=True)
            units = torch.eye(3, dtype=DOUBLE)[:, None, :, None, None, None].expand(3, *t.shape)
            columns = [potential.hess_vec(there, unit) - floor.times(unit) for unit in units]
            apart = torch.linalg.eigvalsh(torch.stack(columns, 1).movedim((1, 2), (-2, -1)))
            assert float(apart.min()) >= -1e-11
    assert gained > 20
    everywhere, (low, _) = potential.curvature_floor(t, math.inf), potential.curvature_bounds(t, math.inf)
    torch.testing.assert_close(everywhere.least, low)
    unknown = CurvatureFloor(torch.full((1, 1, 2, 4, 5), math.nan, dtype=DOUBLE))
    assert LowestCurvature(problem.instance(torch.zeros(1, 1, 4, 5, dtype=DOUBLE))).by_norms(unknown) == -math.inf


@pytest.mark.parametrize("way", ["dense", "dissected", "dear"])
def test_balls_of_groups_curve_as_they_say(
    way: str, rotating_generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the Hessian is indefinite elsewhere, by matrices of groups: at random points, and with a wider reach."""
    if way != "dense":
        monkeypatch.setattr(lowest_curvature, "_DENSE_PIXELS", 1)
    if way == "dear":
        monkeypatch.setattr(lowest_curvature, "_DEAR_WORK", 0.0)
    found = 0
    for _ in range(4):
        shape, ridge = (1, 11, 13), grouped(rotating_generator)
        problem = lr.LowerLevelProblem(Identity(shape), ridge, minimiser="local")
        b = torch.rand(1, *shape, generator=rotating_generator, dtype=DOUBLE)
        x, instance = lr.solve(problem, b, 1e-9, certificate="none").x, problem.instance(b)
        residual = torch.full((1,), 1e-5, dtype=DOUBLE)
        ball = find_ball(instance, x, instance.apply(x), residual, split=False)
        if ball.hindrance is not None:
            continue
        found += 1
        plain = find_ball(instance, x, instance.apply(x), residual)
        assert float(ball.curvature) >= 0.85 * float(plain.curvature)
        for share in (0.0, 1.0, 1.0, 1.0):
            step = torch.randn(x.shape, generator=rotating_generator, dtype=DOUBLE)
            z = x + share * ball.radius * step / step.norm()
            hessian = torch.autograd.functional.hessian(_energy(problem, b), z.flatten())
            assert float(torch.linalg.eigvalsh(hessian)[0]) >= float(ball.curvature)
    assert found


def _energy(problem: lr.LowerLevelProblem, b: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda v: problem.energy(v.reshape(b.shape), b).sum()
