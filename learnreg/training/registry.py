"""The names under which regularizers, forward operators and hypergradient methods are stored in files and given on the
command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from learnreg.errors import ConfigError
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.hypergradients.implicit import Implicit
from learnreg.hypergradients.piggyback import Piggyback
from learnreg.linop import LinearOperator
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts, Regularizer, TotalVariation

__all__ = [
    "METHODS",
    "REGULARIZERS",
    "build_operator",
    "build_regularizer",
    "describe_operator",
    "describe_regularizer",
]

METHODS: dict[str, Callable[[], HypergradientMethod]] = {
    "piggyback": Piggyback,
    "piggyback-interleaved": lambda: Piggyback(mode="interleaved"),
    "implicit": Implicit,
}
"""Every hypergradient method; ``learnreg accuracy`` measures them all."""

REGULARIZERS: dict[str, type[Regularizer]] = {
    "fields-of-experts": FieldsOfExperts,
    "tv": TotalVariation,
}
"""Each has ``config()`` and ``from_config(config)``; the parameters themselves are stored beside that."""


class _Storable(Protocol):
    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Regularizer: ...


def describe_regularizer(regularizer: Regularizer) -> dict[str, Any]:
    """Name and config of a regularizer; ConfigError when it cannot be stored."""
    for name, kind in REGULARIZERS.items():
        if type(regularizer) is kind:
            return {"name": name, "config": regularizer.config()}
    raise ConfigError(
        f"{type(regularizer).__name__} cannot be stored in a model file; registered are {', '.join(REGULARIZERS)}."
    )


def build_regularizer(description: Mapping[str, Any]) -> Regularizer:
    """The regularizer of that name and config, its parameters still to be loaded; ConfigError for an unknown name."""
    name = description.get("name")
    if name not in REGULARIZERS:
        raise ConfigError(f"regularizer {name!r} is unknown; expected one of {', '.join(REGULARIZERS)}.")
    return cast(_Storable, REGULARIZERS[name]).from_config(dict(description["config"]))


def describe_operator(operator: LinearOperator) -> dict[str, Any]:
    """What rebuilds a forward operator on images of any size; for one that cannot be stored, its class alone."""
    if type(operator) is Identity:
        return {"name": "identity", "config": {}}
    return {"name": None, "class": type(operator).__name__}


def build_operator(description: Mapping[str, Any], image_shape: tuple[int, ...]) -> LinearOperator:
    """The forward operator on images of this shape, (1, height, width)."""
    if description.get("name") == "identity":
        return Identity(image_shape)
    raise ConfigError(
        f"the file does not hold its forward operator ({description.get('class', 'unknown')}); pass operator=..."
    )
