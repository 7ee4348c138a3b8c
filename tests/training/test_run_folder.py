"""Run folders: metrics, checkpoints that survive a kill, and the report."""

from __future__ import annotations

import logging
import math
import random
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import learnreg as lr
from learnreg.models.toml import to_toml
from learnreg.regularizers import TotalVariation
from learnreg.training.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("quick_starts")


def newest(folder: RunFolder) -> Path:
    return max(folder.checkpoint_folder.iterdir())


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and (a == b or (a != a and b != b))


# -------------------------------------------------------------------------------------------------------------- opening


@pytest.mark.parametrize("content", ["model.safetensors", "config.toml", "metrics.jsonl", "checkpoint"])
def test_a_run_is_not_overwritten(tmp_path: Path, content: str) -> None:
    (tmp_path / content).touch()
    with pytest.raises(lr.ConfigError, match=rf"already holds a run \({content}\).*--resume.*--out"):
        RunFolder(tmp_path)
    RunFolder(tmp_path, resume=True)


def test_a_folder_without_a_run_is_fine(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    assert RunFolder(tmp_path).rows() == []
    assert RunFolder(tmp_path / "new" / "run", resume=True).load_checkpoint() is None
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(lr.ConfigError, match="this is a file"):
        RunFolder(tmp_path / "file")
    with pytest.raises(lr.CheckpointError, match="cannot be made"), RunFolder(tmp_path / "file" / "run").held():
        pass


def test_leftovers_of_a_kill_are_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save_checkpoint({"step": 1})
    leftovers = [folder.checkpoint_folder / ".checkpoint.0123.tmp", tmp_path / ".model.safetensors.0123.tmp"]
    leftovers.append(tmp_path / "figures" / ".filters.pdf.0123.tmp")
    leftovers[-1].parent.mkdir()
    for path in leftovers:
        path.write_bytes(b"half")
    RunFolder(tmp_path, resume=True)
    assert all(path.exists() for path in leftovers), "only whoever holds the folder may change it"
    with RunFolder(tmp_path, resume=True).held():
        pass
    assert not any(path.exists() for path in leftovers)


# -------------------------------------------------------------------------------------------------------------- metrics


def test_rows_come_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log(
        {"step": 0, "loss": torch.tensor(1.5), "bound": math.inf, "status": lr.Status.CONVERGED, "path": tmp_path}
    )
    folder.log({"step": np.int64(1), "loss": float("nan"), "nested": {"a": (1, 2.5, None, True)}})
    expected = [
        {"step": 0, "loss": 1.5, "bound": None, "status": "CONVERGED", "path": str(tmp_path)},
        {"step": 1, "loss": None, "nested": {"a": [1, 2.5, None, True]}},
    ]
    assert folder.rows() == expected
    assert RunFolder(tmp_path, resume=True).rows() == expected


def test_a_torn_row_is_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log({"step": 0})
    with folder.metrics_path.open("a", encoding="utf-8") as file:
        file.write('{"step": 1, "lo')
    assert folder.rows() == [{"step": 0}]
    resumed = RunFolder(tmp_path, resume=True)
    resumed.log({"step": 1})
    assert resumed.rows() == [{"step": 0}, {"step": 1}]


def test_a_damaged_row_is_an_error(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics_path.write_text('{"step": 0}\n{"ste\n{"step": 2}\n', encoding="utf-8")
    with pytest.raises(lr.CheckpointError, match="line 2 is damaged"):
        folder.rows()


# ---------------------------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_comes_back(tmp_path: Path, generator: torch.Generator) -> None:
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    module(torch.rand(4, 3, generator=generator)).sum().backward()
    optimizer.step()
    state = {
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generator": generator.get_state(),
        "loss": [1.0, math.inf, -0.0, 1e-320],
        "nan": math.nan,
        "nothing": None,
        "empty": {"list": [], "tuple": (), "dict": {}, "text": "", "tensor": torch.zeros(0, 3)},
        "strided": torch.arange(12).reshape(3, 4).t(),
        "shared": [module.weight.detach(), module.weight.detach()],
        7: True,
    }
    folder = RunFolder(tmp_path)
    folder.save_checkpoint(state)
    found = RunFolder(tmp_path, resume=True).load_checkpoint()
    assert same({**state, "module": dict(state["module"])}, found)
    optimizer.load_state_dict(found["optimizer"])


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in range(5):
        folder.save_checkpoint({"step": step})
    assert len(list(folder.checkpoint_folder.iterdir())) == 2
    assert folder.load_checkpoint() == {"step": 4}


def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = RunFolder(tmp_path)
    for step in range(3):
        folder.log({"step": step})
        folder.save_checkpoint({"step": step, "x": torch.zeros(3)})
    damage(newest(folder))
    with caplog.at_level(logging.WARNING, logger="learnreg"):
        found = folder.load_checkpoint()
    assert found is not None
    assert found["step"] == 1
    assert "SHA-256" in caplog.text
    assert newest(folder).name in caplog.text
    assert folder.rows() == [{"step": 0}, {"step": 1}], "rows after the checkpoint are logged again"
    damage(min(folder.checkpoint_folder.iterdir()))
    with pytest.raises(lr.CheckpointError, match="every checkpoint is damaged"):
        folder.load_checkpoint()


def test_a_model_is_no_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save_model(TotalVariation())
    folder.checkpoint_folder.mkdir()
    folder.model_path.rename(folder.checkpoint_folder / "checkpoint-00000001.safetensors")
    with pytest.raises(lr.CheckpointError, match="not a checkpoint"):
        folder.load_checkpoint()


@pytest.mark.parametrize(("state", "place"), [({"a": {"b": {1, 2}}}, r"state\.a\.b"), ({"a": {1.5: 0}}, r"state\.a")])
def test_what_no_checkpoint_holds(tmp_path: Path, state: dict[Any, Any], place: str) -> None:
    with pytest.raises(lr.ConfigError, match=f"checkpoint {place}:"):
        RunFolder(tmp_path).save_checkpoint(state)


def test_a_kill_at_any_moment_leaves_a_checkpoint(tmp_path: Path, rotating_seed: int) -> None:
    code = f"""
import torch
from learnreg.training.run_folder import RunFolder
folder = RunFolder({str(tmp_path)!r}, resume=True)
step = 0
while True:
    folder.log({{"step": step}})
    folder.save_checkpoint({{"step": step, "x": torch.full((100_000,), float(step))}})
    print(step, flush=True)
    step += 1
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(random.Random(rotating_seed).randint(2, 12)):
        process.stdout.readline()
    process.kill()
    process.wait()
    process.stdout.close()
    folder = RunFolder(tmp_path, resume=True)
    found = folder.load_checkpoint()
    assert found is not None
    assert found["step"] >= 1
    assert torch.equal(found["x"], torch.full((100_000,), float(found["step"])))
    assert folder.rows() == [{"step": step} for step in range(found["step"] + 1)]


# -------------------------------------------------------------------------------------------------------- configuration


def test_toml_comes_back(tmp_path: Path) -> None:
    table = {
        "text": 'quote " backslash \\ tab \t newline \n bell \a delete \x7f ü 漢 😀',
        "integer": -(2**62),
        "float": 0.1,
        "whole": 2.0,
        "large": 1e300,
        "infinite": -math.inf,
        "flag": True,
        "list": [1, 2],
        "words": ("a", "b c"),
        "a key.with dots": "",
    }
    folder = RunFolder(tmp_path)
    folder.save_config({**table, "nothing": None})
    expected = {**table, "words": ["a", "b c"]}
    assert folder.load_config() == expected
    assert type(tomllib.loads(to_toml({"x": 2.0}))["x"]) is float
    with pytest.raises(lr.ConfigError, match=r"x=.*cannot be written"):
        to_toml({"x": {1}})


def test_a_damaged_config_is_an_error(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.load_config() is None
    folder.config_path.write_bytes(b"\xff = ")
    with pytest.raises(lr.CheckpointError, match=r"config\.toml: cannot be read"):
        folder.load_config()
