"""Potentials with a weight for each place and sample: the sum of weighted terms, its derivatives, and bounds as
bounds."""

from __future__ import annotations

import pytest
import registry
import torch
from torch import Tensor

import learnreg as lr
from learnreg.errors import AssumptionError
from learnreg.linear.parameter_groups import Density
from learnreg.potentials.isotropic import IsotropicPseudoHuber
from learnreg.potentials.logarithmic import Logarithmic
from learnreg.potentials.proximal import Elementwise, Grouped, ProximalPotential
from learnreg.potentials.spline import Spline
from learnreg.potentials.weakly_convex_spline import WeaklyConvexSpline
from learnreg.potentials.weighted import weighted

KINDS = {"PseudoHuber": lr.PseudoHuber, "LogCosh": lr.LogCosh, "Huber": lr.Huber, "Spline": Spline,
         "IsotropicPseudoHuber": IsotropicPseudoHuber}  # fmt: skip
WEAKLY_CONVEX = {**KINDS, "WeaklyConvexSpline": WeaklyConvexSpline}
SHAPE = (3, 2, 4, 5)


def build(name: str) -> tuple[ProximalPotential, ProximalPotential, Tensor]:
    """The potential, that with weights, some of them 0 and 1, and these."""
    base = WEAKLY_CONVEX[name](registry.scalar(0.2), registry.scalar(0.7))
    assert isinstance(base, ProximalPotential)
    w = registry.rand(3, 1 if isinstance(base, Grouped) else 2, 4, 5, seed=2)
    w[0, 0, 0, 0], w[1, 0, 1, 1] = 1.0, 0.0
    return base, weighted(base, w), w


def responses(seed: int = 1) -> Tensor:
    return registry.randn(*SHAPE, seed=seed) * 10.0 ** (3 * registry.rand(*SHAPE, seed=seed + 1) - 2)


@pytest.mark.parametrize("name", WEAKLY_CONVEX)
def test_weights_multiply_the_terms(name: str) -> None:
    base, f, w = build(name)
    t, v = responses().requires_grad_(), registry.randn(*SHAPE, seed=3)
    torch.testing.assert_close(f.value(t), (w * base.density(t)).flatten(1).sum(1))
    (slope,) = torch.autograd.grad((w * base.density(t)).sum(), t, create_graph=True)
    (bent,) = torch.autograd.grad((slope * v).sum(), t)
    fixed, slope = t.detach(), slope.detach()
    with torch.no_grad():
        close = {"rtol": 1e-9, "atol": 1e-12}
        torch.testing.assert_close(f.grad(fixed), slope, **close)
        torch.testing.assert_close(f.grad_into(fixed, torch.empty_like(fixed)), slope, **close)
        for found in (f.hess_vec(fixed, v), f.bent(f.linearised(fixed), v), f.bent_(f.linearised(fixed), v.clone())):
            torch.testing.assert_close(found, bent, rtol=1e-8, atol=1e-11)
        for part in (torch.tensor([2, 0]), slice(1, 2)):
            torch.testing.assert_close(f.select(part).grad(fixed[part]), slope[part], **close)
        assert f.to(torch.float32).grad(fixed.float()).dtype == torch.float32


