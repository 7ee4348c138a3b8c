"""``learnreg train denoise`` from images to the report, and what follows from its model, on a few small images."""

from __future__ import annotations

import json
import signal
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import learnreg as lr
from learnreg.commands.cli import app
from learnreg.regularizers import RidgeRegularizer
from learnreg.training import start_tuning
from learnreg.training.progress import Progress
from learnreg.training.session import Session


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(5):
        rows, cols = np.mgrid[0:48, 0:56]
        image = (
            0.5 + 0.3 * np.sign(np.sin(rows / (5 + i))) * np.sign(np.cos(cols / 7)) + 0.01 * generator.random((48, 56))
        )
        Image.fromarray((255 * image.clip(0, 1)).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


def call(*arguments: object) -> Any:
    """One command line, in this process."""
    return CliRunner().invoke(app, [str(a) for a in arguments])


SMALL = ("--set", "patch=16", "--set", "patches=16", "--set", "samples=8", "--set", "filters=4", "--set", "size=3")


def test_train_evaluate_reconstruct(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = (*SMALL, "--set", "updates=6")
    trained = call("train", "denoise", "--data", photographs, "--minutes", 3.0, "--out", out, *settings)
    assert trained.exit_code == 0, trained.stderr
    steps = ("reading ", "training: 100 %", "tuning the weight", "reconstructing", "writing the report")
    assert [line for line in steps if line in trained.stderr] == [*steps]
    stored = tomllib.loads((out / "config.toml").read_text())
    made_with = stored.pop("made_with")
    assert {"filters", "size", "boundary"} <= stored.keys()
    assert not {"features", "positions", "convexity", "group_size"} & stored.keys()
    model = lr.load(out / "model.safetensors")
    assert model.config["training"] == stored
    assert model.config["made_with"] == made_with
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(str(made_with[name]) in page for name in ("learnreg", "commit", "processor", "threads"))
    assert "group_size" not in (out / "report.html").read_text(encoding="utf-8")
    present = {path.name for path in out.iterdir()}
    expected = {"model.safetensors", "config.toml", "metrics.jsonl", "report.html", "checkpoint", "figures"}
    assert expected <= present
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    audited = [row for row in rows if "certified" in row]
    assert audited
    assert audited[0]["certified"]
    evaluated = call("evaluate", out / "model.safetensors", "--data", photographs, "--json")
    assert evaluated.exit_code == 0, evaluated.stderr
    figures = json.loads(evaluated.stdout.strip().splitlines()[-1])
    assert set(figures) >= {"psnr", "ssim", "psnr_input", "n", "sigma", "seed", "seconds_per_image"}
    assert figures["n"] == 5
    assert figures["psnr"] > figures["psnr_input"]
    results = tmp_path / "results"
    reconstructed = call("reconstruct", out / "model.safetensors", photographs / "0.png", "--out", results)
    assert reconstructed.exit_code == 0, reconstructed.stderr
    assert (results / "0.png").exists()


@pytest.mark.usefixtures("quick_starts")
@pytest.mark.slow(seconds=9)
def test_weakly_convex_ridges_are_an_option(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_tuning, "_LARGEST_SEARCH", 1)
    out = tmp_path / "run"
    options = ("convexity=convex-nonconvex", "nonconvexity=0.7", "batch_size=2", "samples=2", "updates=2")
    settings = (*SMALL[:6], *(part for option in options for part in ("--set", option)))
    command = ("train", "denoise", "--regularizer", "ridge", "--data", photographs, "--minutes", 3.0)
    trained = call(*command, "--out", out, *settings)
    assert trained.exit_code == 0, trained.stderr
    model = lr.load(out / "model.safetensors")
    assert isinstance(model.regularizer, RidgeRegularizer)
    assert model.regularizer.nonconvexity == 0.7
    assert not model.regularizer.potential().convex
    assert model.reconstruct(torch.rand(1, 1, 12, 12), tolerance=1e-3, details=True).certified
    unknown = call(*command, "--out", tmp_path / "other", "--set", "convexity=concave")
    assert unknown.exit_code == 2
    assert "convex-nonconvex" in unknown.stderr


@pytest.mark.usefixtures("quick_starts")
@pytest.mark.slow(seconds=20)
def test_energies_that_are_not_convex_are_trained_for_local_minimisers(photographs: Path, tmp_path: Path) -> None:
    """Concave parts beyond the modulus of the data term."""
    out = tmp_path / "run"
    options = ["nonconvexity=2.0", "depth=0.9", "patch=12", "patches=4", "convolutions=2,4", "tune=false", "size=3"]
    options += ["convexity=convex-nonconvex", "batch_size=2", "updates=2", "audit_every=1"]
    settings = [part for option in options for part in ("--set", option)]
    command = ("train", "denoise", "--regularizer", "ridge", "--data", photographs, "--out", out, *settings)
    refused = call(*command)
    assert refused.exit_code == 5
    assert "minimiser='local'" in refused.stderr
    trained = call(*command, "--set", "minimiser=local")
    assert trained.exit_code == 0, trained.stderr
    found = lr.load(out).reconstruct(torch.rand(1, 1, 12, 12), tolerance=1e-3, details=True)
    assert (found.certified_scope, found.bound_kind) == ("local", "rigorous")
    assert not found.certified


def test_an_existing_run_is_not_overwritten(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / "checkpoint").mkdir(parents=True)
    refused = call("train", "denoise", "--data", photographs, "--out", out, *SMALL)
    assert refused.exit_code == 2
    assert "--resume" in refused.stderr


def test_an_interrupt_says_how_to_go_on(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number = signal.SIGTERM
    out = tmp_path / "a run"
    command = ("train", "denoise", "--data", photographs, "--out", out, "--regularizer", "TV", "--device", "cpu:0")
    settings = (*SMALL[:6], "--set", "updates=5")
    with monkeypatch.context() as patch:
        patch.setattr(
            Progress, "on_update", lambda self, row: signal.raise_signal(number) if row["step"] == 2 else None
        )
        ended = call(*command, *settings)
    assert ended.exit_code == 128 + number
    go_on = f"all updates are saved. Go on with: learnreg train denoise --resume --out '{out}'"
    assert ended.stderr.splitlines()[-1] == f"learnreg: interrupted; {go_on}"
    resumed = call("train", "denoise", "--resume", "--out", out, "--set", "updates=3")
    assert resumed.exit_code == 0, resumed.stderr
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]


def test_a_run_that_learned_nothing_leaves_nothing(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    command = ("train", "denoise", "--data", photographs, "--out", out, *SMALL)
    short = call(*command, "--minutes", 1e-9)
    assert short.exit_code == 2
    assert "before the first update" in short.stderr
    assert not out.exists()
    out.mkdir()
    (out / "notes.txt").touch()
    with monkeypatch.context() as patch:
        patch.setattr(Session, "evaluate", lambda self, indices: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            CliRunner().invoke(app, [str(part) for part in command], catch_exceptions=False)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
