"""Nothing certified is false: random problems against dense solves, and known ways for a bound to fail."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import registry
import torch
from torch import nn
from truth import dense as dense_truth
from truth.draw import RANGES, Draw
from truth.hunt import METHODS, Summary, hunt
from truth.problems import Case, draw_case
from truth.rough_use import TREATMENTS, hunt_rough_use

import learnreg as lr
from learnreg.certificates.groups import GroupBound
from learnreg.certificates.judgement import judge
from learnreg.certificates.state import smallest_bound
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.convolutions.gradient import Gradient
from learnreg.lower_level.point import Point
from learnreg.operators import Blur, Identity
from learnreg.potentials.isotropic import IsotropicPseudoHuber
from learnreg.regularizers import AnalysisOperator, FieldsOfExperts

SHAPE = registry.SHAPE

pytestmark = pytest.mark.usefixtures("one_thread")


def check(summary: Summary) -> None:
    print(json.dumps(summary.report(), indent=2))
    assert not summary.violations, "\n".join(summary.violations)
    assert summary.unusable_truth <= 2 + 0.15 * summary.problems  # some of any few may be degenerate
    assert summary.reached["0.1"] >= 0.95 * summary.smooth - 1
    assert summary.reached["0.001"] >= 0.9 * summary.smooth - 1


def test_random_problems(rotating_generator: torch.Generator) -> None:
    check(hunt(24, rotating_generator))


def test_random_problems_of_every_method(rotating_generator: torch.Generator) -> None:
    """The others take part above, one of them in each problem."""
    own = [name for name in METHODS if name not in ("piggyback", "piggyback-interleaved", "implicit-newton-cg")]
    summary = hunt(1, rotating_generator, methods=own)
    assert not summary.violations, "\n".join(summary.violations)
    assert summary.comparisons > 10 or summary.unusable_truth


@pytest.mark.skipif(not registry.HAS_ASTRA, reason="needs astra-toolbox")
def test_random_scans(rotating_generator: torch.Generator) -> None:
    """Computed tomography, in both dtypes, with small ridges, missing rays and constraints."""
    summary = hunt(4, rotating_generator, RANGES["tomography"])
    assert not summary.violations, "\n".join(summary.violations)
    assert summary.unusable_truth <= 1
    assert summary.comparisons > 40


def test_problems_in_rough_use(rotating_generator: torch.Generator) -> None:
    summary = hunt_rough_use(12, rotating_generator)
    assert not summary.violations, "\n".join(summary.violations)


@pytest.mark.slow(seconds=60)
def test_many_problems_in_rough_use(rotating_generator: torch.Generator) -> None:
    summary = hunt_rough_use(100, rotating_generator)
    assert not summary.violations, "\n".join(summary.violations)
    assert summary.comparisons > 150
    for name in TREATMENTS:
        assert sum(summary.treatments[name].values()) >= 5, name


def known_case(ranges: str, seed: int) -> Case:
    draw = Draw(torch.Generator().manual_seed(seed), RANGES[ranges])
    return draw_case(draw)


@pytest.mark.parametrize("seed", [2015399249, 1349193609, 725755294, 1658908689])
def test_active_sets_are_decided_where_they_can_be(seed: int) -> None:
    """Features that rounding left off zero, a decided point behind undecided ones, and a start far from a stiff
    problem's solution."""
    case = known_case("lifted", seed)
    result = lr.hypergradient(case.problem, case.b, case.loss, tolerance=1e-1)
    truth = dense_truth.truth_of(case.problem, case.b, case.loss)
    assert result.status is lr.Status.CONVERGED
    assert dense_truth.distance(result.gradient, truth.gradient) <= result.error_bound + truth.gradient_slack


