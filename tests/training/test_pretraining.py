"""Score matching before training: its gradient, what it gains, that it repeats, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from registered.randomness import rand, randn
from torch import Tensor

import learnreg as lr
from learnreg.errors import ConfigError
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts, InputConvexNetwork, Reweighted, RidgeRegularizer
from learnreg.training.clock import TimeUp
from learnreg.training.options import TrainingOptions
from learnreg.training.pretraining import _score_loss, pretrain
from learnreg.training.session import Session

SIDE, SIGMA = 12, 0.1


def data(count: int = 12) -> tuple[Tensor, Tensor]:
    """Blocks of constant grey values, and noise."""
    x = torch.nn.functional.interpolate(rand(count, 1, 3, 3, seed=1).float(), scale_factor=4.0)
    return x + SIGMA * randn(*x.shape, seed=2).float(), x


def problem(regularizer: Any = None) -> lr.LowerLevelProblem:
    generator = torch.Generator().manual_seed(0)
    R = RidgeRegularizer((2, 4), 3, 9, generator=generator) if regularizer is None else regularizer
    return lr.LowerLevelProblem(Identity((1, SIDE, SIDE)), R)


def trained(**options: Any) -> Any:
    options = {"updates": 1, "batch_size": 4, "progress": False, **options}
    return lr.train(problem(options.pop("regularizer", None)), data(), **options)


def test_its_gradient_is_that_of_a_gradient_step() -> None:
    p = problem().double()
    y, x = (t.double() for t in data(3))
    loss, gradient = _score_loss(p, x, y)
    at = y.clone().requires_grad_()
    (slope,) = torch.autograd.grad(p.regularizer.value(at).sum(), at)
    assert float(loss) == pytest.approx(0.5 * float((y - slope - x).square().sum()))
    for name, parameter in p.learnable().items():
        direction, h, ends = randn(*parameter.shape, seed=3), 1e-5, []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                parameter.add_(sign * h * direction)
                ends.append(float(_score_loss(p, x, y)[0]))
                parameter.sub_(sign * h * direction)
        inner = float((gradient[name] * direction).sum())
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(inner, rel=1e-5, abs=1e-9), name


def test_training_starts_better_and_by_the_seed() -> None:
    plain, first, again = trained(), trained(pretraining=60), trained(pretraining=60)
    assert first.rows[0]["loss"] < 0.95 * plain.rows[0]["loss"]
    pairs = zip(first.regularizer.parameters(), again.regularizer.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
    other = trained(pretraining=60, seed=1)
    assert other.rows[0]["loss"] != first.rows[0]["loss"]


def test_it_is_done_once(tmp_path: Path) -> None:
    """A run that is resumed goes on where it was, also where its start was not tuned."""
    options: dict[str, Any] = {"pretraining": 20, "tune": False, "report": False}
    whole = trained(**options, updates=4)
    trained(**options, out=tmp_path / "run", updates=2)
    resumed = trained(**options, out=tmp_path / "run", updates=4, resume=True)
    pairs = zip(whole.regularizer.parameters(), resumed.regularizer.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


def test_an_interrupted_start_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem()
    before = [q.detach().clone() for q in p.regularizer.parameters()]
    session = Session.of(p, data(), lr.SquaredError, TrainingOptions(updates=1))
    calls = iter(range(100))

    def check() -> None:
        if next(calls) == 5:
            raise TimeUp

    monkeypatch.setattr(session.clock, "check", check)
    with pytest.raises(TimeUp):
        pretrain(session, 50, 0)
    session.close()
    assert all(torch.equal(q, value) for q, value in zip(p.regularizer.parameters(), before, strict=True))


def test_it_takes_energies_that_are_not_convex() -> None:
    generator = torch.Generator().manual_seed(0)
    deep = RidgeRegularizer((2, 4), 3, 9, "convex-nonconvex", nonconvexity=3.0, depth=0.9, generator=generator)
    p = lr.LowerLevelProblem(Identity((1, SIDE, SIDE)), deep, minimiser="local")
    found = lr.train(p, data(), updates=1, batch_size=4, pretraining=3, progress=False)
    assert found.updates == 1
    assert deep.nonconvexity_used > 1


def test_noise_levels_keep_their_exponents() -> None:
    R = FieldsOfExperts(3, 3, noise_conditioned=True, generator=torch.Generator().manual_seed(0))
    b, x = data()
    lr.train(
        problem(R),
        (b, x, torch.full((len(x),), SIGMA)),
        updates=1,
        step_size=1e-9,
        batch_size=4,
        pretraining=10,
        progress=False,
    )
    for name in ("weight_exponents", "smoothing_exponents"):
        torch.testing.assert_close(R.get_parameter(name), torch.ones(3), atol=1e-4, rtol=0.0)


def test_what_has_no_gradient_step_is_refused() -> None:
    cases = {
        "chain of problems": Reweighted(FieldsOfExperts(2, 3), steps=1),
        "no gradient where": FieldsOfExperts(2, 3, lr.AbsoluteValue()),
    }
    for message, regularizer in cases.items():
        with pytest.raises(ConfigError, match=message):
            trained(regularizer=regularizer, pretraining=1)
    with pytest.raises(ConfigError, match="pretraining"):
        trained(pretraining=-1)
    network = InputConvexNetwork(features=2, generator=torch.Generator().manual_seed(0))
    assert trained(regularizer=network, pretraining=2).updates == 1  # whatever has one, may
