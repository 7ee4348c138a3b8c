"""Certified descent in a training run: samples that grow, minibatches, and what is certified of a mean of chunks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import learnreg as lr
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts
from learnreg.training.certified_descent import CertifiedDescent
from learnreg.training.options import TrainingOptions
from learnreg.training.sampled_objective import SampledObjective
from learnreg.training.session import Session
from learnreg.upper_level.directions import Flat
from learnreg.upper_level.objective import Accuracy

pytestmark = pytest.mark.usefixtures("one_thread")


def pairs(count: int, side: int = 8, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 1, side // 2, side // 2, generator=generator).repeat_interleave(2, -1)
    x = x.repeat_interleave(2, -2)
    return list(zip(x + 0.1 * torch.randn(x.shape, generator=generator), x, strict=True))


def new_session(data: Any, **options: Any) -> tuple[Session, TrainingOptions]:
    torch.manual_seed(0)
    problem = lr.LowerLevelProblem(Identity((1, 8, 8)), FieldsOfExperts(2, 3, lr.PseudoHuber(0.1, 0.1)))
    chosen = TrainingOptions(updates=100, optimizer="adaptive", **options)
    return Session.of(problem, data, lr.SquaredError, chosen), chosen


def test_the_mean_over_chunks_is_certified_as_the_whole_batch() -> None:
    """Against accurate solutions of the batch as one, of images of two sizes."""
    data = [*pairs(7), *pairs(2, side=12)]
    session, _ = new_session(data, batch_size=3)
    objective = SampledObjective(session, session.source.first(9))
    trial = objective.evaluate(Accuracy(1e-3, 1e-2))
    found = objective.certified_gradient(0.1)
    loss, gradient = 0.0, {name: torch.zeros_like(p) for name, p in session.problem.learnable().items()}
    for group, share in ((data[:7], 7 / 9), (data[7:], 2 / 9)):
        b, x_true = (torch.stack(column).double() for column in zip(*group, strict=True))
        problem = lr.LowerLevelProblem(Identity(b.shape[1:]), session.problem.regularizer)
        exact = lr.hypergradient(problem, b, lr.SquaredError(x_true), tolerance=1e-6)
        loss += share * exact.loss
        gradient = {name: g + share * exact.gradient[name] for name, g in gradient.items()}
    assert trial.certified
    assert trial.lower <= loss <= trial.upper
    assert trial.width < 1e-2 * loss
    distance = math.sqrt(sum(float((found.gradient[n] - g).square().sum()) for n, g in gradient.items()))
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradient.values()))
    assert found.certified
    assert found.reached
    assert distance <= found.error_bound + 1e-5 * norm
    assert found.error_bound <= 0.11 * norm
    session.close()


def test_samples_grow_to_all_of_them_as_they_are_exhausted(monkeypatch: pytest.MonkeyPatch) -> None:
    session, options = new_session(pairs(40), samples=40, batch_size=16)
    steps, sizes = CertifiedDescent(session, options), []
    for exhausted in (False, True, False, True, True):
        monkeypatch.setattr(steps, "_exhausted", lambda exhausted=exhausted: exhausted)
        sizes.append(steps.step(1.0)[1])
    assert sizes == [16, 16, 32, 32, 40]
    session.close()


def test_a_sample_is_exhausted_where_its_gradients_contradict_each_other() -> None:
    """Not with the gradients of its chunks, but with the same ones far apart."""
    session, options = new_session(pairs(40), samples=40, batch_size=16)
    steps = CertifiedDescent(session, options)
    steps.step(1.0)
    assert not steps._exhausted()
    apart = [{n: (-1) ** k * 1e3 * g for n, g in found.items()} for k, found in enumerate(steps._objective.gradients)]
    steps._objective.gradients = apart
    assert steps._exhausted()
    session.close()


def test_steps_on_minibatches_are_certified_and_no_longer_than_scheduled() -> None:
    session, options = new_session(pairs(12), batch_size=4, sampling="minibatch", step_size=0.1)
    steps, flat, seen = CertifiedDescent(session, options), Flat(session.problem.learnable()), set()
    for factor in (1.0, 0.1, 0.01):
        for _ in range(2):
            before = flat.point()
            step, size, _ = steps.step(factor)
            assert size == 4
            assert step.certified or not step.accepted
            assert steps.descent.directions.length(flat, flat.point() - before) <= 0.1 * factor * (1 + 1e-3)
            seen |= {sample.key for sample in steps._objective.samples}
    assert seen == set(range(12))
    session.close()


def test_metrics_say_what_was_certified(tmp_path: Any) -> None:
    torch.manual_seed(0)
    problem = lr.LowerLevelProblem(Identity((1, 8, 8)), FieldsOfExperts(2, 3, lr.PseudoHuber(0.1, 0.1)))
    result = lr.train(problem, pairs(20), updates=6, optimizer="adaptive", audit_every=3, samples=20, out=tmp_path)
    assert all(row["decrease_certified"] for row in result.rows if row["accepted"])
    assert all(row["loss_lower"] <= row["loss"] <= row["loss_upper"] for row in result.rows)
    audited = [row for row in result.rows if "relative_error_bound" in row]
    assert [row["step"] for row in audited] == [1, 4]
    assert all(row["certified"] and row["relative_error_estimate"] <= row["relative_error_bound"] for row in audited)
