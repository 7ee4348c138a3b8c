"""Latent variables and their null object: what both do with points, losses, and the lower level."""

from __future__ import annotations

import math

import pytest
import registry
import torch
from torch import Tensor

import learnreg as lr
from learnreg.errors import AssumptionError
from learnreg.lower_level.constraints import Unconstrained
from learnreg.lower_level.latent import Latent, NoLatent
from learnreg.lower_level.quadratic import quadratic_of
from learnreg.operators import Identity

SHAPE, BATCH = registry.SHAPE, 2


def images(seed: int) -> Tensor:
    return registry.randn(BATCH, *SHAPE, seed=seed)


def test_no_latent_variables_leave_everything_as_it_is() -> None:
    none, x, z, A = NoLatent(), images(1), images(2), Identity(SHAPE)
    quadratic, loss, box = quadratic_of(A, torch.ones(()).double(), 0.2, x), lr.SquaredError(x), lr.Nonnegative()
    assert none.channels == 0
    assert none.at(3.0) is none
    assert none.cached() is none
    for point in (none.image(x), none.lift(x), none.lift(x, z), none.extend(x), none.guess(x), none.right_hand_side(x)):
        assert point is x
    assert none.part(x) is None
    assert none.loss(loss) is loss
    assert none.analysis(A) is A
    assert none.quadratic(quadratic, 1.2) is quadratic
    assert none.box(box) is box
    assert none.balanced(lambda: 1.5, x) == (1.5, None)
    assert torch.equal(none.value(x), torch.zeros(BATCH).double())
    assert not none.linear(x).requires_grad
    with pytest.raises(AssumptionError, match="no operator"):
        none.operator(1.0)


@pytest.mark.parametrize("regularizer", ["FieldsOfExperts", "TotalVariation"])
def test_instances_without_latent_variables_have_the_null_object(regularizer: str) -> None:
    problem = registry.build("denoising", regularizer)
    x_true, b = registry.measure(problem)
    instance = problem.instance(b)
    assert not instance.latent.channels
    assert instance.started(x_true) is x_true
    assert instance.counter.applications == 0


def lifted() -> Latent:
    return registry.network(form="lifted").saddle_terms(SHAPE).latent


@torch.no_grad()
def test_points_lift_and_return() -> None:
    latent, x = lifted().at(0.4), images(1)
    z = registry.randn(BATCH, latent.channels, *SHAPE[1:], seed=2)
    v = latent.lift(x, z)
    assert torch.equal(latent.image(v), x)
    torch.testing.assert_close(latent.part(v), z)
    assert torch.equal(latent.lift(x)[:, 1:], torch.zeros_like(z))
    torch.testing.assert_close(latent.part(latent.extend(x)), latent.solve(x))
    torch.testing.assert_close(latent.part(latent.guess(x)), latent.start(x))
    terms = latent.cost.double() * z + 0.5 * latent.modulus * z**2
    torch.testing.assert_close(latent.value(v), terms.flatten(1).sum(1))
    torch.testing.assert_close(latent.linear(v), (latent.cost.double() * z).sum())


@torch.no_grad()
def test_the_lower_level_in_all_variables() -> None:
    """Its quadratic part is that of the image beside one modulus for all latent variables."""
    found, modulus, b = lifted(), 1.2, images(1)
    latent = found.at(found.scale_for(modulus))
    assert latent.scale == math.sqrt(modulus / latent.modulus)
    v = latent.lift(images(2), registry.randn(BATCH, latent.channels, *SHAPE[1:], seed=3))
    quadratic = latent.quadratic(quadratic_of(Identity(SHAPE), torch.ones(()).double(), 0.2, b), modulus)
    torch.testing.assert_close(quadratic(v), modulus * v)
    energy = 0.5 * (v * quadratic(v)).flatten(1).sum(1) - (latent.right_hand_side(b) * v).flatten(1).sum(1)
    x = latent.image(v)
    image = (0.5 * modulus * x**2 - b * x).flatten(1).sum(1)
    torch.testing.assert_close(energy, image + latent.value(v))
    lower, upper = latent.box(Unconstrained()).bounds_for(v)
    assert bool((lower[:1] == -math.inf).all())
    assert bool((lower[1:] == 0.0).all())
    assert bool((upper == math.inf).all())
