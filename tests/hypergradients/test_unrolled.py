"""Unrolling against autograd through the same iteration of ``problem.energy``, and its bounds against dense truth."""

from __future__ import annotations

import itertools
import math
import weakref

import pytest
import registry
import torch
from torch import Tensor
from truth.dense import distance, norm, truth_of
from truth.draw import Draw, Ranges
from truth.problems import draw_case

import learnreg as lr
from learnreg.hypergradients import unrolled
from learnreg.hypergradients.base import Evaluation, Goal, HypergradientMethod, Outcome, evaluate
from learnreg.hypergradients.gradient_steps import GradientSteps, Passed, Position
from learnreg.lower_level.point import Point
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts
from learnreg.training.options import TrainingOptions


def plain(
    problem: lr.LowerLevelProblem, b: Tensor, loss: lr.UpperLoss, x: Tensor, steps: int, last: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The iterate and the gradient by autograd through accelerated projected gradient steps on the energy."""
    box, instance = problem.frozen().constraint, problem.instance(b)
    free = lr.LowerLevelProblem(problem.operator, problem.regularizer, ridge=problem.ridge, data_term=problem.data_term)
    L, mu = instance.gradient_lipschitz(), instance.strong_convexity
    before = x
    for k in range(steps):
        if k == steps - last:
            x, before = x.detach(), before.detach()
        momentum = (math.sqrt(L) - math.sqrt(mu)) / (math.sqrt(L) + math.sqrt(mu)) if mu > 0 else k / (k + 3)
        v = x + momentum * (x - before)
        v = v if v.requires_grad else v.requires_grad_()
        (slope,) = torch.autograd.grad(free.energy(v, b).sum(), v, create_graph=k >= steps - last)
        moved = v - slope / L
        before, x = x, moved.clamp(float(box.lower), float(box.upper))
        if k < steps - last:
            x = x.detach()
    learned = problem.learnable()
    found = torch.autograd.grad(loss.value(x), list(learned.values()), allow_unused=True, materialize_grads=True)
    return x.detach(), dict(zip(learned, found, strict=True))


def compared(problem: lr.LowerLevelProblem, steps: int, last: int | None) -> None:
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    x = 0.9 * x_true + 0.1 * registry.rand(*x_true.shape, seed=4)
    x = problem.frozen().constraint.prox(x)
    start = Point.of(problem, b, loss, x, torch.zeros_like(x))
    never = torch.zeros(len(b), dtype=b.dtype)
    found = evaluate(lr.Unrolled(steps, last), start, Goal(never, never))
    iterate, expected = plain(problem, b, loss, x, steps, steps if last is None else last)
    assert float((found.point.x - iterate).norm()) <= 1e-12 * float(iterate.norm())
    assert distance(found.gradient, expected) <= 1e-10 * norm(expected)
    assert norm(expected) > 0


@pytest.mark.parametrize("last", [None, 2])
@pytest.mark.parametrize("regularizer", registry.regularizers())
def test_the_gradient_is_that_of_autograd_for_every_regularizer(regularizer: str, last: int | None) -> None:
    compared(registry.build("denoising", regularizer), 5, last)


@pytest.mark.parametrize("name", registry.PROBLEMS)
def test_the_gradient_is_that_of_autograd_for_every_problem(name: str) -> None:
    compared(registry.build(name, "FieldsOfExperts"), 5, None)
    compared(registry.build(name, "FieldsOfExperts", lr.Box(0.3, 0.7)), 5, 3)


def test_float32_stays_float32() -> None:
    problem = registry.build("denoising", "FieldsOfExperts").float()
    x_true, b = (t.float() for t in registry.measure(problem.double()))
    problem.float()
    found = lr.hypergradient(problem, b, lr.SquaredError(x_true), lr.Unrolled(200), tolerance=1e-2)
    assert found.status is lr.Status.CONVERGED
    assert found.x.dtype is torch.float32
    assert all(g.dtype is torch.float32 for g in found.gradient.values())


# ---- what is said of its error ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.sampled(share=0.2, by=("seed",))
def test_errors_are_within_their_bounds(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    case = draw_case(Draw(generator, Ranges((1e-2, 1.0), (1e-2, 1.0), (0.1, 1.0))))
    truth = truth_of(case.problem, case.b, case.loss)
    if not truth.usable:
        pytest.skip("the truth is known too coarsely")
    for steps, last in ((2, None), (30, 10), (300, None)):
        method = lr.Unrolled(steps, last)
        found = lr.hypergradient(case.problem, case.b, case.loss, method, tolerance=1e-3)
        assert found.status.converged == (found.error_bound <= 1e-3 * found.norm)
        if not found.certified:
            assert found.bound_kind == "estimate"
            continue
        assert distance(found.gradient, truth.gradient) <= found.error_bound + truth.gradient_slack
        error = distance(found.corrected_gradient, truth.gradient)
        assert error <= found.corrected_error_bound + truth.gradient_slack
        errors = (found.x.flatten(1) - truth.x).norm(dim=1)
        assert bool((errors <= found.state_error_bound + truth.x_slack).all())
        errors = (found.X.flatten(1) - truth.X).norm(dim=1)
        assert bool((errors <= found.adjoint_error_bound + truth.X_slack).all())
        assert found.loss_interval[0] <= truth.loss <= found.loss_interval[1]


def posed(ridge: float = 0.0) -> tuple[lr.LowerLevelProblem, Tensor, lr.SquaredError]:
    problem = registry.build("denoising", "FieldsOfExperts")
    problem.ridge = ridge
    x_true, b = registry.measure(problem)
    return problem, b, lr.SquaredError(x_true)


def test_errors_fall_linearly_in_the_steps() -> None:
    problem, b, loss = posed()
    truth = truth_of(problem, b, loss).gradient
    rate = 1.0 - 1.0 / math.sqrt(problem.instance(b).condition_bound())
    errors = {}
    for steps in (20, 40, 80):
        found = lr.hypergradient(problem, b, loss, lr.Unrolled(steps), tolerance=1e-12)
        errors[steps] = distance(found.gradient, truth)
        assert errors[steps] <= found.error_bound <= 1.1 * errors[steps] + 1e-9 * norm(truth)
    for steps in (20, 40):
        assert errors[2 * steps] <= 20 * rate ** (0.8 * steps) * errors[steps] + 1e-12 * norm(truth)


def test_the_status_says_that_steps_are_too_few() -> None:
    problem, b, loss = posed()
    few = lr.hypergradient(problem, b, loss, lr.Unrolled(3), tolerance=1e-3)
    assert few.status is lr.Status.TOO_FEW_STEPS
    assert not few.status.converged
    assert "more steps" in few.status.value
    assert few.certified
    assert few.relative_error_bound > 1e-3
    assert few.corrected_error_bound <= 1e-3 * norm(few.corrected_gradient)
    many = lr.hypergradient(problem, b, loss, lr.Unrolled(300), tolerance=1e-3)
    assert many.status is lr.Status.CONVERGED
    assert many.relative_error_bound <= 1e-3
    published = lr.hypergradient(problem, b, loss, lr.Unrolled(300), tolerance=1e-1, certificate="published")
    assert published.certified
    assert published.error_bound >= many.error_bound
    with pytest.raises(lr.SolverError, match="more steps"):
        lr.hypergradient(problem, b, loss, lr.Unrolled(3), tolerance=1e-3, on_failure="raise")


def test_without_constants_the_error_is_an_estimate() -> None:
    problem, b, loss = posed()
    unknown = lr.UpperLoss(lambda x: 0.5 * ((x - loss.x_true) ** 2).flatten(1).sum(1))
    found = lr.hypergradient(problem, b, unknown, lr.Unrolled(300), tolerance=1e-2)
    assert found.status is lr.Status.ESTIMATED
    assert found.bound_kind == "estimate"
    assert "gradient_lipschitz" in found.reason
    few = lr.hypergradient(problem, b, unknown, lr.Unrolled(3), tolerance=1e-2)
    assert few.status is lr.Status.TOO_FEW_STEPS
    truth = truth_of(problem, b, loss).gradient
    assert distance(few.gradient, truth) <= few.error_bound


class WithoutAdjoint(HypergradientMethod):
    """Returns a gradient and no adjoint state."""

    name = "without-adjoint"

    def run(self, start: Point, goal: Goal) -> Outcome:
        found = lr.Unrolled(200).run(start, goal)
        return Outcome(found.x, None, found.gradient)


def test_a_gradient_without_adjoint_state_is_certified_and_backpropagated() -> None:
    problem, b, loss = posed()
    found = lr.hypergradient(problem, b, loss, WithoutAdjoint(), tolerance=1e-2)
    assert found.status is lr.Status.CONVERGED
    b.requires_grad_()
    layer = lr.solution_layer(problem, WithoutAdjoint(), tolerance=1e-6)
    loss.value(layer(b)).backward()
    own, given = {n: p.grad.clone() for n, p in problem.learnable().items()}, b.grad.clone()
    b.grad = None
    problem.zero_grad()
    loss.value(lr.solution_layer(problem, tolerance=1e-6)(b)).backward()
    assert distance(own, {n: p.grad for n, p in problem.learnable().items()}) <= 1e-3 * norm(own)
    assert float((given - b.grad).norm()) <= 1e-3 * float(b.grad.norm())


# ---- where it is used ------------------------------------------------------------------------------------------------


def test_the_solution_layer_takes_it() -> None:
    problem, b, loss = posed()
    gradients = []
    for method in (lr.Unrolled(300), lr.Implicit()):
        problem.zero_grad()
        measurement = b.clone().requires_grad_()
        loss.value(lr.solution_layer(problem, method, tolerance=1e-7)(measurement)).backward()
        gradients.append({"b": measurement.grad} | {n: p.grad.clone() for n, p in problem.learnable().items()})
    assert distance(*gradients) <= 1e-5 * norm(gradients[1])


def test_training_with_it_is_audited() -> None:
    problem, b, loss = posed()
    pairs = list(zip(b, loss.x_true, strict=True))
    result = lr.train(problem, pairs, method=lr.Unrolled(40), batch_size=2, updates=2, tune=False)
    assert result.updates == 2
    errors = [row["relative_error_bound"] for row in result.rows if "relative_error_bound" in row]
    assert errors
    assert all(0.0 < error < 1.0 for error in errors)
    assert TrainingOptions().method.name == "implicit"


def test_bad_numbers_and_latent_variables_are_refused() -> None:
    for arguments in ((0,), (1.5,), (3, 4), (3, 0)):
        with pytest.raises(lr.ConfigError, match="expected a positive integer"):
            lr.Unrolled(*arguments)
    problem = lr.LowerLevelProblem(
        registry.build("denoising", "FieldsOfExperts").operator,
        registry.REGULARIZERS[registry.regularizers(latent=True)[0]](),
    )
    x_true, b = registry.measure(problem)
    with pytest.raises(lr.ConfigError, match=r"use Implicit\(\)"):
        lr.hypergradient(problem, b, lr.SquaredError(x_true), lr.Unrolled(3))
    assert not lr.Unrolled(3).fits(problem.instance(b))


# ---- forwards, and with few kept steps -------------------------------------------------------------------------------


def all_ways(
    problem: lr.LowerLevelProblem, steps: int, last: int | None, ways: list[dict[str, object]]
) -> list[Evaluation]:
    x_true, b = registry.measure(problem)
    x = problem.frozen().constraint.prox(0.9 * x_true + 0.1 * registry.rand(*x_true.shape, seed=4))
    start, never = Point.of(problem, b, lr.SquaredError(x_true), x, 0 * x), torch.zeros(len(b), dtype=b.dtype)
    return [evaluate(lr.Unrolled(steps, last, **way), start, Goal(never, never)) for way in ways]  # type: ignore[arg-type]


@pytest.mark.parametrize("last", [None, 2])
@pytest.mark.parametrize("box", [None, lr.Box(0.3, 0.7)], ids=["free", "box"])
@pytest.mark.parametrize("name", registry.PROBLEMS)
def test_forward_mode_agrees_for_every_problem(name: str, box: lr.Box | None, last: int | None) -> None:
    problem = registry.build(name, "TotalVariation", box)
    reverse, forward = all_ways(problem, 4, last, [{}, {"mode": "forward"}])
    assert torch.equal(reverse.point.x, forward.point.x)
    assert distance(reverse.gradient, forward.gradient) <= 1e-12 * norm(reverse.gradient)
    assert forward.outcome.X is None


def few(regularizer: str) -> bool:
    return sum(p.numel() for p in registry.REGULARIZERS[regularizer]().parameters()) <= 120


@pytest.mark.parametrize("regularizer", [r for r in registry.regularizers() if few(r)])
@pytest.mark.sampled(share=0.3, by=("regularizer",))
def test_forward_mode_agrees_for_every_regularizer(regularizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = registry.build("denoising", regularizer)
    number = sum(p.numel() for p in problem.learnable().values())
    monkeypatch.setattr(unrolled, "_MOST_TANGENTS", number)
    reverse, forward = all_ways(problem, 2, None, [{}, {"mode": "forward"}])
    assert distance(reverse.gradient, forward.gradient) <= 1e-11 * norm(reverse.gradient)


def test_forward_mode_is_for_few_parameters() -> None:
    problem = lr.LowerLevelProblem(Identity(registry.SHAPE), FieldsOfExperts(24, 5)).double()
    x_true, b = registry.measure(problem)
    with pytest.raises(lr.ConfigError, match=r"the 648 entries .* takes 64 at most; use mode='reverse'"):
        lr.hypergradient(problem, b, lr.SquaredError(x_true), lr.Unrolled(3, mode="forward"))
    for name, p in problem.learnable().items():
        p.requires_grad_(name == "log_weights")
    found = lr.hypergradient(problem, b, lr.SquaredError(x_true), lr.Unrolled(3, mode="forward"))
    assert list(found.gradient) == ["log_weights"]


def test_forward_mode_counts_its_tangents() -> None:
    """Each takes two applications a step, and one for what drives it, besides the step and what all of them share."""
    problem = registry.build("denoising", "TotalVariation")
    for way, expected in (({}, 10 * 2 + 4 * 3), ({"mode": "forward"}, 10 * 2 + 4 * (2 + 3))):
        (found,) = all_ways(problem, 10, 4, [way])
        assert found.point.instance.counter.applications == expected


def test_float32_forwards() -> None:
    problem = registry.build("denoising", "TotalVariation").float()
    x_true, b = (t.float() for t in registry.measure(registry.build("denoising", "TotalVariation")))
    ways = [
        lr.hypergradient(problem, b, lr.SquaredError(x_true), lr.Unrolled(50, mode=m)) for m in ("reverse", "forward")
    ]
    assert all(g.dtype is torch.float32 for g in ways[1].gradient.values())
    assert distance(ways[0].gradient, ways[1].gradient) <= 1e-4 * norm(ways[0].gradient)


@pytest.mark.parametrize(("steps", "last"), [(1, None), (9, None), (30, None), (30, 11)])
@pytest.mark.parametrize("name", ["weights-and-blur", "denoising"])
def test_few_kept_steps_change_no_bit(name: str, steps: int, last: int | None) -> None:
    problem = registry.build(name, "FieldsOfExperts", lr.Box(0.3, 0.7))
    ways = [{}, *({"checkpoints": c} for c in (1, 2, 5, steps, 100))]
    kept, *again = all_ways(problem, steps, last, ways)
    for found in again:
        assert torch.equal(kept.point.x, found.point.x)
        assert torch.equal(kept.point.X, found.point.X)
        assert distance(kept.gradient, found.gradient) == 0.0
        assert found.outcome.adjoint_steps == (steps if last is None else last)


@pytest.mark.parametrize("checkpoints", [1, 2, 3, 7])
def test_kept_steps_are_as_few_as_told_and_no_step_is_taken_in_vain(
    checkpoints: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Griewank and Walther (2000): t n - binomial(c + t, t - 1) steps ahead, and one on the way back from each, where
    every step ahead is taken t times at most."""
    alive, taken, most = weakref.WeakSet[Position](), 0, 0
    step = GradientSteps.step

    def watched(self: GradientSteps, at: Position, k: int) -> tuple[Passed, Position]:
        nonlocal taken, most
        passed, following = step(self, at, k)
        alive.add(following)
        taken, most = taken + 1, max(most, len(alive))
        return passed, following

    monkeypatch.setattr(GradientSteps, "step", watched)
    problem = registry.build("denoising", "TotalVariation")
    for n in (1, 2, 10, 25):
        taken = most = 0
        all_ways(problem, n, None, [{"checkpoints": checkpoints}])
        often = next(t for t in itertools.count() if math.comb(checkpoints + t, t) >= n)
        ahead = often * n - math.comb(checkpoints + often, often - 1) if often else 0
        assert taken <= (n if checkpoints >= n else ahead + n)
        if checkpoints < n:
            assert taken == ahead + n
            assert most <= checkpoints + 1, "those that are kept, and the one that moves"


def test_their_errors_are_within_their_bounds() -> None:
    problem = registry.build("learned-blur", "TotalVariation")
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    truth = truth_of(problem, b, loss)
    for method in (lr.Unrolled(5, mode="forward"), lr.Unrolled(20, checkpoints=4), lr.Unrolled(60, mode="forward")):
        found = lr.hypergradient(problem, b, loss, method, 1e-4)
        assert found.certified
        assert distance(found.gradient, truth.gradient) <= found.error_bound
        assert found.status.converged == (found.error_bound <= 1e-4 * found.norm)
        assert found.status in (lr.Status.TOO_FEW_STEPS, lr.Status.CONVERGED)


def test_bad_modes_and_checkpoints_are_refused() -> None:
    with pytest.raises(lr.ConfigError, match="mode"):
        lr.Unrolled(3, mode="backward")  # type: ignore[arg-type]
    for checkpoints in (0, -1, 2.5, "3"):
        with pytest.raises(lr.ConfigError, match=r"checkpoints=.*expected a positive integer"):
            lr.Unrolled(3, checkpoints=checkpoints)  # type: ignore[arg-type]
    with pytest.raises(lr.ConfigError, match="forward mode keeps no steps"):
        lr.Unrolled(3, mode="forward", checkpoints=2)
    assert repr(lr.Unrolled(5, 2, checkpoints=3)) == "Unrolled(steps=5, last=2, checkpoints=3)"
