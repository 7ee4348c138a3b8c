"""Where the file of a model lies: a path, a folder in one of two layouts, or a shipped model by its name; with the
SHA-256 that a card or a ``config.json`` states of it.

Imports no torch: cards are listed without it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from learnreg.errors import CheckpointError
from learnreg.linear.paths import file_trouble, read_text
from learnreg.models.cards import read_card

__all__ = ["HUB_CONFIG", "LIBRARY", "MODEL_FILE", "file_of", "hub_config", "is_shipped", "pretrained", "sha256_of"]

LIBRARY, MODEL_FILE, HUB_CONFIG = "learnreg", "model.safetensors", "config.json"
_FOLDER = Path(__file__).parents[1] / "pretrained"


def pretrained() -> dict[str, dict[str, Any]]:
    """The cards of the shipped models by name; ``load(name)`` loads one, ``learnreg models`` shows them.

    A card says "summary", "data", "protocol", "command", "seeds", "cpu_hours", "parameters", "condition_number" (an
    *estimate*; absent where there is none), "weights_licence", "images_licence", "unsuitable" (what the model is not
    for), "version", "commit" and "sha256" of the file; "measured" holds "on", "images", "seed", "tolerance", and lists
    with an entry for each of the "noise" levels in "unit": "psnr", "psnr_input", "ssim", "seconds" (CPU, for each
    image), "error_bound" (the largest), "certified" (all of them: "global", for a "local"
    minimiser, or "no"), and "psnr_change" (the largest, at 1e-5, of
    "change_images" images).

    Raises
    ------
    CheckpointError: a card that is missing or damaged.
    """
    return {name: read_card(_FOLDER / f"{name}.toml") for name in _names()}


def is_shipped(path: str | Path) -> bool:
    """Whether this is the name of a shipped model. Names are texts; a ``Path`` is never one."""
    return isinstance(path, str) and path in _names()


def file_of(path: str | Path) -> Path:
    """The file of a model: ``path`` itself, ``model.safetensors`` in that folder, or of a shipped model, whose name
    stands for it whatever lies in the working directory ("./NAME" is a path).

    Raises
    ------
    CheckpointError: a name that is not shipped; a file that is not the one that its card, or the ``config.json`` of a
        folder in the Hub's layout, is about.
    """
    if is_shipped(path):
        file, card = _FOLDER / f"{path}.safetensors", _FOLDER / f"{path}.toml"
        _check_digest(file, read_card(card)["sha256"], card)
        return file
    file = Path(path)
    if os.path.isfile(file / MODEL_FILE):
        if (stated := hub_config(file)) is not None:
            _check_digest(file / MODEL_FILE, stated.get("sha256"), file / HUB_CONFIG)
        return file / MODEL_FILE
    if isinstance(path, Path) or os.path.lexists(file) or file.suffix or file.name != path:
        return file
    known = ", ".join(_names()) or "none in this version"
    raise CheckpointError(f"{path}: neither a file nor a shipped model. Shipped models: {known}.")


def hub_config(folder: Path) -> dict[str, Any] | None:
    """What the ``config.json`` of a folder in the Hub's layout says; None without one, and where it is of another
    library.

    Raises
    ------
    CheckpointError: it cannot be read.
    """
    path = folder / HUB_CONFIG
    if not os.path.lexists(path):
        return None
    try:
        found = json.loads(read_text(path, lambda trouble: CheckpointError(f"{path}: {trouble}")))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON ({error}). Download the folder again, or load its file.") from error
    return found if isinstance(found, dict) and found.get("library_name") == LIBRARY else None


def sha256_of(file: Path) -> str:
    """SHA-256 of the bytes of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _names() -> list[str]:
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def _check_digest(file: Path, expected: object, source: Path) -> None:
    if trouble := file_trouble(file):
        raise CheckpointError(f"{file}: {trouble}")
    if sha256_of(file) != expected:
        raise CheckpointError(
            f"{file}: its SHA-256 is not the one in {source.name}: damaged, or another model. Install learnreg, or "
            "download the folder, again."
        )
