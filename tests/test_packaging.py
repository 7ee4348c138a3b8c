"""What is installed, and what importing it costs."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import learnreg

ROOT = Path(__file__).resolve().parents[1]
OPTIONAL_MODULES = (
    *("PIL", "astra", "h5py", "huggingface_hub", "jinja2", "matplotlib", "numba", "odl", "pydicom", "pylops"),
    *("pytest", "scipy", "skimage", "tifffile"),
)

MODULES = ("learnreg", "learnreg.datasets", "learnreg.operators", "learnreg.testing")


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def packages_in(folder: str, name: str) -> set[str]:
    initials = (ROOT / folder).rglob("__init__.py")
    return {".".join((name, *path.parent.relative_to(ROOT / folder).parts)) for path in initials}


def test_listed_packages_match_the_folders(pyproject: dict[str, Any]) -> None:
    mapping = pyproject["tool"]["setuptools"]["package-dir"]
    found = set().union(*(packages_in(folder, name) for name, folder in mapping.items()))
    listed = pyproject["tool"]["setuptools"]["packages"]
    assert set(listed) == found
    assert len(listed) == len(set(listed))


def test_tests_are_no_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_the_package_is_typed() -> None:
    assert (ROOT / "learnreg" / "py.typed").is_file()


def test_shipped_models_are_installed_with_their_cards(pyproject: dict[str, Any]) -> None:
    spec = importlib.util.spec_from_file_location("check_wheel", ROOT / ".ci" / "check_wheel.py")
    assert spec is not None
    assert spec.loader is not None
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    shipped = [f"learnreg/pretrained/a.{suffix}" for suffix in ("safetensors", "toml")]
    for name in shipped:
        patterns = pyproject["tool"]["setuptools"]["package-data"]["learnreg"]
        assert any(Path(name).match(f"learnreg/{pattern}") for pattern in patterns)
    missing = check.problems([], shipped)
    assert [f"{name} is missing" for name in shipped] == [line for line in missing if "pretrained" in line]
    assert not [line for line in check.problems(shipped, shipped) if "pretrained" in line]


def test_version_is_the_same_everywhere(pyproject: dict[str, Any]) -> None:
    version = pyproject["project"]["version"]
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_import_loads_no_optional_dependency(tmp_path: Path) -> None:
    code = f"""
import importlib, sys
for name in {MODULES!r}:
    module = importlib.import_module(name)
    assert [getattr(module, each) for each in module.__all__]  # learnreg imports them when they are used
    print(name, *sorted({set(OPTIONAL_MODULES)!r} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(MODULES)


def test_every_name_of_the_package_says_where_it_is() -> None:
    assert {*learnreg._LAZY, *learnreg._ROOMS} >= set(learnreg.__all__) >= set(learnreg._LAZY)
    assert set(learnreg.__all__) <= set(dir(learnreg))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        learnreg.nonsense  # noqa: B018


@pytest.mark.parametrize("name", ["train", "test"])
def test_readme_commands_are_one_line_each(name: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(rf"^<!-- command: {name} -->\n```sh\n(.*?)\n```$", readme, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    assert "\n" not in blocks[0]
    assert "-c constraints.txt" in blocks[0]


RECIPE = ROOT / "recipe" / "recipe.yaml"
CONDA = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
"""Names of packages at conda-forge that are others than at PyPI."""


def test_the_conda_recipe_is_one() -> None:
    """By the parser of the tool that builds it, which refuses fields that the schema does not know."""
    stage0 = pytest.importorskip("rattler_build.stage0")
    text = RECIPE.read_text(encoding="utf-8")
    found = stage0.Stage0Recipe.from_yaml(text).to_dict()
    assert found["context"]["version"] == learnreg.__version__
    assert found["build"]["python"]["entry_points"] == ["learnreg = learnreg.__main__:main"]
    with pytest.raises(Exception, match="unknown"):
        stage0.Stage0Recipe.from_yaml(text.replace("requirements:", "requirement:"))


def test_the_conda_recipe_asks_for_what_the_package_asks_for(pyproject: dict[str, Any]) -> None:
    host, run, optional = re.findall(
        r"^  (?:host|run|run_constraints):\n((?:    - .*\n)+)", RECIPE.read_text("utf-8"), re.M
    )
    written = {re.sub(r"\s", "", line) for line in f"{run}{optional}".replace("    - ", "").splitlines()}
    project = pyproject["project"]
    extras = [line for name in ("fast", "images", "ct", "odl", "tensorboard")
              for line in project["optional-dependencies"][name]]  # fmt: skip
    asked = {re.sub(r"^[\w-]+", lambda m: CONDA.get(m[0], m[0]), line) for line in (*project["dependencies"], *extras)}
    assert asked - {"astra-toolbox>=2.3"} == written - {"python>=${{python_min}}"}, "ASTRA has a channel of its own"
    assert f'python_min: "{project["requires-python"].removeprefix(">=")}"' in RECIPE.read_text(encoding="utf-8")
    assert pyproject["build-system"]["requires"][0].replace(">", " >") in host
