"""Cards of models: what one is, how it was made and measured, and what it is not for; TOML files, shown as Markdown.

Imports no torch: cards are listed without it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from learnreg.errors import CheckpointError, ConfigError
from learnreg.linear.paths import read_text
from learnreg.models.toml import to_toml

__all__ = ["MEASURED", "SCOPES", "TEXTS", "card_lines", "check_card", "headline", "read_card", "write_card"]

TEXTS = {
    "name": "name",
    "summary": "what it is",
    "data": "training data",
    "protocol": "protocol",
    "command": "made by",
    "weights_licence": "licence of the weights",
    "images_licence": "licence of the training images",
    "unsuitable": "not for",
    "version": "version of learnreg",
    "commit": "commit",
    "sha256": "SHA-256 of the file",
}
"""Fields of a card that are texts, with what they are called for people."""

_NUMBERS = {"cpu_hours": "CPU hours of training", "parameters": "parameters", "condition_number": "condition number"}
_OPTIONAL = ("condition_number",)
"""It does not exist for every model: a chain of problems has no energy."""

MEASURED = {
    "psnr": "PSNR, dB",
    "psnr_input": "input, dB",
    "ssim": "SSIM",
    "seconds": "CPU seconds per image",
    "error_bound": "largest error bound",
    "certified": "certified",
    "psnr_change": "PSNR change at 1e-5, dB",
}
"""Columns of what was measured at each noise level, with their titles."""

_MEASURED_TEXTS = ("on", "unit")
_MEASURED_NUMBERS = ("images", "seed", "tolerance", "change_images")

SCOPES = ("global", "local", "given weights", "no")
"""What error bounds may be certified for, see ``learnreg.result.KnownError``, the strongest first."""

_DIGEST = re.compile("[0-9a-f]{64}")


def read_card(path: Path) -> dict[str, Any]:
    """The card in a TOML file.

    Raises
    ------
    CheckpointError: missing, unreadable, fields that are missing, unknown or of the wrong type, the name of another
        file.
    """
    try:
        text = read_text(path, lambda trouble: CheckpointError(f"{path}: {trouble}"))
        card = tomllib.loads(text)
    except ValueError as error:  # no UTF-8, no TOML
        raise CheckpointError(f"{path}: not a card in TOML ({error}).") from error
    try:
        check_card(card)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if card["name"] != path.stem:
        raise CheckpointError(f"{path}: the card of {card['name']!r}, expected that of {path.stem!r}.")
    return card


def write_card(path: Path, card: Mapping[str, Any]) -> None:
    """Write a complete card, as ``read_card`` reads it.

    Raises
    ------
    ConfigError: fields that are missing, unknown or of the wrong type.
    """
    check_card(card)
    order = (*TEXTS, *_NUMBERS, "seeds", "measured")
    path.write_text(to_toml({key: card[key] for key in order if key in card}), encoding="utf-8")


def check_card(card: Mapping[str, Any], complete: bool = True) -> None:
    """Whether a card's fields are those of cards; with ``complete``, all of them.

    Raises
    ------
    ConfigError: fields that are missing, unknown or of the wrong type.
    """
    known = (*TEXTS, *_NUMBERS, "seeds", "measured")
    if unknown := sorted(set(card) - set(known)):
        raise ConfigError(f"card: unknown fields {', '.join(unknown)}; expected of {', '.join(known)}.")
    missing = [name for name in known if name not in card and name not in _OPTIONAL]
    if complete and missing:
        raise ConfigError(f"card: the fields {', '.join(missing)} are missing.")
    for name, value in card.items():
        if name in TEXTS:
            _expect(isinstance(value, str) and bool(value.strip()), name, value, "a text")
        elif name in _NUMBERS:
            _expect(_is_number(value) and value >= 0, name, value, "a number from 0")
        elif name == "seeds":
            _expect(isinstance(value, Sequence) and all(type(s) is int for s in value), name, value, "a list of seeds")
        else:
            _check_measured(value)
    if "sha256" in card:
        _expect(bool(_DIGEST.fullmatch(card["sha256"])), "sha256", card["sha256"], "64 hexadecimal digits")


def _check_measured(measured: Any) -> None:
    _expect(isinstance(measured, Mapping), "measured", measured, "a table")
    wanted = {*_MEASURED_TEXTS, *_MEASURED_NUMBERS, "noise", *MEASURED}
    if set(measured) != wanted:
        raise ConfigError(f"card: measured holds {', '.join(sorted(measured))}; expected {', '.join(sorted(wanted))}.")
    for name in _MEASURED_TEXTS:
        _expect(isinstance(measured[name], str), f"measured.{name}", measured[name], "a text")
    for name in _MEASURED_NUMBERS:
        _expect(_is_number(measured[name]), f"measured.{name}", measured[name], "a number")
    for name in ("noise", *MEASURED):
        column, is_entry = measured[name], SCOPES.__contains__ if name == "certified" else _is_number
        fits = isinstance(column, Sequence) and not isinstance(column, str) and len(column) == len(measured["noise"])
        fits = fits and len(column) > 0 and all(is_entry(value) for value in column)
        _expect(fits, f"measured.{name}", column, "a list with an entry for each noise level")


def _expect(fits: bool, name: str, value: object, expected: str) -> None:
    if not fits:
        raise ConfigError(f"card: {name} is {value!r}, expected {expected}.")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def headline(card: Mapping[str, Any]) -> str:
    """A line on a model: what it is, its size, and its PSNR at the noise levels."""
    measured = card["measured"]
    levels = ", ".join(
        f"{level:g}: {psnr:.2f}" for level, psnr in zip(measured["noise"], measured["psnr"], strict=True)
    )
    size = f"{card['parameters']:,} parameters"
    return f"{card['summary']} ({size}); PSNR in dB on {measured['on']} at noise in {measured['unit']}, {levels}"


def card_lines(card: Mapping[str, Any]) -> list[str]:
    """A card, or what there is of one, in Markdown, for people."""
    lines = [f"- {title}: {_shown(name, card[name])}" for name, title in TEXTS.items() if name in card]
    lines += [f"- {title}: {card[name]:,.4g}" for name, title in _NUMBERS.items() if name in card]
    if "seeds" in card:
        lines.append(f"- seeds: {', '.join(map(str, card['seeds']))}")
    if "measured" in card:
        lines += ["", *_measured_lines(card["measured"])]
    return lines


def _shown(name: str, text: str) -> str:
    return f"`{text}`" if name in ("command", "sha256", "commit") else text


def _measured_lines(measured: Mapping[str, Any]) -> list[str]:
    how = (
        f"{measured['images']} images of {measured['on']} at full size, means; the noise of image i has the seed "
        f"{measured['seed']} + i; reconstructed to a root-mean-square error of {measured['tolerance']:g}, certified "
        f"for the minimiser that is named. The PSNR change is the largest difference to an error of 1e-5, of "
        f"{measured['change_images']} images."
    )
    titles = [f"noise, {measured['unit']}", *MEASURED.values()]
    rows = zip(measured["noise"], *(measured[name] for name in MEASURED), strict=True)
    lines = [how, "", f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    return [*lines, *(f"| {level:g} | {' | '.join(map(_cell, MEASURED, row))} |" for level, *row in rows)]


def _cell(name: str, value: float | str) -> str:
    if isinstance(value, str):
        return value
    formats = {"psnr": ".2f", "psnr_input": ".2f", "ssim": ".4f", "psnr_change": ".4f"}
    return format(value, formats.get(name, ".2g"))
