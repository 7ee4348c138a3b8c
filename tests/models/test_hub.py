"""Folders in the layout of the Hugging Face Hub, and the way there and back, with a stand-in for huggingface_hub."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.shipped import ship, some_card

import learnreg as lr
from learnreg.models import shipped
from learnreg.models.model import Model, save_model
from learnreg.models.shipped import sha256_of
from learnreg.operators import Blur, Identity
from learnreg.regularizers import FieldsOfExperts, TotalVariation

FILES = {"model.safetensors", "config.json", "README.md"}
CARD = {key: value for key, value in some_card("foe").items() if key not in ("name", "sha256")}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "model.safetensors"
    save_model(path, FieldsOfExperts(filters=2, size=3), {"sigma": 0.1})
    return path


class Hub:
    """Repositories in a folder, by what is called of huggingface_hub 2.4 and with its signatures."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made, self.failure = folder, {}, None

    def HfApi(self, *, library_name: str, library_version: str) -> Hub:
        return self

    def create_repo(self, repo_id: str, *, private: bool | None = None, exist_ok: bool = False) -> None:
        self._fail()
        self.made.setdefault(repo_id, private)

    def upload_folder(
        self, *, repo_id: str, folder_path: str, commit_message: str, allow_patterns: list[str]
    ) -> SimpleNamespace:
        assert set(allow_patterns) == FILES == {path.name for path in Path(folder_path).iterdir()}
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def snapshot_download(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        local_dir: Path | None = None,
        allow_patterns: list[str],
        library_name: str,
    ) -> str:
        self._fail()
        assert set(allow_patterns) == FILES
        if local_dir is not None:
            shutil.copytree(self.folder / repo_id, local_dir, dirs_exist_ok=True)
        return str(local_dir or self.folder / repo_id)

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", found)  # type: ignore[arg-type]
    return found


def front_matter(folder: Path) -> tuple[dict[str, Any], str]:
    """Of README.md, whose values are JSON, which YAML contains, and the text after it."""
    start, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert start == ""
    pairs = (line.split(": ", 1) for line in front.splitlines())
    return {key: json.loads(value) for key, value in pairs}, text


def parameters(model: Model) -> list[torch.Tensor]:
    return [*model.regularizer.state_dict().values(), *model.tensors.values()]


def blurring() -> lr.LowerLevelProblem:
    operator = Blur(torch.rand(3, 3), (1, 8, 8))
    return lr.LowerLevelProblem(
        operator, TotalVariation(0.1), ridge=0.1, data_term=lr.WeightedLeastSquares(torch.rand(1, 8, 8))
    )


