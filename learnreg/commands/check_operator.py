"""``learnreg check-operator``: find the operator, examine it, and say what each property measured."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from learnreg.errors import ConfigError, LearnregError, OperatorError
from learnreg.testing import Report, examine_operator
from learnreg.testing.report import broken

__all__ = ["check_operator_command", "load_operator", "report_as_dict"]

_PACKAGE = str(Path(__file__).resolve().parents[1])
_DTYPES = {"float64": torch.float64, "float32": torch.float32}


def check_operator_command(target: str, dtype: str = "float64") -> Report:
    """The report on the operator that ``package.module:factory`` makes; the property "interface" fails when it makes
    none.

    Raises
    ------
    ConfigError: the target cannot be found, or another dtype.
    """
    if dtype not in _DTYPES:
        raise ConfigError(f"--dtype {dtype}: expected one of {', '.join(_DTYPES)}.")
    try:
        return examine_operator(load_operator(target), _DTYPES[dtype])
    except OperatorError as error:  # no operator at all
        return Report(target, (broken(error.failed_property, str(error).removesuffix(".")),))


def load_operator(target: str) -> Any:
    """What ``package.module:name`` is, called without arguments if it is a class or a function. Modules are found from
    the current directory, too.

    Raises
    ------
    ConfigError: no such module or name. OperatorError: the import or the factory raises.
    """
    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        raise ConfigError(f"{target!r}: expected package.module:factory, such as mylab.operators:make_operator.")
    if module_name.endswith(".py") or "/" in module_name:
        module = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise ConfigError(f"{target}: expected the name of a module, not of its file: {module}:{name}.")
    found: Any = _import(module_name)
    for part in name.split("."):
        if not hasattr(found, part):
            public = [n for n in dir(found) if not n.startswith("_")]
            raise ConfigError(f"{target}: {module_name} has no {part!r}; it has {', '.join(public[:12])}.")
        found = getattr(found, part)
    return _made(found) if _is_factory(found) else found


def _import(name: str) -> Any:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise ConfigError(
                f"{name}: no such module, neither installed nor in {here}. Run the command where the module is."
            ) from error
        raise OperatorError(f"{name}: its import of {error.name} failed; install it.", "interface") from error
    except Exception as error:
        raise OperatorError(f"{name}: importing it raised {_described(error)}", "interface") from error


def _is_factory(found: Any) -> bool:
    return inspect.isclass(found) or (callable(found) and not hasattr(found, "domain_shape"))


def _made(factory: Callable[[], Any]) -> Any:
    try:
        return factory()
    except LearnregError as error:
        raise OperatorError(f"the factory raised {error}", "interface") from error
    except Exception as error:
        needed = _needed_arguments(factory)
        hint = f" It is called without arguments, but needs {', '.join(needed)}." if needed else ""
        raise OperatorError(f"the factory raised {_described(error)}{hint}", "interface") from error


def _needed_arguments(factory: Callable[[], Any]) -> list[str]:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]


def _described(error: Exception) -> str:
    """The error with the line of the user's code where it arose."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
    place = next((f for f in reversed(frames) if not f.filename.startswith(("<", _PACKAGE))), None)
    return f"{text} ({os.path.basename(place.filename)}, line {place.lineno})." if place else f"{text}."


def report_as_dict(report: Report) -> dict[str, Any]:
    """What --json prints; numbers that are not finite become null."""
    properties = [dataclasses.asdict(found) for found in report]
    for row in properties:
        row["value"] = row["value"] if math.isfinite(row["value"]) else None
    return {
        "ok": report.ok,
        "failed_property": None if report.failed is None else report.failed.name,
        "operator": report.subject,
        "properties": properties,
    }
