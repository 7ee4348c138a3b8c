"""The names under which regularizers, forward operators and hypergradient methods are stored in files and given on the
command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from learnreg.errors import ConfigError
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.hypergradients.implicit import Implicit
from learnreg.hypergradients.piggyback import Piggyback
from learnreg.linear.operator import LinearOperator
from learnreg.operators import FanBeam2D, FanGeometry, Identity, ParallelBeam2D, ParallelGeometry
from learnreg.operators.tomography.geometry import Geometry
from learnreg.regularizers import (
    FieldsOfExperts,
    ImportedRidge,
    InputConvexNetwork,
    LearnedTotalGeneralizedVariation,
    LearnedTotalVariation,
    MultivariateExperts,
    Regularizer,
    RidgeRegularizer,
    Scaled,
    TotalVariation,
)

__all__ = [
    "BEAMS",
    "METHODS",
    "REGULARIZERS",
    "STORED",
    "build_operator",
    "build_regularizer",
    "describe_operator",
    "describe_regularizer",
    "stored_geometry",
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
    "ridge": RidgeRegularizer,
    "multivariate": MultivariateExperts,
    "learned-tv": LearnedTotalVariation,
    "learned-tgv": LearnedTotalGeneralizedVariation,
    "icnn": InputConvexNetwork,
}
"""Each has ``config()`` and ``from_config(config)``; the parameters themselves are stored beside that."""

STORED: dict[str, type[Regularizer]] = {**REGULARIZERS, "imported-ridge": ImportedRidge}
"""Those of model files: also what is not learned."""

_SCALED = "scaled"  # of any other


class _Storable(Protocol):
    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Regularizer: ...


def describe_regularizer(regularizer: Regularizer) -> dict[str, Any]:
    """Name and config of a regularizer; ConfigError when it cannot be stored."""
    if type(regularizer) is Scaled:
        return {"name": _SCALED, "config": {"base": describe_regularizer(regularizer.base)}}
    for name, kind in STORED.items():
        if type(regularizer) is kind:
            return {"name": name, "config": regularizer.config()}
    raise ConfigError(
        f"{type(regularizer).__name__} cannot be stored in a model file; registered are {', '.join(STORED)}."
    )


def build_regularizer(description: Mapping[str, Any]) -> Regularizer:
    """The regularizer of that name and config, its parameters still to be loaded; ConfigError for an unknown name."""
    name = description.get("name")
    if name == _SCALED:
        return Scaled(build_regularizer(description["config"]["base"]))
    if name not in STORED:
        raise ConfigError(f"regularizer {name!r} is unknown; expected one of {', '.join(STORED)}.")
    return cast(_Storable, STORED[name]).from_config(dict(description["config"]))


BEAMS: dict[str, tuple[type[ParallelBeam2D] | type[FanBeam2D], type[Geometry]]] = {
    "parallel-beam": (ParallelBeam2D, ParallelGeometry),
    "fan-beam": (FanBeam2D, FanGeometry),
}
"""Projectors, which are stored by their geometry."""


def describe_operator(operator: LinearOperator) -> dict[str, Any]:
    """What rebuilds a forward operator; for one that cannot be stored, its class alone."""
    if type(operator) is Identity:
        return {"name": "identity", "config": {}}
    for name, (kind, _) in BEAMS.items():
        if type(operator) is kind:
            return {"name": name, "config": dataclasses.asdict(operator.geometry), "kernel": operator.kernel}
    return {"name": None, "class": type(operator).__name__}


def stored_geometry(description: Mapping[str, Any]) -> Geometry | None:
    """The geometry of a projector; None for another operator."""
    name = description.get("name")
    if name not in BEAMS:
        return None
    values = dict(description["config"])
    return BEAMS[name][1](**{**values, "angles": tuple(values["angles"])})


def build_operator(description: Mapping[str, Any], image_shape: tuple[int, ...] | None = None) -> LinearOperator:
    """The forward operator; the identity on images of this shape, (1, height, width)."""
    name = description.get("name")
    if name == "identity":
        if image_shape is None:
            raise ConfigError("this model denoises images of any size: say which, image_shape=(1, height, width).")
        return Identity(image_shape)
    geometry = stored_geometry(description)
    if geometry is not None:
        return BEAMS[description["name"]][0].from_geometry(geometry, kernel=description["kernel"])
    raise ConfigError(
        f"the file does not hold its forward operator ({description.get('class', 'unknown')}); pass operator=..."
    )
