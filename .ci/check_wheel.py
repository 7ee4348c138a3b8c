"""Checks what a wheel installs: python check_wheel.py FILE.whl."""

from __future__ import annotations

import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def shipped() -> list[str]:
    """The files of the shipped models and their cards."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "learnreg" / "pretrained").glob("*.*"))


def problems(names: list[str], shipped: list[str]) -> list[str]:
    """Sentences about what is missing from, or too much in, a wheel with these files; ``shipped``: files of models."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    expected = {f"{package.replace('.', '/')}/__init__.py" for package in settings["packages"]} | {"learnreg/py.typed"}
    expected |= set(shipped)
    top_level = {name.split("/")[0] for name in names}
    found = [f"{name} is missing" for name in sorted(expected - set(names))]
    found += [
        f"{name} is installed at the top level"
        for name in sorted(top_level)
        if name != "learnreg" and not name.endswith(".dist-info")
    ]
    for package, folder in settings["package-dir"].items():
        for path in sorted((ROOT / folder).glob("*.py")):
            if f"{package.replace('.', '/')}/{path.name}" not in names:
                found.append(f"{folder}/{path.name} is missing")
    return found


def main() -> int:
    wheel = sys.argv[1]
    with zipfile.ZipFile(wheel) as archive:
        found = problems(archive.namelist(), shipped())
    for line in found:
        print(f"{Path(wheel).name}: {line}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
