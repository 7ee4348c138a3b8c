"""The reference: every public name has a page, says what it takes and raises, and the examples of docstrings run."""

from __future__ import annotations

import doctest
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import learnreg as lr

DOCS = Path(__file__).resolve().parents[1] / "docs"


def extension(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / "extensions" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


COVERAGE = extension("api_coverage")
NAMES: dict[str, Any] = COVERAGE.public_names()
HOLES: dict[str, list[str]] = COVERAGE.holes()
WITHOUT_EXAMPLE = {
    *("learnreg.operators.StoredOperator", "learnreg.datasets.BSDS500", "learnreg.datasets.DicomSeries"),
    *("learnreg.datasets.DicomSlice", "learnreg.datasets.LoDoPaB", "learnreg.datasets.SinogramStack"),
    "learnreg.solvers.LoopResult",
    *("learnreg.solvers.Report", "learnreg.solvers.SolverState", "learnreg.TensorBoard"),
}
"""They need files or packages that others publish, or are made by this package alone."""


def test_every_public_name_has_one_page_and_no_page_is_of_another() -> None:
    assert sorted(COVERAGE.listed()) == sorted(NAMES)


@pytest.mark.parametrize("kind", ["parameters", "errors"])
def test_every_public_name_says(kind: str) -> None:
    assert set(HOLES[kind]) <= {"learnreg.operators.StoredOperator"}


def test_every_public_class_has_an_example() -> None:
    assert set(HOLES["example"]) == WITHOUT_EXAMPLE


def test_holes_are_found() -> None:
    class Undocumented:
        """Something with x: an image."""

        def __init__(self, x: int, weight: float) -> None:
            if weight < 0:
                raise lr.ConfigError("negative")

    assert COVERAGE.undocumented(Undocumented) == ["weight"]
    assert COVERAGE.says_no_errors(Undocumented)
    assert COVERAGE.needs_example(Undocumented)
    assert not COVERAGE.has_example(Undocumented)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", [name for name, thing in NAMES.items() if COVERAGE.has_example(thing)])
def test_examples_of_docstrings_run(name: str) -> None:
    torch.manual_seed(0)
    (found,) = doctest.DocTestFinder(recurse=False).find(
        inspect.unwrap(NAMES[name]), name, globs={"lr": lr, "torch": torch}, module=False
    )
    failures = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS).run(found)
    assert failures.attempted > 0
    assert failures.failed == 0


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (["Sum |w * x|."], ["Sum \\|w \\* x\\|."]),
        (["A `name`, ``code * 2``."], ["A ``name``, ``code * 2``."]),
        (["Parameters", "----", "a, b: two", "    numbers"], ["Parameters", "----", "a, b", "    two", "    numbers"]),
        (["Raises", "------", "A: if. BError: or."], ["Raises", "------", "A", "    if.", "BError", "    or."]),
        ([">>> 2 * x", "4 * y"], [">>> 2 * x", "4 * y"]),
    ],
)  # fmt: skip
def test_docstrings_become_restructured_text(written: list[str], expected: list[str]) -> None:
    assert extension("docstrings").restructured(written) == expected
