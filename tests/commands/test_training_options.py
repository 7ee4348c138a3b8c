"""``learnreg train denoise`` from its command line: what training gets; options, names and files that are refused."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from support.command_line import complaint
from support.entry_point import assert_complaint

import learnreg as lr
from learnreg.commands import tasks
from learnreg.commands.options import DenoiseConfig
from learnreg.commands.tasks import Task
from learnreg.training.run_folder import RunFolder


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[DenoiseConfig, bool]]:
    """The calls of training, which does nothing but open its folder."""
    calls: list[tuple[DenoiseConfig, bool]] = []

    def run(task: Task, config: DenoiseConfig, resume: bool = False, force: bool = False) -> dict[str, Any]:
        calls.append((config, resume))
        RunFolder(config.out, resume).save_config(vars(config))
        print("progress", file=sys.stderr)
        return {"psnr": 28.5, "bound": float("inf"), "status": lr.Status.CONVERGED}

    monkeypatch.setattr(tasks, "run_task", run)
    return calls


def test_training_gets_its_options(learnreg: Any, runs: Any, tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text("seed = 3\npatch = 32\nminutes = 1\n", encoding="utf-8")
    found = learnreg(
        "train", "denoise", "--out", tmp_path / "run", "--config", file, "--set", "patch=48", "--set", "filters=6",
        "--minutes", "2", "--sigma", "15/255", "--method", "piggyback", "--json",
    )  # fmt: skip
    assert found.code == 0, found.err
    assert found.json == {"psnr": 28.5, "bound": None, "status": "CONVERGED"}
    assert "progress" in found.err
    config = DenoiseConfig(
        seed=3, patch=48, filters=6, minutes=2.0, sigma="15/255", method="piggyback", out=str(tmp_path / "run")
    )
    assert runs == [(config, False)]


def test_resuming(learnreg: Any, runs: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert learnreg("train", "denoise", "--out", out, "--set", "filters=6").code == 0
    assert_complaint(learnreg("train", "denoise", "--out", out), 2, "already holds a run", "--resume")
    moved = out.rename(tmp_path / "moved")
    assert learnreg("train", "denoise", "--out", moved, "--minutes", "9", "--resume").code == 0
    assert runs[-1] == (DenoiseConfig(filters=6, minutes=9.0, out=str(moved)), True)
    found = learnreg("train", "denoise", "--out", moved, "--resume", "--set", "filters=7")
    assert found.code == 2
    assert found.err.splitlines()[1:] == ["  filters: 6 in the run, 7 now"]
    assert learnreg("train", "denoise", "--out", moved, "--resume", "--force", "--set", "filters=7").code == 0
    assert runs[-1] == (DenoiseConfig(filters=7, minutes=9.0, out=str(moved)), True)
    assert learnreg("train", "denoise", "--out", f"{moved}/", "--resume").code == 0
    (moved / "config.toml").write_text("filters = ", encoding="utf-8")
    assert_complaint(learnreg("train", "denoise", "--out", moved, "--resume"), 6, "config.toml")


def test_a_folder_that_another_run_holds(learnreg: Any, runs: Any, tmp_path: Path) -> None:
    with RunFolder(tmp_path).held():
        for arguments in ((), ("--resume",)):
            if arguments:
                (tmp_path / "config.toml").touch()
            found = learnreg("train", "denoise", "--out", tmp_path, *arguments)
            assert_complaint(found, 2, "another run is writing there", f"process {os.getpid()} on")
    assert runs == []


def test_force_is_for_resuming(learnreg: Any, runs: Any, tmp_path: Path) -> None:
    assert_complaint(learnreg("train", "denoise", "--out", tmp_path / "run", "--force"), 2, "--force", "--resume")
    assert runs == []


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--sigma", "25"), ("25/255",)),
        (("--minutes", "-1"), ("minutes=-1.0", "> 0")),
        (("--set", "tolerance=-1"), ("tolerance=-1.0", "> 0")),
        (("--set", "minuts=1"), ("'minuts'", "Did you mean 'minutes'?")),
        (("--set", "angles=3"), ("'angles'", "learnreg train ct has it")),
        (("--regularizer", "tvv"), ("'tvv'", "Did you mean 'tv'?")),
        (("--regularizer", "tv", "--set", "filters=3"), ("tv has no such option", "fields-of-experts, tikhonov")),
        (("--regularizer", "icnn", "--boundary", "circular"), ("icnn has no such option", "reweighted have it")),
        (("--regularizer", "ridge", "--filters", "7"), ("ridge has no such option", "fields-of-experts")),
        (("--optimizer", "lbfgs", "--step-size", "1"), ("step_size=1.0", "adam and adaptive")),
        (("--filters", "2000000000"), ("filters=2000000000", "<= 1024")),
        (("--set", f"filters={'9' * 30}"), ("<= 1024",)),
        (("--size", "100000"), ("size=100000", "<= 64")),
        (("--regularizer", "icnn", "--features", "1024", "--layers", "64"), ("numbers to learn", "Choose fewer")),
        (("--size", "33", "--patch", "32"), ("size=33", "patch=32")),
        (("--device", "abacus"), ("device='abacus'", "Leave --device out")),
        (("--device", "meta"), ("device='meta'", "not available")),
        (("--seed", "-1"), ("seed=-1",)),
        (("--config", "absent.toml"), ("absent.toml", "does not exist")),
    ],
)
def test_bad_training_options(
    learnreg: Any, runs: Any, tmp_path: Path, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    assert_complaint(learnreg("train", "denoise", "--out", tmp_path / "run", *arguments), 2, *parts)
    assert runs == []
    assert not (tmp_path / "run").exists()


def test_missing_training_images(learnreg: Any, tmp_path: Path) -> None:
    found = learnreg("train", "denoise", "--data", tmp_path / "absent", "--out", tmp_path / "run")
    assert found.code == 3
    assert "absent: this folder does not exist" in complaint(found.err)


def test_a_run_to_go_on_with_has_to_be_there(learnreg: Any, runs: Any, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    for name in ("denoise", "other"):
        (folder / name / "checkpoint").mkdir(parents=True)
    (folder / "empty").mkdir()
    (tmp_path / "file").touch()
    for out, *parts in (
        (folder / "denoize", "there is no such folder", f"Did you mean --out '{folder / 'denoise'}'?"),
        (folder, "holds denoise, empty, other", str(folder / "denoise"), str(folder / "other")),
        (folder / "empty", "is empty", "leave --resume out"),
        (folder / "xyz" / "abc", "there is no such folder"),
        (tmp_path / "file", "this is a file"),
    ):
        assert_complaint(learnreg("train", "denoise", "--resume", "--out", out), 2, *parts)
        assert not (folder / "denoize").exists()
    assert runs == []


def test_names_that_no_file_can_have(learnreg: Any, runs: Any, model: Path, images: Path, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 300)
    commands = (
        ("train", "denoise", "--out", long),
        ("train", "denoise", "--out", long, "--resume"),
        ("train", "denoise", "--config", long),
        ("evaluate", long, "--data", images),
        ("evaluate", model, "--data", long),
        ("reconstruct", long, images / "a.png", "--out", tmp_path / "out"),
        ("reconstruct", model, long.with_suffix(".png"), "--out", tmp_path / "out"),
        ("reconstruct", model, images / "a.png", "--out", long),
        ("accuracy", "--out", long),
    )
    for command in commands:
        found = learnreg(*command)
        assert found.code in (2, 3, 6), command
        assert_complaint(found, found.code, "x" * 255)
    assert_complaint(learnreg("train", "denoise", "--out", tmp_path / os.fsdecode(b"\xff\xfe")), 2, "not UTF-8")


def test_a_file_nested_without_end(learnreg: Any, model: Path, images: Path, tmp_path: Path) -> None:
    deep = tmp_path / "deep.toml"
    deep.write_text("seed = " + "[" * 5000, encoding="utf-8")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_bytes(deep.read_bytes())
    assert_complaint(learnreg("train", "denoise", "--config", deep), 2, "deep.toml", "not a TOML file")
    assert_complaint(learnreg("train", "denoise", "--out", run, "--resume"), 6, "config.toml", "cannot be read")


def test_summaries_are_words(learnreg: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    summary = {"held_out": ["a", "b"], "certified": True, "bound": None, "psnr": 28.123456789, "n": 3, "none": []}
    monkeypatch.setattr(tasks, "run_task", lambda *_: summary)
    found = learnreg("train", "denoise", "--out", tmp_path / "run")
    expected = ["held_out: a, b", "certified: yes", "bound: none", "psnr: 28.1235", "n: 3", "none: none"]
    assert found.out.splitlines() == expected
