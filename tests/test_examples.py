"""The examples and the README's example run as they are printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(arguments: list[str], folder: Path) -> str:
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("01_quickstart.py", [], "certified: True"),
        ("02_own_training_loop.py", ["2"], "certified True"),
        ("03_own_loss.py", [], "declares no gradient_lipschitz"),
    ],
)
def test_example_runs(name: str, arguments: list[str], expected: str, tmp_path: Path) -> None:
    assert expected in run([str(ROOT / "examples" / name), *arguments], tmp_path)


def test_readme_example_is_the_first_example(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (printed,) = re.findall(r"<!-- example -->\n```python\n(.*?)```", readme, flags=re.DOTALL)
    quickstart = (ROOT / "examples" / "01_quickstart.py").read_text(encoding="utf-8")
    assert printed.strip() == quickstart.split('"""', 2)[2].strip()
