"""Whether options have their types, lie in their ranges, and can be had on this machine."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_type_hints

import torch

from learnreg.errors import ConfigError
from learnreg.regularizers import letters

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["KINDS", "check_options", "device_of", "nearest"]


def device_of(name: str) -> torch.device:
    """The device of that name; ConfigError for one that torch does not know or that this machine lacks."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        if str(error).startswith("Expected one of"):  # a list of all that torch was ever built for
            hint = " Did you mean 'cuda'?" if letters(name).startswith(("gpu", "nvidia", "cuda")) else ""
            raise ConfigError(
                f"device={name!r}: expected cpu, cuda, cuda:1 and so on.{hint} Leave --device out for the CPU."
            ) from error
        reason = str(error).split(" device type at start")[0].splitlines()[0]
        raise ConfigError(f"device={name!r}: not available here ({reason}). Leave --device out for the CPU.") from error
    return device


def check_options(config: DataclassInstance) -> None:
    """ConfigError unless every option has its type and lies in its range."""
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        _check(field.name, getattr(config, field.name), hints[field.name], field.metadata)


def _check(key: str, value: Any, kind: Any, limits: Mapping[str, Any]) -> None:
    if type(value) is not kind:
        raise ConfigError(f"{key}={value!r}: got a {type(value).__name__}, expected {KINDS[kind]}.")
    choices = limits["choices"]
    if choices and value not in choices:
        raise ConfigError(f"{key}={value!r}: expected one of {', '.join(choices)}.{nearest(value, choices)}")
    if kind is str:
        if not value.strip():
            raise ConfigError(f"{key}={value!r}: expected a text that is not empty.")
        return
    above, at_least, at_most = limits["above"], limits["at_least"], limits["at_most"]
    limits_given = ((">", above), (">=", at_least), ("<=", at_most))
    expected = [f"{sign} {limit:g}" for sign, limit in limits_given if limit is not None]
    fits = (above is None or value > above) and (at_least is None or value >= at_least)
    if not (fits and (at_most is None or value <= at_most) and math.isfinite(value)):
        raise ConfigError(f"{key}={value!r}: expected {KINDS[kind]} {' and '.join(expected)}.")


KINDS = {str: "a text", int: "an integer", float: "a finite number", bool: "true or false"}


def nearest(word: str, words: Sequence[str]) -> str:
    found = difflib.get_close_matches(word, words, n=1)
    return f" Did you mean {found[0]!r}?" if found else ""
