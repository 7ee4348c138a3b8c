"""``learnreg models``, and the names of shipped models where commands take a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command_line import call, refuse, succeed
from support.shipped import ship

from learnreg.models import shipped
from learnreg.regularizers import FieldsOfExperts

pytest.importorskip("skimage.metrics")

FAST = ("--tolerance", "1e-2")


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path / "shipped")
    monkeypatch.chdir(tmp_path)
    return ship(tmp_path / "shipped", "denoise-foe", FieldsOfExperts(filters=3, size=3), sigma=0.1)


def test_models_are_listed_and_cards_shown(card: dict[str, Any]) -> None:
    assert call("models").stdout.startswith("denoise-foe: a field of experts")
    assert card["unsuitable"] in call("models", "denoise-foe").stdout
    assert succeed("models") == {"denoise-foe": card}
    assert succeed("models", "denoise-foe") == card
    assert "Shipped models: denoise-foe." in refuse(2, "models", "denoise-icnn")


def test_no_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path)
    assert call("models").stdout == "none in this version\n"
    assert succeed("models") == {}


def test_commands_take_names(card: dict[str, Any], images: Path) -> None:
    np.save("a.npy", np.random.default_rng(0).random((12, 10)))
    for _ in range(2):  # the second time, there is a folder of that name
        (row,) = succeed("reconstruct", "denoise-foe", "a.npy", "--out", "denoise-foe", *FAST)["rows"]
        assert Path(row["output"]) == Path("denoise-foe/a.npy")
    assert succeed("evaluate", "denoise-foe", "--data", images, *FAST)["sigma"] == 0.1
    unknown = ("denoise-icnn", "a.npy", "--out", "o")
    assert "Shipped models: denoise-foe." in refuse(6, "reconstruct", *unknown)