@pytest.mark.parametrize("name", KINDS)
def test_proximal_maps_solve_their_equations(name: str) -> None:
    _, f, _ = build(name)
    v, direction, sigma = responses(5), registry.randn(*SHAPE, seed=6), registry.scalar(0.4)
    with torch.no_grad():
        t = f.prox(v, 0.3)
        torch.testing.assert_close(t + 0.3 * f.grad(t), v, rtol=1e-10, atol=1e-12)
        jvp = f.prox_jvp(t, 0.3, direction)
        torch.testing.assert_close(jvp + 0.3 * f.hess_vec(t, jvp), direction, rtol=1e-9, atol=1e-11)
        dual = f.dual_prox_jvp(t, sigma, direction)  # f'' (sigma + f'')^-1 = I - sigma (sigma + f'')^-1
        rest = (direction - dual) / sigma
        torch.testing.assert_close(sigma * rest + f.hess_vec(t, rest), direction, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", WEAKLY_CONVEX)
def test_bounds_hold_on_their_intervals(name: str) -> None:
    _, f, w = build(name)
    t, v, radius = responses(7), registry.randn(*SHAPE, seed=8), 0.1
    with torch.no_grad():
        low, high = f.curvature_bounds(t, radius)
        change = f.curvature_change(t, radius)
        size = f.size(v)
        for k in range(20):
            step = registry.randn(*SHAPE, seed=20 + k)
            near = t + radius * registry.rand(3, 1, 4, 5, seed=50 + k) * step / f.size(step)
            product = f.gather(v * f.hess_vec(near, v))
            assert bool((product >= low * size**2 - 1e-12).all() and (product <= high * size**2 + 1e-12).all())
            moved = f.size(f.hess_vec(near, v) - f.hess_vec(t, v))
            assert bool((moved <= change * size * (1 + 1e-9) + 1e-12).all())
        assert bool((high <= torch.as_tensor(f.curvature_limit) * (1 + 1e-9)).all())
        densities = [group for group in f.parameter_groups() if isinstance(group, Density)]
        assert {"log_weight", "log_factor", "log_smoothing"} <= {group.name for group in densities}
        inner = next(group for group in densities if group.name == "log_smoothing").size(t, f.grad(t))
        assert not bool(inner[1, 0, 1, 1])  # where the weight is 0
    assert bool((w <= 1).all())


@pytest.mark.parametrize("spread", [0.0, 0.2, 0.7])
def test_intervals_of_weakly_convex_terms_hold_for_all_weights(spread: float) -> None:
    """Of f'' + rho, rho that of the terms without weights."""
    coefficients, depths = 0.05 * registry.rand(1, 6, seed=1), 0.9 * registry.rand(1, 5, seed=2)
    base = WeaklyConvexSpline(registry.scalar(0.2), registry.scalar(0.1), coefficients, depths)
    rho = float(torch.as_tensor(base.concavity).detach())
    assert rho > 0.1
    w, t = registry.rand(*SHAPE, seed=3), registry.randn(*SHAPE, seed=4)
    f, radius = weighted(base, w, spread), 0.3
    with torch.no_grad():
        assert float(torch.as_tensor(f.concavity).detach()) == rho
        (low, high), size, found = (
            f.curvature_bounds(t, radius),
            f.curvature_size(t, radius),
            f.curvature_interval(t, radius),
        )
        for k in range(40):
            near = t + radius * (2.0 * registry.rand(*SHAPE, seed=50 + k) - 1.0)
            own = (w + spread * (2.0 * registry.rand(*SHAPE, seed=100 + k) - 1.0)).clamp(0.0, 1.0)
            here, there = own * base.second(t), own * base.second(near)
            assert bool(((there >= low - 1e-12) & (there <= high + 1e-12) & (there.abs() <= size + 1e-12)).all())
            assert bool(((there + rho >= found.low - 1e-12) & (there + rho <= found.high + 1e-12)).all())
            assert bool(((there - here).abs() <= found.change + 1e-12).all())
            assert bool(((there - here).abs() <= found.ratio * (there + rho).clamp_min(0.0).sqrt() + 1e-12).all())


def test_potentials_without_places_take_no_weights() -> None:
    for name in ("NetworkPotential", "StackedPotential"):
        with pytest.raises(AssumptionError, match=f"{name} cannot be reweighted"):
            weighted(registry.POTENTIALS[name](0.1, 1.0), torch.ones(1))


@pytest.mark.parametrize("name", ["PseudoHuber", "LogCosh", "Spline", "Huber"])
def test_logarithms_of_potentials(name: str) -> None:
    base, s = KINDS[name](registry.scalar(0.2), registry.scalar(0.7)), registry.rand(2, 1, 1, seed=9) + 0.05
    assert isinstance(base, Elementwise)
    f, t = Logarithmic(base, s), responses(7).requires_grad_()
    torch.testing.assert_close(f.value(t), (s * (1 + base.density(t) / s).log()).flatten(1).sum(1))
    (slope,) = torch.autograd.grad(f.value(t).sum(), t, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), t)
    t = t.detach()
    torch.testing.assert_close(f.grad(t), slope.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(f.second(t), second, rtol=1e-8, atol=1e-10)
    assert bool((second >= -torch.as_tensor(f.concavity)).all() and (second <= base.curvature_limit).all())
    for radius in (1e-3, 0.1, 3.0):
        low, high = f.curvature_bounds(t, radius)
        for k in range(20):
            near = f.second(t + radius * (2 * registry.rand(*SHAPE, seed=50 + k) - 1))
            assert bool(((low <= near) & (near <= high)).all())
