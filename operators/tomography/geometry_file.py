"""Scan geometries from TOML files; docs/geometry.md documents every key."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from learnreg.errors import ConfigError, DataError
from learnreg.linear.paths import given_path, read_text
from learnreg.operators.tomography.geometry import FanGeometry, Geometry, ParallelGeometry, view_angles
from learnreg.operators.tomography.projectors import Backend, FanBeam2D, ParallelBeam2D, SymmetryOption
from learnreg.operators.tomography.rays import Kernel

__all__ = ["beam_of", "from_geometry", "read_geometry"]

_KINDS: dict[str, type[Geometry]] = {"parallel": ParallelGeometry, "fan": FanGeometry}
_UNITS = {"radian": 1.0, "degree": math.pi / 180.0}
_INTEGERS = ("image_size", "detectors")
_LENGTHS = ("pixel_size", "detector_pitch")
_FAN_LENGTHS = ("source_to_center", "source_to_detector")
_FAN_ONLY = (*_FAN_LENGTHS, "detector_shape")
_AS_GIVEN = ("detector_offset", "image_center", "dead_detectors", "detector_shape")
_OPTIONAL = (*_AS_GIVEN, "first_angle", "angular_range", "angle_unit")


def from_geometry(
    path: str | Path,
    *,
    kernel: Kernel | None = None,
    symmetry: SymmetryOption = "auto",
    backend: Backend = "auto",
) -> ParallelBeam2D | FanBeam2D:
    """The projector of the scan that a TOML file describes, in the file's unit of length (millimetres, say).

    Lengths are kept: an image x of attenuation per millimetre gives sinograms without a unit, and A doubles when all
    lengths do. Options as for :class:`ParallelBeam2D`; ``.geometry`` is the geometry.

    Parameters
    ----------
    path: the file.
    kernel, symmetry, backend: as of the projectors.

    Raises
    ------
    DataError: the file cannot be read. ConfigError: it is no TOML, a key is unknown, missing or has a wrong value.
    A warning: angles that look like degrees, or a detector that does not see the disc inscribed in the image.
    """
    geometry = read_geometry(path)
    geometry.warn_if_truncated()
    return beam_of(geometry).from_geometry(geometry, kernel=kernel, symmetry=symmetry, backend=backend)


def beam_of(geometry: Geometry) -> type[ParallelBeam2D] | type[FanBeam2D]:
    """The projector's class for a geometry."""
    return FanBeam2D if isinstance(geometry, FanGeometry) else ParallelBeam2D


def read_geometry(path: str | Path) -> Geometry:
    """The ParallelGeometry or FanGeometry of a TOML file; raises like :func:`from_geometry`."""
    path = given_path(path, "read_geometry(path)")
    try:
        table = tomllib.loads(read_text(path, lambda trouble: DataError(trouble.reason, path, trouble.hint)))
    except DataError:
        raise
    except (ValueError, RecursionError) as error:  # no TOML, integers of thousands of digits, deep nesting
        raise ConfigError(f"{path}: not a TOML file ({error}).") from error
    try:
        return _geometry(table)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _geometry(table: Mapping[str, Any]) -> Geometry:
    kind = table.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        got = "the key 'kind' is missing" if kind is None else f"kind={kind!r}"
        raise ConfigError(f"{got}; expected 'parallel' or 'fan'.{_suggestion(str(kind), _KINDS)}")
    lengths = _LENGTHS + _FAN_LENGTHS if kind == "fan" else _LENGTHS
    required = ("kind", "angles", *_INTEGERS, *lengths)
    known = tuple(key for key in required + _OPTIONAL if kind == "fan" or key not in _FAN_ONLY)
    for key in table:
        if key not in known:
            hint = " It belongs to kind='fan'." if key in _FAN_ONLY else _suggestion(key, known)
            raise ConfigError(f"the key {key!r} is unknown.{hint}")
    missing = [repr(key) for key in required if key not in table]
    if missing:
        raise ConfigError(f"kind={kind!r} needs the key {', '.join(missing)}.")
    numbers: dict[str, Any] = {key: _integer(table, key) for key in _INTEGERS}
    numbers |= {key: _number(table, key) for key in lengths}
    given = {key: table[key] for key in _AS_GIVEN if key in table}
    return _KINDS[kind](**numbers, angles=_angles(table, _KINDS[kind].full_turn), **given)


def _angles(table: Mapping[str, Any], turn: float) -> tuple[float, ...]:
    """Radians; a list, or a number of angles uniform over ``angular_range`` from ``first_angle``."""
    unit = table.get("angle_unit", "radian")
    if not isinstance(unit, str) or unit not in _UNITS:
        raise ConfigError(f"angle_unit={unit!r}: expected 'radian' or 'degree'.{_suggestion(str(unit), _UNITS)}")
    scale, angles = _UNITS[unit], table["angles"]
    if isinstance(angles, list):
        for key in ("first_angle", "angular_range"):
            if key in table:
                raise ConfigError(f"{key} needs a number of angles, not a list of them.")
        values = [_number({"angles": angle}, "angles") * scale for angle in angles]
        return _checked(values, turn, table)
    count = _integer(table, "angles")
    first = _number(table, "first_angle", 0.0) * scale
    range_ = _number(table, "angular_range", turn / scale) * scale
    found = [first + angle for angle in view_angles(count, range_, "angles")]
    if count > 1 and math.isfinite(found[0]) and found[0] == found[-1]:
        range_given, start = table.get("angular_range", turn / scale), table.get("first_angle", 0.0)
        raise ConfigError(f"angular_range={range_given:g} from {start:g}: all {count} views would have one angle.")
    return _checked(found, turn, table)


def _checked(angles: list[float], turn: float, table: Mapping[str, Any]) -> tuple[float, ...]:
    """Radians as they are; a warning where they look like degrees, unless the file says what they are."""
    if "angle_unit" in table and angles:
        return tuple(angles)
    return view_angles(angles, turn, "angles", fix='set angle_unit = "degree", or "radian" if they are')


def _integer(table: Mapping[str, Any], key: str) -> int:
    value = table[key]
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{key}={value!r}: expected a whole number.")
    return value


def _number(table: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{key}={value!r}: expected a number.")
    try:
        return float(value)
    except OverflowError as error:
        raise ConfigError(f"{key}: an integer of {len(str(abs(value)))} digits; expected a number.") from error


def _suggestion(word: str, words: Any) -> str:
    found = difflib.get_close_matches(word, list(words), n=1)
    return f" Did you mean {found[0]!r}?" if found else ""
