"""Regularizers, forward operators and data terms as model files describe them: a name of the tables ``REGULARIZERS``,
``OPERATORS`` and ``DATA_TERMS``, and a config. Only classes of the tables are built; nothing is imported because a file
says so.

Values of a config are what JSON knows, regularizers and operators, described likewise, and of operators tensors, which
stand in the file under a name that the description holds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from learnreg.errors import CheckpointError, ConfigError, LearnregError
from learnreg.linear.arguments import shown
from learnreg.linear.examination import is_own_class
from learnreg.linear.operator import LinearOperator
from learnreg.lower_level.constraints import Box
from learnreg.lower_level.data_terms import DataTerm
from learnreg.lower_level.likelihoods import DATA_TERMS
from learnreg.models.limits import check_sizes
from learnreg.models.tensor_files import plain
from learnreg.operators import OPERATORS, FanBeam2D, ParallelBeam2D, StoredOperator
from learnreg.operators.tomography.geometry import Geometry
from learnreg.regularizers import REGULARIZERS, Regularizer

__all__ = [
    "build_data_term",
    "build_operator",
    "build_regularizer",
    "check_operator",
    "check_rebuilt",
    "describe_data_term",
    "describe_limits",
    "describe_operator",
    "describe_regularizer",
    "open_limits",
    "operator_tensors",
    "stored_geometry",
]


def describe_regularizer(regularizer: Regularizer) -> dict[str, Any]:
    """Name and config of a regularizer, those in its config described likewise; ConfigError when it is not registered,
    or when its config says something that JSON does not know."""
    for name, kind in REGULARIZERS.items():
        if type(regularizer) is kind:
            return {"name": name, "config": _described(_config(regularizer), type(regularizer).__name__)}
    own = type(regularizer).__name__
    raise ConfigError(
        f"{own} cannot be stored in a model file: it is not registered. Call "
        f"learnreg.regularizers.register(name, {own}) first. Registered are {', '.join(REGULARIZERS)}."
    )


def _config(regularizer: Regularizer) -> dict[str, Any]:
    """What ``config`` says, a method or a property; nothing where the constructor takes nothing."""
    said: Any = {} if type(regularizer).config is Regularizer.config else regularizer.config
    config = said() if callable(said) else said
    if not isinstance(config, Mapping):
        raise ConfigError(f"{type(regularizer).__name__}.config is a {type(config).__name__}, expected a dict.")
    return dict(config)


def _described(value: Any, owner: str) -> Any:
    if isinstance(value, Regularizer):
        return describe_regularizer(value)
    if isinstance(value, Mapping):
        return {str(key): _described(item, owner) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_described(item, owner) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(
        f"{owner} cannot be stored: its config holds a {type(value).__name__}, expected numbers, texts, lists and "
        "dicts of these, and regularizers; tensors belong in parameters or buffers."
    )


def build_regularizer(description: Mapping[str, Any], numbers: int | None = None) -> Regularizer:
    """The regularizer of that name and config, its parameters still to be loaded.

    numbers: how many the tensors of its file hold, beyond which no size of a family of this package can be.

    Raises
    ------
    ConfigError: a name that is not registered, or such a size.
    """
    name = description.get("name")
    if not isinstance(name, str) or name not in REGULARIZERS:
        raise ConfigError(
            f"regularizer {name!r} is not registered. If it is a class of your own, call "
            f"learnreg.regularizers.register({name!r}, cls) before learnreg.load. Registered are "
            f"{', '.join(REGULARIZERS)}."
        )
    config = dict(description["config"])
    if numbers is not None and is_own_class(REGULARIZERS[name]):
        check_sizes(config, numbers)
    return REGULARIZERS[name].from_config({key: _built(value, numbers) for key, value in config.items()})


def _built(value: Any, numbers: int | None) -> Any:
    if isinstance(value, list):
        return [_built(item, numbers) for item in value]
    return build_regularizer(value, numbers) if _describes(value) else value


def _describes(value: object) -> bool:
    return isinstance(value, dict) and set(value) == {"name", "config"}


def check_rebuilt(regularizer: Regularizer, description: Mapping[str, Any]) -> None:
    """ConfigError unless a regularizer of somebody's own class can be rebuilt from what its ``config`` says."""
    if is_own_class(type(regularizer)):
        return
    name = type(regularizer).__name__
    try:
        rebuilt = build_regularizer(json.loads(json.dumps(description))).state_dict()
    except LearnregError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{name} cannot be stored: its config does not rebuild it ({type(error).__name__}: {error}). config() "
            "returns the keywords of the constructor, unless from_config says otherwise."
        ) from error
    shapes = [{key: tuple(t.shape) for key, t in state.items()} for state in (regularizer.state_dict(), rebuilt)]
    if wrong := sorted(k for k in {*shapes[0], *shapes[1]} if shapes[0].get(k) != shapes[1].get(k)):
        raise ConfigError(
            f"{name} cannot be stored: rebuilt from its config, {wrong[0]} has the shape {shapes[1].get(wrong[0])} "
            f"instead of {shapes[0].get(wrong[0])}; an argument is missing in config()."
        )


