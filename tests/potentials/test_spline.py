"""Spline potentials whose second derivative rises and falls: formulas, proximal maps, intervals, knots, kernels."""

from __future__ import annotations

import math

import pytest
import registry
import torch
from torch import Tensor

from learnreg.errors import ConfigError
from learnreg.kernels import loader
from learnreg.potentials.spline import Spline, initial_coefficients

CHANNELS = 3


def uneven(shared: bool = False, knots: int = 6, seed: int = 0) -> Spline:
    """Curvatures over five orders of magnitude, some of them zero."""
    c = torch.exp(3.0 * registry.randn(1 if shared else CHANNELS, knots, seed=seed))
    c[:, 2] = 0.0
    numbers = (0.05 + registry.rand(CHANNELS, 1, 1, seed=seed + k) for k in (1, 2))
    return Spline(*numbers, c)


def responses(f: Spline, seed: int = 3, batch: int = 2) -> Tensor:
    """From next to nothing to far beyond the last knot, some exactly at knots."""
    u = registry.randn(batch, CHANNELS, 5, 8, seed=seed) * 10.0 ** (4 * registry.rand(batch, 1, 5, 8, seed=seed) - 2)
    u[..., 0] = torch.arange(5.0, dtype=torch.float64)
    u[..., 1] = -torch.arange(4.0, 9.0, dtype=torch.float64)
    return u * torch.as_tensor(f.smoothing)


@pytest.fixture(params=[False, True], ids=["per channel", "shared"])
def f(request: pytest.FixtureRequest) -> Spline:
    return uneven(bool(request.param))


def by_quadrature(f: Spline, t: float, channel: int, moment: int) -> float:
    """l/v or l times the integral of h''(s) (u - s)^moment over [0, u], by the midpoint rule."""
    l, v = (float(torch.as_tensor(p).flatten()[channel]) for p in (f.weight, f.smoothing))
    c = torch.cat([f.coefficients[min(channel, f.coefficients.shape[0] - 1)], torch.zeros(2, dtype=torch.float64)])
    u = abs(t) / v
    s = (torch.arange(200_000, dtype=torch.float64) + 0.5) * (u / 200_000)
    k = s.floor().clamp(max=len(c) - 2)
    bend = torch.lerp(c[k.long()], c[k.long() + 1], (s - k).clamp(max=1.0))
    return l * v**moment * float((bend * (u - s) ** moment).sum()) * u / 200_000


@pytest.mark.parametrize("u", [0.3, 1.0, 2.6, -5.5, 40.0])
def test_values_are_integrals_of_the_linear_spline(f: Spline, u: float) -> None:
    t = u * torch.as_tensor(f.smoothing).expand(1, CHANNELS, 1, 1)
    for c in range(CHANNELS):
        at = float(t[0, c])
        slope = math.copysign(by_quadrature(f, at, c, 0), at)
        assert float(f.grad(t)[0, c]) == pytest.approx(slope, rel=1e-6)
        assert float(f.density(t)[0, c]) == pytest.approx(by_quadrature(f, at, c, 1), rel=1e-6)


