"""What tests of commands share: the command line, a model and images; and reports that are drawn sooner."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from support.entry_point import Result, run_entry_point

from learnreg.commands import mri, tomography
from learnreg.commands.image_outputs import png_bytes
from learnreg.models.model import save_model
from learnreg.regularizers import FieldsOfExperts
from learnreg.report import report
from learnreg.training import start_tuning


@pytest.fixture(autouse=True)
def _few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports that show one image: drawing four takes longer than the training of a test."""
    monkeypatch.setattr(report, "_MAX_IMAGES", 1)


@pytest.fixture
def quick(quick_starts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts and comparisons with total variation that need not be good."""
    monkeypatch.setattr(start_tuning, "_LARGEST_SEARCH", 1)
    for task in (mri, tomography):
        monkeypatch.setattr(task, "_BASELINE_PIXELS", 0)
        monkeypatch.setattr(task, "_COMPARISON_TOLERANCE", 5e-2)
    monkeypatch.setattr(tomography, "_BASELINE_WEIGHT", 1e-3)


@pytest.fixture
def learnreg(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Calls the entry point as the installed command does, in this process."""
    monkeypatch.delenv("LEARNREG_DEBUG", raising=False)
    return partial(run_entry_point, monkeypatch, capsys)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_model(path, FieldsOfExperts(filters=3, size=3), {"sigma": "15/255"})
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i, name in enumerate(("a.png", "b.png")):
        (folder / name).write_bytes(png_bytes(torch.linspace(0, 1, 12 * 10).reshape(1, 12, 10).roll(i, 1)))
    return folder
