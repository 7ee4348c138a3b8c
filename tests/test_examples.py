"""The examples, the README's example, and what the documentation prints: Python runs, commands parse."""

from __future__ import annotations

import re
import shlex
import sys
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
        ("03_own_loss.py", [], "declares no gradient_lipschitz"),
        ("04_own_operator.py", [], "certified: True"),
        ("07_own_regularizer.py", [], "certified: True"),
        ("12_own_cnn_energy.py", ["2"], "certified: True"),
    ],
)
def test_example_runs(name: str, arguments: list[str], expected: str, program: Run) -> None:
    assert expected in program(EXAMPLES / name, *arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("08_sparse_view_ct.py", ["2"], "(rigorous)"),
        ("09_low_dose_ct.py", [], "statistical weights: "),
        ("10_transfer_denoising_to_ct.py", ["2"], "learned factor"),
        ("11_learned_view_weights.py", ["2"], "certified: True"),
    ],
)
def test_example_of_tomography_runs(name: str, arguments: list[str], expected: str, program: Run) -> None:
    pytest.importorskip("astra")
    printed = program(EXAMPLES / name, *arguments)
    assert expected in printed
    if name == "09_low_dose_ct.py":
        equal, weighted = (float(line.split(": ")[1].split()[0]) for line in printed.splitlines()[-2:])
        assert weighted > equal + 0.5, "weights are worth more than half a decibel here"
    if name == "11_learned_view_weights.py":
        assert "stored and loaded: True" in printed


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("13_data_cleaning.py", ["1", "0", "100"], "every step certified: True"),
        ("14_distilled_data.py", ["2"], "on ten learned digits"),
        ("15_meta_regularizer.py", ["1", "2"], "meta-learned"),
        ("16_continual_learning.py", ["1", "1", "0", "2"], "both"),
        ("17_weights_of_pixels.py", ["1"], "each pixel"),
        ("18_weight_without_truth.py", ["1"], "whiteness"),
        ("19_learned_sampling.py", ["1"], "12 lines, learned"),
        ("20_learned_blur.py", ["1"], "deblurred by the learned blur"),
    ],
)
@pytest.mark.sampled(share=0.25, by=("name",))
def test_example_of_bilevel_tasks_runs(name: str, arguments: list[str], expected: str, program: Run) -> None:
    pytest.importorskip("sklearn")
    assert expected in program(EXAMPLES / name, *arguments)
    (figure,) = Path().glob("*.png")
    assert figure.stat().st_size < 80_000


@pytest.mark.parametrize(
    ("name", "packages", "expected"),
    [
        ("05_odl_operator.py", ("odl", "astra"), "rigorous"),
        ("06_pylops_operator.py", ("pylops",), "certified: True"),
    ],
)
def test_example_with_another_library_runs(name: str, packages: tuple[str, ...], expected: str, program: Run) -> None:
    for package in packages:
        pytest.importorskip(package)
    assert expected in program(EXAMPLES / name)


@pytest.mark.parametrize(("name", "package"), [("05_odl_operator.py", "odl"), ("06_pylops_operator.py", "pylops")])
def test_example_without_its_library_is_skipped(
    name: str, package: str, program: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert "skipped: " in program(EXAMPLES / name)


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
