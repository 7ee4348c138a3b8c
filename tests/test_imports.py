"""Where a module may look: rooms in one order, no circles of files, few loose modules."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ORDER = (
    "errors", "progress", "result", "kernels", "linear", "losses", "convolutions", "potentials", "lower_level",
    "certificates", "solvers", "hypergradients", "regularizers", "upper_level", "operators", "datasets", "testing",
    "models", "plot", "report", "training", "accuracy", "commands", "__init__", "__main__",
)  # fmt: skip
"""The rooms of learnreg; each imports only itself and earlier ones."""
FOLDERS = {
    "learnreg": "learnreg.",
    "operators": "learnreg.operators.",
    "datasets": "learnreg.datasets.",
    "tests/truth": "truth.",
    "benchmarks": "",
}
"""Folders of modules, and what stands before their names where they are imported."""


def modules() -> dict[str, Path]:
    """Every module by the name it is imported under."""
    found = {}
    for folder, prefix in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = prefix + ".".join(path.relative_to(ROOT / folder).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(path: Path) -> set[str]:
    """The modules among ``MODULES`` that a file names, wherever in the file it does."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names.update(name if name in MODULES else node.module for name in full)
    return names & MODULES.keys()


def room(module: str) -> str:
    """The folder, or the loose module, of learnreg that a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def test_imports_run_in_one_direction() -> None:
    back = [
        f"{name} imports {other}"
        for name, path in MODULES.items()
        if name.split(".")[0] == "learnreg"
        for other in imports(path)
        if ORDER.index(room(other)) > ORDER.index(room(name))
    ]
    assert back == []


def test_no_circle_of_files() -> None:
    TopologicalSorter({name: imports(path) for name, path in MODULES.items()}).prepare()


def test_few_modules_lie_loose() -> None:
    loose = {path.stem for path in (ROOT / "learnreg").glob("*.py")} - {"__init__", "__main__"}
    assert len(loose) <= 5, loose
    assert loose < set(ORDER)
