"""Commands as people mistype them: one line that says what is wrong and what to write, and an exit code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.command_line import call, refuse

import learnreg as lr
from learnreg.commands.options import DenoiseConfig, TomographyConfig
from learnreg.commands.sources import merge_config, training_options
from learnreg.models.toml import to_toml
from learnreg.operators import Identity
from learnreg.regularizers import TotalVariation

MISTYPED = {
    "a command": ("frobnicate", "No such command 'frobnicate'. Help: learnreg -h"),
    "a task": ("train denois", "Did you mean 'denoise'? Help: learnreg train -h"),
    "an option": ("train denoise --filter 3", "--filters"),
    "the option of another task": ("train denoise --angles 3", "learnreg train ct has it. Help: learnreg train den"),
    "no number": ("train denoise --minutes abc", "'--minutes': expected a number. Help: learnreg train denoise -h"),
    "no value": ("train denoise --set", "Option '--set' requires an argument."),
    "no model": ("reconstruct", "Expected: learnreg reconstruct MODEL INPUT... --out OUT. Help: learnreg reconstruct"),
    "no input": ("reconstruct m.safetensors --out x", "Missing argument 'INPUT...'. Expected: learnreg reconstruct"),
    "no data": ("evaluate m.safetensors", "Missing option '--data'. Expected: learnreg evaluate MODEL --data DATA."),
    "a graphics card": ("train denoise --device gpu", "Did you mean 'cuda'?"),
    "a file for a module": ("check-operator lab/ops.py:good", "not of its file: lab.ops:good"),
}


@pytest.mark.parametrize("kind", MISTYPED)
def test_one_line_says_what_to_write(kind: str) -> None:
    command, message = MISTYPED[kind]
    assert message in refuse(2, *command.split())


def test_no_command_shows_the_help() -> None:
    result = call()
    assert result.exit_code == 2
    assert "Usage: learnreg" in result.stdout + result.stderr
    assert call("--version").exit_code == 0


def test_the_model_comes_before_the_inputs(tmp_path: Path) -> None:
    model, image = tmp_path / "m.safetensors", tmp_path / "a.png"
    image.write_bytes(b"an image")
    lr.save_model(model, TotalVariation(0.1))
    message = refuse(2, "reconstruct", image, model, "--out", tmp_path / "out")
    assert f"the model first: learnreg reconstruct {model} {image}" in message


def test_an_unreadable_picture_is_named_without_words_of_python(tmp_path: Path) -> None:
    model = tmp_path / "m.safetensors"
    lr.save_model(model, TotalVariation(0.1), {"sigma": 0.1})
    (tmp_path / "a.png").write_bytes(b"no image")
    message = refuse(3, "evaluate", model, "--data", tmp_path)
    assert "damaged, truncated or not an image." in message
    assert not any(word in message for word in ("Error", "BytesIO", "0x"))


def test_a_run_of_another_task_is_called_one(tmp_path: Path) -> None:
    for kind, other, task in ((DenoiseConfig, TomographyConfig, "denoise"), (TomographyConfig, DenoiseConfig, "ct")):
        folder = tmp_path / task
        folder.mkdir()
        config = merge_config(kind, explicit={"out": str(folder)})
        (folder / "config.toml").write_text(to_toml(config.in_force()), encoding="utf-8")
        with pytest.raises(lr.ConfigError, match=rf"holds a run of learnreg train {task}\. Go on with: learnreg train"):
            training_options(other, None, [], {"out": str(folder)}, resume=True)


def test_without_a_limit_of_time_none_is_stored() -> None:
    options = merge_config(DenoiseConfig, explicit={"updates": 7}).in_force()
    assert "minutes" not in options
    assert merge_config(DenoiseConfig, stored=options) == merge_config(DenoiseConfig, explicit={"updates": 7})
    assert merge_config(DenoiseConfig, explicit={"updates": 7, "minutes": 2.0}).in_force()["minutes"] == 2.0


def test_nothing_to_resume_is_an_error(tmp_path: Path) -> None:
    pair = [(torch.rand(1, 8, 8), torch.rand(1, 8, 8))]
    problem = lr.LowerLevelProblem(Identity((1, 8, 8)), TotalVariation(0.1, 1e-2))
    for out in (tmp_path, tmp_path / "absent", None):
        with pytest.raises(lr.ConfigError, match=r"train\(resume=True\): no "):
            lr.train(problem, pair, out=out, updates=1, resume=True)
    assert not (tmp_path / "absent").exists()
