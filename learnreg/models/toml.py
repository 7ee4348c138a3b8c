"""Writing option tables as TOML; reading is ``tomllib``'s."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from learnreg.errors import ConfigError

__all__ = ["to_toml"]


def to_toml(table: Mapping[str, Any]) -> str:
    """One ``key = value`` line per entry; strings, booleans, numbers and lists of them, and at the end a table for each
    mapping. None is left out.

    Raises
    ------
    ConfigError: a value TOML has no word for.
    """
    given = {key: value for key, value in table.items() if value is not None}
    lines = [f"{_key(key)} = {_value(key, value)}\n" for key, value in given.items() if not isinstance(value, Mapping)]
    tables = [f"\n[{_key(key)}]\n{to_toml(value)}" for key, value in given.items() if isinstance(value, Mapping)]
    return "".join((*lines, *tables))


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if bare else _string(key)


def _value(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, Sequence):
        return f"[{', '.join(_value(key, item) for item in value)}]"
    raise ConfigError(f"{key}={value!r}: a {type(value).__name__} cannot be written to a TOML file.")


def _float(value: float) -> str:
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    text = repr(value)
    return text if any(letter in text for letter in ".e") else f"{text}.0"


def _string(text: str) -> str:
    # JSON escapes are TOML escapes, except that TOML also wants the delete character escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
