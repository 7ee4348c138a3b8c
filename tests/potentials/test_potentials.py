"""Potentials: derivatives, proximal maps, conjugates against autograd and brute force; curvature bounds as bounds."""

from __future__ import annotations

import math

import pytest
import registry
import torch
from torch import Tensor

import learnreg as lr
from learnreg.errors import ConfigError
from learnreg.linear.parameter_groups import Density
from learnreg.potentials.base import Potential
from learnreg.potentials.function import dual_point
from learnreg.potentials.huber import Huber
from learnreg.potentials.isotropic import IsotropicPseudoHuber
from learnreg.potentials.log_cosh import LogCosh
from learnreg.potentials.proximal import Grouped
from learnreg.potentials.pseudo_huber import PseudoHuber

NAMES = registry.potentials(even=True, convex=True, smoothed=True)
WEIGHT, SMOOTHING = 0.7, 0.2


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def f(name: str) -> Potential:
    return registry.POTENTIALS[name](SMOOTHING, WEIGHT)


def points(seed: int = 1) -> Tensor:
    """(4, 2, 3, 5), over many sizes, none at a kink of Huber's."""
    t = registry.randn(4, 2, 3, 5, seed=seed) * 10.0 ** (4 * registry.rand(4, 1, 3, 5, seed=seed + 1) - 3)
    return torch.where((t.abs() / SMOOTHING - 1).abs() < 1e-3, t * 1.1, t)


def hessians(f: Potential, t: Tensor) -> Tensor:
    """f'' as (batch, 2, 2, h, w) from hess_vec."""
    unit = torch.eye(2, dtype=t.dtype)
    return torch.stack([f.hess_vec(t, unit[i][None, :, None, None].expand_as(t)) for i in range(2)], 2)


def test_values_are_the_formulas() -> None:
    t, l, v = points(), WEIGHT, SMOOTHING
    torch.testing.assert_close(PseudoHuber(v, l).density(t), l * ((t**2 + v**2).sqrt() - v), atol=1e-15, rtol=1e-9)
    small = t.clamp(-20 * v, 20 * v)
    torch.testing.assert_close(LogCosh(v, l).density(small), l * v * torch.cosh(small / v).log(), atol=1e-15, rtol=1e-9)
    size = t.abs()
    torch.testing.assert_close(Huber(v, l).density(t), torch.where(size <= v, l * t**2 / 2 / v, l * (size - v / 2)))
    length = (t**2).sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(
        IsotropicPseudoHuber(v, l).density(t), l * ((length**2 + v**2).sqrt() - v), atol=1e-15, rtol=1e-9
    )


