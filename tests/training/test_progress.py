"""Progress for people: lines where there is no terminal, a bar where there is one."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from learnreg import progress
from learnreg.progress import Count
from learnreg.training.progress import Progress


def row(step: int, seconds: float, **more: float) -> dict[str, Any]:
    return {"step": step, "seconds": seconds, "loss": 0.12345678, **more}


def test_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(minutes=2.0) as show:
        show.on_update(row(1, 1.0, psnr=28.0))
        for step in range(2, 120):
            now[0] += 1.0
            show.on_update(row(step, float(step)))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training: 1 %, 0:01 of 2:00, update 1, loss 0.1235, held-out PSNR 28.00"
    assert len(lines) == 5, "one at the start, one every 30 seconds, one at the end"
    assert lines[-1] == "training: 99 %, 1:59 of 2:00, update 119, loss 0.1235, held-out PSNR 28.00"


def test_updates_may_end_it_first(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(minutes=120.0, updates=4) as show:
        show.on_update(row(3, 3700.0))
    assert capsys.readouterr().err == "training: 75 %, 1:01:40 of 2:00:00, update 3 of 4, loss 0.1235\n"


def test_nothing_is_said_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(minutes=1.0):
        pass
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress(minutes=1.0) as show:
        show.on_update(row(5, 30.0))
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "training:  50%|" in shown
    assert "0:30 of 1:00, update 5" in shown
    assert shown.count("\n") == 1


def test_counted_work(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    for shown in (True, False):
        with Count("accuracy", 8, shown) as count:
            for _ in range(8):
                now[0] += 10.0
                count.update()
        expected = ["accuracy: 3 of 8", "accuracy: 6 of 8"]
        assert capsys.readouterr().err.splitlines() == (expected if shown else [])
