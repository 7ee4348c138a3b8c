"""Signs of life of commands that work through files."""

from __future__ import annotations

import io
import time

import pytest

from learnreg.commands import waiting
from learnreg.commands.waiting import Waiting


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def wait_for(text: str, stream: io.StringIO) -> None:
    for _ in range(1000):
        if text in stream.getvalue():
            return
        time.sleep(0.01)
    raise AssertionError(f"{text!r} did not appear in {stream.getvalue()!r}")


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_LINE_INTERVAL", 0.01)
    monkeypatch.setattr(waiting, "_BAR_INTERVAL", 0.01)


def test_lines_elsewhere() -> None:
    stream = io.StringIO()
    with Waiting("reconstruct", 3, stream) as progress:
        wait_for("reconstruct: 0 of 3 done after ", stream)
        with progress.finished():
            pass
        wait_for("reconstruct: 1 of 3 done after ", stream)
    assert "\r" not in stream.getvalue()


def test_nothing_is_said_of_quick_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_LINE_INTERVAL", 30.0)
    stream = io.StringIO()
    with Waiting("reconstruct", 1, stream) as progress, progress.finished():
        pass
    assert stream.getvalue() == ""


def test_a_bar_on_a_terminal() -> None:
    stream = Terminal()
    with Waiting("reconstruct", 2, stream) as progress:
        wait_for("0/2", stream)
        with progress.finished():
            print("a line", file=stream)
        wait_for("1/2", stream)


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_an_error_ends_it(kind: type[io.StringIO]) -> None:
    progress = Waiting("reconstruct", 2, kind())
    with pytest.raises(KeyError), progress:
        raise KeyError("an error")
    assert not progress._thread.is_alive()
