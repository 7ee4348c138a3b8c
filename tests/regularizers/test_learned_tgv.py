"""Learned total generalised variation: its formula, the field it minimises over, dense hypergradients, what it does to
ramps, norms of its operator."""

from __future__ import annotations

import math

import pytest
import registry
import torch
from registry import generalized_variation
from torch import Tensor
from truth.dense import distance, norm, truth_of
from truth.draw import RANGES
from truth.hunt import hunt
from truth.spectrum import norm_of

import learnreg as lr
from learnreg.commands.common import initial_regularizer
from learnreg.commands.options import DenoiseConfig
from learnreg.convolutions.second_order import SecondOrderOperator
from learnreg.operators import Blur, Identity
from learnreg.regularizers import LearnedTotalGeneralizedVariation, LearnedTotalVariation, Scaled
from learnreg.testing import check_regularizer


def by_formula(R: LearnedTotalGeneralizedVariation, x: Tensor, w: Tensor) -> Tensor:
    """For "valid": differences of images and field, cut so that all fit, then the kernels."""
    L, M = (k.detach() for k in R.effective_kernels)
    d = [(x[..., 1:, :-1] - x[..., :-1, :-1])[:, 0], (x[..., :-1, 1:] - x[..., :-1, :-1])[:, 0]]
    fields = [w[:, i, :-1, :-1] for i in range(2)]
    down = [v[:, 1:, :-1] - v[:, :-1, :-1] for v in (w[:, 0], w[:, 1])]
    across = [v[:, :-1, 1:] - v[:, :-1, :-1] for v in (w[:, 0], w[:, 1])]

    def filtered(image: Tensor, kernels: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(image[:, None], kernels[:, None])

    def energy(squares: list[Tensor], weights: Tensor) -> Tensor:
        length = torch.sqrt(torch.stack([s * s for s in squares]).sum(0) + R.smoothing**2) - R.smoothing
        return (weights[:, None, None] * length).flatten(1).sum(1)

    weights, m = R.weights.detach(), L.shape[1]
    first = [filtered(d_ - w_, L_) for d_, w_, L_ in zip(d, fields, L, strict=True)]
    mixed = 0.5 * (filtered(across[0], M[2]) + filtered(down[1], M[2]))
    second = [filtered(down[0], M[0]), filtered(across[1], M[1]), mixed, mixed]
    own = 0.5 * R.delta * w.flatten(1).square().sum(1)
    return energy(first, weights[:m]) + energy(second, weights[m:]) + own


def test_the_energy_is_the_formula_and_its_field_the_best() -> None:
    R, x = generalized_variation(3, "valid"), registry.rand(2, 1, 8, 9, seed=1)
    terms = R.saddle_terms((1, 8, 9))
    w = registry.randn(2, 2, 8, 9, seed=2)
    joint = terms.potential.value(terms.operator(torch.cat([x, w], 1)))
    expected = by_formula(R, x, w) - 0.5 * R.delta * w.flatten(1).square().sum(1)
    torch.testing.assert_close(joint.detach(), expected, rtol=1e-12, atol=0)
    best = terms.latent.solve(x)
    torch.testing.assert_close(R.value(x).detach(), by_formula(R, x, best), rtol=1e-12, atol=0)
    for seed in range(5):
        other = best + 1e-3 * registry.randn(*best.shape, seed=seed)
        assert bool((by_formula(R, x, other) > R.value(x)).all())


@pytest.mark.parametrize("smoothing", [0.1, 1e-3, 1e-5])
def test_the_field_is_found_to_rounding(smoothing: float) -> None:
    R, x = generalized_variation(2, "replicate", smoothing), registry.rand(3, 1, 8, 7, seed=4)
    terms = R.saddle_terms((1, 8, 7))
    point = torch.cat([x, terms.latent.solve(x)], 1).requires_grad_()
    energy = terms.potential.value(terms.operator(point)) + 0.5 * R.delta * (point[:, 1:] ** 2).flatten(1).sum(1)
    (g,) = torch.autograd.grad(energy.sum(), point)
    assert float(g[:, 1:].norm()) < 1e-12 * float(g[:, :1].norm())


def test_derivatives_equal_differences() -> None:
    """First and second ones in all pixels, the points of all differences in one batch: each value is a solve."""
    R, step = generalized_variation(), 1e-6
    n = 20
    x = registry.rand(1, 1, 4, 5, seed=1)
    directions = torch.eye(n, dtype=torch.float64).reshape(n, 1, 4, 5)
    points = torch.cat([x + step * directions, x - step * directions]).requires_grad_()
    value = R.value(points)
    (slope,) = torch.autograd.grad(value.sum(), points)
    center = x.repeat(n, 1, 1, 1).requires_grad_()
    seeds = registry.rand(n, seed=2) + 0.5  # what backward is given, one per sample
    (gradient,) = torch.autograd.grad((seeds * R.value(center)).sum(), center, create_graph=True)
    (rows,) = torch.autograd.grad((gradient * directions).sum(), center)
    quotient = (value[:n] - value[n:]).detach() / (2 * step)
    expected = seeds[:, None] * quotient
    torch.testing.assert_close(gradient.detach().flatten(1), expected.expand(n, n), atol=1e-7, rtol=1e-5)
    second = (slope[:n] - slope[n:]).flatten(1) / (2 * step)
    torch.testing.assert_close(rows.flatten(1), seeds[:, None] * second, atol=1e-6, rtol=1e-4)


@pytest.mark.slow(seconds=9)
def test_it_has_the_properties_of_a_regularizer() -> None:
    check_regularizer(generalized_variation(), (1, 6, 7))


def test_without_field_it_is_learned_total_variation() -> None:
    """A stiff field stays at 0; a free one costs less."""
    tv = LearnedTotalVariation(4, 3, 0.3, 0.05).double()
    x = registry.rand(2, 1, 9, 8, seed=3)
    stiff, free = (LearnedTotalGeneralizedVariation(4, 3, 0.3, 2.0, 0.05, d).double() for d in (1e6, 1e-3))
    torch.testing.assert_close(stiff.value(x), tv.value(x), rtol=1e-4, atol=0)
    assert bool((free.value(x) < 0.99 * tv.value(x)).all())


@torch.no_grad()
def test_ramps_cost_nothing_but_their_field() -> None:
    """Whatever is learned, with responses where all filters fit; parabolas keep their second derivatives."""
    R = generalized_variation(3, "valid", 1e-3)
    rows, columns = torch.arange(9.0).double()[:, None], torch.arange(10.0).double()
    ramp = (0.3 * rows - 0.2 * columns)[None, None]
    field = torch.tensor([0.3, -0.2], dtype=torch.float64)[:, None, None].expand(1, 2, 9, 10)
    operator = R.saddle_terms((1, 9, 10)).operator
    assert float(operator(torch.cat([ramp, field], 1)).abs().max()) < 1e-13
    assert float(R.value(ramp)) <= 0.5 * R.delta * float(field.square().sum()) * (1 + 1e-12)
    bend = torch.tensor([[0.2, 0.3], [0.3, -0.1]], dtype=torch.float64)
    field = torch.einsum("ij,jhw->ihw", bend, torch.stack([rows.expand(9, 10), columns.expand(9, 10)]))[None]
    second = operator(torch.cat([torch.zeros_like(ramp), field], 1))[0, :, 3:]
    for found, exact in zip(second, (0.2, -0.1, math.sqrt(2.0) * 0.3), strict=True):
        torch.testing.assert_close(found, torch.full_like(found, exact), rtol=0, atol=1e-13)


def test_first_positions_interpolate() -> None:
    """Exactly where second differences are bilinear, as those of fields (r³, c³) and (r² c, 0) are."""
    R = LearnedTotalGeneralizedVariation(6, 3, generator=torch.Generator().manual_seed(0)).double()
    L, M = R.effective_kernels
    assert bool((L >= -1e-7).all() and (M >= -1e-7).all())
    ones = torch.ones(1).double()
    torch.testing.assert_close(L.sum((-2, -1)), ones.expand(2, 6))
    torch.testing.assert_close(M.sum((-2, -1)), ones.expand(3, 6))
    rows = torch.arange(9.0).double()[:, None].expand(9, 9)
    field = torch.stack([(rows + 0.5) ** 2, (rows.T + 0.5) ** 2])[None]  # at the edges where differences live
    operator = R.saddle_terms((1, 9, 9)).operator
    second = operator(torch.cat([torch.zeros_like(field[:, :1]), field], 1))[0, :, 6:10, 4, 4]
    torch.testing.assert_close(second[0], torch.tensor([9.0, 8.0, 8.0, 9.0]).double())  # 2 r
    torch.testing.assert_close(second[1], torch.tensor([8.0, 9.0, 8.0, 9.0]).double())


@pytest.mark.parametrize("k", [3, 5])
def test_the_jacobian_bound_holds(k: int) -> None:
    """From raw kernels to the filters of image and field."""
    R = LearnedTotalGeneralizedVariation(2, k).double()
    operator = R.saddle_terms((1, 9, 9)).operator
    assert isinstance(operator, SecondOrderOperator)
    filters = torch.cat([bank.filters.flatten() for bank in (operator.image, *operator.fields)])  # type: ignore[misc]
    raw = [R.kernels, R.second_kernels]
    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(f, raw, retain_graph=True)]) for f in filters]
    exact = float(torch.linalg.matrix_norm(torch.stack(rows), 2))
    assert exact <= R.parameter_jacobian_bounds()["operator"] <= 1.15 * exact