def test_derivatives_agree_with_autograd(f: Potential) -> None:
    t, v = points().requires_grad_(), registry.randn(4, 2, 3, 5, seed=3)
    (gradient,) = torch.autograd.grad(f.value(t).sum(), t, create_graph=True)
    torch.testing.assert_close(f.grad(t), gradient, rtol=1e-9, atol=1e-13)
    (second,) = torch.autograd.grad((gradient * v).sum(), t)
    torch.testing.assert_close(f.hess_vec(t, v), second, rtol=1e-8, atol=1e-12)
    with torch.no_grad():  # iterations take shortcuts that autograd cannot
        torch.testing.assert_close(f.grad(t.detach()), gradient.detach(), rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(f.hess_vec(t.detach(), v), second, rtol=1e-8, atol=1e-12)


def test_arguments_are_left_alone(f: Potential) -> None:
    t, v = points(), registry.randn(4, 2, 3, 5, seed=3)
    kept_t, kept_v = t.clone(), v.clone()
    with torch.no_grad():
        for call in (f.value, f.grad, f.density, f.second, f.smoothing_gradient):
            call(t)
        f.hess_vec(t, v), f.prox(t, 0.3), f.prox_jvp(t, 0.3, v), f.dual_prox_jvp(t, 0.3, v)
        f.curvature_bounds(t, 0.1), f.curvature_change(t, 0.1), f.kink_excluded(t, 0.1), dual_point(f, v, 0.3)
    assert torch.equal(t, kept_t)
    assert torch.equal(v, kept_v)


def test_autograd_is_finite_at_exact_zeros(f: Potential) -> None:
    t = torch.zeros(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    l = torch.tensor(WEIGHT, dtype=torch.float64, requires_grad=True)
    v = torch.tensor(SMOOTHING, dtype=torch.float64, requires_grad=True)
    value = f.with_parameters(l, v).value(t).sum()
    first = torch.autograd.grad(value, (t, l, v), create_graph=True)
    assert all(bool((g == 0).all()) for g in first)
    second = torch.autograd.grad(first[0].sum(), (t, l, v), materialize_grads=True, create_graph=True)
    torch.testing.assert_close(second[0], torch.full_like(t, WEIGHT / SMOOTHING))
    assert all(bool(torch.isfinite(g).all()) for g in second)


@pytest.mark.parametrize("step", [1e-4, 0.3, 1e3])
def test_prox_is_optimal_and_its_derivative_right(f: Potential, step: float) -> None:
    v, direction = points(seed=5), registry.randn(4, 2, 3, 5, seed=6)
    t = f.prox(v, step)
    torch.testing.assert_close(t + step * f.grad(t), v, rtol=1e-12, atol=1e-13)
    jvp, h = f.prox_jvp(t, step, direction), 1e-6 * v.abs().clamp_min(1e-3)
    difference = (f.prox(v + h * direction, step) - f.prox(v - h * direction, step)) / (2 * h)
    if not isinstance(f, Grouped):
        off_kink = (v.abs() - (SMOOTHING + step * WEIGHT)).abs() > 2 * (h * direction).abs()
        torch.testing.assert_close(jvp[off_kink], difference[off_kink], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(jvp + step * f.hess_vec(t, jvp), direction, rtol=1e-9, atol=1e-11)
    assert not bool(f.prox(torch.zeros_like(v), step).any())


def test_prox_takes_steps_per_channel(f: Potential) -> None:
    v = points(seed=5)
    step = torch.tensor([0.1, 2.0], dtype=torch.float64)[:, None, None]
    if isinstance(f, Grouped):
        step = step[:1]
    t = f.prox(v, step)
    torch.testing.assert_close(t + step * f.grad(t), v, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("sigma", [1e-3, 0.5, 1e2])
def test_dual_point_by_moreau_and_brute_force(f: Potential, sigma: float) -> None:
    v = points(seed=7)
    y, t = dual_point(f, v, sigma)
    torch.testing.assert_close(y, f.grad(t), rtol=0, atol=0)
    torch.testing.assert_close(y + sigma * t, v, rtol=1e-11, atol=1e-12)  # v - y in sigma ∂f*(y), and t in ∂f*(y)
    size = (y**2).sum(1).sqrt() if isinstance(f, Grouped) else y.abs()
    assert float(size.max()) <= WEIGHT * (1 + 1e-14)


def test_dual_prox_jvp_against_finite_differences(f: Potential) -> None:
    v, direction, sigma = points(seed=8).clamp(-3, 3), registry.randn(4, 2, 3, 5, seed=9), 0.4
    jvp = f.dual_prox_jvp(dual_point(f, v, sigma)[1], sigma, direction)
    h = 1e-6
    plus, minus = dual_point(f, v + h * direction, sigma)[0], dual_point(f, v - h * direction, sigma)[0]
    close = (jvp - (plus - minus) / (2 * h)).abs() <= 1e-6
    kinks = (v.abs() - (WEIGHT + sigma * SMOOTHING)).abs() < 1e-4 if isinstance(f, Huber) else torch.zeros_like(close)
    assert bool((close | kinks).all())


def test_conjugate_through_the_pull_back(f: Potential) -> None:
    """f*(y) = sup_t <t, y> - f(t) by brute force on a grid, at y = f'(t)."""
    if isinstance(f, Grouped):
        t = registry.randn(1, 2, 1, 1, seed=10)
        axis = torch.linspace(-6, 6, 1201, dtype=torch.float64)
        grid = torch.cartesian_prod(axis, axis)[:, :, None, None]
    else:
        t = registry.randn(1, 1, 1, 1, seed=10)
        grid = torch.linspace(-6, 6, 200_001, dtype=torch.float64)[:, None, None, None]
    y = f.grad(t)
    brute = float(((grid * y).flatten(1).sum(1) - f.value(grid)).max())
    conjugate = float(f.conjugate_at_gradient(t))
    assert brute <= conjugate + 1e-14
    assert brute == pytest.approx(conjugate, abs=1e-4)


def test_conjugates_are_strongly_convex_with_the_stated_modulus(f: Potential) -> None:
    a, b = points(seed=11), points(seed=12)
    left = ((a - b) * (f.grad(a) - f.grad(b))).sum(1) if isinstance(f, Grouped) else (a - b) * (f.grad(a) - f.grad(b))
    gap = (f.grad(a) - f.grad(b)) ** 2
    gap = gap.sum(1) if isinstance(f, Grouped) else gap
    assert bool((left >= float(f.conjugate_strong_convexity) * gap * (1 - 1e-10) - 1e-14).all())
    assert float(f.curvature_limit) == pytest.approx(WEIGHT / SMOOTHING)


RADII = (0.0, 1e-12, 1e-6, 1e-3, 0.05, 0.3, 2.0, 1e3)


def perturbed(t: Tensor, radius: float, share: float, seed: int, grouped: bool) -> Tensor:
    """t' with |t' - t| = share · radius per element, or per group in a random direction."""
    noise = registry.randn(*t.shape, seed=seed)
    size = (noise**2).sum(1, keepdim=True).sqrt() if grouped else noise.abs()
    return t + share * radius * noise / size


@pytest.mark.parametrize("radius", RADII)
def test_curvature_bounds_and_changes_are_bounds(f: Potential, radius: float, rotating_seed: int) -> None:
    for trial in range(12):
        seed = rotating_seed % 10**6 + 100 * trial
        t = points(seed=seed)
        low, high = f.curvature_bounds(t, radius)
        change, slope = f.curvature_change(t, radius), f.third_bound(t, radius)
        here = hessians(f, t)
        assert bool((low <= high).all())
        for share in (0.0, 1.0, 0.3, -1.0 if not isinstance(f, Grouped) else 0.99):
            other = perturbed(t, radius, share, seed + 7, isinstance(f, Grouped))
            there = hessians(f, other)
            if isinstance(f, Grouped):
                eigenvalues = torch.linalg.eigvalsh(there.movedim((1, 2), (-2, -1)))
                assert bool((eigenvalues[..., 0] >= low[:, 0] - 1e-13 * eigenvalues[..., 1]).all())
                assert bool((eigenvalues[..., 1] <= high[:, 0] * (1 + 1e-12)).all())
                moved = torch.linalg.matrix_norm((there - here).movedim((1, 2), (-2, -1)), 2)
                assert bool((moved <= change[:, 0] + 1e-14 * WEIGHT / SMOOTHING).all())
                distance = (other - t).norm(dim=1)
                by_slope = torch.where(distance == 0, 0.0, slope[:, 0] * distance)
                assert bool((moved <= by_slope + 1e-14 * WEIGHT / SMOOTHING).all())
            else:
                f2 = f.hess_vec(other, torch.ones_like(t))
                on_kink = (other.abs() / SMOOTHING - 1).abs() < 1e-9 if isinstance(f, Huber) else other != other
                assert bool(((f2 >= low) | on_kink).all())
                assert bool(((f2 <= high) | on_kink).all())
                moved = (f2 - f.hess_vec(t, torch.ones_like(t))).abs()
                assert bool(((moved <= change) | on_kink).all())
                by_slope = torch.where(other == t, 0.0, slope * (other - t).abs())
                assert bool(((moved <= by_slope + 1e-14 * WEIGHT / SMOOTHING) | on_kink).all())
            v = registry.randn(*t.shape, seed=seed + 8)
            pushed = (f.hess_vec(other, v) - f.hess_vec(t, v)).flatten(1).norm(dim=1)
            size = (v * v).sum(1, keepdim=True).sqrt() if isinstance(f, Grouped) else v
            bound = (change * size).flatten(1).norm(dim=1)
            slack = 1e-13 * WEIGHT / SMOOTHING * v.flatten(1).norm(dim=1)
            if not isinstance(f, Huber) or bool(f.kink_excluded(t, radius).all()):
                assert bool((pushed <= bound + slack).all())


def test_curvature_bounds_are_sharp(f: Potential) -> None:
    t = points(seed=13)
    low, high = f.curvature_bounds(t, 0.0)
    second = hessians(f, t)
    if isinstance(f, Grouped):
        eigenvalues = torch.linalg.eigvalsh(second.movedim((1, 2), (-2, -1)))
        torch.testing.assert_close(low[:, 0], eigenvalues[..., 0], rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(high[:, 0], eigenvalues[..., 1], rtol=1e-9, atol=1e-12)
    else:
        diagonal = f.hess_vec(t, torch.ones_like(t))
        torch.testing.assert_close(low, diagonal, rtol=1e-9, atol=1e-300)
        torch.testing.assert_close(high, diagonal, rtol=1e-9, atol=1e-300)
        change = f.curvature_change(t, 1e-3)
        far = torch.maximum((f.second(t + 1e-3) - f.second(t)).abs(), (f.second(t - 1e-3) - f.second(t)).abs())
        assert bool((change <= far * (1 + 1e-6) + 1e-11).all() or isinstance(f, Huber))


def test_isotropic_change_is_close_to_the_largest_one() -> None:
    f = IsotropicPseudoHuber(SMOOTHING, WEIGHT)
    for length in (0.0, 0.05, 0.1, 0.2, 0.5):
        t = torch.tensor([length, 0.0], dtype=torch.float64)[None, :, None, None]
        radius = 1e-3
        angle = torch.linspace(0, 2 * math.pi, 721, dtype=torch.float64)
        circle = radius * torch.stack([angle.cos(), angle.sin()], 1)[:, :, None, None]
        difference = (hessians(f, t + circle) - hessians(f, t))[..., 0, 0]
        largest = float(torch.linalg.matrix_norm(difference, 2).max())
        bound = float(f.curvature_change(t, radius))
        assert largest <= bound
        # without the direction-wise factor the bound at 0 is that of the third derivative near 0
        assert bound <= max(1.3 * largest, largest + 2e-2 * WEIGHT / SMOOTHING)


@pytest.mark.parametrize("radius", [0.0, 1e-3, 0.1, 1.0])
def test_smoothing_gradient_and_its_sensitivity(f: Potential, radius: float) -> None:
    t = points(seed=14).requires_grad_()
    v = torch.tensor(SMOOTHING, dtype=torch.float64, requires_grad=True)
    unit = registry.randn(*t.shape, seed=15)
    gradient = f.with_parameters(WEIGHT, v).grad(t)
    (moved,) = torch.autograd.grad((gradient * unit).sum(), v)
    expected = float(moved) * SMOOTHING
    assert float((f.smoothing_gradient(t.detach()) * unit).sum()) == pytest.approx(expected, rel=1e-9)
    q = torch.as_tensor(f.smoothing_sensitivity(t.detach(), radius), dtype=torch.float64)
    _, high = f.curvature_bounds(t.detach(), radius)
    for share in (0.0, 0.5, 1.0):
        other = perturbed(t.detach(), radius, share, 16, isinstance(f, Grouped))
        size = (unit**2).sum(1, keepdim=True).sqrt() if isinstance(f, Grouped) else torch.ones(())
        h = 1e-6 * other.abs().clamp_min(1e-3)
        h = h.amin(1, keepdim=True) if isinstance(f, Grouped) else h
        direction = unit / size if isinstance(f, Grouped) else torch.ones_like(unit)
        slope = (f.smoothing_gradient(other + h * direction) - f.smoothing_gradient(other - h * direction)) / (2 * h)
        slope = (slope**2).sum(1, keepdim=True).sqrt() if isinstance(f, Grouped) else slope.abs()
        kink = (other.abs() / SMOOTHING - 1).abs() < 1e-5
        kink = kink.any(1, keepdim=True) if isinstance(f, Grouped) else kink & isinstance(f, Huber)
        assert bool(((slope <= q * high * (1 + 1e-6) + 1e-8) | kink).all())


def test_kinks_of_huber() -> None:
    f = Huber(0.5, 2.0)
    t = torch.tensor([[0.0, 0.3, -0.45], [0.0, 0.3, 0.55], [1.0, -0.7, 9.0], [0.5, 0.0, 0.0], [0.2, 0.9, -0.2]])
    assert f.kink_excluded(t, 0.04).tolist() == [True, True, True, False, True]
    assert f.kink_excluded(t, 0.06).tolist() == [False, False, True, False, True]
    assert f.kink_excluded(t, 0.0).tolist() == [True, True, True, False, True]
    assert f.kink_excluded(t, torch.full((5, 1), 0.21)).tolist() == [False, False, False, False, True]
    low, high = f.curvature_bounds(t.double(), 0.06)
    assert (float(low[0, 2]), float(high[0, 2])) == pytest.approx((0.0, 4.0))
    assert bool(PseudoHuber(0.5).kink_excluded(t, 1e9).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("smoothing", [1e-4, 1.0])
def test_extreme_values_stay_finite(name: str, dtype: torch.dtype, smoothing: float) -> None:
    f = registry.POTENTIALS[name](smoothing, 1.0)
    ratio = torch.tensor([0.0, 1e-30, 1e-12, 1e-6, 1.0, 1e3, 1e6], dtype=dtype)
    t = (smoothing * torch.cat([ratio, -ratio]))[None, :, None, None].expand(1, -1, 2, 1).transpose(1, 2)
    v = torch.ones_like(t)
    with torch.no_grad():
        results = [f.value(t), f.grad(t), f.hess_vec(t, v), f.second(t), f.smoothing_gradient(t)]
        for step in (1e-6, 1.0, 1e6):
            prox = f.prox(t, step)
            results += [prox, f.prox_jvp(prox, step, v), f.dual_prox_jvp(prox, step, v), *dual_point(f, t, step)]
            torch.testing.assert_close(prox + step * f.grad(prox), t, rtol=2e-5, atol=1e-5 * smoothing)
        for radius in (0.0, 1e-3, 1e6):
            results += [*f.curvature_bounds(t, radius), f.curvature_change(t, radius)]
    for result in results:
        assert result.dtype == dtype
        assert bool(torch.isfinite(result).all())
    assert bool((f.second(t) >= 0).all())


def test_parameters(name: str) -> None:
    build = registry.POTENTIALS[name]
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match=r"\(smoothing=.*expected a positive finite number"):
            build(bad, 1.0)
        with pytest.raises(ConfigError, match=r"\(weight="):
            build(1.0, bad)
    l = torch.tensor(2.0, requires_grad=True)
    f = build(torch.tensor(0.5), l)
    assert not f.detached().weight.requires_grad  # type: ignore[union-attr]
    assert f.to(torch.float64).weight.dtype == torch.float64  # type: ignore[union-attr]
    assert f.with_parameters(3.0, 4.0).smoothing == 4.0
    assert "smoothing" in repr(f)
    assert isinstance(lr.PseudoHuber(0.1), Potential)


def test_prox_from_a_guess(f: Potential) -> None:
    """From the result for a nearby point few steps do; from a useless guess it stays in bounds and improves."""
    v = points(seed=5)
    exact = f.prox(v, 0.7)
    near = f.prox(v, 0.7, start=f.prox(v * 1.001, 0.7))
    torch.testing.assert_close(near, exact, rtol=1e-6, atol=1e-9)
    far = f.prox(v, 0.7, start=-1e3 * torch.ones_like(v))
    assert bool((far.abs() <= v.abs() * (1 + 1e-12)).all() or isinstance(f, Grouped))
    torch.testing.assert_close(f.prox(v, 0.7, start=f.prox(v, 0.7, start=f.prox(v, 0.7, start=far))), exact)


CASES = [(name, d) for name, entry in registry.POTENTIALS.items() for d in entry.dimensions]


@pytest.mark.parametrize(("entry", "dimensions"), CASES)
def test_responses_may_have_any_dimension(entry: str, dimensions: int) -> None:
    """Derivatives, curvature on intervals, steps and groups of parameters for (batch, n, length) and beyond."""
    shape = registry.POTENTIALS[entry].shape(dimensions)
    f, t, v = registry.POTENTIALS[entry](SMOOTHING, WEIGHT), *(registry.randn(3, *shape, seed=s) for s in (5, 6))
    t.requires_grad_()
    (gradient,) = torch.autograd.grad(f.value(t).sum(), t, create_graph=True)
    (second,) = torch.autograd.grad((gradient * v).sum(), t)
    t, gradient = t.detach(), gradient.detach()
    torch.testing.assert_close(f.grad(t), gradient, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(f.hess_vec(t, v), second, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(f.bent(f.linearised(t), v), second, rtol=1e-8, atol=1e-12)
    low, high = f.curvature_bounds(t, 0.01)
    quotient = f.gather(v * second) / f.gather(v * v)
    assert bool(((low <= quotient + 1e-12) & (quotient <= high + 1e-12)).all())
    step = torch.full((3, *(1,) * len(shape)), 0.3, dtype=torch.float64)
    along = (f.grad(t + 0.3 * v) * v).flatten(1).sum(1)
    torch.testing.assert_close(f.slope(t, v, step), along, rtol=1e-9, atol=1e-12)
    for group in f.parameter_groups():
        if isinstance(group, Density):
            if group.share is not None:
                own, slope = group.share.within(t), group.share.within(gradient)
                assert group.parts(own, slope).shape[1:] == own.shape
                continue
            assert group.parts(t, gradient).shape[1:] == t.shape
            norm, bound = group.parts(t, gradient).norm(dim=0), group.size(t, gradient).abs()
            assert bool((norm <= bound * (1 + 1e-9) + 1e-12).all())