GIVEN = {
    "file": lambda file: file,
    "text": str,
    "run folder": lambda file: file.parent,
    "model": lr.load,
    "regularizer": lambda file: lr.load(file).regularizer,
    "problem": lambda file: lr.LowerLevelProblem(Identity((1, 8, 8)), lr.load(file).regularizer),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_folders_come_back(kind: str, file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    assert lr.push(GIVEN[kind](file), folder) == str(folder)
    assert {path.name for path in folder.iterdir()} == FILES
    found, before = lr.load(lr.pull(folder)), lr.load(file)
    assert all(map(torch.equal, parameters(found), parameters(before)))
    if kind not in ("regularizer", "problem"):
        assert found.config == before.config
        assert sha256_of(folder / "model.safetensors") == sha256_of(file)
    config = json.loads((folder / "config.json").read_text())
    assert config["library_name"] == "learnreg"
    assert config["sha256"] == sha256_of(folder / "model.safetensors")
    assert config["regularizer"] == found.config["regularizer"]
    lr.push(GIVEN[kind](file), folder)  # again


def test_models_are_stored_as_they_were(tmp_path: Path) -> None:
    save_model(tmp_path / "a.safetensors", blurring(), {"sigma": 0.1, "note": "first"})
    model = lr.load(tmp_path / "a.safetensors")
    save_model(tmp_path / "b.safetensors", model)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    save_model(tmp_path / "b.safetensors", model, {"note": "second"})
    assert lr.load(tmp_path / "b.safetensors").config == {**model.config, "note": "second"}


def test_the_card_of_the_hub(file: Path, tmp_path: Path) -> None:
    lr.push(file, tmp_path / "foe", card=CARD)
    front, text = front_matter(tmp_path / "foe")
    assert (front["license"], front["library_name"], front["metrics"]) == ("mit", "learnreg", ["psnr", "ssim"])
    assert "image-denoising" in front["tags"]
    (index,) = front["model-index"]
    (result,) = index["results"]
    assert index["name"] == "foe"
    assert result["dataset"] == {"type": "set12", "name": "Set12"}
    assert {"type": "psnr", "value": 28.75, "name": "PSNR, noise 25 1/255"} in result["metrics"]
    assert CARD["unsuitable"] in text
    assert sha256_of(file) in text


def test_what_is_not_known_is_not_said(file: Path, tmp_path: Path) -> None:
    lr.push(file, tmp_path / "foe")
    front, text = front_matter(tmp_path / "foe")
    assert front["license"] == "unknown"
    assert "model-index" not in front
    assert "PSNR" not in text


def test_shipped_models_take_their_cards_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path / "shipped")
    card = ship(tmp_path / "shipped", "denoise-foe", FieldsOfExperts(filters=2, size=3))
    lr.push("denoise-foe", tmp_path / "copy")
    assert card["unsuitable"] in front_matter(tmp_path / "copy")[1]


def test_repositories(file: Path, hub: Hub, tmp_path: Path) -> None:
    assert lr.push(file, "hf://me/foe", card=CARD) == "https://hub/me/foe/commit/1"
    assert lr.push(file, "hf://me/open", private=False) == "https://hub/me/open/commit/1"
    assert hub.made == {"me/foe": True, "me/open": False}
    assert lr.load(lr.pull("hf://me/foe")).config["sigma"] == 0.1
    assert lr.pull("hf://me/foe", tmp_path / "here", revision="main") == tmp_path / "here"
    assert {path.name for path in (tmp_path / "here").iterdir()} == FILES
    assert front_matter(tmp_path / "here")[0]["model-index"][0]["name"] == "foe"


class ConnectError(Exception):
    """As that of HTTP libraries, which is no OSError."""


@pytest.mark.parametrize("kind", [OSError, ValueError, ConnectError])
def test_what_the_hub_refuses(kind: type[Exception], file: Path, hub: Hub) -> None:
    hub.failure = kind("401\nUnauthorized")
    for use in (lambda: lr.push(file, "hf://me/foe"), lambda: lr.pull("hf://me/foe")):
        with pytest.raises(lr.DataError, match=rf"hf://me/foe: {kind.__name__}: 401 Unauthorized.*hf auth login"):
            use()


def test_a_repository_of_something_else(hub: Hub) -> None:
    (hub.folder / "me" / "other").mkdir(parents=True)
    with pytest.raises(lr.CheckpointError, match=r"hf://me/other: there is no model\.safetensors"):
        lr.pull("hf://me/other")


def test_a_missing_package_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for use in (lambda: lr.push(file, "hf://me/foe"), lambda: lr.pull("hf://me/foe")):
        with pytest.raises(lr.ConfigError, match=r"pip install 'learnreg\[hub\]'"):
            use()


@pytest.mark.parametrize("place", ["hf://", "hf://me", "hf://me/", "hf:///foe", "hf://me/foe/main"])
def test_names_of_repositories(file: Path, hub: Hub, place: str) -> None:
    for use in (lambda: lr.push(file, place), lambda: lr.pull(place)):
        with pytest.raises(lr.ConfigError, match="expected hf://OWNER/NAME"):
            use()
    assert hub.made == {}


def test_models_that_got_there_otherwise_stay(file: Path, tmp_path: Path) -> None:
    """Such as that of a run."""
    data = file.read_bytes()
    lr.push(TotalVariation(0.1), tmp_path / "tv")
    for use in (lambda: lr.push(TotalVariation(0.1), file.parent), lambda: lr.pull(tmp_path / "tv", file.parent)):
        with pytest.raises(lr.ConfigError, match="choose another"):
            use()
    assert file.read_bytes() == data
    (file.parent / "config.json").write_text('{"library_name": "timm"}')
    with pytest.raises(lr.ConfigError, match="choose another"):
        lr.push(TotalVariation(0.1), file.parent)
    with pytest.raises(lr.ConfigError, match="this is a file"):
        lr.push(TotalVariation(0.1), file)


def test_what_cannot_be_pushed_or_pulled(file: Path, tmp_path: Path) -> None:
    with pytest.raises(lr.ConfigError, match="unknown fields author"):
        lr.push(file, tmp_path / "a", card={"author": "me"})
    with pytest.raises(lr.CheckpointError, match="does not exist"):
        lr.push(tmp_path / "absent.safetensors", tmp_path / "a")
    with pytest.raises(lr.CheckpointError, match="hf://OWNER/NAME"):
        lr.pull("me/foe")
    with pytest.raises(lr.ConfigError, match="revision"):
        lr.pull(file.parent, revision="main")
    assert not (tmp_path / "a").exists()


def test_a_folder_whose_file_is_another_is_refused(file: Path, tmp_path: Path) -> None:
    lr.push(file, tmp_path / "foe")
    save_model(tmp_path / "foe" / "model.safetensors", TotalVariation(0.1))
    with pytest.raises(lr.CheckpointError, match=r"SHA-256 is not the one in config\.json"):
        lr.load(tmp_path / "foe")
    (tmp_path / "foe" / "config.json").write_text("{")
    with pytest.raises(lr.CheckpointError, match="not JSON"):
        lr.pull(tmp_path / "foe")
    (tmp_path / "foe" / "config.json").write_text('{"architectures": ["ResNet"]}')  # of another library: no concern
    assert isinstance(lr.load(tmp_path / "foe").regularizer, TotalVariation)
