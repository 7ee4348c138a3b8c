"""Potentials of measured responses: formulas written out again, autograd, and bounds as bounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import registry
import torch
from torch import Tensor, nn
from truth.likelihoods import FORMULAS

import learnreg as lr
from learnreg.linear.parameter_groups import Density
from learnreg.potentials.measured import KullbackLeibler, Measured, ShiftedPseudoHuber, TransmissionLikelihood

SHAPE = (3, 2, 4, 5)
COUNTS = torch.poisson(5.0 * registry.rand(*SHAPE, seed=1))

KINDS: dict[str, Callable[..., Measured]] = {
    "Poisson": lambda **more: KullbackLeibler(COUNTS, 0.0, background=registry.scalar(0.3), **more),
    "Poisson-map": lambda **more: KullbackLeibler(
        COUNTS, 0.0, background=nn.Parameter(0.1 + registry.rand(2, 1, 1, seed=2)), **more
    ),
    "TransmissionPoisson": lambda **more: TransmissionLikelihood(
        COUNTS, 0.0, photons=registry.scalar(7.0), attenuation=registry.scalar(1.3), reference=0.4, **more
    ),
    "SmoothedL1": lambda **more: ShiftedPseudoHuber(COUNTS, smoothing=registry.scalar(0.2), **more),
}
FORMULA = {"Poisson-map": lr.Poisson, **{kind.__name__: kind for kind in FORMULAS}}
BOUNDED = {name: f().within(torch.zeros(SHAPE[1:]), torch.full(SHAPE[1:], 2.0)) for name, f in KINDS.items()}
BOUNDED["Poisson"] = KullbackLeibler(COUNTS + 1.0, 0.0, background=registry.scalar(0.3)).within(
    torch.zeros(SHAPE[1:]), torch.full(SHAPE[1:], 2.0)
)
FUNCTIONS = {name: f() for name, f in KINDS.items()} | {f"{n}-bounded": f for n, f in BOUNDED.items()}


@pytest.fixture(params=FUNCTIONS)
def f(request: pytest.FixtureRequest) -> Measured:
    return FUNCTIONS[str(request.param)]


def numbers(f: Measured) -> list[Tensor | float]:
    return [getattr(f, name) for name in (*f.parameter_names, *f.constant_names)]


def responses(seed: int = 3) -> Tensor:
    """Many sizes, some below 0 and beyond 2, some at 0."""
    t = registry.randn(*SHAPE, seed=seed) * 10.0 ** (3 * registry.rand(*SHAPE, seed=seed + 1) - 2)
    return torch.where(registry.rand(*SHAPE, seed=seed + 2) < 0.1, 0.0, t)


@pytest.mark.parametrize("name", KINDS)
def test_values_are_the_formulas(name: str) -> None:
    f, t = KINDS[name](), responses().abs()
    value, slope, bend = FORMULAS[FORMULA[name]][1](t, COUNTS, *numbers(f))
    torch.testing.assert_close(f.density(t), value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(f.grad(t), slope, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(f.second(t), bend, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", BOUNDED)
def test_the_floor_is_taken_off_within_the_bounds(name: str) -> None:
    f, t = BOUNDED[name], responses().abs().clamp_max(2.0)
    value, _, bend = FORMULAS[FORMULA[name]][1](t, f.b, *numbers(f))
    floor = torch.as_tensor(f.floor)
    torch.testing.assert_close(f.density(t) + 0.5 * floor * t * t, value, rtol=1e-12, atol=1e-12)
    assert bool((bend >= floor).all())
    assert bool((floor > 0).all()) == (name != "Poisson-map")  # where no photon was counted nothing bends


def test_derivatives_agree_with_autograd(f: Measured) -> None:
    """Beyond the ends, too."""
    t = responses().requires_grad_()
    (slope,) = torch.autograd.grad(f.value(t).sum(), t, create_graph=True)
    torch.testing.assert_close(f.grad(t), slope, rtol=1e-9, atol=1e-11)
    (bend,) = torch.autograd.grad(slope.sum(), t)
    torch.testing.assert_close(f.second(t), bend, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("radius", [1e-6, 0.1, 3.0])
def test_bounds_hold_on_the_interval(f: Measured, radius: float) -> None:
    t = responses().detach()
    f = f.detached()
    low, high = f.curvature_bounds(t, radius)
    change, third, interval = f.curvature_change(t, radius), f.third_bound(t, radius), f.curvature_interval(t, radius)
    for k in range(-8, 9):
        near = t + radius * k / 8.0
        bend = f.second(near)
        slack = 1e-12 * (1.0 + bend)
        assert bool((bend >= low - slack).all() & (bend <= high + slack).all())
        moved = (bend - f.second(t)).abs()
        assert bool((moved <= change + slack).all() & (moved <= third * (near - t).abs() + slack).all())
        assert bool((moved <= interval.ratio * bend.clamp_min(0.0).sqrt() + slack).nan_to_num(True).all())


def test_its_parameters_move_the_slope_as_it_says(f: Measured) -> None:
    t, radius = responses().detach(), 0.05
    for group, name in zip(f.parameter_groups(), f.parameter_names, strict=True):
        assert isinstance(group, Density)
        assert group.density is not None
        point = t.clone().requires_grad_()
        found = group.density(point)
        number = getattr(f, name)
        (expected,) = torch.autograd.grad((f.grad(t) * t.cos()).sum(), number)
        shared = [d for d in range(4) if ((1,) * (4 - number.dim()) + number.shape)[d] == 1]
        own = (found.detach() * t.cos()).sum(shared, keepdim=True).reshape(number.shape)
        torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-10)
        _, high = f.detached().curvature_bounds(t, radius)
        steepest, factor = group.largest_slope(t, radius, high), group.factor(t, radius)  # type: ignore[misc]
        for k in (-1.0, -0.5, 0.0, 0.5, 1.0):
            point = (t + k * radius).requires_grad_()
            (slope,) = torch.autograd.grad(group.density(point).sum(), point, materialize_grads=True, allow_unused=True)
            assert bool((slope.abs() <= steepest * (1.0 + 1e-9) + 1e-12).all())
            bound = (factor * f.second(point)).detach().nan_to_num(torch.inf)
            assert bool((slope.abs() <= bound * (1.0 + 1e-6) + 1e-12).all())


def test_parts_of_the_batch(f: Measured) -> None:
    t, index = responses(), torch.tensor([2, 0])
    torch.testing.assert_close(f.select(index).value(t[index]), f.value(t)[index])
    torch.testing.assert_close(f.select(slice(1, 2)).grad(t[1:2]), f.grad(t)[1:2])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("step", [1e-3, 1.0, 1e4])
def test_prox_is_optimal(name: str, step: float) -> None:
    f, v = KINDS[name]().detached(), 3.0 * responses()
    assert f.prox_obstacle() == ""
    t = f.prox(v, step)
    gap = (t + step * f.grad(t) - v).abs()
    assert bool((gap <= 1e-12 * (1.0 + v.abs() + step * f.term_size(f.grad(t)))).all())
    assert bool((f.divergence(t, v) >= 0).all())
    near = f.prox(v, step, t * (1.0 + 1e-3))  # as iterations ask for it
    assert bool(((near + step * f.grad(near) - v).abs() <= 1e-6 * (1.0 + v.abs() + step)).all())