def test_estimates_start_from_the_best_point() -> None:
    """A pixel at its bound without a multiplier stays undecided; it hardly matters to the gradient."""
    case = known_case("lifted", 2137802708)
    result = lr.hypergradient(case.problem, case.b, case.loss, tolerance=1e-1)
    truth = dense_truth.truth_of(case.problem, case.b, case.loss)
    assert result.status is lr.Status.ESTIMATED
    assert "active set" in result.reason
    assert dense_truth.distance(result.gradient, truth.gradient) <= 1e-9 * result.norm


@pytest.mark.slow(seconds=1500)
def test_many_random_problems() -> None:
    check(hunt(2000, torch.Generator().manual_seed(1), progress=True))


def test_the_command_prints_one_json_object_last(program: Callable[..., str]) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "bound_hunt.py"
    report = json.loads(program(script, "--problems", "3", "--seed", "1", "--json").splitlines()[-1])
    assert report["problems"] == 3
    assert report["violations"] == 0


def test_the_hunt_finds_false_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate that forgets the parameters of K is caught."""
    nothing = lambda e: GroupBound(0.0 * e, 0.0 * e, 0.0 * e)  # noqa: E731
    monkeypatch.setattr("learnreg.certificates.published.operator_bound", lambda terms, lipschitz: nothing(terms.e))
    monkeypatch.setattr("learnreg.certificates.sharp.operator_bound", lambda *arguments: nothing(arguments[-1]))
    generator = torch.Generator().manual_seed(2)
    assert any(hunt(5, generator).violations for _ in range(5))


def compare(problem: lr.LowerLevelProblem, tolerances: tuple[float, ...] = (1.0, 1e-2, 1e-4)) -> None:
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    truth = dense_truth.truth_of(problem, b, loss)
    generator = torch.Generator().manual_seed(0)
    for tolerance in tolerances:
        result = lr.hypergradient(problem, b, loss, tolerance=tolerance)
        assert result.certified
        assert dense_truth.distance(result.gradient, truth.gradient) <= result.error_bound + truth.gradient_slack
    for size in (1e-1, 1e-3, 1e-5):
        noise = [size * torch.randn(truth.x.shape, generator=generator, dtype=torch.float64) for _ in range(2)]
        x, X = ((t + n).reshape(-1, *SHAPE) for t, n in zip((truth.x, truth.X), noise, strict=True))
        judged = judge(Point.of(problem, b, loss, x, X))
        assert dense_truth.distance(judged.gradient, truth.gradient) <= judged.error_bound


def test_filters_computed_from_parameters_count() -> None:
    """Zero-mean filters have no requires_grad under no_grad; their share of the bound must not vanish with it."""
    problem = registry.build("denoising", "FieldsOfExperts")
    for name, p in problem.regularizer.named_parameters():
        p.requires_grad_(name == "filters")
    compare(problem)
    instance = problem.instance(registry.measure(problem)[1])
    (group,) = instance.analysis.parameter_groups()
    assert group.lipschitz == pytest.approx(3.0)


@pytest.mark.parametrize("shape", [(), (6,), (5, 1), SHAPE])
def test_data_weights_shared_by_many_measurements(shape: tuple[int, ...]) -> None:
    """The gradient of a shared weight is a sum over its measurements."""
    problem = lr.LowerLevelProblem(
        Identity(SHAPE),
        registry.REGULARIZERS["TotalVariation"](),
        data_term=lr.WeightedLeastSquares(nn.Parameter(0.5 + registry.rand(*shape))),
    )
    problem.regularizer.log_weight.requires_grad_(False)
    compare(problem)


@pytest.mark.parametrize("shape", [(), (2, 1, 1), (1, 5, 6), (6,), (2, 5, 6)])
@pytest.mark.parametrize("learned", ["log_weight", "log_smoothing"])
def test_potential_parameters_of_any_shape(learned: str, shape: tuple[int, ...]) -> None:
    weight, smoothing = 0.1 + registry.rand(*shape), 0.05 + registry.rand(*shape, seed=1)
    problem = lr.LowerLevelProblem(
        Identity(SHAPE), AnalysisOperator(Gradient(SHAPE), lr.LogCosh(smoothing, weight)).double()
    )
    for name, p in problem.regularizer.named_parameters():
        p.requires_grad_(name == learned)
    compare(problem)


def test_flat_ranges() -> None:
    operator = lr.vstack(Gradient(SHAPE), Blur(registry.randn(3, 3), SHAPE))
    compare(lr.LowerLevelProblem(Identity(SHAPE), AnalysisOperator(operator, lr.PseudoHuber(0.1, 0.2)).double()))


def test_adjoint_states_on_active_pixels_count() -> None:
    problem = registry.build("denoising", "FieldsOfExperts", lr.Box(0.35, 0.6))
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    truth = dense_truth.truth_of(problem, b, loss)
    x = truth.x.reshape(-1, *SHAPE)
    active = (x <= 0.35) | (x >= 0.6)
    assert bool(active.any())
    X = truth.X.reshape(-1, *SHAPE) + 0.5 * active * registry.randn(*x.shape, seed=5)
    judged = judge(Point.of(problem, b, loss, x, X))
    assert not judged.reason
    assert dense_truth.distance(judged.gradient, truth.gradient) <= judged.error_bound
    errors = (X.flatten(1) - truth.X).norm(dim=1)
    assert bool((errors <= judged.adjoint_error).all())


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
def test_the_duality_gap_is_no_smaller_than_its_rounding(offset: float) -> None:
    """Data far from 0: the energies are differences of numbers of the size of ‖b‖², and so is their rounding."""
    R = FieldsOfExperts.from_arrays(
        registry.randn(3, 3, 3) - registry.randn(3, 3, 3).mean((1, 2), True), [0.3] * 3, [0.05] * 3
    )
    problem = lr.LowerLevelProblem(Identity(SHAPE), R)
    b = registry.measure(problem)[1]
    truth = dense_truth.Dense(problem, b)
    with torch.no_grad():
        exact = truth.solve()[0].reshape(-1, *SHAPE)
        instance = problem.instance(b + offset)
        for size in (1e-3, 1e-5, 1e-7, 1e-9):
            x = exact + size * registry.randn(*exact.shape, seed=3)
            bound = smallest_bound(instance, x + offset, instance.apply(x)).bound
            error = (x - exact).flatten(1).norm(dim=1)
            assert bool((error <= bound + 1e-15 * (1.0 + offset) * 30).all())


def _chosen_adjoint(problem: lr.LowerLevelProblem, b: torch.Tensor, X: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The solution, and a linear loss whose adjoint state is X."""
    dense = dense_truth.Dense(problem, b)
    x = dense.solve()[0]
    slope = -torch.einsum("bij,bj->bi", dense.hessian(x), X.flatten(1)).reshape(X.shape)
    return x.reshape(X.shape), slope


