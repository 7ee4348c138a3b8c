"""``learnreg check-operator``: its lines, its JSON, and what it says where there is no operator."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from learnreg.commands.cli import app
from learnreg.testing import OPERATOR_PROPERTIES

MODULE = """
import torch
from learnreg.operators import Blur

def make():
    print("making it")
    return Blur(torch.ones(3, 3) / 9, (1, 8, 8))

class Half(Blur):
    def __init__(self):
        super().__init__(torch.rand(3, 3), (1, 8, 8))

    def adjoint(self, y):
        return 1.005 * super().adjoint(y)

class Single(Blur):
    def __init__(self):
        super().__init__(torch.rand(3, 3), (1, 8, 8))

    def forward(self, x):
        return super().forward(x).float()

    def adjoint(self, y):
        return super().adjoint(y).float()

def broken():
    raise ValueError("no such scanner")

def needs(image_size, angles=3):
    return None

def nothing():
    return None

class Namespace:
    operator = make()
"""


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "mylab").mkdir()
    (tmp_path / "mylab" / "__init__.py").touch()
    (tmp_path / "mylab" / "scanners.py").write_text(MODULE)
    (tmp_path / "mylab" / "unfinished.py").write_text("import nothing_of_this_name")
    (tmp_path / "mylab" / "typo.py").write_text("def make(:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [n for n in sys.modules if n.split(".")[0] == "mylab"]:
        monkeypatch.delitem(sys.modules, name)
    return lambda *arguments: CliRunner().invoke(app, ["check-operator", *arguments])


def last_line(result: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("target", ["mylab.scanners:make", "mylab.scanners:Namespace.operator"])
def test_an_operator_that_passes(call: Any, target: str) -> None:
    result = call(target)
    assert result.exit_code == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("  ok")]
    assert len(lines) == len(OPERATOR_PROPERTIES)
    assert all(name in result.stdout for name in OPERATOR_PROPERTIES)
    found = last_line(call(target, "--json"))
    assert found["ok"] is True
    assert found["failed_property"] is None
    assert [row["name"] for row in found["properties"]] == list(OPERATOR_PROPERTIES)
    assert all(row["passed"] and row["value"] <= row["threshold"] for row in found["properties"])


def test_an_operator_that_fails(call: Any) -> None:
    result = call("mylab.scanners:Half", "--json")
    assert result.exit_code == 4
    found = last_line(result)
    assert (found["ok"], found["failed_property"]) == (False, "adjoint")
    (failed,) = [row for row in found["properties"] if not row["passed"]]
    assert failed["name"] == "adjoint"
    assert failed["value"] == pytest.approx(0.005, rel=1.0)
    assert "off by a factor 1.005" in result.stderr
    assert "FAIL  adjoint" in call("mylab.scanners:Half").stdout


def test_single_precision(call: Any) -> None:
    assert last_line(call("mylab.scanners:Single", "--json"))["failed_property"] == "dtype"
    assert call("mylab.scanners:Single", "--dtype", "float32").exit_code == 0


@pytest.mark.parametrize(
    ("target", "code", "words"),
    [
        ("mylab.scanners", 2, "package.module:factory"),
        ("mylab.absent:make", 2, "no such module"),
        ("nowhere:make", 2, "no such module"),
        ("mylab.scanners:maek", 2, "has no 'maek'; it has Blur, Half, Namespace"),
        ("mylab.unfinished:make", 4, "import of nothing_of_this_name failed"),
        ("mylab.typo:make", 4, "SyntaxError"),
        ("mylab.scanners:broken", 4, "raised ValueError: no such scanner (scanners.py, line "),
        ("mylab.scanners:needs", 4, "but needs image_size"),
        ("mylab.scanners:nothing", 4, "NoneType has no forward"),
        ("mylab.scanners:torch", 4, "no forward"),
    ],
)
def test_where_there_is_no_operator(call: Any, target: str, code: int, words: str) -> None:
    result = call(target, "--json")
    assert result.exit_code == code
    assert words in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("learnreg: ")]) == 1
    if code == 4:
        assert last_line(result)["failed_property"] == "interface"
    assert call("mylab.scanners:make", "--dtype", "float16").exit_code == 2


def test_the_installed_command(tmp_path: Path) -> None:
    (tmp_path / "scanner.py").write_text(MODULE)
    command = [sys.executable, "-m", "learnreg.commands.cli", "check-operator", "scanner:Half", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 4
    assert json.loads(done.stdout.splitlines()[-1])["failed_property"] == "adjoint"
