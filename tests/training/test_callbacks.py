"""Callbacks, samples held out, early stopping, and the report of runs that are started from Python."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import learnreg as lr
from learnreg.operators import Blur, Identity
from learnreg.regularizers import FieldsOfExperts, RidgeRegularizer
from learnreg.report import report as pages
from learnreg.training.early_stopping import EarlyStopping
from learnreg.training.held_out import held_apart

pytestmark = pytest.mark.usefixtures("quick_starts")

OPTIONS: dict[str, Any] = {"batch_size": 2, "tune": False, "progress": False}


def images(count: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, 1, 4, 4, generator=generator).repeat_interleave(3, 2).repeat_interleave(3, 3)
    return x + 0.1 * torch.randn(x.shape, generator=generator), x


def problem(seed: int = 0) -> lr.LowerLevelProblem:
    generator = torch.Generator().manual_seed(seed)
    regularizer = FieldsOfExperts(2, 3, lr.PseudoHuber(0.05, 0.05), generator=generator)
    return lr.LowerLevelProblem(Identity((1, 12, 12)), regularizer)


class Kept(lr.Callback):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def on_update(self, row: Mapping[str, Any]) -> None:
        self.told.append(row["step"])

    def on_checkpoint(self, path: Path) -> None:
        assert path.is_file()
        self.told.append("saved")

    def on_end(self, result: lr.TrainResult | None) -> None:
        self.told.append(result)


# ------------------------------------------------------------------------------------------------------------ callbacks


def test_callbacks_are_told_in_order(tmp_path: Path) -> None:
    kept, rows = Kept(), []
    result = lr.train(
        problem(), images(), out=tmp_path, updates=2, callbacks=kept, on_update=lambda row: rows.append(row), **OPTIONS
    )
    assert kept.told == ["saved", 1, "saved", 2, "saved", "saved", result]
    assert [row["step"] for row in rows] == [1, 2]
    plain = problem()
    lr.train(plain, images(), updates=2, callbacks=[lr.Callback()], **OPTIONS)
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), result.regularizer.parameters(), strict=True))


def test_the_end_is_told_of_runs_that_fail(tmp_path: Path) -> None:
    class Failing(lr.Callback):
        def on_update(self, row: Mapping[str, Any]) -> None:
            raise ZeroDivisionError("of the callback")

        def on_end(self, result: object) -> None:
            raise KeyError("at the end")

    kept = Kept()
    with pytest.raises(ZeroDivisionError) as failed:
        lr.train(problem(), images(), out=tmp_path, updates=5, callbacks=[Failing(), kept], **OPTIONS)
    assert kept.told[-1] is None
    notes = " ".join(failed.value.__notes__)
    assert "saved in" in notes
    assert "A callback failed, too: 'at the end'" in notes
    assert lr.train(problem(), images(), out=tmp_path, updates=2, resume=True, **OPTIONS).updates == 2


@pytest.mark.parametrize("bad", [Kept, print, [lambda row: None], 3, "tensorboard"])
def test_callbacks_are_checked_before_the_work(bad: Any) -> None:
    with pytest.raises(lr.ConfigError, match="expected Callback objects"):
        lr.train(problem(), images(), updates=1, callbacks=bad)


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Writer:
        def __init__(self, out: str, purge_step: int) -> None:
            written.append((out, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def flush(self) -> None: ...

        def close(self) -> None:
            written.append("closed")

    written: list[Any] = []
    monkeypatch.setattr("learnreg.training.tensorboard._writer_class", lambda: Writer)
    board = lr.TensorBoard(tmp_path)
    board.on_update({"step": 3, "loss": 0.5, "certified": True, "text": "a", "bound": float("inf"), "none": None})
    board.on_checkpoint(tmp_path)
    board.on_end(None)
    assert written == [(str(tmp_path), 3), ("loss", 0.5, 3), ("certified", 1.0, 3), "closed"]
    monkeypatch.undo()
    monkeypatch.setattr("learnreg.training.tensorboard._WRITERS", ("learnreg.no_such_module",))
    with pytest.raises(lr.ConfigError, match=r"pip install 'learnreg\[tensorboard\]'"):
        lr.TensorBoard(tmp_path)


# ------------------------------------------------------------------------------------------------------------- held out


@pytest.mark.parametrize("kind", ["stacks", "pairs", "map-style"])
def test_held_out_samples_are_never_trained_on(kind: str) -> None:
    b, x = images()
    asked: list[int] = []

    class Watched:
        def __len__(self) -> int:
            return len(b)

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            asked.append(index)
            return b[index], x[index]

    data: Any = {"stacks": (b, x), "pairs": list(zip(b, x, strict=True)), "map-style": Watched()}[kind]
    kept, apart = held_apart(data, 0.25, 5)
    if kind == "stacks":
        parts = [part[0] for part in (kept, apart)]  # type: ignore[index]
    else:
        parts = [torch.stack([part[i][0] for i in range(len(part))]) for part in (kept, apart)]  # type: ignore[index, arg-type]
    assert [len(part) for part in parts] == [9, 3]
    together = torch.cat(parts)
    assert sorted(map(float, together.sum((1, 2, 3)))) == sorted(map(float, b.sum((1, 2, 3))))
    again = held_apart((b, x), 0.25, 5)[1][0]  # type: ignore[index]
    assert torch.equal(parts[1], again), "the same for each kind of data, by the seed alone"
    if kind == "map-style":
        held = set(asked[9:])
        asked.clear()
        lr.train(problem(), data, updates=6, validation=0.25, seed=5, **OPTIONS)
        assert set(asked) & held == held
        assert all(asked.count(i) == 1 for i in held), "each is read once, to be measured"


def test_what_cannot_be_divided() -> None:
    b, x = images()
    loader = torch.utils.data.DataLoader(list(zip(b, x, strict=True)), batch_size=2)
    with pytest.raises(lr.ConfigError, match=r"DataLoader cannot be divided.*validation=\.\.\."):
        lr.train(problem(), loader, updates=1, validation=0.2)
    assert "validation_loss" in lr.train(problem(), loader, updates=1, validation=(b[:2], x[:2])).rows[0]
    for bad in (1.0, -0.1, float("nan"), True, "0.1"):
        with pytest.raises((lr.ConfigError, lr.DataError), match=r"validation|dataset"):
            lr.train(problem(), (b, x), updates=1, validation=bad)
    with pytest.raises(lr.DataError, match="none can be held out"):
        lr.train(problem(), (b[:1], x[:1]), updates=1, validation=0.5)
    with pytest.raises(lr.ConfigError, match=r"give validation=0\.1"):
        lr.train(problem(), (b, x), updates=1, patience=3)


def test_measurements_are_those_of_the_solutions() -> None:
    """At the parameters after an update: mean loss and PSNR of solutions, of images of two sizes, too."""
    (b, x), p = images(4), problem()
    small = [(b[0, :, :9, :9], x[0, :, :9, :9])]
    apart = [*zip(b[:2], x[:2], strict=True), *small]
    row = lr.train(p, (b, x), updates=1, validation=apart, **OPTIONS).rows[0]
    losses, psnrs = [], []
    for b_, x_ in apart:
        own = lr.LowerLevelProblem(Identity(tuple(b_.shape)), p.regularizer)
        error = lr.solve(own, b_[None].double(), 1e-8).x - x_
        losses.append(0.5 * float(error.square().sum()))
        psnrs.append(-10.0 * float(error.square().mean().log10()))
    assert row["validation_loss"] == pytest.approx(sum(losses) / 3, rel=1e-2)
    assert row["validation_psnr"] == pytest.approx(sum(psnrs) / 3, abs=0.05)


# ------------------------------------------------------------------------------------------------------- early stopping


def test_patience_ends_at_a_measurement() -> None:
    p = torch.nn.Parameter(torch.zeros(1))
    stopping = EarlyStopping(5)
    for update, loss in ((1, 3.0), (2, 2.0), (4, 2.5), (6, float("nan"))):
        p.data.fill_(update)
        stopping.see(update, {"validation_loss": loss, "psnr": 99.0 * update}, {"p": p})
        assert not stopping.is_over
    again = EarlyStopping(5)
    again.load_state_dict(stopping.state_dict())
    again.see(8, {"validation_loss": 2.0}, {"p": p})
    assert again.is_over
    assert (again.best, again.best_update) == (2.0, 2)
    assert again.restore_best({"p": p})
    assert float(p.detach()) == 2.0
    by_psnr = EarlyStopping(1)
    by_psnr.see(1, {"psnr": 30.0}, {"p": p})
    by_psnr.see(2, {"psnr": 29.0}, {"p": p})
    assert by_psnr.is_over


def noisy_steps(out: Path, updates: int, resume: bool = False) -> tuple[lr.TrainResult, list[Tensor]]:
    """A run whose steps are so long that it soon gets worse."""
    p = problem()
    options = {**OPTIONS, "step_size": 0.8, "validation": 0.3, "patience": 4}
    result = lr.train(p, images(), out=out, updates=updates, resume=resume, **options)
    return result, [q.detach().clone() for q in p.learnable().values()]


def test_the_best_parameters_are_returned_also_by_resumed_runs(tmp_path: Path) -> None:
    result, best = noisy_steps(tmp_path / "whole", 40)
    losses = {row["step"]: row["validation_loss"] for row in result.rows if "validation_loss" in row}
    assert result.updates < 40
    assert result.ended_by == "patience"
    assert result.best_update == min(losses, key=losses.__getitem__)
    assert result.updates - result.best_update >= 4
    stored = lr.load(tmp_path / "whole" / "model.safetensors").regularizer
    assert all(torch.equal(p, q) for p, q in zip(stored.parameters(), best, strict=True))
    noisy_steps(tmp_path / "parts", result.best_update + 1)
    resumed, parameters = noisy_steps(tmp_path / "parts", 40, resume=True)
    assert (resumed.updates, resumed.best_update) == (result.updates, result.best_update)
    assert all(torch.equal(p, q) for p, q in zip(parameters, best, strict=True))
    again, _ = noisy_steps(tmp_path / "parts", 40, resume=True)
    assert again.updates == result.updates, "what has ended stays so"


# --------------------------------------------------------------------------------------------------------------- report


@pytest.mark.usefixtures("reports")
def test_python_writes_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a noise-conditioned regularizer on held-out samples; without validation of samples that were trained on."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(pages, "_MAX_IMAGES", 1)
    b, x = images(6)
    R = RidgeRegularizer((2,), 3, 5, noise_conditioned=True)
    data = [(b_, x_, 0.1) for b_, x_ in zip(b, x, strict=True)]
    lr.train(lr.LowerLevelProblem(Identity((1, 12, 12)), R), data, out=tmp_path, updates=1, validation=0.3, **OPTIONS)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Held-out images" in page
    drawn = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert {"comparison-1", "learning_curve", "filters", "potentials", "spectrum", "noise_levels"} <= drawn


@pytest.mark.usefixtures("reports")
def test_the_report_of_a_blur_that_was_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(pages, "_figures", lambda report: iter(()))
    _, x = images(4)
    blur = Blur(torch.ones(3, 3) / 9, (1, 12, 12))
    p = lr.LowerLevelProblem(blur, FieldsOfExperts(2, 3), ridge=1e-3)
    lr.train(p, (blur(x).detach(), x), out=tmp_path, updates=1, **OPTIONS)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No samples were held out" in page
    assert "4 training images" in page
    assert "total variation" in page


@pytest.mark.usefixtures("reports")
def test_a_missing_package_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learnreg.training.run_report.missing_package", lambda: "install it")
    with pytest.warns(UserWarning, match=r"no report\.html: install it"):
        lr.train(problem(), images(), out=tmp_path, updates=1, **OPTIONS)
    assert not (tmp_path / "report.html").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lr.train(problem(), images(), out=tmp_path / "none", updates=1, report=False, **OPTIONS)
