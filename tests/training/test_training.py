"""The trainer, its audits, certified descent, the optimizer bridge and the solution layer, on synthetic images."""

from __future__ import annotations

import json
import math
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import learnreg as lr
from learnreg.convolutions.correlation import chosen_kernels
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.models.model import save_model
from learnreg.operators import Blur, Identity
from learnreg.regularizers import AnalysisOperator, FieldsOfExperts, TotalVariation
from learnreg.training.clock import Clock, TimeUp
from learnreg.training.options import TrainingOptions
from learnreg.training.samples import Reader, stacked
from learnreg.training.session import Session
from learnreg.training.sources import MapStyle, PairedDataset
from learnreg.training.tolerances import Tolerances, audit, improve_batch
from learnreg.training.warm_starts import WarmStarts
from learnreg.training.workers import Workers

pytestmark = pytest.mark.usefixtures("quick_starts")


class Squares:
    """Noisy images of a bright square, 16 x 16."""

    def __init__(self, count: int = 8, dtype: torch.dtype = torch.float32) -> None:
        self.count, self.dtype = count, dtype

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(index)
        top, left = torch.randint(2, 6, (2,), generator=generator).tolist()
        x = torch.full((1, 16, 16), 0.2, dtype=self.dtype)
        x[:, top : top + 8, left : left + 8] = 0.8
        return x + 0.1 * torch.randn(1, 16, 16, generator=generator, dtype=self.dtype), x


def batch(dtype: torch.dtype = torch.float64, count: int = 4) -> tuple[Tensor, Tensor]:
    items = [Squares(count, dtype)[i] for i in range(count)]
    return torch.stack([b for b, _ in items]), torch.stack([x for _, x in items])


def small_problem(dtype: torch.dtype = torch.float32) -> lr.LowerLevelProblem:
    regularizer = FieldsOfExperts(4, 3, lr.PseudoHuber(0.05, 0.2)).to(dtype)
    return lr.LowerLevelProblem(Identity((1, 16, 16)), regularizer)


def new_session(
    problem: lr.LowerLevelProblem | None = None, dataset: PairedDataset | None = None, **options: Any
) -> Session:
    return Session.of(
        problem or small_problem(), dataset or Squares(), lr.SquaredError, TrainingOptions(minutes=1.0, **options)
    )


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs", "adaptive"])
def test_training_lowers_the_loss_and_leaves_a_loadable_model(optimizer: str, tmp_path: Path) -> None:
    problem = small_problem()
    result = lr.train(
        problem, Squares(), out=tmp_path, minutes=3.0, batch_size=4, optimizer=optimizer, samples=8, updates=6
    )
    assert result.updates == 6
    assert result.rows[-1]["loss"] < 0.95 * result.rows[0]["loss"]
    model = lr.load(tmp_path / "model.safetensors")
    b, _ = batch(torch.float32)
    trained = lr.solve(problem, b, 1e-4).x
    assert torch.allclose(model.reconstruct(b, tolerance=1e-4), trained, atol=1e-3)


def test_resumed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first = small_problem()
    lr.train(first, Squares(), out=tmp_path, minutes=1.0, batch_size=4, optimizer="adam", updates=3)
    second = small_problem()
    result = lr.train(second, Squares(), out=tmp_path, minutes=1.0, batch_size=4, updates=5, resume=True)
    assert result.updates == 5
    assert [row["step"] for row in result.rows] == [1, 2, 3, 4, 5]
    with pytest.raises(lr.ConfigError, match="resume"):
        lr.train(second, Squares(), out=tmp_path, minutes=1.0, updates=1)


