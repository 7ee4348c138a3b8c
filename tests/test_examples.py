"""The examples and the README's example run as they are printed."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
TOMOGRAPHY = ("08_sparse_view_ct", "09_low_dose_ct", "10_transfer_denoising_to_ct", "11_learned_view_weights")

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


@pytest.mark.parametrize("name", TOMOGRAPHY)
def test_example_of_tomography_without_astra_is_skipped(
    name: str, program: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "astra", None)
    assert "skipped: " in program(EXAMPLES / f"{name}.py")


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
