"""The envelope of the maximum norm, against its definition, Huber's function, and changes of its pieces."""

from __future__ import annotations

import pytest
import torch
from registered.randomness import rand, randn

import learnreg as lr
from learnreg.potentials.maximum import MaximumEnvelope


def test_it_is_the_envelope_of_the_maximum_norm() -> None:
    """The least max |z| + |t - z|²/(2 v) on a grid around the prox point."""
    f, l, v = MaximumEnvelope(0.3, 0.7), 0.7, 0.3
    axis = torch.linspace(-2.0, 2.0, 801, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    for t in 2.0 * (rand(20, 2, seed=3) - 0.5):
        brute = float((z.abs().amax(1) + (t - z).square().sum(1) / (2 * v)).min())
        assert float(f.density(t[None, :, None, None])) == pytest.approx(l * brute, abs=2e-4)


def test_groups_of_one_are_hubers() -> None:
    t, v, step = randn(3, 1, 5, 4, seed=1), randn(3, 1, 5, 4, seed=2), 0.8
    f, huber = MaximumEnvelope(0.4, 1.5), lr.Huber(0.4, 1.5)
    for ours, theirs in (
        (f.density(t), huber.density(t)),
        (f.grad(t), huber.grad(t)),
        (f.second(t), huber.second(t)),
        (f.hess_vec(t, v), huber.hess_vec(t, v)),
        (f.prox(t, step), huber.prox(t, step)),
        (f.smoothing_gradient(t), huber.smoothing_gradient(t)),
        (f.divergence(v, t), huber.divergence(v, t)),
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-13, rtol=1e-12)


def test_slopes_of_large_responses_that_nearly_tie_keep_their_digits() -> None:
    """Differences of 1e-3 v between responses of 1e3 v, in float32: p follows the difference, not its rounded size."""
    t = torch.tensor([[1000.0, 1000.0 + 2.0**-10]])[:, :, None, None]
    p = MaximumEnvelope(1.0).grad(t).flatten()
    torch.testing.assert_close(p, torch.tensor([0.5 - 2.0**-11, 0.5 + 2.0**-11]), atol=1e-7, rtol=0.0)


@pytest.mark.parametrize("members", [1, 2, 4])
def test_where_no_jump_is_near_the_hessian_is_the_same(members: int) -> None:
    f, radius = MaximumEnvelope(0.5, 1.2), 0.05
    t = 1.5 * randn(60, members, 1, 1, seed=members)
    same = f.kink_excluded(t, radius)
    assert 5 < int(same.sum()) < 60
    low, high = f.curvature_bounds(t, radius)
    for seed in range(40):
        step, v = randn(*t.shape, seed=100 + seed), randn(*t.shape, seed=200 + seed)
        at = t + radius * step / step.norm(dim=1, keepdim=True)
        moved = (f.hess_vec(at, v) - f.hess_vec(t, v)).norm(dim=1).flatten()
        assert float(moved[same].max()) <= 1e-12
        bent = (v * f.hess_vec(at, v)).sum(1, keepdim=True) / (v * v).sum(1, keepdim=True)
        assert bool(((low <= bent + 1e-12) & (bent <= high + 1e-12)).all())
        bound = (f.curvature_change(t, radius) * v.norm(dim=1, keepdim=True)).flatten()
        assert bool((moved <= bound + 1e-12).all())