def test_a_failure_keeps_what_was_learned(tmp_path: Path) -> None:
    class Failing(Squares):
        seen = 0

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            type(self).seen += 1
            b, x = super().__getitem__(index)
            return (b * math.nan if self.seen > 60 else b), x

    with pytest.raises(lr.DataError, match="NaN"):
        lr.train(small_problem(), Failing(), out=tmp_path, minutes=1.0, batch_size=4, optimizer="adam")
    assert lr.load(tmp_path / "model.safetensors").regularizer is not None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"minutes": -1.0}, lr.ConfigError, "minutes"),
        ({"batch_size": 0}, lr.ConfigError, "batch_size"),
        ({"optimizer": "sgd"}, lr.ConfigError, "adam"),
        ({"tolerance": -0.1}, lr.ConfigError, "tolerance"),
        ({"audit_every": 0}, lr.ConfigError, "audit_every"),
        ({"sampling": "all"}, lr.ConfigError, "'growing', 'fixed' or 'minibatch'"),
    ],
)
def test_bad_options_are_named(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        lr.train(small_problem(), Squares(), **arguments)


def test_empty_dataset_and_unpaired_items_are_refused() -> None:
    with pytest.raises(lr.DataError, match="empty"):
        lr.train(small_problem(), Squares(0))
    with pytest.raises(lr.DataError, match="pairs"):
        lr.train(small_problem(), [torch.zeros(1, 16, 16)] * 4, minutes=0.1)


def test_frozen_parameters_cannot_be_trained() -> None:
    problem = small_problem()
    problem.requires_grad_(False)
    with pytest.raises(lr.ConfigError, match="requires a gradient"):
        lr.train(problem, Squares())


@pytest.mark.parametrize("tolerances", [Tolerances(3e-2, 0.5), Tolerances(1e-3, 1e-2), Tolerances(1e-5, 1e-4)])
def test_audit_bounds_the_true_error_of_the_training_gradient(tolerances: Tolerances) -> None:
    problem = small_problem(torch.float64)
    b, x_true = batch()
    loss = lr.SquaredError(x_true)
    start = lr.Start(b, torch.zeros_like(b))
    used = improve_batch(problem, b, loss, lr.Implicit(), start, tolerances)
    exact = lr.hypergradient(problem, b, loss, lr.Implicit(), tolerance=1e-7)
    assert exact.certified
    error = math.sqrt(sum(float((used.gradient[n] - g).square().sum()) for n, g in exact.gradient.items()))
    found = audit(problem, b, loss, used.state, target=0.1)
    assert found.certified
    assert error / exact.norm <= found.relative_error
    assert found.relative_error <= error / exact.norm + 0.1


def test_audits_set_the_tolerances() -> None:
    assert Tolerances(1e-3, 1e-2).adapted(0.5, 0.1).state < 1e-3
    assert Tolerances(1e-3, 1e-2).adapted(0.001, 0.1).state > 1e-3
    assert Tolerances(1e-3, 1e-2).adapted(0.08, 0.1) == Tolerances(1e-3, 1e-2)
    assert Tolerances(1e-6, 1e-5).adapted(math.inf, 0.1) == Tolerances(1e-6, 1e-5)


def test_adjoint_warm_starts_do_not_depend_on_the_batch_they_came_from() -> None:
    problem = small_problem(torch.float64)
    session = new_session(problem, Squares(8, torch.float64), batch_size=8)
    session.tolerances = Tolerances(1e-8, 1e-8)
    session.evaluate(session.source.first(8))
    samples = session.source.first(2)
    b, x_true = stacked(samples)
    start = session.warm.starts(samples, b)
    alone = lr.hypergradient(problem, b, lr.SquaredError(x_true), lr.Implicit(), tolerance=1e-6)
    assert torch.allclose(start.X, alone.X, atol=1e-6)
    session.close()


def test_mean_over_chunks_equals_the_whole_batch() -> None:
    problem = small_problem(torch.float64)
    results = []
    for size, workers in ((8, 1), (3, 2)):
        session = new_session(problem, Squares(8, torch.float64), batch_size=size, workers=workers)
        session.tolerances = Tolerances(1e-9, 1e-9)
        results.append(session.evaluate(session.source.first(8)))
        session.close()
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-8)
    for name, g in results[0].gradient.items():
        assert torch.allclose(g, results[1].gradient[name], rtol=1e-5, atol=1e-9)


def test_adaptive_descent_only_takes_certified_steps() -> None:
    problem = small_problem(torch.float64)
    b, x_true = batch()
    loss = lr.SquaredError(x_true)
    objective = lr.BatchObjective(problem, b, loss, lr.Implicit())
    descent = lr.AdaptiveDescent()

    def true_loss() -> float:
        return float(loss.value(lr.solve(problem, b, 1e-9).x))

    before = true_loss()
    for _ in range(5):
        step = descent.step(objective)
        after = true_loss()
        assert step.accepted
        assert step.certified
        assert step.loss_interval[0] <= before <= step.loss_interval[1]
        assert after <= before - step.decrease * (1 - 1e-9)
        before = after