def test_derivatives_agree_with_autograd_at_knots_and_at_zero(f: Spline) -> None:
    t = responses(f).requires_grad_()
    (gradient,) = torch.autograd.grad(f.value(t).sum(), t, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), t)
    torch.testing.assert_close(f.grad(t.detach()), gradient.detach(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(f.second(t.detach()), second, rtol=1e-10, atol=1e-12)
    zero = torch.zeros(1, CHANNELS, 2, 2, dtype=torch.float64)
    assert not bool(f.grad(zero).any())
    limit = f.weight / f.smoothing * f.coefficients[:, 0].reshape(-1, 1, 1)
    torch.testing.assert_close(f.second(zero), limit.expand_as(zero))


@pytest.mark.parametrize("step", [1e-4, 0.3, 1e3])
def test_prox_solves_its_equation_where_the_gradient_is_neither_convex_nor_concave(f: Spline, step: float) -> None:
    t = responses(f, seed=7)
    v = t + step * f.grad(t)
    found = f.prox(v, step)
    torch.testing.assert_close(found + step * f.grad(found), v, rtol=1e-12, atol=1e-12)
    curved = f.second(t) * step > -1.0
    torch.testing.assert_close(found[curved], t[curved], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("radius", [0.0, 1e-9, 0.01, 0.3, 3.0, 1e3, math.inf])
def test_intervals_contain_what_they_should(f: Spline, radius: float, rotating_seed: int) -> None:
    """Against dense samples and all knots of each interval: bounds, and attained but for sampling."""
    f = uneven(f.coefficients.shape[0] == 1, seed=rotating_seed % 1000)
    t = responses(f, seed=rotating_seed % 997)
    low, high = f.curvature_bounds(t, radius)
    change, third = f.curvature_change(t, radius), f.third_bound(t, radius)
    reach = min(radius, 1e4)
    shares = torch.linspace(-1, 1, 401, dtype=torch.float64)
    others = t + reach * shares.reshape(-1, 1, 1, 1, 1)
    knots = torch.arange(-7.0, 8.0, dtype=torch.float64).reshape(-1, 1, 1, 1, 1) * torch.as_tensor(f.smoothing)
    inside = (knots - t).abs() <= reach
    others = torch.cat([others, torch.where(inside, knots.expand(-1, *t.shape), t)])
    curvature = f.second(others.flatten(0, 1)).reshape(others.shape)
    here = f.second(t)
    tiny = 1e-13 * float(torch.as_tensor(f.curvature_limit).max())
    assert bool((curvature >= low - 1e-300).all())
    assert bool((curvature <= high + 1e-300).all())
    assert bool(((curvature - here).abs() <= change + tiny).all())
    assert bool(((curvature - here).abs() <= third * (others - t).abs() + 10 * tiny).all())
    if reach <= 0.3:
        steepest = float(torch.as_tensor(f.third_bound(torch.zeros_like(t), math.inf)).max())
        slack = steepest * reach / 100 + 100 * tiny
        assert bool((curvature.amin(0) <= low + slack).all())
        assert bool((curvature.amax(0) >= high - slack).all())


def test_smoothing_slope_is_a_bound_where_curvature_vanishes(f: Spline) -> None:
    t, radius = responses(f, seed=5), 0.2
    slope, q = f.smoothing_slope(t, radius), f.smoothing_sensitivity(t, radius)
    _, high = f.curvature_bounds(t, radius)
    assert isinstance(q, Tensor)
    assert bool(torch.isinf(q).any())
    for share in torch.linspace(-0.99, 0.98, 30, dtype=torch.float64):
        a, b = t + radius * share, t + radius * (share + 0.01)
        moved = (f.smoothing_gradient(b) - f.smoothing_gradient(a)).abs()
        assert bool((moved <= slope * (b - a) * (1 + 1e-9) + 1e-11).all())
        finite = torch.isfinite(q) & (high > 0)
        assert bool((moved[finite] <= (q * high * (b - a) * (1 + 1e-9) + 1e-11)[finite]).all())


def test_knot_gradients_are_what_the_lemma_says(f: Spline) -> None:
    """By autograd in the logarithms; never falling, of the sign of t, adding up to f'."""
    t, other = responses(f, seed=8), responses(f, seed=9)
    s, s_other = f.coefficient_gradients(t), f.coefficient_gradients(other)
    torch.testing.assert_close(s.sum(0), f.grad(t), rtol=1e-11, atol=1e-12)
    assert bool((s * t.sign() >= 0).all())
    assert bool(((s_other - s) * (other - t) >= -1e-12).all())
    moved = (s_other - s).norm(dim=0)
    assert bool((moved <= (f.grad(other) - f.grad(t)).abs() * (1 + 1e-10) + 1e-12).all())
    raw = f.coefficients.clamp_min(1e-12).log().requires_grad_()
    unit = registry.randn(*t.shape, seed=10)
    (found,) = torch.autograd.grad((f.with_coefficients(raw.exp()).grad(t) * unit).sum(), raw)
    sums = (f.with_coefficients(raw.detach().exp()).coefficient_gradients(t) * unit).sum((1, 3, 4)).T
    torch.testing.assert_close(found, sums if found.shape[0] > 1 else sums.sum(0, keepdim=True), rtol=1e-9, atol=1e-11)


def test_knots_norm_is_attained_and_no_less(f: Spline) -> None:
    t = responses(f, seed=11)
    s = f.coefficient_gradients(t)
    (group,) = (group for group in f.parameter_groups() if group.name == "log_curvature")
    bound = group.joint_norm(t)
    assert bool((bound <= f.grad(t).flatten(1).norm(dim=1) * (1 + 1e-9)).all())
    for sample in range(t.shape[0]):
        matrix = s[:, sample].flatten(2).permute(1, 0, 2)  # (n, m, pixels)
        if f.coefficients.shape[0] == 1:
            matrix = matrix.permute(1, 0, 2).flatten(1)[None]
        exact = float(torch.linalg.matrix_norm(matrix, 2).max())
        assert exact <= float(bound[sample]) <= exact * (1 + 1e-6)


def test_divergence_is_that_of_the_density(f: Spline) -> None:
    t, r = responses(f, seed=12), responses(f, seed=13)
    direct = f.density(r) - f.density(t) - f.grad(t) * (r - t)
    size = f.weight * (r.abs() + t.abs() + 1.0) * 1e3
    assert bool((f.divergence(r, t) >= direct - 1e-12 * size).all())
    torch.testing.assert_close(f.divergence(r, t), direct, rtol=1e-9, atol=1e-9)
    near = t * (1 + 1e-9)
    assert bool((f.divergence(near, t) >= 0).all())


@pytest.mark.skipif(not loader.numba_works(), reason="numba is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_kernels_do_what_torch_does(f: Spline, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    g, t = f.to(dtype), responses(f, seed=14).to(dtype)
    v, y, sigma = t.flip(0) * 0.3, t.flip(1) * 0.1, torch.tensor([[0.5], [2.0]], dtype=dtype)[:, :, None, None]

    def results() -> list[Tensor]:
        v_, y_, t_ = v.clone(), y.clone(), t.clone()
        g.dual_step_(v_, y_, t_, sigma, 1.7)
        return [
            g.grad_into(t, torch.empty_like(t)),
            g.second_into(t, torch.empty_like(t)),
            g.slope(t, v, sigma),
            y_,
            t_,
        ]

    assert g._kernels(t, v) is not None
    fast = results()
    monkeypatch.setattr(loader, "numba_works", lambda: False)
    assert g._kernels(t, v) is None
    tolerance = 3e-5 if dtype == torch.float32 else 1e-11
    for a, b in zip(fast, results(), strict=True):
        scale = float(b.abs().max())
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * scale)


def test_start_is_a_unit_slope_and_bad_knots_are_refused() -> None:
    f = Spline(0.1, 2.0)
    assert float(f.grad(torch.tensor([[5.0]], dtype=torch.float64))) == pytest.approx(2.0, rel=1e-4)
    assert float(f.curvature_limit) == pytest.approx(20.0)
    for knots in (4, 3, 6.0, -1):
        with pytest.raises(ConfigError, match="odd integer"):
            initial_coefficients(knots)  # type: ignore[arg-type]
