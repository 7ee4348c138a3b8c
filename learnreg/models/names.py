"""Regularizers and forward operators as model files describe them: a name of the tables ``REGULARIZERS`` and
``OPERATORS``, and a config. Only classes of the tables are built; nothing is imported because a file says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from learnreg.errors import ConfigError
from learnreg.linear.operator import LinearOperator
from learnreg.operators import OPERATORS, FanBeam2D, ParallelBeam2D, StoredOperator
from learnreg.operators.tomography.geometry import Geometry
from learnreg.regularizers import REGULARIZERS, Regularizer

__all__ = [
    "build_operator",
    "build_regularizer",
    "describe_operator",
    "describe_regularizer",
    "stored_geometry",
]


def describe_regularizer(regularizer: Regularizer) -> dict[str, Any]:
    """Name and config of a regularizer, those in its config described likewise; ConfigError when it is not
    registered."""
    for name, kind in REGULARIZERS.items():
        if type(regularizer) is kind:
            config = regularizer.config().items()
            return {
                "name": name,
                "config": {k: describe_regularizer(v) if isinstance(v, Regularizer) else v for k, v in config},
            }
    own = type(regularizer).__name__
    raise ConfigError(
        f"{own} cannot be stored in a model file: it is not registered. Call "
        f"learnreg.regularizers.register(name, {own}) first. Registered are {', '.join(REGULARIZERS)}."
    )


def build_regularizer(description: Mapping[str, Any]) -> Regularizer:
    """The regularizer of that name and config, its parameters still to be loaded; ConfigError for a name that is not
    registered."""
    name = description.get("name")
    if name not in REGULARIZERS:
        raise ConfigError(
            f"regularizer {name!r} is not registered. If it is a class of your own, call "
            f"learnreg.regularizers.register({name!r}, cls) before learnreg.load. Registered are "
            f"{', '.join(REGULARIZERS)}."
        )
    config = dict(description["config"]).items()
    return REGULARIZERS[name].from_config({k: build_regularizer(v) if _describes(v) else v for k, v in config})


def _describes(value: object) -> bool:
    return isinstance(value, dict) and set(value) == {"name", "config"}


def describe_operator(operator: LinearOperator) -> dict[str, Any]:
    """What rebuilds a forward operator; for one that cannot be stored, its class alone."""
    for name, kind in OPERATORS.items():
        if cast(type, kind) is type(operator):
            return {"name": name, **cast(StoredOperator, operator).stored()}
    return {"name": None, "class": type(operator).__name__}


def stored_geometry(description: Mapping[str, Any]) -> Geometry | None:
    """The geometry of a projector; None for another operator."""
    kind: object = OPERATORS.get(description.get("name") or "")
    for projector in (ParallelBeam2D, FanBeam2D):
        if kind is projector:
            return projector.stored_geometry(description)
    return None


def build_operator(description: Mapping[str, Any], image_shape: tuple[int, ...] | None = None) -> LinearOperator:
    """The forward operator; the identity on images of this shape, (1, height, width)."""
    kind = OPERATORS.get(description.get("name") or "")
    if kind is None:
        raise ConfigError(
            f"the file does not hold its forward operator ({description.get('class', 'unknown')}); pass operator=..."
        )
    return kind.from_stored(dict(description), image_shape)
