"""Signals in training: acted on between updates, with everything saved; twice, at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import learnreg as lr
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts
from learnreg.training import interrupts
from learnreg.training.interrupts import Interrupted, Interrupts

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Noise:
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = torch.full((1, 8, 8), 0.5)
        return x + 0.1 * torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(index)), x


def train(out: Path, on_update: Callable[[Mapping[str, Any]], None] | None = None, **options: Any) -> lr.TrainResult:
    problem = lr.LowerLevelProblem(Identity((1, 8, 8)), FieldsOfExperts(2, 3))
    return lr.train(problem, Noise(), out=out, minutes=1.0, batch_size=2, on_update=on_update, tune=False, **options)


def at(step: int, *numbers: int) -> Callable[[Mapping[str, Any]], None]:
    def send(row: Mapping[str, Any]) -> None:
        if row["step"] == step:
            for number in numbers:
                signal.raise_signal(number)

    return send


@pytest.fixture(autouse=True)
def handlers() -> Any:
    """Those of a process in the foreground, whatever this one ignores, and checks that everybody leaves them."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    usual = {n: signal.default_int_handler if n == signal.SIGINT else signal.SIG_DFL for n in SIGNALS}
    for number, handler in usual.items():
        signal.signal(number, handler)
    yield
    after = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == usual


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs", "adaptive"])
def test_an_interrupt_keeps_every_update(optimizer: str, tmp_path: Path) -> None:
    options: Any = {"optimizer": optimizer, "samples": 4}
    with pytest.raises(KeyboardInterrupt) as caught:
        train(tmp_path, at(2, signal.SIGINT), **options)
    assert "resume" in caught.value.__notes__[-1]
    result = train(tmp_path, updates=3, resume=True, **options)
    assert [row["step"] for row in result.rows] == [1, 2, 3]


@pytest.mark.parametrize("number", SIGNALS)
def test_what_would_end_the_process_waits_for_the_update(number: int, tmp_path: Path) -> None:
    """A handler around the run, as the command line's."""
    seen: list[int] = []
    with Interrupts(seen.append) as around:
        with pytest.raises(Interrupted) as caught:
            train(tmp_path, at(2, number))
        assert isinstance(signal.getsignal(number).__self__, Interrupts)  # type: ignore[union-attr]
        assert around is not None
    assert caught.value.number == number
    assert seen == [number]
    assert lr.load(tmp_path / "model.safetensors")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_second_signal_acts_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "_ECHO_SECONDS", -1.0)
    ended: list[int] = []
    with Interrupts(at_second=ended.append), pytest.raises(Interrupted):
        train(tmp_path, at(1, signal.SIGTERM, signal.SIGINT))
    assert ended == [signal.SIGINT]
    with pytest.raises(KeyboardInterrupt) as caught:  # in Python, as it would without training
        train(tmp_path / "other", at(1, signal.SIGINT, signal.SIGINT))
    assert not isinstance(caught.value, Interrupted)


def test_a_signal_that_arrives_twice_at_once_is_one(tmp_path: Path) -> None:
    ended: list[int] = []
    with Interrupts(at_second=ended.append), pytest.raises(Interrupted):
        train(tmp_path, at(1, signal.SIGINT, signal.SIGINT))
    assert ended == []


def test_handlers_of_the_user_and_ignored_signals_stay(tmp_path: Path) -> None:
    own: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: own.append(number)), signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    result = train(tmp_path, at(1, signal.SIGINT, signal.SIGTERM), updates=2)
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGTERM, before[1])
    assert result.updates == 2
    assert own == [signal.SIGINT]


def test_outside_of_training_a_signal_acts_where_it_hits() -> None:
    with Interrupts() as found:
        with Interrupts.active() as active:
            assert active is found
        with pytest.raises(Interrupted) as caught:
            os.kill(os.getpid(), signal.SIGINT)
    assert caught.value.number == signal.SIGINT
