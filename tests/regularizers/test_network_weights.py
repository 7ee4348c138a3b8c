"""Weights that networks compute: what they start with, and what they refuse. Their bounds: test_reweighted.py,
test_weight_pull.py, and hypergradients/test_chain.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from registered.chains import few_experts
from torch import Tensor

import learnreg as lr
from learnreg.convolutions.gradient import Gradient
from learnreg.errors import ConfigError
from learnreg.operators import Identity
from learnreg.regularizers import AnalysisOperator, FieldsOfExperts, Reweighted, TotalVariation

SHAPE = (1, 16, 16)


def weights_of(R: Reweighted, x: Tensor) -> Tensor:
    terms = R.base.saddle_terms(tuple(x.shape[1:]))
    with torch.no_grad():
        return R.weights.of(terms, x, terms.operator(x))


def edge(height: float = 1.0) -> Tensor:
    x = torch.zeros(1, *SHAPE)
    x[..., 8:] = height
    return x


@pytest.mark.parametrize("base", [few_experts, lambda: TotalVariation(0.1)], ids=["experts", "groups"])
def test_weights_of_responses_tell_edges_from_the_start(base: Any) -> None:
    w = weights_of(Reweighted(base(), "responses", size=3, generator=torch.Generator().manual_seed(0)), edge())
    flat, near = w[..., 4, 2], w[..., 4, 7]
    usual = torch.sigmoid(torch.tensor(2.0))
    torch.testing.assert_close(flat, usual.expand_as(flat))
    assert bool((near < 0.5 * usual).any())
    assert bool((weights_of(Reweighted(base(), "responses"), edge(1e-3))[..., 4, 7] > 0.85).all())


def test_scales_of_sizes_are_those_of_responses_to_photographs() -> None:
    """Of first differences about the difference between neighbours, and so in other units."""
    step = torch.tensor([[[0.0, 0.0, 0.0], [0.0, -1.0, 1.0], [0.0, 0.0, 0.0]]])
    both = FieldsOfExperts.from_arrays(torch.cat([step, 3.0 * step]), torch.ones(2), torch.ones(2), "reflect")
    s = Reweighted(both, "responses", scale=0.2).weights.log_scale.exp()
    torch.testing.assert_close(s, torch.tensor([0.1, 0.3]), rtol=0.2, atol=0.0)
    twice = Reweighted(both, "responses", scale=0.4).weights.log_scale.exp()
    torch.testing.assert_close(twice, 2.0 * s)


def test_scales_follow_the_noise_level() -> None:
    """At first in proportion: an image, its noise and the level in other units have the same weights."""
    R = Reweighted(few_experts(noise_conditioned=True), "responses", size=3)
    x, ratio = edge(0.1), 2.5
    far = R.at(ratio * 25 / 255)
    torch.testing.assert_close(weights_of(far, ratio * x), weights_of(R.at(25 / 255), x))


def test_a_term_without_responses_keeps_a_scale() -> None:
    filters = torch.stack([torch.zeros(3, 3), torch.eye(3) - 1 / 3])
    R = Reweighted(FieldsOfExperts.from_arrays(filters, torch.ones(2), torch.ones(2), "reflect"), "responses", 1)
    found = lr.solve(lr.LowerLevelProblem(Identity(SHAPE), R), edge(), 1e-4)
    assert found.certified
    assert bool(torch.isfinite(R.weights.log_scale).all())


def test_free_weights_are_for_as_many_responses_as_pixels() -> None:
    problem = lr.LowerLevelProblem(Identity(SHAPE), Reweighted(few_experts("valid"), "free"))
    with pytest.raises(ConfigError, match=r"sides \(14, 14\) for images of sides \(16, 16\)"):
        lr.solve(problem, edge())
    fewer = lr.LowerLevelProblem(Identity(SHAPE), Reweighted(few_experts("valid"), "responses", 1))
    assert lr.solve(fewer, edge(), 1e-3).weights.shape == (1, 3, 14, 14)


def test_networks_take_no_windows() -> None:
    for weights in ("free", "responses"):
        with pytest.raises(ConfigError, match="windows are for majorising"):
            Reweighted(few_experts(), weights, window=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", ["free", "responses"])
def test_networks_see_one_plane(weights: Any) -> None:
    """Volumes and signals, and channels whose responses lie below each other, are refused where they are built."""
    for dimensions in (1, 3):
        with pytest.raises(ConfigError, match="signals, volumes"):
            Reweighted(FieldsOfExperts(2, 3, dimensions=dimensions), weights)
    with pytest.raises(ConfigError, match="coupling='joint'"):
        Reweighted(FieldsOfExperts(2, 3, channels=3), weights)
    joint = Reweighted(FieldsOfExperts(2, 3, channels=3, coupling="joint"), weights, 1, size=3)
    found = lr.solve(lr.LowerLevelProblem(Identity((3, 8, 8)), joint), torch.rand(1, 3, 8, 8), 1e-3)
    assert len(found.chain) == 2


@pytest.mark.parametrize("boundary", ["valid", "zero"])
def test_logits_move_no_more_than_their_constant(boundary: Any) -> None:
    """Kernels that alternate from column to column, on responses of other sides than images."""
    R = Reweighted(few_experts(boundary), "responses", 1, size=3).double()
    terms, weights = R.base.saddle_terms((1, 7, 8)), R.weights
    with torch.no_grad():
        weights.second.copy_(torch.tensor([1.0, -1.0, 1.0]).expand_as(weights.second))
    x = 5.0 * torch.rand(1, 1, 7, 8, dtype=torch.float64)

    def logits(at: Tensor) -> Tensor:
        t = terms.operator(at)
        return weights._second_layer(weights._features(terms, at, t)).flatten()

    J = torch.autograd.functional.jacobian(logits, x).reshape(-1, 56)
    sides = tuple(terms.operator(x).shape[2:])
    assert float(torch.linalg.matrix_norm(J, 2)) <= weights.lipschitz(terms, sides)


def test_operators_of_one_size_are_reweighted() -> None:
    fixed = AnalysisOperator(Gradient((1, 16, 16)), lr.PseudoHuber(0.1))
    for weights in ("majorising", "free", "responses"):
        found = lr.solve(lr.LowerLevelProblem(Identity(SHAPE), Reweighted(fixed, weights, 1)), edge(), 1e-3)  # type: ignore[arg-type]
        assert len(found.chain) == 2
