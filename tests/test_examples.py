"""The examples, the README's example, and what the documentation prints: Python runs, commands parse."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from learnreg.commands.cli import app

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"

Run = Callable[..., str]


pytestmark = pytest.mark.usefixtures("quick_starts")


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("01_quickstart.py", [], "certified: True"),
        ("02_own_training_loop.py", ["2"], "certified True"),
        ("12_own_cnn_energy.py", ["2"], "certified: True"),
    ],
)
def test_script_runs(name: str, arguments: list[str], expected: str, program: Run) -> None:
    assert expected in program(EXAMPLES / name, *arguments)


GALLERY = sorted(path for path in EXAMPLES.glob("*/*.py") if path.parent.name != "recipes")


@pytest.mark.parametrize("path", GALLERY, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_page_of_the_gallery_has_what_a_page_needs(path: Path) -> None:
    """A title, numbers that are asserted, figures in one style; docs/build runs three of them, with --full all."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    title, underline, *text = (ast.get_docstring(tree) or "").splitlines()
    assert underline == "=" * len(title)
    assert len(" ".join(text).split()) > 15
    assert any(isinstance(node, ast.Assert) for node in ast.walk(tree))
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert "Figure" in calls or any(call.startswith("lr.plot.") for call in calls)
    if "Figure" in calls:
        assert "lr.plot.paper_style" in calls
    assert "sys.argv" not in path.read_text(encoding="utf-8")


def test_the_gallery_has_sections_of_at_least_25_pages_and_other_names() -> None:
    assert len(GALLERY) >= 25
    assert len({path.stem for path in GALLERY}) == len(GALLERY), "docs/build draws examples by these names"
    for folder in {path.parent for path in GALLERY}:
        title, underline = (folder / "GALLERY_HEADER.rst").read_text(encoding="utf-8").splitlines()[:2]
        assert underline == "-" * len(title)


def test_readme_example_is_the_first_example() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (printed,) = re.findall(r"<!-- example -->\n```python\n(.*?)```", readme, flags=re.DOTALL)
    quickstart = (ROOT / "examples" / "01_quickstart.py").read_text(encoding="utf-8")
    assert printed.strip() == quickstart.split('"""', 2)[2].strip()


def test_the_page_of_extensions_runs_as_it_is_printed(program: Run, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    script = tmp_path / "extending.py"
    script.write_text("\n\n".join(blocks), encoding="utf-8")
    assert "certified: True" in program(script)


ELSEWHERE = {
    "accuracy.md": "test_accuracy_command",
    "extending.md": "above",
    "imported_ridge.md": "needs the weights of its authors",
}
GRANTED = """
import torch
import learnreg as lr
from learnreg.operators import Identity
from learnreg.regularizers import AnalysisOperator, FieldsOfExperts as MyRegularizer, TotalVariation

A, images, b = Identity((1, 32, 32)), torch.rand(1, 1, 256, 256), torch.rand(1, 1, 32, 32)
problem = lr.LowerLevelProblem(A, TotalVariation())
MyScanner = lambda image_size: Identity((1, image_size, image_size))
"""
"""What the text of a page takes for granted."""


def blocks_of(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def pages_with_python() -> list[str]:
    pages = sorted((ROOT / "docs").glob("*.md"))
    return [page.name for page in pages if page.name not in ELSEWHERE and blocks_of(page, "python")]


@pytest.mark.parametrize("page", pages_with_python())
def test_the_other_pages_run_as_they_are_printed(page: str, program: Run, tmp_path: Path) -> None:
    (tmp_path / "scan.toml").write_text(blocks_of(ROOT / "docs" / "geometry.md", "toml")[0], encoding="utf-8")
    script = tmp_path / "page.py"
    script.write_text("\n\n".join((GRANTED, *blocks_of(ROOT / "docs" / page, "python"))), encoding="utf-8")
    program(script)


def printed_commands() -> list[str]:
    """Lines of the README and of docs/*.md that call this command line."""
    found = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        found += re.findall(r"^ *learnreg (?!learns)([^#\n&]*)", page.read_text(encoding="utf-8"), flags=re.M)
    return [" ".join(re.sub(r"[][]", "", line).split()) for line in found]


@pytest.mark.parametrize("line", sorted(set(printed_commands())))
def test_printed_commands_have_options_that_exist(line: str) -> None:
    command, words, context = typer.main.get_command(app), shlex.split(line), None
    while isinstance(command, TyperGroup):
        context = command.make_context("learnreg", list(words), parent=context)
        _, command, words = command.resolve_command(context, words)
    command.make_context(line, words, parent=context)