@pytest.mark.parametrize(("size", "boundary"), [(3, "valid"), (3, "replicate"), (5, "reflect"), (33, "valid")])
@pytest.mark.parametrize("scale", [0.2, 8.0])
@pytest.mark.sampled(share=0.5, by=("size", "boundary", "scale"))
def test_norms_are_bounds_on_large_images(size: int, boundary: str, scale: float) -> None:
    R = LearnedTotalGeneralizedVariation(2, size, boundary=boundary).double()  # type: ignore[arg-type]
    with torch.no_grad():
        R.kernels.add_(0.1 / size * registry.randn(*R.kernels.shape))
        latent = R.saddle_terms((1, 44, 42)).latent
        assert latent.channels
        operator = latent.operator(scale)
        norm = norm_of(operator)
        assert norm <= operator.norm_bound() <= 1.6 * norm
    assert operator.norm_bound_kind == "rigorous"


CASES = {"away from kinks": 0.05, "near total variation": 1e-3, "nearer": 1e-4}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["denoising", "deblurring"])
@pytest.mark.sampled(share=0.5, by=("name", "kind"))
def test_hypergradients_equal_dense_ones(name: str, kind: str) -> None:
    if kind == "deblurring" and name == "nearer":
        pytest.skip("the dense truth does not converge")
    x_true = registry.rand(1, 1, 8, 8, seed=1)
    operator: lr.LinearOperator = Identity((1, 8, 8))
    if kind == "deblurring":
        operator = Blur(registry.rand(3, 3) / 5, (1, 8, 8), "reflect")
    b = operator(x_true) + 0.1 * registry.randn(1, 1, 8, 8, seed=2)
    R = generalized_variation(2, smoothing=CASES[name])
    problem = lr.LowerLevelProblem(operator, R, ridge=0.0 if kind == "denoising" else 0.1)
    loss = lr.SquaredError(x_true)
    truth = truth_of(problem, b, loss)
    assert truth.usable
    solution = lr.solve(problem, b, 1e-6)
    assert solution.certified
    assert float((solution.x.flatten(1) - truth.x).norm()) / 8 <= float(solution.error_bound)
    tolerance = 1e-1 if name == "nearer" else 1e-3  # rounding in float64 is near
    for method in (lr.Implicit(), lr.Piggyback()):
        result = lr.hypergradient(problem, b, loss, method, tolerance=tolerance)
        assert result.certified
        assert result.status is lr.Status.CONVERGED
        assert distance(result.gradient, truth.gradient) <= result.error_bound + truth.gradient_slack
        assert result.error_bound <= 1.2 * tolerance * norm(truth.gradient)


