"""Progress for people: lines where there is no terminal, a bar where there is one."""

from __future__ import annotations

import io
import sys
from types import ModuleType
from typing import Any

import pytest

from learnreg import progress
from learnreg.commands.common import announce
from learnreg.commands.waiting import Waiting
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


class Hung(io.StringIO):
    """A terminal that was closed: it says that it is one, and takes nothing."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


class Plain:
    """A stream of somebody's own, with the least that print needs."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


def closed(kind: type[io.StringIO]) -> io.StringIO:
    stream = kind()
    stream.close()
    return stream


STREAMS = {
    "none": None,
    "plain": Plain(),
    "closed": closed(io.StringIO),
    "closed terminal": closed(Hung),
    "hung": Hung(),
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_work_goes_on_where_nobody_can_see_it(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs without a console, closed terminals, broken pipes."""
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    with Progress(minutes=1.0) as show:
        show.on_update(row(5, 30.0))
    with Count("accuracy", 2) as count:
        count.update("a note")
    with Waiting("reconstruct", 2) as waiting, waiting.finished():
        pass
    announce("reading")


@pytest.mark.parametrize("widgets", [False, True])
def test_bars_in_notebooks(widgets: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ipywidgets or without, and without a warning."""
    if widgets:
        pytest.importorskip("ipywidgets")
        pytest.importorskip("IPython")
    else:
        monkeypatch.setitem(sys.modules, "ipywidgets", None)
    shell = type("ZMQInteractiveShell", (), {"config": {"IPKernelApp": {}}})()
    ipython = ModuleType("IPython") if not widgets else sys.modules["IPython"]
    monkeypatch.setattr(ipython, "get_ipython", lambda: shell, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", ModuleType("zmqshell"))  # what tqdm goes by
    for name in ("tqdm.auto", "tqdm.autonotebook", "tqdm.notebook"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert progress.is_interactive()
    with Progress(minutes=1.0) as show:
        show.on_update(row(5, 30.0))
        kinds = {kind.__name__ for kind in type(show._bar).__mro__}
    assert ("tqdm_notebook" in kinds) == widgets
    if not widgets:
        assert "update 5" in sys.stderr.getvalue()


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
