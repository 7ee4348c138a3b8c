"""The installed command, called in this process."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from learnreg.commands import cli


class Result:
    """What a command left behind."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict[str, Any]:
        lines = self.out.splitlines()
        assert len(lines) == 1, self.out

        def refuse(word: str) -> None:
            raise AssertionError(f"{word} is no JSON")

        found: dict[str, Any] = json.loads(lines[-1], parse_constant=refuse)
        return found


def run_entry_point(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> Result:
    """``learnreg ARGUMENTS`` as the installed command runs it, with its exit code."""
    monkeypatch.setattr(sys, "argv", ["learnreg", *map(str, arguments)])
    capsys.readouterr()
    code: object = 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert isinstance(code, int)
    return Result(code, out, err)


def assert_complaint(result: Result, code: int, *parts: str) -> None:
    """One line on stderr that names the program and has these parts, and nothing on stdout."""
    assert result.code == code, result.err
    assert result.out == ""
    assert len(result.err.splitlines()) == 1, result.err
    assert result.err.startswith("learnreg: ")
    for part in parts:
        assert part in result.err