# ---- operators -------------------------------------------------------------------------------------------------------

_PREFIX = "operator"


def describe_operator(operator: LinearOperator, prefix: str = _PREFIX) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What rebuilds a forward operator, and the tensors that takes, by their names in the file; for one that cannot be
    stored, or is made of such, its class alone."""
    tensors: dict[str, Tensor] = {}

    def packed(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            tensors[name] = value
            return {_TENSOR: name}
        if isinstance(value, LinearOperator):
            description, own = describe_operator(value, name)
            tensors.update(own)
            if description["name"] is None:
                raise _NotStoredError
            return {**description, "domain_shape": list(value.domain_shape)}
        if isinstance(value, dict):
            return {key: packed(item, f"{name}.{key}") for key, item in value.items()}
        return value

    for name, kind in OPERATORS.items():
        if cast(type, kind) is type(operator):
            try:
                stored = cast(StoredOperator, operator).stored()
                return {"name": name, **{key: packed(v, f"{prefix}.{key}") for key, v in stored.items()}}, tensors
            except _NotStoredError:
                break
    return {"name": None, "class": type(operator).__name__}, {}


class _NotStoredError(Exception):
    """A part of an operator has no name."""


_TENSOR = "tensor"


def operator_tensors(description: Mapping[str, Any]) -> set[str]:
    """The names of the tensors that a description refers to."""
    found: set[str] = set()
    for value in description.values():
        if isinstance(value, Mapping):
            found |= {str(value[_TENSOR])} if set(value) == {_TENSOR} else operator_tensors(value)
    return found


def _kind(description: Mapping[str, Any]) -> type[StoredOperator] | None:
    name = description.get("name")
    return OPERATORS.get(name) if isinstance(name, str) else None


def check_operator(description: Any) -> None:
    """What of an operator's description can be checked without the work of building it.

    Raises
    ------
    ConfigError: not a table, or a projector with a geometry that is none.
    """
    if not isinstance(description, Mapping) or not isinstance(description.get("name"), (str, type(None))):
        raise ConfigError(f"its operator is {shown(description)}, expected a name and a config.")
    stored_geometry(description)


def stored_geometry(description: Mapping[str, Any]) -> Geometry | None:
    """The geometry of a projector; None for another operator."""
    kind: object = _kind(description)
    for projector in (ParallelBeam2D, FanBeam2D):
        if kind is projector:
            return projector.stored_geometry(description)
    return None


def build_operator(
    description: Mapping[str, Any],
    image_shape: tuple[int, ...] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> LinearOperator:
    """The forward operator; the identity on images of this shape, (1, height, width). ``tensors``: of the file.

    Raises
    ------
    ConfigError: the file does not hold it. CheckpointError: what it holds is none.
    """

    def unpacked(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if set(value) == {_TENSOR}:
            return dict(tensors or {})[value[_TENSOR]]
        if "name" in value and "domain_shape" in value:
            return build_operator(value, tuple(value["domain_shape"]), tensors)
        return {key: unpacked(item) for key, item in value.items()}

    kind = _kind(description)
    if kind is None:
        raise ConfigError(
            f"the file does not hold its forward operator ({description.get('class', 'unknown')}); pass operator=..."
        )
    try:
        return kind.from_stored({key: unpacked(item) for key, item in description.items()}, image_shape)
    except LearnregError:
        raise
    except Exception as error:  # constructors raise many kinds when a description is not theirs
        raise CheckpointError(
            f"the model's operator {description['name']!r} cannot be rebuilt ({type(error).__name__}: {error})."
        ) from error


def describe_data_term(data_term: DataTerm) -> dict[str, Any]:
    """Name and config of a data term; ConfigError when it is of none of this package."""
    for name, kind in DATA_TERMS.items():
        if type(data_term) is kind:
            return {"name": name, **data_term.config()}
    raise ConfigError(f"the data term {type(data_term).__name__} cannot be stored in a model file.")


def build_data_term(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> DataTerm:
    """The data term that a description is of, with its tensors."""
    config = dict(description)
    name = config.pop("name")
    if name not in DATA_TERMS:
        raise ConfigError(f"data term {name!r} is unknown; expected one of {', '.join(DATA_TERMS)}.")
    return DATA_TERMS[name].from_config(config, tensors)


def describe_limits(box: Box) -> list[float | None]:
    """The two limits of all pixels, those that are infinite as None."""
    if box.lower.numel() != 1 or box.upper.numel() != 1:
        raise ConfigError("a Box whose limits differ between pixels cannot be stored in a model file.")
    limits: list[float | None] = plain([float(box.lower), float(box.upper)])
    return limits


def open_limits(limits: list[float | None]) -> tuple[float, float]:
    """The limits that ``describe_limits`` made of a box."""
    lower, upper = limits
    return -math.inf if lower is None else lower, math.inf if upper is None else upper
