"""Command lines of learnreg, run in this process."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner

from learnreg.commands.cli import app


def call(*arguments: object) -> Any:
    """One command line, in this process."""
    return CliRunner().invoke(app, [str(a) for a in arguments])


def succeed(*arguments: object) -> dict[str, Any]:
    """What a command prints as JSON."""
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return found


def refuse(code: int, *arguments: object) -> str:
    """The line that a command complains with."""
    result = call(*arguments)
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    return complaint(result.stderr)


def small_training(ridge: float) -> list[str]:
    """Options of a training that is over in a second."""
    sizes = ("images=4", "filters=4", "filter_size=3", "batch_size=2", "updates=2")
    return [f"--set={setting}" for setting in (*sizes, f"ridge={ridge}")]


def complaint(stderr: str) -> str:
    """The one line that a command ends with, after those that say what it does, with those that belong to it."""
    lines = stderr.splitlines()
    first = max(i for i, line in enumerate(lines) if not line.startswith("  "))
    assert all(line.startswith(("reading ", "training: ", "tuning ")) for line in lines[:first]), stderr
    assert lines[first].startswith("learnreg: "), stderr
    return "\n".join(lines[first:])
