"""Data terms and constraints."""

from __future__ import annotations

import math

import pytest
import registry
import torch
from torch import nn

import learnreg as lr
from learnreg.errors import ConfigError, ShapeError
from learnreg.linear.samples import inner_samples, sum_samples
from learnreg.potentials.function import Proximal, dual_point

WEIGHTS = registry.rand(1, 3, 4, seed=1) * (registry.rand(1, 3, 4, seed=2) > 0.3)
FUNCTIONS: dict[str, Proximal] = {
    "LeastSquares": lr.LeastSquares(),
    "WeightedLeastSquares": lr.WeightedLeastSquares(WEIGHTS),
    "WeightedLeastSquares-scalar": lr.WeightedLeastSquares(torch.tensor(2.0)),
}


@pytest.fixture(params=FUNCTIONS)
def f(request: pytest.FixtureRequest) -> Proximal:
    return FUNCTIONS[request.param]


def test_derivatives_agree_with_autograd(f: Proximal) -> None:
    t, v = registry.randn(2, 1, 3, 4, seed=3).requires_grad_(), registry.randn(2, 1, 3, 4, seed=4)
    (gradient,) = torch.autograd.grad(f.value(t).sum(), t, create_graph=True)
    torch.testing.assert_close(f.grad(t), gradient)
    torch.testing.assert_close(f.hess_vec(t, v), torch.autograd.grad((gradient * v).sum(), t)[0])
    low, high = f.curvature_bounds(t, 1.0)
    assert bool((f.hess_vec(t, v) * v >= low * v * v - 1e-15).all())
    assert bool((f.hess_vec(t, v) * v <= high * v * v + 1e-15).all())
    assert bool(f.kink_excluded(t, 5.0).all())


@pytest.mark.parametrize("step", [0.01, 3.0])
def test_prox_is_optimal_and_its_derivative_right(f: Proximal, step: float) -> None:
    v, direction = registry.randn(2, 1, 3, 4, seed=5), registry.randn(2, 1, 3, 4, seed=6)
    t = f.prox(v, step)
    torch.testing.assert_close(t + step * f.grad(t), v)
    jvp = f.prox_jvp(t, step, direction)
    torch.testing.assert_close(jvp, f.prox(v + direction, step) - t)
    y, pull_back = dual_point(f, v, step)
    torch.testing.assert_close(y + step * pull_back, v)


def test_conjugate_through_the_pull_back() -> None:
    t = registry.randn(2, 1, 3, 4, seed=7)
    torch.testing.assert_close(lr.LeastSquares().conjugate_at_gradient(t), 0.5 * sum_samples(t * t))
    weighted = lr.WeightedLeastSquares(WEIGHTS + 0.1)
    y = weighted.grad(t)
    torch.testing.assert_close(weighted.conjugate_at_gradient(t), 0.5 * sum_samples(y * y / (WEIGHTS + 0.1)))


def test_sums_over_samples() -> None:
    a, b = registry.randn(3, 2, 4, seed=8), registry.randn(3, 2, 4, seed=9)
    torch.testing.assert_close(inner_samples(a, b), (a * b).sum((1, 2)))
    torch.testing.assert_close(inner_samples(a, b.transpose(1, 2).contiguous().transpose(1, 2)), (a * b).sum((1, 2)))


def test_weights() -> None:
    learnable = lr.WeightedLeastSquares(nn.Parameter(torch.ones(3)))
    assert [name for name, _ in learnable.named_parameters()] == ["weights"]
    assert lr.WeightedLeastSquares(WEIGHTS).weight_range() == (0.0, float(WEIGHTS.max()))
    assert lr.LeastSquares().weight_range() == (1.0, 1.0)
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="finite weights >= 0"):
            lr.WeightedLeastSquares(torch.tensor([1.0, bad]))


def test_box() -> None:
    box = lr.Box(-1.0, torch.tensor([0.5, math.inf]))
    x = torch.tensor([[0.0, 7.0], [0.6, 0.0], [-1.0, 0.0], [0.0, -1.1]])
    assert box.value(x).tolist() == [0.0, math.inf, 0.0, math.inf]
    torch.testing.assert_close(box.prox(x), torch.tensor([[0.0, 7.0], [0.5, 0.0], [-1.0, 0.0], [0.0, -1.0]]))
    direction = torch.ones_like(x)
    assert box.prox_jvp(x, 1.0, direction).tolist() == [[1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]
    assert box.prox(x.double()).dtype == torch.float64
    assert lr.Nonnegative().prox(x).min() == 0.0
    assert lr.Box().value(x).tolist() == [0.0] * 4


def test_reduced_gradient_is_the_smallest_of_gradient_plus_normal_cone() -> None:
    box = lr.Box(0.0, 1.0)
    x = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.5]])
    g = torch.tensor([[2.0, -2.0, 2.0, -2.0, 2.0]])
    assert box.reduced_gradient(x, g).tolist() == [[0.0, -2.0, 2.0, 0.0, 2.0]]
    assert g.tolist() == [[2.0, -2.0, 2.0, -2.0, 2.0]]


@pytest.mark.parametrize("value", [0.1, 0.3, 0.35, 0.6, 0.7, 0.9, 1e-3])
def test_bounds_that_are_no_float32_numbers(value: float) -> None:
    """A float32 solution lies in the box in float64, too, and its active pixels are known to be active."""
    for box, bound in ((lr.Box(value, 2.0), value), (lr.Box(-1.0, value), value)):
        x = torch.tensor([[value, 0.0, 1.5, math.nextafter(value, 2.0)]], dtype=torch.float32)
        exact = box.exactly(box.prox(x))
        assert exact.dtype == torch.float64
        assert float(exact[0, 0]) == bound
        back = box.inside(exact, torch.float32)
        assert back.dtype == torch.float32
        assert float(box.value(back.double())) == 0.0
        assert float(box.value(back)) == 0.0
        assert float((back.double() - exact).abs().max()) <= 2.4e-7 * 2.0
        assert torch.equal(box.exactly(exact), exact)
        assert torch.equal(box.exactly(back), exact)


def test_wrong_boxes() -> None:
    with pytest.raises(ConfigError, match="lower < upper everywhere"):
        lr.Box(1.0, 1.0)
    with pytest.raises(ConfigError, match="lower < upper everywhere"):
        lr.Box(torch.tensor([0.0, 2.0]), 1.0)
    with pytest.raises(ShapeError, match=r"lower \(2,\) and upper \(3,\)"):
        lr.Box(torch.zeros(2), torch.ones(3))
