"""Ridge regularizers whose splines see the length of a group of responses."""

from __future__ import annotations

import pytest
import registry
import torch

import learnreg as lr
from learnreg.commands.common import initial_regularizer
from learnreg.commands.options import DenoiseConfig
from learnreg.models.names import build_regularizer, describe_regularizer
from learnreg.operators import Identity
from learnreg.potentials.modulus import Modulus
from learnreg.regularizers import RidgeRegularizer

SHAPE = registry.SHAPE
DOUBLE = torch.float64


def ridge(group_size: int, filters: int = 6, **options: object) -> RidgeRegularizer:
    generator = torch.Generator().manual_seed(3)
    result = RidgeRegularizer(
        (2, filters), 3, 9, weight=0.5, smoothing=0.15, group_size=group_size, generator=generator, **options
    ).double()  # type: ignore[arg-type] # fmt: skip
    with torch.no_grad():
        for p in result.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=DOUBLE))
    return result


@pytest.mark.parametrize("convexity", ["convex", "convex-nonconvex"])
def test_the_value_is_the_spline_of_the_lengths(convexity: str) -> None:
    regularizer, x = ridge(3, convexity=convexity), registry.rand(2, *SHAPE)
    filters = regularizer.effective_filters
    responses = torch.nn.functional.conv2d(x, filters[:, None], padding=filters.shape[-1] // 2)
    lengths = responses.reshape(2, 2, 3, *SHAPE[1:]).norm(dim=2)
    expected = regularizer.potential().density(lengths).flatten(1).sum(1)
    torch.testing.assert_close(regularizer.value(x), expected, rtol=1e-12, atol=1e-12)


def test_groups_of_one_are_filters() -> None:
    alone, x = ridge(1), registry.rand(2, *SHAPE)
    assert "group_size" not in alone.config()
    assert "group_size" not in repr(alone)
    assert torch.equal(alone.value(x), RidgeRegularizer.value(alone, x))
    assert alone.log_weights.shape == (6,)
    assert ridge(3).log_weights.shape == ridge(3).log_smoothing.shape == (2,)


@pytest.mark.parametrize("convexity", ["convex", "convex-nonconvex"])
def test_turning_the_members_of_a_group_changes_nothing(convexity: str) -> None:
    """The last convolution makes the members from the channels before it, so that turning its kernels turns them."""
    regularizer, x = ridge(2, convexity=convexity), registry.rand(1, *SHAPE)
    before = regularizer.value(x)
    turn = torch.linalg.qr(registry.randn(2, 2, seed=7))[0]
    with torch.no_grad():
        last = regularizer.factors[-1]
        pairs = last.reshape(3, 2, *last.shape[1:])
        last.copy_(torch.einsum("ij,gjckl->gickl", turn, pairs).reshape(last.shape))
    torch.testing.assert_close(regularizer.value(x), before, rtol=1e-9, atol=1e-9)


def test_configuration_rebuilds_it() -> None:
    regularizer = ridge(2, noise_conditioned=True, convexity="convex-nonconvex")
    again = build_regularizer(describe_regularizer(regularizer)).double()
    again.load_state_dict(regularizer.state_dict())
    x = registry.rand(1, *SHAPE)
    assert "group_size=2" in repr(again)
    assert torch.equal(again.at(0.1).value(x), regularizer.at(0.1).value(x))


def test_the_command_line_builds_groups() -> None:
    grouped = initial_regularizer(DenoiseConfig(regularizer="ridge", convolutions="2,6", group_size=3, size=3))
    assert isinstance(grouped, RidgeRegularizer)
    assert grouped.group_size == 3
    plain = initial_regularizer(DenoiseConfig(regularizer="ridge", convolutions="2,6", size=3))
    assert isinstance(plain, RidgeRegularizer)
    assert plain.group_size == 1


@pytest.mark.parametrize("group_size", [0, 4, 1.5, True])
def test_groups_that_are_not_whole_are_refused(group_size: object) -> None:
    with pytest.raises(lr.ConfigError, match="divides 6, the number of filters, into whole groups"):
        RidgeRegularizer((2, 6), 3, 9, group_size=group_size)  # type: ignore[arg-type]


def test_pictures_have_the_members_of_each_group() -> None:
    pictures = ridge(3).pictures()
    assert pictures.filters is not None
    assert pictures.filters.shape == (2, 3, 5, 5)


def test_compiled_and_plain_iterations_agree() -> None:
    """With gradients asked for, nothing is compiled."""
    for convexity in ("convex", "convex-nonconvex"):
        f = ridge(3, convexity=convexity).saddle_terms(SHAPE).potential.detached()
        t, v = (0.5 * registry.randn(2, 3, 2, 6, 5, seed=s) for s in (1, 2))
        t[0, :, 0, 0, 0] = 0.0
        plain = f.grad(t), f.hess_vec(t, v)
        with torch.no_grad():
            compiled = f.grad_into(t, torch.empty_like(t)), f.hess_vec(t, v)
        for a, b in zip(compiled, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_a_radius_of_each_member_is_the_largest_of_its_group() -> None:
    """As sums of terms hand it on, of one number for each response."""
    f = ridge(3, convexity="convex-nonconvex").saddle_terms(SHAPE).potential.detached()
    t, radius = 0.3 * registry.randn(2, 3, 2, 6, 5, seed=1), 0.1 * registry.rand(2, 1, 2, 6, 5, seed=2)
    assert isinstance(f, Modulus)
    for bound in (
        lambda r: f.curvature_bounds(t, r)[1],
        lambda r: f.third_bound(t, r),
        lambda r: f.curvature_change(t, r),
    ):
        assert torch.equal(bound(radius), bound(radius.expand(2, 3, 2, 6, 5)))
        of_groups = radius[0, 0, :, :1, :1]
        assert torch.equal(bound(of_groups), bound(of_groups.expand(2, 1, 2, 6, 5)))


def test_a_problem_is_certified_and_solved() -> None:
    problem = lr.LowerLevelProblem(Identity(SHAPE), ridge(3, convexity="convex-nonconvex"))
    x, b = registry.measure(problem)
    exact = lr.solve(problem, b, tolerance=1e-11)
    found = lr.solve(problem, b, tolerance=1e-4)
    error = (found.x - exact.x).square().flatten(1).mean(1).sqrt()
    assert bool((error <= found.error_bound + exact.error_bound).all())
    assert x.shape == found.x.shape
