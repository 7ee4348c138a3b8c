"""The gallery: examples/ as pages, with the figures they make.

``LEARNREG_GALLERY`` says which ones run: "all", "none", or how many, drawn with ``LEARNREG_SEED``, which is printed.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst

DOCS = Path(__file__).resolve().parents[1]
EXAMPLES = DOCS.parent / "examples"
GALLERY = DOCS / "generated" / "gallery"
THEMES = ("images", "tomography", "mri", "signals", "operators", "regularizers", "gradients", "training", "bilevel")
"""Folders of examples/ in the order of the gallery's sections; others follow."""
SCRIPTS = "scripts"
COPY = DOCS / "generated" / "examples"
"""Examples run here, so that files they write do not lie beside them."""


def pictured() -> list[str]:
    """Examples that make pictures and run without arguments, those in folders of examples/, where what they import is
    installed."""
    found = []
    for path in sorted(EXAMPLES.glob("*/*.py")):
        missing = [name for name in imported(path) if importlib.util.find_spec(name) is None]
        if missing:
            print(f"{path.stem} cannot run, {', '.join(missing)} is not installed")
        else:
            found.append(path.stem)
    return sorted(found)


def imported(path: Path) -> list[str]:
    """The packages that an example imports."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return sorted({name.split(".")[0] for name in names})


def drawn() -> list[str]:
    """Those that run in this build."""
    wanted = os.environ.get("LEARNREG_GALLERY", "none")
    if wanted == "none":
        return []
    present = pictured()
    if wanted == "all":
        return present
    seed = int(os.environ.get("LEARNREG_SEED") or random.SystemRandom().randrange(2**30))
    found = sorted(random.Random(seed).sample(present, min(int(wanted), len(present))))
    print(f"LEARNREG_SEED={seed} draws the examples {', '.join(found)}")
    return found


def figures_of(block: Any, variables: dict[str, Any], configuration: dict[str, Any]) -> str:
    """Saves the figures that a block of an example has made and not shown before: matplotlib's own scraper knows those
    of pyplot alone."""
    seen = variables.setdefault("figures_seen", set())
    paths = []
    for value in variables["example_globals"].values():
        if isinstance(value, Figure) and id(value) not in seen:
            seen.add(id(value))
            paths.append(next(variables["image_path_iterator"]))
            value.savefig(paths[-1], dpi=160)
    return figure_rst(paths, configuration["src_dir"])


def copy_examples() -> None:
    """Into folders, each a section: those that lie in examples/ itself are scripts, the last section. Recipes make no
    pictures."""
    shutil.rmtree(COPY, ignore_errors=True)
    for path in EXAMPLES.rglob("*"):
        if path.suffix in (".py", ".rst") and path.parent.name != "recipes":
            loose = path.parent == EXAMPLES and path.suffix == ".py"
            folder = COPY / (SCRIPTS if loose else path.parent.relative_to(EXAMPLES))
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, folder / path.name)
    title = "Scripts"
    for page in GALLERY.rglob("*.rst"):  # of examples that are gone
        source = COPY / page.relative_to(GALLERY)
        if not source.with_suffix(".py").is_file() and not (page.name == "index.rst" and source.parent.is_dir()):
            page.unlink()
    (COPY / SCRIPTS / "GALLERY_HEADER.rst").write_text(f"{title}\n{'-' * len(title)}\n", encoding="utf-8")


def configuration() -> dict[str, Any]:
    """What sphinx-gallery is told."""
    copy_examples()
    names = drawn()
    return {
        "examples_dirs": ["generated/examples"],
        "gallery_dirs": ["generated/gallery"],
        "subsection_order": [f"generated/examples/{name}" for name in THEMES] + ["*", f"generated/examples/{SCRIPTS}"],
        "within_subsection_order": "FileNameSortKey",
        "filename_pattern": rf"/({'|'.join(map(re.escape, names))})\.py$" if names else r"/nothing\.py$",
        "image_scrapers": (figures_of,),
        "download_all_examples": False,
        "abort_on_example_error": True,
        "show_memory": False,
        "min_reported_time": 0,
        "remove_config_comments": True,
        "write_computation_times": False,
        "show_signature": False,
    }
