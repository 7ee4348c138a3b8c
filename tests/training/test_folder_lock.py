"""One run at a time in a folder, whoever began first; a killed one is not in the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import learnreg as lr
from learnreg.training.folder_lock import LOCK_NAME, check_free, locked
from learnreg.training.run_folder import RunFolder

HOLDER = """
import sys, time
from pathlib import Path
from learnreg.training.folder_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_another_process_is_named_and_one_that_was_killed_is_not_in_the_way(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        (tmp_path / ".model.safetensors.0123.tmp").write_bytes(b"the other run's")
        with pytest.raises(lr.ConfigError, match=rf"process {holder.pid} on .*another --out"), folder.held():
            pass
        with pytest.raises(lr.ConfigError, match=f"process {holder.pid}"):
            check_free(tmp_path)
        assert (tmp_path / ".model.safetensors.0123.tmp").exists()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    check_free(tmp_path)
    with folder.held():
        assert f"process {os.getpid()} " in (tmp_path / LOCK_NAME).read_text(encoding="utf-8")
        assert not (tmp_path / ".model.safetensors.0123.tmp").exists()


def test_within_one_process_too(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    with first.held(), first.held(), pytest.raises(lr.ConfigError, match=f"process {os.getpid()}"), second.held():
        pass
    with second.held():
        pass


def test_of_two_runs_that_begin_at_once_one_goes_on(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with first.held():
        first.save_config({"seed": 1})
        first.log({"step": 1})
    with pytest.raises(lr.ConfigError, match="already holds a run"), second.held():
        pass
    assert first.rows() == [{"step": 1}]
    assert first.load_config() == {"seed": 1}


def _fail(folder: RunFolder, learned: bool) -> None:
    with folder.held():
        folder.save_config({"seed": 1})
        folder.save_checkpoint({"updates": 0})
        if learned:
            folder.log({"step": 1})
        raise ZeroDivisionError


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("before", ["no folder", "an empty one", "notes"])
def test_a_run_without_a_row_leaves_the_folder_as_it_was(tmp_path: Path, before: str, learned: bool) -> None:
    path = tmp_path / "run"
    if before != "no folder":
        path.mkdir()
    if before == "notes":
        (path / "notes.txt").touch()
    with pytest.raises(ZeroDivisionError):
        _fail(RunFolder(path), learned)
    kept = {entry.name for entry in path.iterdir()} if path.exists() else None
    if learned:
        assert kept is not None
        assert {"config.toml", "metrics.jsonl", "checkpoint"} <= kept
    else:
        assert kept == {"no folder": None, "an empty one": set(), "notes": {"notes.txt"}}[before]


def test_a_folder_that_nobody_may_write_to(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).mkdir()
    with pytest.raises(lr.CheckpointError, match="cannot be made or changed"), locked(tmp_path):
        pass
