"""Lower levels with an l1-norm of responses: ClosedForm by a certified sign pattern, against closed forms, taut
strings, bounded least squares and cone programs; and what refuses them."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import registry
import torch
from registered.operators import delta
from torch import Tensor, nn
from truth.analysis_l1 import truth_of_l1
from truth.dense import distance, norm
from truth.draw import RANGES, Draw
from truth.hunt import Summary, hunt_signs
from truth.problems import DenseMatrix, draw_case

import learnreg as lr
from learnreg.certificates.fenchel import FenchelGap
from learnreg.convolutions.gradient import Gradient
from learnreg.lower_level.sign_pattern import DenseAnalysis, ReducedSystem
from learnreg.operators import Blur, Identity
from learnreg.regularizers import AnalysisOperator, FieldsOfExperts

pytest.importorskip("scipy")

SHAPE = (1, 5, 4)
WEIGHTS = 0.1 + 0.3 * registry.rand(*SHAPE, seed=3)

ANALYSES: dict[str, Callable[[], lr.Regularizer]] = {
    "pixels": lambda: AnalysisOperator(Identity(SHAPE), lr.AbsoluteValue(WEIGHTS)),
    "differences": lambda: AnalysisOperator(0.7 * Gradient(SHAPE), lr.AbsoluteValue(0.15)),
    "weights-of-channels": lambda: AnalysisOperator(
        Gradient(SHAPE), lr.AbsoluteValue(torch.tensor([0.1, 0.2])[:, None, None])
    ),
    "twice": lambda: 2.0 * AnalysisOperator(Gradient(SHAPE), lr.AbsoluteValue(0.06)),
    "learned-filters": lambda: FieldsOfExperts.from_arrays(
        registry.randn(2, 2, 2, seed=4), [0.2, 0.1], None, potential=lr.AbsoluteValue()
    ),
    "learned-matrix": lambda: AnalysisOperator(
        DenseMatrix(registry.randn(12, 20, seed=8), SHAPE, True), lr.AbsoluteValue(0.1)
    ),
}
FORWARD: dict[str, Callable[[], dict[str, object]]] = {
    "denoising": lambda: {"operator": Identity(SHAPE)},
    "learned-blur": lambda: {
        "operator": Blur(nn.Parameter(delta(3) + 0.1 * registry.rand(3, 3)), SHAPE, "reflect"),
        "ridge": nn.Parameter(torch.tensor(0.2, dtype=torch.float64)),
    },
    "learned-weights": lambda: {
        "operator": Identity(SHAPE),
        "data_term": lr.WeightedLeastSquares(nn.Parameter(0.3 + registry.rand(*SHAPE, seed=11))),
    },
}


def posed(analysis: str, forward: str = "denoising") -> tuple[lr.LowerLevelProblem, Tensor, lr.SquaredError]:
    problem = lr.LowerLevelProblem(regularizer=ANALYSES[analysis]().double(), **FORWARD[forward]())  # type: ignore[arg-type]
    x_true, b = registry.measure(problem, noise=0.2)
    return problem, b, lr.SquaredError(x_true)


@pytest.mark.parametrize(("analysis", "forward"), list(product(ANALYSES, FORWARD)))
def test_hypergradients_are_exact_and_certified(analysis: str, forward: str) -> None:
    problem, b, loss = posed(analysis, forward)
    truth = truth_of_l1(problem, b, loss)
    found = lr.hypergradient(problem, b, loss, lr.ClosedForm(), 1e-6)
    assert truth.usable
    assert found.status is lr.Status.CONVERGED
    assert found.certified
    assert distance(found.gradient, truth.gradient) <= found.error_bound + truth.gradient_slack
    assert found.error_bound <= 1e-8 * norm(truth.gradient)
    assert float((found.x.flatten(1) - truth.x).norm()) <= 1e-11
    assert found.loss_interval[0] - 1e-13 <= truth.loss <= found.loss_interval[1] + 1e-13


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.sampled(share=0.5, by=("seed",))
def test_errors_are_within_their_bounds(seed: int) -> None:
    draw = Draw(torch.Generator().manual_seed(seed), RANGES["analysis-l1"])
    summary = Summary()
    hunt_signs(draw_case(draw), draw, summary)
    assert summary.violations == []


def test_pixels_are_thresholded() -> None:
    problem, b, loss = posed("pixels")
    found = lr.hypergradient(problem, b, loss)
    x = b.sign() * (b.abs() - WEIGHTS).clamp_min(0.0)
    torch.testing.assert_close(found.x, x, atol=1e-14, rtol=0)
    slope = (-WEIGHTS * x.sign() * (x - loss.x_true)).mean(0)
    torch.testing.assert_close(found.gradient["log_weight"], slope, atol=1e-14, rtol=0)
    solved = lr.solve(problem, b, 1e-6)
    assert solved.certified
    assert bool(((solved.x - x).flatten(1).norm(dim=1) / math.sqrt(20) <= solved.error_bound).all())


def taut_string(b: np.ndarray, weight: float) -> np.ndarray:
    """The slopes of the shortest path through the tube of this radius around the sums of b."""
    sums = np.concatenate([[0.0], np.cumsum(b)])
    low, high = sums - weight, sums + weight
    low[0] = high[0] = 0.0
    low[-1] = high[-1] = sums[-1]
    slopes, start, level = np.zeros(len(b)), 0, 0.0
    while start < len(b):
        floor, ceiling, at_floor, at_ceiling = -np.inf, np.inf, start, start
        for j in range(start + 1, len(sums)):
            up, down = (high[j] - level) / (j - start), (low[j] - level) / (j - start)
            if up < floor or down > ceiling:
                break
            if up <= ceiling:
                ceiling, at_ceiling = up, j
            if down >= floor:
                floor, at_floor = down, j
        end, slope = (at_floor, floor) if up < floor else (at_ceiling, ceiling)
        slopes[start:end], level, start = slope, level + slope * (end - start), end
    return slopes


def test_one_dimensional_total_variation_is_a_taut_string() -> None:
    shape = (1, 1, 40)
    problem = lr.LowerLevelProblem(Identity(shape), AnalysisOperator(Gradient(shape), lr.AbsoluteValue(0.3)).double())
    b = (registry.rand(2, 1, 1, 8, seed=1).repeat_interleave(5, -1) + 0.2 * registry.randn(2, *shape, seed=2)).double()
    found = lr.hypergradient(problem, b, lr.SquaredError(torch.zeros_like(b)))
    assert found.certified
    weight = float(problem.regularizer.log_weight.detach().exp())  # type: ignore[operator, union-attr]
    expected = np.stack([taut_string(row, weight) for row in b.flatten(1).numpy()])
    np.testing.assert_allclose(found.x.flatten(1).numpy(), expected, atol=1e-12)


def test_finite_differences_of_the_loss() -> None:
    problem, b, loss = posed("learned-filters", "learned-blur")
    found, step = lr.hypergradient(problem, b, loss), 1e-6
    for name, p in problem.learnable().items():
        losses = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                p.view(-1)[0] += sign * step
                losses.append(lr.hypergradient(problem, b, loss).loss)
                p.view(-1)[0] -= sign * step
        slope = (losses[0] - losses[1]) / (2.0 * step)
        assert float(found.gradient[name].flatten()[0]) == pytest.approx(slope, rel=1e-6, abs=1e-8), name


def test_cone_programs_agree() -> None:
    cp = pytest.importorskip("cvxpy")
    pytest.importorskip("diffcp")
    problem, b, loss = posed("differences")
    b, loss = b[:1], lr.SquaredError(loss.x_true[:1])
    K = DenseAnalysis.of(problem.instance(b))[0].K.numpy()
    factor, x = cp.Parameter(nonneg=True, value=0.15), cp.Variable(20)
    program = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x - b.flatten().numpy()) + factor * cp.norm1(K @ x)))
    program.solve(requires_grad=True, eps=1e-10, max_iters=100000)
    x.gradient = x.value - loss.x_true.flatten().numpy()
    program.backward()
    found = lr.hypergradient(problem, b, loss)
    assert found.certified
    assert float(found.gradient["log_weight"]) == pytest.approx(0.15 * float(factor.gradient), rel=1e-4)


# ---- what is not certified -------------------------------------------------------------------------------------------


def test_a_response_at_its_threshold_is_not_certified() -> None:
    problem, b, loss = posed("pixels")
    b[0, 0, 2, 1] = WEIGHTS[0, 2, 1]  # 0 or not: x is not differentiable in the weight
    found = lr.hypergradient(problem, b, loss)
    assert (found.certified, found.bound_kind, found.error_bound) == (False, "none", math.inf)
    assert found.status is lr.Status.STAGNATED
    assert "sign pattern" in found.reason
    x = b.sign() * (b.abs() - WEIGHTS).clamp_min(0.0)
    assert bool(((found.x - x).flatten(1).norm(dim=1) <= found.state_error_bound).all())
    assert bool((found.state_error_bound <= 1e-5).all())


def test_learned_rows_that_depend_on_each_other_are_not_certified() -> None:
    matrix = registry.randn(6, 20, seed=8)
    matrix[1] = matrix[0]  # any other matrix nearby has a smaller kernel
    _, b, loss = posed("learned-matrix")
    for learned in (True, False):
        R = AnalysisOperator(DenseMatrix(matrix.clone(), SHAPE, learned), lr.AbsoluteValue(2.0)).double()
        found = lr.hypergradient(lr.LowerLevelProblem(Identity(SHAPE), R), b, loss)
        assert not found.certified
        assert "depend" in found.reason
    assert "rounding" in found.reason


def test_rows_depend_exactly_or_not() -> None:
    rows = registry.randn(2, 6, seed=1).mul(8).round()
    rows[0, 0] = 1.0
    cases = ((0.375, 3.0, True), (0.37, 3.0, False), (1.0, 1.0 / 3.0, False), (1.0, 0.3, False))
    for unit, factor, exact in cases:  # 3 · 0.37 is rounded
        K = unit * torch.cat([rows, factor * rows.sum(0, keepdim=True)])
        dense = DenseAnalysis(torch.eye(6, dtype=K.dtype), K, K[0], torch.ones(3, dtype=K.dtype))
        system = ReducedSystem(dense, torch.ones(3, dtype=torch.bool))
        assert len(system.basis) == 2
        assert system.dependent() is exact
    assert ReducedSystem(dense, torch.tensor([True, True, False])).dependent()


def test_feasible_dual_points_bound_the_error() -> None:
    """Lemma L1, at any pair of points."""
    problem, b, loss = posed("differences", "learned-blur")
    truth, instance = truth_of_l1(problem, b, loss), problem.instance(b)
    for k, size in enumerate((1e-4, 1e-2, 1.0)):
        x = truth.x.reshape(b.shape) + size * registry.randn(*b.shape, seed=k)
        y = instance.nonsmooth.dual_prox(registry.randn(2, *instance.analysis.range_shape, seed=k + 5))
        for pair in ((x, y), (x, torch.zeros_like(y)), (x, instance.nonsmooth.dual_prox(1e3 * instance.apply(x)))):
            bound = FenchelGap.of(instance, *pair).bound(instance.strong_convexity)
            assert bool(((x.flatten(1) - truth.x).norm(dim=1) <= bound).all())


def test_estimates_and_limits_are_called_so() -> None:
    problem, b, loss = posed("differences")
    plain = lr.UpperLoss(lambda x: ((x - loss.x_true) ** 4).flatten(1).sum(1))
    found = lr.hypergradient(problem, b, plain)
    assert (found.bound_kind, found.status) == ("estimate", lr.Status.ESTIMATED)
    found = lr.hypergradient(problem, b, loss, max_steps=1)
    assert found.certified or found.status is lr.Status.MAX_STEPS
    assert lr.hypergradient(problem, b, loss, certificate="none").bound_kind == "none"
    blurred = lr.LowerLevelProblem(Blur(registry.rand(3, 3), SHAPE), ANALYSES["differences"]().double())
    assert not lr.solve(blurred, b, 1e-3, max_steps=50).certified
    assert "ridge" in lr.hypergradient(blurred, b, loss, max_steps=50).reason


def test_float32_data_are_solved_in_float64() -> None:
    problem, b, loss = posed("differences")
    exact = lr.hypergradient(problem, b.float().double(), loss)
    found = lr.hypergradient(problem.float(), b.float(), lr.SquaredError(loss.x_true.float()))
    assert found.certified
    assert found.x.dtype is torch.float32
    assert distance(found.gradient, exact.gradient) <= 1e-6 * exact.norm


# ---- refusals --------------------------------------------------------------------------------------------------------

METHODS = {**registry.METHODS, **registry.ESTIMATORS, **registry.OTHER_METHODS}
METHODS.pop("ClosedForm")


@pytest.mark.parametrize("method", METHODS)
def test_other_methods_refuse_it(method: str) -> None:
    problem, b, loss = posed("differences")
    with pytest.raises(lr.ConfigError, match=r"ClosedForm\(\), or lr\.PseudoHuber"):
        lr.hypergradient(problem, b, loss, METHODS[method]())


def _layer(problem: lr.LowerLevelProblem, b: Tensor, loss: lr.UpperLoss) -> None:
    lr.solution_layer(problem)(b).sum().backward()


def _sum(problem: lr.LowerLevelProblem, b: Tensor, loss: lr.UpperLoss) -> None:
    lr.solve(lr.LowerLevelProblem(problem.operator, problem.regularizer + ANALYSES["pixels"]().double()), b)


def _constrained(problem: lr.LowerLevelProblem, b: Tensor, loss: lr.UpperLoss) -> None:
    constraint = lr.Nonnegative()
    lr.hypergradient(lr.LowerLevelProblem(problem.operator, problem.regularizer, constraint=constraint), b, loss)


def _large(problem: lr.LowerLevelProblem, b: Tensor, loss: lr.UpperLoss) -> None:
    shape = (1, 33, 32)
    large = lr.LowerLevelProblem(Identity(shape), AnalysisOperator(Gradient(shape), lr.AbsoluteValue(0.1)))
    lr.hypergradient(large, torch.zeros(1, *shape), lr.SquaredError(torch.zeros(1, *shape)))


@pytest.mark.parametrize(
    "call",
    [
        lambda p, b, loss: lr.hypergradient(p, b, loss, certificate="published"),
        lambda p, b, loss: lr.certify(p, b, loss, torch.zeros_like(b)),
        lambda p, b, loss: lr.certify(p, b, loss, torch.zeros_like(b), torch.zeros_like(b), "published"),
        *(
            lambda p, b, loss, s=s: lr.solve(p, b, solver=s)
            for s in ("lbfgs", "newton-cg", lr.solvers.LBFGS(), lr.solvers.NewtonCG())
        ),
        _layer,
        _sum,
        _constrained,
        _large,
    ],
)
def test_what_needs_derivatives_refuses_it(call: Callable[..., None]) -> None:
    with pytest.raises(lr.ConfigError, match="PseudoHuber with a small smoothing"):
        call(*posed("differences"))


def test_its_solver_is_for_it_alone() -> None:
    problem, b, _ = posed("differences")
    for solver in ("pdhg", lr.solvers.PDHG(), lr.solvers.NonsmoothPDHG()):
        assert lr.solve(problem, b, 1e-3, solver=solver).certified  # type: ignore[arg-type]
    smooth = lr.LowerLevelProblem(Identity(SHAPE), FieldsOfExperts(2, 2).double())
    with pytest.raises(lr.ConfigError, match=r"PDHG\(\)"):
        lr.solve(smooth, b, solver=lr.solvers.NonsmoothPDHG())


def test_the_solution_layer_takes_closed_form() -> None:
    problem, b, _ = posed("differences")
    b.requires_grad_()
    layer, step = lr.solution_layer(problem, method=lr.ClosedForm()), 1e-6
    (layer(b) ** 3).sum().backward()
    assert b.grad is not None
    with torch.no_grad():
        values = []
        for sign in (1.0, -1.0):
            moved = b.clone()
            moved[0, 0, 1, 1] += sign * step
            values.append(float((layer(moved) ** 3).sum()))
    assert float(b.grad[0, 0, 1, 1]) == pytest.approx((values[0] - values[1]) / (2.0 * step), rel=1e-3, abs=1e-4)


def test_prox_and_dual() -> None:
    f = lr.AbsoluteValue(torch.tensor([0.3, 0.8], dtype=torch.float64)[:, None, None])
    v, sigma = registry.randn(3, 2, 4, 5), 0.7
    moreau = f.dual_prox(v) + sigma * f.prox(v / sigma, 1.0 / sigma)
    torch.testing.assert_close(moreau, v)
    grid = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    t = f.prox(v, sigma)
    values = 0.5 * (grid - v[..., None]) ** 2 + sigma * f.weight[..., None] * grid.abs()  # type: ignore[index]
    assert bool(((grid[values.argmin(-1)] - t).abs() <= 2.1e-3).all())
    torch.testing.assert_close(f.value(v), (f.weight * v.abs()).flatten(1).sum(1))
