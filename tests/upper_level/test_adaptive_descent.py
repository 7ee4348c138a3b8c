"""Certified descent: accepted steps lower the exact loss, along directions and with intervals that need no luck."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import learnreg as lr
from learnreg.operators import Blur, Identity
from learnreg.regularizers import FieldsOfExperts, TotalVariation
from learnreg.upper_level.directions import Directions, Flat
from learnreg.upper_level.objective import Accuracy, Trial

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (1, 8, 8)


def draw(generator: torch.Generator, dtype: torch.dtype = torch.float64) -> tuple[lr.LowerLevelProblem, Tensor, Tensor]:
    """A random problem with measurements and ground truths."""
    smoothing = math.exp(math.log(1e-2) + 3.0 * float(torch.rand((), generator=generator)))
    blurred = float(torch.rand((), generator=generator)) < 0.3
    kernel = torch.rand(3, 3, generator=generator, dtype=torch.float64)
    operator = Blur(kernel / kernel.sum(), SHAPE) if blurred else Identity(SHAPE)
    regularizer = FieldsOfExperts(4, 3, lr.PseudoHuber(smoothing, 0.1), generator=generator).to(dtype)
    x = torch.rand(3, 1, 4, 4, generator=generator, dtype=torch.float64)
    x = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
    b = operator(x) + 0.1 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return lr.LowerLevelProblem(operator, regularizer, ridge=0.05 if blurred else 0.0), b.to(dtype), x.to(dtype)


def true_loss(problem: lr.LowerLevelProblem, b: Tensor, x_true: Tensor) -> float:
    """Solved to rounding in float64."""
    return float(lr.SquaredError(x_true.double()).value(lr.solve(problem, b.double(), 1e-11).x))


def descend(generator: torch.Generator, steps: int, **options: object) -> None:
    """Take steps, each of which has to lower the exact loss by what it certifies."""
    problem, b, x_true = draw(generator, torch.float32 if torch.rand((), generator=generator) < 0.5 else torch.float64)
    objective, descent = lr.BatchObjective(problem, b, lr.SquaredError(x_true)), lr.AdaptiveDescent(**options)
    before, accepted = true_loss(problem, b, x_true), 0
    for _ in range(steps):
        step = descent.step(objective)
        after = true_loss(problem, b, x_true)
        slack = 1e-12 * before
        assert step.loss_interval[0] - slack <= before <= step.loss_interval[1] + slack
        if step.accepted:
            accepted += 1
            assert step.certified
            assert step.decrease > 0
            assert after <= before - step.decrease + slack
        before = after
    assert accepted >= 0.8 * steps


@pytest.mark.parametrize("audit_every", [1, None])
def test_every_accepted_step_lowers_the_exact_loss(
    audit_every: int | None, rotating_generator: torch.Generator
) -> None:
    descend(rotating_generator, 6, audit_every=audit_every)


@pytest.mark.slow(seconds=120)
@pytest.mark.parametrize("problem", range(10))
def test_so_it_is_in_many_steps_on_many_problems(problem: int, rotating_generator: torch.Generator) -> None:
    descend(rotating_generator, 30, audit_every=10)


def test_with_a_window_the_largest_of_a_few_losses_falls(rotating_generator: torch.Generator) -> None:
    problem, b, x_true = draw(rotating_generator)
    objective, descent = lr.BatchObjective(problem, b, lr.SquaredError(x_true)), lr.AdaptiveDescent(window=3)
    losses = [true_loss(problem, b, x_true)]
    for _ in range(6):
        if descent.step(objective).accepted:
            losses.append(true_loss(problem, b, x_true))
            assert losses[-1] < max(losses[-4:-1])


def test_a_descent_goes_on_to_the_bit_from_its_state(rotating_generator: torch.Generator) -> None:
    problem, b, x_true = draw(rotating_generator)
    objective, descent = lr.BatchObjective(problem, b, lr.SquaredError(x_true)), lr.AdaptiveDescent(audit_every=2)
    for _ in range(3):
        descent.step(objective)
    parameters = [p.detach().clone() for p in problem.parameters()]
    again, other = lr.AdaptiveDescent(audit_every=2), lr.BatchObjective(problem, b, lr.SquaredError(x_true))
    again.load_state_dict(descent.state_dict())
    other.load_state_dict(objective.state_dict())
    found = []
    for one, of in ((descent, objective), (again, other)):
        with torch.no_grad():
            for p, value in zip(problem.parameters(), parameters, strict=True):
                p.copy_(value)
        of.start_at(of.starts())
        one.step(of)
        found.append([p.detach().clone() for p in problem.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*found, strict=True))


def test_a_step_is_no_longer_than_asked(rotating_generator: torch.Generator) -> None:
    problem, b, x_true = draw(rotating_generator)
    objective, descent = lr.BatchObjective(problem, b, lr.SquaredError(x_true)), lr.AdaptiveDescent(audit_every=None)
    for longest in (1e-2, 1e-3, 1e-4):
        flat = Flat(problem.learnable())
        before = flat.point()
        assert descent.step(objective, longest).accepted
        assert descent.directions.length(flat, flat.point() - before) <= longest * (1 + 1e-6)


def test_problems_without_a_modulus_descend_uncertified(rotating_generator: torch.Generator) -> None:
    kernel = torch.full((3, 3), 1 / 9, dtype=torch.float64)
    problem = lr.LowerLevelProblem(Blur(kernel, SHAPE), TotalVariation(0.05, smoothing=0.1).double())
    x_true = torch.rand(2, *SHAPE, generator=rotating_generator, dtype=torch.float64)
    step = lr.AdaptiveDescent().step(lr.BatchObjective(problem, x_true, lr.SquaredError(x_true)))
    assert not step.certified


# ---- directions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", ["parameters", "groups", "none"])
def test_quasi_newton_directions_satisfy_the_secant_equation(scaling: str, generator: torch.Generator) -> None:
    """H y = s for the newest pair, and <z, p> > 0."""
    parameters = {"a": nn.Parameter(torch.randn(4, 3, generator=generator)), "b": nn.Parameter(torch.zeros(2))}
    flat, directions = Flat(parameters), Directions(5, scaling)
    factor = torch.randn(14, 14, generator=generator, dtype=torch.float64)
    hessian = factor @ factor.T + torch.eye(14, dtype=torch.float64)
    z = torch.randn(14, generator=generator, dtype=torch.float64)
    directions.observe(flat, z)
    assert directions.quasi_newton(flat, z) is None
    for _ in range(8):
        s = torch.randn(14, generator=generator, dtype=torch.float64)
        directions.learn(flat, s, hessian @ s)
    found = directions.quasi_newton(flat, hessian @ s)
    assert found is not None
    assert torch.allclose(found, s)
    p = directions.quasi_newton(flat, z)
    assert p is not None
    assert float(z @ p) > 0


def test_pairs_of_negative_curvature_are_not_learned(generator: torch.Generator) -> None:
    flat, directions = Flat({"a": nn.Parameter(torch.ones(3))}), Directions(5, "none")
    s = torch.randn(3, generator=generator, dtype=torch.float64)
    for y in (-s, torch.zeros_like(s), s * math.nan):
        directions.learn(flat, s, y)
    assert directions.quasi_newton(flat, s) is None


def test_groups_move_at_comparable_speed(generator: torch.Generator) -> None:
    flat = Flat({"a": nn.Parameter(torch.ones(100)), "b": nn.Parameter(torch.ones(2))})
    z = torch.cat([1e6 * torch.randn(100, generator=generator), 1e-6 * torch.randn(2, generator=generator)]).double()
    directions = Directions(5, "groups")
    directions.observe(flat, z)
    assert flat.norms(directions.scaled(flat, z)) == pytest.approx([1.0, 1.0])


# ---- accuracies ------------------------------------------------------------------------------------------------------


def trial(state: float, adjoint: float, first_order: bool = False) -> Trial:
    half = 0.5 if first_order else state + adjoint
    return Trial(-half, half, True, {}, state, adjoint, first_order)


@pytest.mark.parametrize(("state", "adjoint"), [(1.0, 1e-6), (1e-6, 1.0), (1.0, 1.0), (1e3, 1e-3)])
def test_accuracies_follow_the_part_that_is_too_wide(state: float, adjoint: float) -> None:
    """The parts fall as the square of the one accuracy, and as the product of both."""
    width, at, now = 1e-2, Accuracy(), trial(state, adjoint)
    for _ in range(3):
        after = now.sharpened(at, width)
        s, a = after.state / at.state, after.adjoint / at.adjoint
        at, now = after, trial(now.state_part * s**2, now.adjoint_part * s * a)
    assert 0.05 * width <= now.width <= width


def test_what_is_narrow_enough_stays_as_accurate_as_it_is() -> None:
    assert trial(1e-3, 1e-3).sharpened(Accuracy(), 1.0) == Accuracy()
    assert trial(1e-3, 1e-3).relaxed(Accuracy(), 1.0).state > Accuracy().state


def test_nothing_learnable_is_stationary() -> None:
    x = torch.rand(2, *SHAPE, dtype=torch.float64)
    problem = lr.LowerLevelProblem(Identity(SHAPE), TotalVariation(0.1).requires_grad_(False))
    step = lr.AdaptiveDescent().step(lr.BatchObjective(problem, x, lr.SquaredError(x)))
    assert step.stationary
    assert not step.accepted
    assert step.gradient_norm == 0.0