def test_adaptive_descent_stops_at_a_stationary_point() -> None:
    problem = small_problem(torch.float64)
    b, x_true = batch()
    objective = lr.BatchObjective(problem, b, lr.SquaredError(x_true), lr.Implicit())
    step = lr.AdaptiveDescent(stop=1e6).step(objective)
    assert step.stationary
    assert not step.accepted


def test_adaptive_descent_refuses_constants_without_a_proof() -> None:
    with pytest.raises(lr.ConfigError, match="c < eta"):
        lr.AdaptiveDescent(eta=0.1, c=0.2)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.LBFGS])
def test_torch_optimizers_run_on_certified_gradients(kind: type[torch.optim.Optimizer]) -> None:
    problem = small_problem(torch.float64)
    b, x_true = batch()
    objective = lr.BatchObjective(problem, b, lr.SquaredError(x_true), lr.Implicit())
    seen: list[lr.Hypergradient] = []
    optimizer = kind(problem.parameters(), lr=0.05)
    for _ in range(1 if kind is torch.optim.LBFGS else 3):
        optimizer.step(objective.closure(tolerance=0.1, callback=seen.append))
    assert seen[-1].loss < seen[0].loss
    assert all(hg.certified and hg.relative_error_bound <= 0.1 for hg in seen)


@pytest.mark.parametrize("method", [lr.Piggyback(), lr.Implicit()])
def test_solution_layer_gradients_match_finite_differences(method: object) -> None:
    operator = Blur(torch.tensor([[0.0, 0.2, 0.0], [0.1, 0.4, 0.1], [0.0, 0.2, 0.0]]).double(), (1, 6, 6))
    regularizer = TotalVariation(weight=0.1, smoothing=0.1).double()
    problem = lr.LowerLevelProblem(operator, regularizer, ridge=0.1)
    layer = lr.solution_layer(problem, method=method, tolerance=1e-9)
    b = torch.rand(2, 1, 6, 6, dtype=torch.float64).requires_grad_()
    target = torch.rand(2, 1, 6, 6, dtype=torch.float64)

    def value(measurement: Tensor) -> Tensor:
        return ((layer(measurement) - target) ** 2).sum()

    value(b).backward()
    step = 1e-5
    direction = torch.randn_like(b)
    with torch.no_grad():
        slope = (value(b + step * direction) - value(b - step * direction)) / (2 * step)
        assert float((b.grad * direction).sum()) == pytest.approx(float(slope), rel=1e-6)
        regularizer.log_weight += step
        up = value(b)
        regularizer.log_weight -= 2 * step
        down = value(b)
    assert float(regularizer.log_weight.grad) == pytest.approx(float((up - down) / (2 * step)), rel=1e-6)
    assert layer.last_solution.certified


def test_audits_do_not_need_the_warm_start_cache() -> None:
    found = []
    for limit in (0, 2**30):
        session = new_session(batch_size=4)
        session.warm = WarmStarts(limit)
        found.append(session.evaluate(session.source.first(4)).audit)
        session.close()
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].relative_error == pytest.approx(found[1].relative_error)


def test_a_session_comes_back_from_a_checkpoint_of_the_first_format() -> None:
    stored = {
        "elapsed": 7.0,
        "applications": 11,
        "order": [3, 1],
        "epoch": 2,
        "state_tolerance": 1e-4,
        "adjoint_tolerance": 1e-2,
        "audit_seconds": 5.0,
    }
    session = new_session(batch_size=4)
    session.load_state_dict(stored)
    again = session.state_dict()
    assert {name: again[name] for name in stored if name != "audit_seconds"} == {
        **{name: value for name, value in stored.items() if name != "audit_seconds"},
        "elapsed": pytest.approx(7.0, abs=5.0),
    }
    assert [sample.key for sample in session.source.next_batch()][:2] == [1, 3]
    with pytest.raises(lr.CheckpointError, match="does not fit this version"):
        session.load_state_dict({"elapsed": 7.0})
    session.close()


