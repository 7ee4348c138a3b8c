"""How long a run is, what of it is kept, and how it goes on otherwise than it was begun."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import learnreg as lr
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts
from learnreg.training.clock import Clock, TimeUp
from learnreg.training.environment import environment
from learnreg.training.run_folder import RunFolder

SHAPE = (1, 8, 8)
QUICK: dict[str, Any] = {"batch_size": 4, "tune": False}


def images(count: int = 6, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 1, 4, 4, generator=generator).repeat_interleave(2, -1).repeat_interleave(2, -2)
    return x + 0.1 * torch.randn(x.shape, generator=generator), x


def problem() -> lr.LowerLevelProblem:
    torch.manual_seed(0)
    return lr.LowerLevelProblem(Identity(SHAPE), FieldsOfExperts(2, 3, lr.PseudoHuber(0.05, 0.2)), ridge=0.1)


def learned(p: lr.LowerLevelProblem) -> list[Tensor]:
    return [q.detach().clone() for q in p.learnable().values()]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(list(zip(*images(), strict=True)))


# ------------------------------------------------------------------------------------------------------------ how long


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs", "adaptive"])
def test_a_run_is_the_beginning_of_a_longer_one(optimizer: Any) -> None:
    found, p = [], problem()
    long = lr.train(p, images(), updates=5, optimizer=optimizer, on_update=lambda _: found.append(learned(p)), **QUICK)
    short = problem()
    result = lr.train(short, images(), updates=3, optimizer=optimizer, **QUICK)
    assert all(map(torch.equal, learned(short), found[2]))
    assert [{**row, "seconds": 0} for row in result.rows] == [{**row, "seconds": 0} for row in long.rows[:3]]


@pytest.mark.parametrize(
    ("data", "epochs", "updates"),
    [
        (images(), 2, 3),
        (images(), 0.1, 1),
        (DataLoader(TensorDataset(*images()), batch_size=4), 2, 4),
        (list(zip(*images(3), strict=True)), 2.5, 3),
    ],
)
def test_epochs(data: Any, epochs: float, updates: int) -> None:
    options = {"tune": False} if isinstance(data, DataLoader) else QUICK
    assert lr.train(problem(), data, epochs=epochs, **options).updates == updates
    assert lr.train(problem(), data, epochs=epochs, updates=1, **options).updates == 1


def test_epochs_of_what_has_none() -> None:
    with pytest.raises(lr.ConfigError, match="how long it is"):
        lr.train(problem(), Stream(), epochs=1, **QUICK)
    for options in ({"optimizer": "lbfgs"}, {"optimizer": "adaptive"}):
        with pytest.raises(lr.ConfigError, match="at once; give updates"):
            lr.train(problem(), images(), epochs=1, **options, **QUICK)


class EndingClock(Clock):
    """The time ends at the third look at it."""

    looks = 2

    def check(self) -> None:
        self.looks -= 1
        if self.looks < 0:
            raise TimeUp


@pytest.mark.parametrize("schedule", ["steady", "annealed"])
def test_minutes_that_cut_an_annealed_run_are_said(schedule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learnreg.training.session.Clock", EndingClock)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = lr.train(problem(), images(), updates=5, minutes=1.0, schedule=schedule, **QUICK)
    assert (result.updates, result.asked, result.ended_by, result.was_cut) == (2, 5, "minutes", True)
    said = [str(warning.message) for warning in caught]
    assert [text for text in said if "2 of 5 updates" in text] == said
    assert len(said) == (schedule == "annealed")


def test_an_annealed_run_needs_a_length() -> None:
    with pytest.raises(lr.ConfigError, match="give updates or epochs"):
        lr.train(problem(), images(), schedule="annealed", **QUICK)


# --------------------------------------------------------------------------------------------------------- what is kept


def test_the_best_validation_is_kept(tmp_path: Path) -> None:
    found: list[list[Tensor]] = []
    p, psnr = problem(), [1.0, 3.0, float("nan"), 2.0, 3.0]
    options: dict[str, Any] = {"out": tmp_path, "on_update": lambda _: found.append(learned(p)), **QUICK}
    lr.train(p, images(), updates=3, validate=lambda: psnr[len(found)], **options)
    lr.train(p, images(), updates=5, validate=lambda: psnr[len(found)], resume=True, **options)
    for name, update in (("best.safetensors", 2), ("model.safetensors", 5)):
        stored = lr.load(tmp_path / name).regularizer
        assert all(map(torch.equal, stored.parameters(), found[update - 1])), name
    for path in RunFolder(tmp_path, resume=True).checkpoint_folder.glob("checkpoint-*"):
        path.write_bytes(b"damaged")
    again = problem()
    assert lr.train(again, images(), updates=2, resume=True, out=tmp_path, **QUICK).updates == 2
    assert all(map(torch.equal, learned(again), found[1]))


def test_an_update_is_kept_whatever_its_validation_raises(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        lr.train(problem(), images(), updates=3, out=tmp_path, validate=lambda: 1 / 0, **QUICK)
    result = lr.train(problem(), images(), updates=3, out=tmp_path, resume=True, **QUICK)
    assert [row["step"] for row in result.rows] == [1, 2, 3]


def test_what_made_it_is_recorded(tmp_path: Path) -> None:
    facts = environment(1)
    files = []
    for name in ("a", "b"):
        lr.train(problem(), images(), updates=1, out=tmp_path / name, config={"sigma": 0.1}, **QUICK)
        files.append((tmp_path / name / "model.safetensors").read_bytes())
    config = lr.load(tmp_path / "a").config
    assert config["made_with"] == facts
    assert {"learnreg", "commit", "processor", "cores", "threads", "libraries"} <= facts.keys()
    assert config["sigma"] == 0.1
    assert files[0] == files[1]
    assert "[made_with]" in (tmp_path / "a" / "config.toml").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------- otherwise than begun


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({"data": images(4, seed=2)}, ["data: '6 items' in the run, '4 items' now", "sha256: other training samples"]),
        ({"optimizer": "lbfgs", "seed": 3}, ["optimizer: ", "seed: 0 in the run, 3 now"]),
        ({"tolerance": 0.2}, ["tolerance: 0.1 in the run, 0.2 now"]),
        ({"loss": lambda x: lr.UpperLoss(lambda y: (y - x).abs().sum())}, ["loss: "]),
    ],
)
def test_a_run_goes_on_otherwise_if_it_is_forced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any], lines: list[str]
) -> None:
    lr.train(problem(), images(), updates=2, out=tmp_path, **QUICK)
    data, loss = change.pop("data", images()), change.pop("loss", lr.SquaredError)
    options = {"updates": 4, "out": tmp_path, "resume": True, **QUICK, **change}
    before = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(lr.ConfigError, match="--force") as caught:
        lr.train(problem(), data, loss, **options)
    for path in tmp_path.rglob("*"):
        assert before.get(path.name, b"") == (path.read_bytes() if path.is_file() and path.name != ".lock" else b"")
    assert len(caught.value.lines) == len(lines)
    assert all(found.startswith(line) for found, line in zip(caught.value.lines, lines, strict=True))
    with caplog.at_level(logging.WARNING, logger="learnreg"):
        result = lr.train(problem(), data, loss, force=True, **options)
    assert result.updates == 4
    assert all(line in caplog.text for line in lines)
    lr.train(problem(), data, loss, **{**options, "updates": 5})  # it is that run from now on


def test_force_is_for_runs_that_go_on(tmp_path: Path) -> None:
    with pytest.raises(lr.ConfigError, match="force"):
        lr.train(problem(), images(), updates=1, out=tmp_path, force=True, **QUICK)


def test_other_shapes_do_not_fit_even_by_force(tmp_path: Path) -> None:
    lr.train(problem(), images(), updates=1, out=tmp_path, **QUICK)
    other = lr.LowerLevelProblem(Identity(SHAPE), FieldsOfExperts(3, 3), ridge=0.1)
    with pytest.raises(lr.ConfigError, match=r"parameters: "):
        lr.train(other, images(), updates=2, out=tmp_path, resume=True, **QUICK)
    with pytest.raises(lr.CheckpointError, match=r"checkpoint-.*no parameter"):
        lr.train(other, images(), updates=2, out=tmp_path, resume=True, force=True, **QUICK)


@pytest.mark.parametrize("damage", ["nan", "shape", "missing", "kind"])
def test_a_checkpoint_that_does_not_fit_is_named(tmp_path: Path, damage: str) -> None:
    lr.train(problem(), images(), updates=1, out=tmp_path, **QUICK)
    folder = RunFolder(tmp_path, resume=True)
    state = folder.load_checkpoint()
    assert state is not None
    if damage in ("nan", "shape"):
        name, value = next(iter(state["parameters"].items()))
        state["parameters"][name] = value[:1] if damage == "shape" and value.dim() else value * float("nan")
    else:
        state["upper"] = {} if damage == "missing" else {"optimizer": 3}
    path = folder.save_checkpoint(state)
    with pytest.raises(lr.CheckpointError, match=path.name):
        lr.train(problem(), images(), updates=2, out=tmp_path, resume=True, **QUICK)
