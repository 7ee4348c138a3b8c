"""The command ``learnreg accuracy``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.entry_point import Result, run_entry_point
from truth.accuracy_cases import tiny, tiny_report, violated
from truth.dense import distance

from learnreg.accuracy import measure as accuracy_measure
from learnreg.accuracy import problems as accuracy_problems
from learnreg.accuracy.reference import solve_reference
from learnreg.accuracy.report import AccuracyReport, parse_methods, parse_tolerances
from learnreg.hypergradients import METHODS
from learnreg.models.model import save_model
from learnreg.regularizers import FieldsOfExperts

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def report() -> AccuracyReport:
    return tiny_report()


# -------------------------------------------------------------------------------------------------------------- command


@pytest.fixture
def learnreg(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """``learnreg accuracy``, called as the installed command does, in this process."""
    monkeypatch.delenv("LEARNREG_DEBUG", raising=False)
    return partial(run_entry_point, monkeypatch, capsys, "accuracy")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in set is one tiny problem."""
    monkeypatch.setattr(accuracy_problems, "builtin_problems", lambda seed: [tiny()])


@pytest.mark.usefixtures("small")
def test_the_command(learnreg: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = learnreg("--tolerances", "1e-1", "--json", "--out", tmp_path / "out")
    assert found.code == 0, found.err
    content = json.loads(found.out.splitlines()[-1])
    assert {row["method"] for row in content["rows"]} == {"implicit", "piggyback"}
    assert content["coverage"] == 1.0
    assert "coverage: 100 %" in found.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "accuracy.json",
        "accuracy.pdf",
        "accuracy.png",
    ]


@pytest.mark.usefixtures("small")
def test_the_table(learnreg: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = learnreg("--tolerances", "1,0.01", "--methods", "implicit,piggyback")
    assert found.code == 0, found.err
    assert "coverage: 100 %" in found.out.splitlines()[-1]
    table = [line.split() for line in found.out.splitlines() if line.startswith(("  implicit", "  piggyback"))]
    assert [row[:2] for row in table] == [
        ["implicit", "1"],
        ["implicit", "0.01"],
        ["piggyback", "1"],
        ["piggyback", "0.01"],
    ]
    assert all(float(row[2]) <= float(row[3]) and float(row[6]) <= float(row[7]) for row in table)
    assert list(tmp_path.iterdir()) == [], "nothing is written without --out"


def test_the_command_on_a_model(learnreg: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy_problems, "model_problem", partial(accuracy_problems.model_problem, side=10))
    path = tmp_path / "model.safetensors"
    save_model(path, FieldsOfExperts(filters=2, size=3), {"sigma": "15/255"})
    found = learnreg(path, "--methods", "implicit", "--tolerances", "0.1", "--json")
    assert found.code == 0, found.err
    content = json.loads(found.out.splitlines()[-1])
    assert {row["problem"] for row in content["rows"]} == {str(path)}
    assert content["coverage"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (("--methods", "pigyback"), 2, ("'pigyback'", "piggyback-interleaved")),
        (("--methods", ""), 2, ("expected 'all'",)),
        (("--tolerances", "1,-1"), 2, ("'-1'", "positive")),
        (("--tolerances", "tight"), 2, ("'tight'",)),
        (("--seed", "-1"), 2, ("seed=-1",)),
        (("absent.safetensors",), 6, ("does not exist",)),
        (("absent-model",), 6, ("Shipped models",)),
    ],
)
def test_bad_arguments(learnreg: Any, arguments: tuple[str, ...], code: int, parts: tuple[str, ...]) -> None:
    found = learnreg(*arguments)
    assert found.code == code
    assert found.out == ""
    assert len(found.err.splitlines()) == 1
    assert all(part in found.err for part in parts)


def test_a_file_is_no_folder(learnreg: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    found = learnreg("--out", tmp_path / "file")
    assert found.code == 2
    assert "expected a folder" in found.err


@pytest.mark.usefixtures("small")
def test_a_violation_ends_with_5(
    learnreg: Any, report: AccuracyReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy_measure, "measure", lambda *_: violated(report))
    found = learnreg("--json", "--out", tmp_path)
    assert found.code == 5
    assert "VIOLATED" in found.err.splitlines()[-1]
    assert json.loads(found.out.splitlines()[-1])["violations"] == 1
    assert (tmp_path / "accuracy.json").is_file()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert learnreg("--out", tmp_path).code == 2, "before the work"


def test_names_and_tolerances() -> None:
    assert parse_methods("all") == list(METHODS)
    assert parse_methods("implicit, piggyback,implicit") == ["implicit", "piggyback"]
    assert parse_tolerances("1e-3,1,1e-3") == [1.0, 1e-3]


# -----------------------------------------------------------------------------------------------------------------docs


def test_the_snippet_of_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- snippet -->\n```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/accuracy.md", "exec"), names)
    certificate, printed = names["certificate"], capsys.readouterr().out
    assert certificate.certified
    assert "certified: True" in printed
    assert "%" in printed
    problem, b, loss, gradient = (names[name] for name in ("problem", "b", "loss", "gradient"))
    exact = solve_reference(problem, b, loss).gradient
    theirs = dict(zip(exact, gradient, strict=True))
    assert distance(theirs, exact) <= names["bound"] <= 1.1 * distance(theirs, exact)
