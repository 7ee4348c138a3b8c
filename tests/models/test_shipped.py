"""Shipped models: found by their names, each the one that its card is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.shipped import ship, some_card

import learnreg as lr
from learnreg.models import shipped
from learnreg.models.cards import card_lines, check_card, headline, read_card, write_card
from learnreg.models.model import load, save_model
from learnreg.models.shipped import pretrained, sha256_of
from learnreg.regularizers import FieldsOfExperts, TotalVariation

LARGEST = 2**22


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """That of denoise-foe, the one model that is shipped."""
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path / "shipped")
    monkeypatch.chdir(tmp_path)
    return ship(tmp_path / "shipped", "denoise-foe", FieldsOfExperts(filters=2, size=3), sigma=0.1)


def test_every_shipped_model_has_its_card_and_loads() -> None:
    cards = pretrained()
    assert {path.stem for path in shipped._FOLDER.glob("*.toml")} == set(cards)
    for name, found in cards.items():
        assert (shipped._FOLDER / f"{name}.safetensors").stat().st_size < LARGEST
        assert sum(p.numel() for p in load(name).regularizer.parameters()) == found["parameters"]


def test_models_are_found_by_name(card: dict[str, Any]) -> None:
    assert pretrained() == {"denoise-foe": card}
    assert load("denoise-foe").config["sigma"] == 0.1
    for name in ("denoise-icnn", "Denoise-foe", "denoise"):
        with pytest.raises(lr.CheckpointError, match=r"Shipped models: denoise-foe\."):
            load(name)


def test_a_version_without_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path)
    assert pretrained() == {}
    with pytest.raises(lr.CheckpointError, match="none in this version"):
        load("denoise-foe")


def test_a_name_is_that_of_the_shipped_model_wherever_it_is_used(card: dict[str, Any]) -> None:
    """--out denoise-foe makes a folder of that name, which must not hide the model."""
    Path("denoise-foe").mkdir()
    assert load("denoise-foe").config["sigma"] == 0.1
    with pytest.raises(lr.CheckpointError, match="this is a folder"):
        load("./denoise-foe")
    save_model("denoise-foe/model.safetensors", TotalVariation(0.1))
    assert isinstance(load("denoise-foe").regularizer, FieldsOfExperts)
    for path in ("./denoise-foe", Path("denoise-foe"), str(Path.cwd() / "denoise-foe")):
        assert isinstance(load(path).regularizer, TotalVariation)


@pytest.mark.parametrize("at", [8, 300, -1])
def test_a_flipped_byte_is_refused(card: dict[str, Any], at: int) -> None:
    path = shipped._FOLDER / "denoise-foe.safetensors"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(lr.CheckpointError, match=r"SHA-256 is not the one in denoise-foe\.toml"):
        load("denoise-foe")


def test_another_sound_model_is_refused(card: dict[str, Any]) -> None:
    save_model(shipped._FOLDER / "denoise-foe.safetensors", TotalVariation(0.1))
    with pytest.raises(lr.CheckpointError, match="another model"):
        load("denoise-foe")


def test_a_model_without_a_card_is_refused(card: dict[str, Any]) -> None:
    (shipped._FOLDER / "denoise-foe.toml").unlink()
    for use in (pretrained, lambda: load("denoise-foe")):
        with pytest.raises(lr.CheckpointError, match="does not exist"):
            use()


def test_cards_come_back(tmp_path: Path) -> None:
    for changes in ({}, {"condition_number": 865.0}):
        card = some_card("a", **changes)
        write_card(tmp_path / "a.toml", card)
        assert read_card(tmp_path / "a.toml") == card
    (tmp_path / "a.toml").rename(tmp_path / "b.toml")
    with pytest.raises(lr.CheckpointError, match="the card of 'a', expected that of 'b'"):
        read_card(tmp_path / "b.toml")


@pytest.mark.parametrize("text", [b"\xff", b"a = ", b"a = 1", b""])
def test_other_files_are_no_cards(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.toml").write_bytes(text)
    with pytest.raises(lr.CheckpointError, match=r"a\.toml"):
        read_card(tmp_path / "a.toml")


MEASURED = some_card("a")["measured"]
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"author": "me"}, "unknown fields author"),
    "empty": ({"summary": " "}, "summary"),
    "not a text": ({"data": 3}, "data"),
    "negative": ({"cpu_hours": -1.0}, "cpu_hours"),
    "a truth": ({"parameters": True}, "parameters"),
    "seeds": ({"seeds": ["0"]}, "seeds"),
    "digest": ({"sha256": "0"}, "64 hexadecimal digits"),
    "measured": ({"measured": {}}, "expected certified"),
    "length": ({"measured": {**MEASURED, "psnr": [1.0]}}, "measured.psnr"),
    "kind": ({"measured": {**MEASURED, "certified": ["global", True]}}, "measured.certified"),
    "a truth in a column": ({"measured": {**MEASURED, "ssim": [True, 0.8]}}, "measured.ssim"),
    "no level": ({"measured": {k: [] if isinstance(v, list) else v for k, v in MEASURED.items()}}, "measured.noise"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_cards_are_refused(kind: str) -> None:
    changes, words = WRONG[kind]
    with pytest.raises(lr.ConfigError, match=words):
        check_card(some_card("a", **changes))


@pytest.mark.parametrize("field", list(some_card("a")))
def test_a_missing_field_is_named(field: str) -> None:
    card = {name: value for name, value in some_card("a").items() if name != field}
    with pytest.raises(lr.ConfigError, match=f"fields {field} are missing"):
        check_card(card)
    check_card(card, complete=False)


def test_cards_are_shown() -> None:
    card = some_card("a", condition_number=865.4, cpu_hours=4.25)
    text = "\n".join(card_lines(card))
    for name in ("summary", "data", "protocol", "command", "images_licence", "unsuitable", "version", "commit"):
        assert card[name] in text
    assert "CPU hours of training: 4.25" in text
    assert "| 25 | 28.75 | 20.17 | 0.8000 | 0.75 | 0.0008 | local | 0.0020 |" in text
    assert "28.75" in headline(card)


def test_digests_are_those_of_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
