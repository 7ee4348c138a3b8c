"""Training starts at the best factor of every regularizer."""

from __future__ import annotations

import math

import pytest
import registry
import torch
from torch import Tensor

import learnreg as lr
from learnreg.commands.common import initial_regularizer
from learnreg.commands.options import DenoiseConfig
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts, Regularizer, TotalVariation, trainable
from learnreg.training.options import TrainingOptions
from learnreg.training.session import Session
from learnreg.training.start_tuning import least_loss, tune_start


def blocks(count: int, side: int, sigma: float, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Blocky images and ramps, with noise."""
    generator = torch.Generator().manual_seed(7)
    x = torch.rand(count, 1, side // 4, side // 4, generator=generator)
    x = x.repeat_interleave(4, -1).repeat_interleave(4, -2)
    return scale * (x + sigma * torch.randn(x.shape, generator=generator)), scale * x


@pytest.mark.parametrize("name", registry.regularizers(channels=None, dimensions=None))
def test_scale_parameters_multiply_the_regularizer(name: str) -> None:
    entry = registry.REGULARIZERS[name]
    regularizer: Regularizer = entry().double()
    x = registry.randn(2, *entry.shape, seed=3)
    before = regularizer.value(x).detach()
    scales = regularizer.scale_parameters()
    with torch.no_grad():
        for p in scales:
            p += math.log(3.0)
    ratio = regularizer.value(x).detach() / before
    if not scales:
        assert "log_weight" not in regularizer.parameter_roles().values()
        return
    # depths of concave parts, and the deltas of lifted networks, do not follow weights
    exactly = torch.allclose(ratio, torch.full_like(ratio, 3.0), rtol=1e-6)
    assert exactly or bool(((ratio > 1.5) & (ratio < 4.5)).all())
    assert exactly or name.startswith(("Ridge", "InputConvex"))


@pytest.mark.parametrize("name", [n for n in trainable() if n not in ("learned-tgv", "reweighted", "reweighted-ridge")])
@pytest.mark.sampled(share=0.5, by=("name",))
def test_every_family_starts_at_its_best_factor(name: str) -> None:
    """No other factor has a noticeably smaller loss, of a family as the command line builds it."""
    b, x_true = blocks(4, 16, 0.06)
    config = DenoiseConfig(regularizer=name, filters=8, features=4, size=3)
    p = lr.LowerLevelProblem(Identity((1, 16, 16)), initial_regularizer(config))
    session = Session.of(p, (b, x_true), lr.SquaredError, TrainingOptions(updates=1))
    factor = tune_start(session)
    session.close()
    scales = [q.detach().clone() for q in p.regularizer.scale_parameters()]
    losses = {}
    for other in (1.0, 1 / factor, 0.1, 0.3, 0.7, 1.4, 3.0, 10.0):
        with torch.no_grad():
            for q, value in zip(p.regularizer.scale_parameters(), scales, strict=True):
                q.copy_(value + math.log(other))
        losses[other] = float(lr.SquaredError(x_true).value(lr.solve(p, b, 1e-3).x))
    assert losses[1.0] <= 1.03 * min(losses.values())
    assert losses[1.0] < 0.9 * float(lr.SquaredError(x_true).value(b))


@pytest.mark.parametrize("weight", [1e-4, 1e-1, 1e2])
def test_bad_initial_weights_do_not_matter(weight: float) -> None:
    b, x_true = blocks(4, 16, 0.06)
    losses = []
    for start in (weight, 0.05):
        regularizer = FieldsOfExperts(8, 3, lr.PseudoHuber(5e-3, start), generator=torch.Generator().manual_seed(0))
        p = lr.LowerLevelProblem(Identity((1, 16, 16)), regularizer)
        row = lr.train(p, (b, x_true), updates=1, batch_size=4).rows[0]
        losses.append(row["loss"])
        total = row["start_factor"] * start
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert total > 0


def test_nothing_to_scale_starts_as_given() -> None:
    b, x_true = blocks(2, 16, 0.06)
    p = lr.LowerLevelProblem(Identity((1, 16, 16)), FieldsOfExperts(2, 3))
    p.regularizer.get_parameter("log_weights").requires_grad_(False)
    before = p.regularizer.get_parameter("log_weights").clone()
    assert lr.train(p, (b, x_true), updates=1).rows[0]["start_factor"] == 1.0
    assert torch.equal(p.regularizer.get_parameter("log_weights"), before)
    given = lr.LowerLevelProblem(Identity((1, 16, 16)), FieldsOfExperts(2, 3))
    assert "start_factor" not in lr.train(given, (b, x_true), updates=1, tune=False).rows[0]


@pytest.mark.parametrize("where", [-7.3, -0.2, 0.0, 3.9])
def test_the_search_finds_a_minimum_and_takes_few_losses(where: float) -> None:
    tried: list[float] = []

    def loss(t: float) -> float:
        tried.append(t)
        return (t - where) ** 2

    assert least_loss(loss, 0.0, math.log(2.0)) == pytest.approx(where, abs=1e-9)
    assert len(tried) == len(set(tried)) <= 4 + abs(where) / math.log(2.0) + 1


def test_the_search_passes_by_where_there_is_no_loss() -> None:
    assert least_loss(lambda t: math.inf if t > 0.5 else (t + 1.0) ** 2, 0.0, 0.7) == pytest.approx(-1.0, abs=0.2)
    assert least_loss(lambda t: math.inf, 0.0, 0.7) == 0.0


def test_constant_images_end_the_search_early_with_a_sentence() -> None:
    """They ask for ever more, which no reconstruction shows."""
    x_true = torch.full((4, 1, 8, 8), 0.5)
    b = x_true + 0.1 * torch.randn(x_true.shape, generator=torch.Generator().manual_seed(3))
    p = lr.LowerLevelProblem(Identity((1, 8, 8)), TotalVariation(1e-2, 1e-2))
    with pytest.warns(UserWarning, match="makes constants of the first images"):
        row = lr.train(p, (b, x_true), updates=1, batch_size=4).rows[0]
    assert 4 < row["start_factor"] < 1e3


def test_no_factor_is_further_than_asked_for() -> None:
    assert least_loss(lambda t: -t, 0.0, 1.0, 5) == 5.0
    assert least_loss(lambda t: t, 2.0, 1.0, 5) == -3.0
    assert least_loss(lambda t: (t - 1.2) ** 2, 0.0, 1.0, 5) == pytest.approx(1.2)
