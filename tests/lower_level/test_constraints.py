"""The null objects of constraints are identities, and solvers do with them what they do within infinite boxes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import registry
import torch
from torch import Tensor

import learnreg as lr
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.constraints import AllPixels, FreePixels, Unconstrained
from learnreg.lower_level.instance import Instance
from learnreg.solvers import PDHG, AdjointSolver, ProjectedLBFGS, Solver, iterate

BATCH = 3


def images(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return registry.randn(BATCH, *registry.SHAPE, seed=seed).to(dtype)


def test_unconstrained_returns_what_it_is_given() -> None:
    free, x, v = Unconstrained(), images(1), images(2)
    assert not free.constrains
    assert free.prox(v, 0.3) is v
    assert free.prox_jvp(x, 0.3, v) is v
    assert free.reduced_gradient(x, v) is v
    assert free.exactly(x) is x
    assert free.inside(x, x.dtype) is x
    assert free.inside(x, torch.float32).dtype == torch.float32
    assert torch.equal(free.value(x), torch.zeros(BATCH).double())
    for pixels in (free.free(x, v), free.interior(x)):
        assert pixels.restrict(v) is v


def test_all_pixels_are_those_of_a_mask_without_gaps() -> None:
    everything, mask, v = AllPixels(), images(1) > 0, images(2)
    full, some = FreePixels(torch.ones_like(mask)), FreePixels(mask)
    assert everything.restrict(v) is v
    assert everything.select(torch.tensor([1])) is everything
    assert everything.where(torch.tensor([True, False, True]), everything) is everything
    assert torch.equal(everything.within(mask).mask, mask)
    assert torch.equal(everything.held_norm(v), full.held_norm(v))
    assert torch.equal(full.restrict(v), v)
    torch.testing.assert_close(some.held_norm(v), torch.where(mask, 0.0, v).flatten(1).norm(dim=1))
    assert torch.equal(some.select(slice(1, 2)).mask, mask[1:2])
    chosen = some.where(torch.tensor([True, False, True]), full).mask
    assert torch.equal(chosen, torch.cat([mask[:1], full.mask[1:2], mask[2:]]))


def test_unconstrained_is_the_infinite_box() -> None:
    free, box, x, g = Unconstrained(), lr.Box(), images(1), images(2)
    assert torch.equal(free.prox(x), box.prox(x))
    assert torch.equal(free.reduced_gradient(x, g), box.reduced_gradient(x, g))
    assert torch.equal(free.value(x), box.value(x))
    torch.testing.assert_close(free.excess(x, g, x.abs()), box.excess(x, g, x.abs()))


def test_excess_is_a_difference_of_parabolas() -> None:
    box, x, target, d = lr.Box(-0.5, 0.7), images(1).clamp(-0.5, 0.7), images(2), images(3).abs()

    def parabola(p: Tensor) -> Tensor:
        return 0.5 * (d * (p - target) ** 2).flatten(1).sum(1)

    torch.testing.assert_close(box.excess(x, target, d), parabola(x) - parabola(box.prox(target)))


def test_instances_without_a_constraint_have_the_null_object() -> None:
    problem = registry.build("denoising", "FieldsOfExperts")
    _, b = registry.measure(problem)
    assert problem.constraint is None
    assert not problem.instance(b).box.constrains
    assert problem.frozen().at(b).box.prox(b) is b


def both(problem: str) -> tuple[Instance, Instance, Tensor]:
    """An instance without constraint, the same in an infinite box, and a loss gradient; in a box there is no metric."""
    built = registry.build(problem, "FieldsOfExperts-LogCosh")
    x_true, b = registry.measure(built)
    instance = built.instance(b)
    return instance, replace(instance, box=lr.Box()), x_true


@pytest.mark.parametrize("problem", ["denoising", "learned-blur"])
@pytest.mark.parametrize("solver", [ProjectedLBFGS, PDHG], ids=lambda s: s.name)
@torch.no_grad()
def test_state_solvers_agree_bitwise_with_an_infinite_box(problem: str, solver: type[Solver]) -> None:  # type: ignore[type-arg]
    free, boxed, _ = both(problem)
    start, goal = torch.zeros_like(free.q), free.q.new_full((free.batch,), 1e-6)
    a, b = (iterate(solver(), instance, start, goal, torch.zeros_like(goal), 200) for instance in (free, boxed))
    assert torch.equal(a.x, b.x)
    assert (a.steps, a.status) == (b.steps, b.status)


@pytest.mark.parametrize("problem", ["denoising", "learned-blur"])
@pytest.mark.parametrize("solver", registry.ADJOINT_SOLVERS.values(), ids=registry.ADJOINT_SOLVERS)
@torch.no_grad()
def test_adjoint_solvers_agree_bitwise_with_an_infinite_box(problem: str, solver: type[AdjointSolver]) -> None:  # type: ignore[type-arg]
    free, boxed, slope = both(problem)
    found = []
    for instance in (free, boxed):
        equation = AdjointEquation.at(instance, free.q, instance.apply(free.q), slope)
        goal = slope.new_full((free.batch,), 1e-6)
        found.append(iterate(solver(), equation, torch.zeros_like(slope), goal, torch.zeros_like(goal), 200).x)
    assert torch.equal(*found)


NAN = torch.full(registry.SHAPE, 1.0)
NAN[0, 2, 3] = math.nan


@pytest.mark.parametrize(
    ("lower", "upper", "message"),
    [
        (math.nan, 1.0, "lower=nan, upper=1"),
        (0.0, math.nan, "lower=0, upper=nan"),
        (0.0, NAN, "upper=nan"),
        (NAN.numpy(), 2.0, "lower=nan"),
        (1.0, 0.0, "lower=1, upper=0"),
        (1.0, 1.0, "lower < upper everywhere"),
        (math.inf, math.inf, "lower=inf"),
        (-math.inf, -math.inf, "upper=-inf"),
        (torch.tensor([0.0, 2.0]), 1.0, "lower=2, upper=1"),
        (torch.zeros(2), torch.ones(3), r"lower \(2,\) and upper \(3,\) differ"),
        ("0", 1.0, r"Box\(lower\): got str"),
        (None, 1.0, r"Box\(lower\): got NoneType"),
        (1j, 1.0, r"Box\(lower\): got complex"),
    ],
)
def test_boxes_without_an_inside_are_refused(lower: object, upper: object, message: str) -> None:
    with pytest.raises(lr.LearnregError, match=message):
        lr.Box(lower, upper)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(2, *registry.SHAPE), (4,), (3, 5, 6), (1, 1, 1, 1)])
def test_boxes_fit_the_images(shape: tuple[int, ...]) -> None:
    problem = registry.build("denoising", "TotalVariation")
    with pytest.raises(lr.ShapeError, match="does not broadcast against images"):
        lr.LowerLevelProblem(problem.operator, problem.regularizer, constraint=lr.Box(torch.zeros(shape)))


@pytest.mark.parametrize("bound", [0.2, 0, [0.2], torch.full((5, 1), 0.2), torch.full(registry.SHAPE, 0.2).numpy()])
def test_bounds_of_any_kind(bound: object) -> None:
    problem = registry.build("denoising", "TotalVariation", lr.Box(bound))  # type: ignore[arg-type]
    solution = lr.solve(problem, images(3) - 0.5)
    assert solution.certified
    assert float(solution.x.min()) == pytest.approx(float(np.ravel(bound)[0]), abs=1e-12)