def test_workers_have_one_core_each_and_leave_the_process_alone() -> None:
    torch.set_num_threads(2)
    workers = Workers(3)
    assert torch.get_num_threads() == 2
    assert list(workers.map(lambda _: torch.get_num_threads(), range(12))) == [1] * 12
    assert workers.call(torch.get_num_threads) == 1
    started_later: list[int] = []
    thread = Thread(target=lambda: started_later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert started_later == [2]
    workers.close()


def test_training_leaves_the_number_of_threads_alone() -> None:
    torch.set_num_threads(2)
    seen = []
    lr.train(
        small_problem(),
        Squares(),
        batch_size=4,
        updates=1,
        on_update=lambda row: seen.append(torch.get_num_threads()),
    )
    assert [*seen, torch.get_num_threads()] == [2, 2]


def test_the_clock_says_when_the_time_is_up() -> None:
    clock = Clock(60.0)
    clock.check()
    clock.load_state_dict({"elapsed": 61.0})
    with pytest.raises(TimeUp):
        clock.check()


def test_minibatches_are_permutations_whatever_their_size() -> None:
    workers = Workers(1)
    reader = Reader(Identity((1, 16, 16)))
    source = MapStyle(Squares(7), reader, workers, 3, seed=1)
    drawn = [i for _ in range(7) for i in source.next_indices()]
    assert all(sorted(drawn[k : k + 7]) == list(range(7)) for k in (0, 7, 14))
    assert drawn[:7] != drawn[7:14]
    assert len(MapStyle(Squares(2), reader, workers, 5, seed=1).next_indices()) == 2
    workers.close()


def test_the_kernels_in_use_are_recorded(tmp_path: Path) -> None:
    lr.train(small_problem(), Squares(), out=tmp_path, minutes=3.0, batch_size=4, updates=1)
    recorded = json.loads((tmp_path / "kernels.json").read_text(encoding="utf-8"))
    assert recorded == chosen_kernels()
    assert any(key.startswith("correlate 4 3 3") for key in recorded)


def test_what_cannot_be_stored_is_refused_before_training(tmp_path: Path) -> None:
    bank = FilterBank(torch.nn.Parameter(torch.randn(2, 3, 3)), (1, 16, 16))
    problem = lr.LowerLevelProblem(Identity((1, 16, 16)), AnalysisOperator(bank, lr.PseudoHuber(0.1, 0.1)))
    with pytest.raises(lr.ConfigError, match="stored"):
        lr.train(problem, Squares(), out=tmp_path, minutes=0.5)
    assert not (tmp_path / "metrics.jsonl").exists()
    assert lr.train(problem, Squares(), minutes=3.0, updates=1).updates == 1


def test_bound_covers_the_rounding_of_float32_parameters_on_bright_images() -> None:
    torch.manual_seed(3)
    regularizer = FieldsOfExperts(8, 3, lr.PseudoHuber(0.1, 0.3))
    exact = FieldsOfExperts(8, 3, lr.PseudoHuber(0.1, 0.3)).double()
    exact.load_state_dict(regularizer.state_dict())
    b, x_true = batch()
    b, x_true = b + 10.0, x_true + 10.0
    results = [
        lr.hypergradient(lr.LowerLevelProblem(Identity((1, 16, 16)), R), b, lr.SquaredError(x_true), tolerance=t)
        for R, t in ((regularizer, 1e-6), (exact, 1e-7))
    ]
    assert all(hg.certified for hg in results)
    difference = math.sqrt(
        sum(float((results[0].gradient[n].double() - g).square().sum()) for n, g in results[1].gradient.items())
    )
    assert difference <= results[0].error_bound + results[1].error_bound


def test_nothing_to_learn_is_certified_at_once() -> None:
    problem = small_problem(torch.float64)
    problem.requires_grad_(False)
    b, x_true = batch()
    hg = lr.hypergradient(problem, b, lr.SquaredError(x_true))
    assert hg.gradient == {}
    assert hg.certified
    assert hg.error_bound == 0.0


@pytest.mark.parametrize("shape", [(3, 3, 5), (3, 1, 1), (2, 4, 4)])
def test_any_given_filters_survive_a_model_file(shape: tuple[int, int, int], tmp_path: Path) -> None:
    filters = np.random.default_rng(0).standard_normal(shape)[:, ::-1, ::-1]
    regularizer = FieldsOfExperts.from_arrays(filters, np.full(shape[0], 0.1), np.full(shape[0], 0.05))
    assert torch.equal(regularizer.filters.detach(), torch.tensor(filters.copy()))
    save_model(tmp_path / "m.safetensors", regularizer)
    x = torch.rand(1, 1, 12, 12, dtype=torch.float64)
    assert torch.allclose(lr.load(tmp_path / "m.safetensors").regularizer.value(x), regularizer.value(x))