@pytest.mark.parametrize("solver", ["lbfgs", "newton-cg", "pdhg"])
@pytest.mark.sampled(share=0.34, by=("solver",))
def test_solvers_that_stagnate_near_kinks_go_on(solver: str) -> None:
    """By way of smoother problems; without that, each of them ends far from the solution."""
    blur = Blur(registry.rand(3, 3) / 5, (1, 8, 8), "reflect")
    b = blur(registry.rand(1, 1, 8, 8, seed=1)) + 0.1 * registry.randn(1, 1, 8, 8, seed=2)
    problem = lr.LowerLevelProblem(blur, generalized_variation(2, smoothing=1e-4), ridge=0.1)
    solution = lr.solve(problem, b, 1e-6, solver=solver)  # type: ignore[arg-type]
    assert solution.status is lr.Status.CONVERGED
    assert solution.certified


def test_every_bound_holds_on_random_problems(rotating_generator: torch.Generator) -> None:
    summary = hunt(2, rotating_generator, RANGES["second-order"])
    assert not summary.violations, summary.violations
    assert summary.comparisons > 12


def test_options_of_the_command_line_and_bad_ones() -> None:
    R = initial_regularizer(DenoiseConfig(regularizer="learned-tgv", positions=2))
    assert isinstance(R, LearnedTotalGeneralizedVariation)
    assert R.second_kernels.shape == (3, 2, 5, 5)
    assert lr.plot.filters(R).axes
    for options in ({"positions": 0}, {"size": 4}):
        with pytest.raises(lr.ConfigError, match="size odd"):
            LearnedTotalGeneralizedVariation(**options)
    for name in ("ratio", "smoothing", "delta", "weight"):
        with pytest.raises(lr.ConfigError, match=name):
            LearnedTotalGeneralizedVariation(**{name: -1.0})  # type: ignore[arg-type]
    with pytest.raises(lr.ConfigError, match="boundary"):
        LearnedTotalGeneralizedVariation(boundary="mirror")  # type: ignore[arg-type]
    with pytest.raises(lr.ShapeError, match="expected one channel, \\(1, height, width\\)"):
        R.saddle_terms((3, 8, 8))
    with pytest.raises(lr.ConfigError, match="no factor scales"):
        Scaled(R).saddle_terms((1, 8, 8))
