"""Paths that no command can use: one line on stderr, and the exit code of what is wrong with them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.command_line import call

pytest.importorskip("skimage.metrics")

DATA = Path(__file__).parents[1] / "data"
MODEL, IMAGES = str(DATA / "models" / "fields-of-experts.safetensors"), str(DATA / "images")
COMMANDS: dict[str, tuple[tuple[str, ...], int]] = {
    "reconstruct a model": (("reconstruct", "ODD", IMAGES, "--out", "out"), 6),
    "reconstruct an input": (("reconstruct", MODEL, "ODD", "--out", "out"), 3),
    "evaluate a model": (("evaluate", "ODD", "--data", IMAGES), 6),
    "evaluate data": (("evaluate", MODEL, "--data", "ODD"), 3),
    "train with options": (("train", "denoise", "--config", "ODD", "--out", "out"), 2),
    "train on data": (("train", "denoise", "--data", "ODD", "--out", "out", "--updates", "1"), 3),
    "adapt a model": (("adapt", "ODD", "--task", "deblur", "--out", "out"), 6),
}


@pytest.mark.skipif(os.name != "posix", reason="pipes and links of POSIX")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("odd", ["pipe.png", "ring.png", "n" * 300 + ".png", "folder.png/absent.png", "\udcff.png"])
def test_odd_paths_end_with_one_line(command: str, odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.png")
    Path("ring.png").symlink_to("ring.png")
    Path("folder.png").mkdir()
    words, code = COMMANDS[command]
    result = call(*(odd if word == "ODD" else word for word in words))
    assert result.exit_code == code, result.stderr
    assert result.stderr.splitlines()[-1].startswith("learnreg: ")
    assert "Traceback" not in result.stderr
