"""Blocks of responses: nothing is left out, nothing comes twice, whatever broadcasts; in-place steps against the plain
ones."""

from __future__ import annotations

import pytest
import registry
import torch

from learnreg.kernels import blocks, loader
from learnreg.kernels.blocks import planes, sum_blocks
from learnreg.potentials.base import Potential
from learnreg.potentials.function import dual_point
from learnreg.potentials.isotropic import IsotropicPseudoHuber
from learnreg.potentials.proximal import Grouped
from learnreg.potentials.pseudo_huber import PseudoHuber

SIZES = [1, 700, 2**30]


@pytest.fixture(autouse=True)
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "numba_works", lambda: False)


@pytest.fixture(params=SIZES, ids=["one by one", "some", "all at once"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(blocks, "_BLOCK_BYTES", request.param)
    return int(request.param)


@pytest.mark.parametrize("whole", [False, True])
def test_every_entry_comes_once(block: int, whole: bool) -> None:
    t = torch.zeros(3, 5, 6, 4)
    per_channel = torch.arange(5.0)[:, None, None]
    per_sample = torch.arange(3.0).reshape(3, 1, 1, 1)
    for part, channel, sample, scalar in planes(t, per_channel, per_sample, torch.tensor(100.0), whole=whole):
        part += 1.0 + channel + 10.0 * sample + scalar
    assert torch.equal(t, (101.0 + per_channel + 10.0 * per_sample).expand_as(t))


def test_sums_are_per_sample(block: int) -> None:
    t = registry.randn(3, 5, 6, 4, seed=1)
    sums = sum_blocks(((part.flatten(1).sum(1), part.flatten(1).abs().sum(1)) for (part,) in planes(t)), 3)
    torch.testing.assert_close(sums[0], t.flatten(1).sum(1))
    torch.testing.assert_close(sums[1], t.flatten(1).abs().sum(1))


def potentials() -> list[Potential]:
    weight, smoothing = registry.rand(2, 1, 1, seed=3) + 0.1, registry.rand(2, 1, 1, seed=4) * 0.1 + 0.01
    shared = [
        registry.POTENTIALS[name](0.2, 0.7) for name in registry.potentials(even=True, convex=True, smoothed=True)
    ]
    return [*shared, PseudoHuber(smoothing, weight)]


@pytest.mark.parametrize("f", potentials(), ids=lambda f: type(f).__name__)
@torch.no_grad()
def test_the_dual_step_is_the_proximal_map(f: Potential, block: int) -> None:
    v, t, y = (registry.randn(3, 2, 6, 4, seed=s) for s in (5, 6, 7))
    sigma = 0.3 + registry.rand(3, 1, 1, 1, seed=8)
    y_hat, pullback = dual_point(f, v, sigma)
    expected = torch.lerp(y, y_hat, 1.9)
    f.dual_step_(v.clone(), y, t, sigma, 1.9, newton_steps=30)
    exact = isinstance(f, (PseudoHuber, IsotropicPseudoHuber))
    tolerance = 1e-9 if exact else 1e-2  # the others make a few warm steps
    torch.testing.assert_close(t, pullback, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("smoothing", [1e-1, 1e-4])
@torch.no_grad()
def test_newton_steps_stay_below_the_root(steps: int, smoothing: float) -> None:
    f, sigma = PseudoHuber(smoothing, 0.7), torch.tensor(0.4, dtype=torch.float64)
    v, t, y = (registry.randn(2, 3, 6, 4, seed=s) for s in (5, 6, 7))
    _, pullback = dual_point(f, v, sigma)
    f.dual_step_(v.clone(), y, t, sigma, 1.0, steps)
    assert bool((t * pullback >= 0).all())
    assert bool((t.abs() <= pullback.abs() * (1 + 1e-9)).all())
    torch.testing.assert_close(y, f.grad(t))


@pytest.mark.parametrize("f", potentials(), ids=lambda f: type(f).__name__)
@torch.no_grad()
def test_in_place_derivatives_and_values(f: Potential, block: int) -> None:
    t, memory = registry.randn(3, 2, 6, 4, seed=5), torch.empty(3, 2, 6, 4, dtype=torch.float64)
    assert f.grad_into(t, memory) is memory
    torch.testing.assert_close(memory, f.grad(t))
    torch.testing.assert_close(f.value(t), f.density(t).flatten(1).sum(1))
    if not isinstance(f, Grouped):
        torch.testing.assert_close(f.second_into(t, memory), f.second(t))


@pytest.mark.parametrize("f", potentials(), ids=lambda f: type(f).__name__)
@pytest.mark.parametrize("distance", [1.0, 1e-3, 1e-7])
@torch.no_grad()
def test_the_divergence_is_the_bregman_distance(f: Potential, distance: float) -> None:
    t = registry.randn(3, 2, 6, 4, seed=5)
    r = t + distance * registry.randn(3, 2, 6, 4, seed=6)
    inner = f.grad(t) * (r - t)
    exact = f.density(r) - f.density(t) - (inner.sum(1, keepdim=True) if isinstance(f, Grouped) else inner)
    torch.testing.assert_close(f.divergence(r, t), exact, rtol=1e-6, atol=1e-14)
    assert bool((f.divergence(r.float(), t.float()) >= -1e-7).all())