@pytest.mark.parametrize("parts", [False, True])
def test_float32_gradients_that_cancel(parts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 parameters: what is rounded are the shares of x and X, or those of the parts of a batch, not their
    sum, which may be far smaller."""
    batch, shape = (8, (1, 5, 5)) if parts else (1, (1, 5, 5))
    filters = registry.randn(1, 2, 2).float()
    bank = FilterBank(nn.Parameter(filters), shape, "zero")
    problem = lr.LowerLevelProblem(Identity(shape), AnalysisOperator(bank, lr.PseudoHuber(0.3, 0.5)))
    problem.regularizer.log_weight.requires_grad_(False)
    problem.regularizer.log_smoothing.requires_grad_(False)
    exact = copy.deepcopy(problem).double()
    b = registry.rand(1, *shape, seed=3).float().expand(batch, -1, -1, -1).clone()
    X = registry.randn(batch, *shape, seed=4)
    if parts:
        monkeypatch.setattr("learnreg.lower_level.instance._PART_BYTES", 500)
        X[4:] = -X[:4]
        X = X + 1e-9 * registry.randn(*X.shape, seed=5)
    else:
        x = dense_truth.Dense(problem, b).solve()[0]
        units = torch.eye(25, dtype=torch.float64)[:, None]
        columns = [dense_truth.gradient_by_autograd(exact, b.double(), x, unit)["analysis.filters"] for unit in units]
        _, _, directions = torch.linalg.svd(torch.stack([c.flatten() for c in columns], 1))
        X = (directions[10] + 1e-9 * directions[0]).reshape(X.shape)
    x, slope = _chosen_adjoint(problem, b, X)
    assert len(list(problem.instance(b.double()).parts())) == (4 if parts else 1)
    result = lr.certify(problem, b, lr.UpperLoss(lambda z: (z * slope).sum(), 0.0), x, X)
    assert result.certified
    truth = dense_truth.gradient_by_autograd(exact, b.double(), x, X)
    assert dense_truth.distance(result.gradient, truth) <= result.gradient_error_bound


def test_x_outside_the_constraint() -> None:
    """The point judged is the projection of x; the error bound is that of x."""
    problem = registry.build("denoising", "FieldsOfExperts", lr.Nonnegative())
    x_true, b = registry.measure(problem)
    b[0, 0, 2, 2] = -3.0
    truth = dense_truth.truth_of(problem, b, lr.SquaredError(x_true))
    x = truth.x.reshape(b.shape)
    assert float(x[0, 0, 2, 2]) == 0.0
    x[0, 0, 2, 2] = -5.0
    result = lr.certify(problem, b, lr.SquaredError(x_true), x)
    assert result.certified
    assert float(result.error_bound[0]) >= 5.0 / math.sqrt(30)
    assert dense_truth.distance(result.gradient, truth.gradient) <= result.gradient_error_bound + truth.gradient_slack


@pytest.mark.parametrize("weight", [registry.rand(2, 1, 1), registry.rand(2, 5, 6)])
def test_channels_of_a_group_share_their_parameters(weight: torch.Tensor) -> None:
    """Otherwise f' would be the gradient of no energy."""
    with pytest.raises(lr.ShapeError, match="groups"):
        AnalysisOperator(Gradient(SHAPE), IsotropicPseudoHuber(0.1, weight + 0.1))
    with pytest.raises(lr.ShapeError, match="groups"):
        AnalysisOperator(Gradient(SHAPE), IsotropicPseudoHuber(weight + 0.1, 0.1))


def test_zero_mean_filters_are_computed_from_parameters() -> None:
    with pytest.raises(lr.ConfigError, match="zero_mean"):
        FilterBank(nn.Parameter(registry.randn(2, 3, 3)), SHAPE, zero_mean=True)


def test_losses_of_each_sample_that_see_the_whole_batch() -> None:
    """An error of one sample moves the loss gradient, and so the adjoint state, of all others."""
    problem = registry.build("denoising", "TotalVariation")
    x_true, b = registry.measure(problem, batch=4)
    coupled = lambda x: (0.5 * ((x - x_true).mean(0) ** 2).sum()).expand(len(x))  # noqa: E731
    loss = lr.UpperLoss(coupled, 1.0 / 4.0)
    truth = dense_truth.truth_of(problem, b, loss)
    x = truth.x.reshape(b.shape).clone()
    x[0] += 0.3 * registry.randn(*SHAPE)
    X = dense_truth.Dense(problem, b).adjoint(x.flatten(1), loss).reshape(x.shape)
    judged = judge(Point.of(problem, b, loss, x, X), "sharp")
    assert bool(((X.flatten(1) - truth.X).norm(dim=1) <= judged.adjoint_error).all())
    assert judged.loss_interval[0] <= truth.loss <= judged.loss_interval[1]
    assert loss.gradient_change(x, judged.state_error)[1] > 0.0  # type: ignore[index]
    alone = lr.UpperLoss(lambda x: ((x - x_true) ** 4).flatten(1).sum(1), 1.0, independent=True)
    error = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert alone.gradient_change(x, error).tolist() == [0.25, 0.0, 0.0, 0.0]  # type: ignore[union-attr]
