"""What commands share on the terminal: lines for people, options that several have, checks of them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from learnreg.errors import ConfigError
from learnreg.linear.paths import folder_trouble

__all__ = ["MODEL_HELP", "Json", "ModelName", "Tolerance", "check_folder", "check_seed", "grouped_options", "say"]


def say(message: str, json: bool) -> None:
    """A line for people: on stdout, or on stderr where stdout belongs to JSON."""
    typer.echo(message.encode(errors="replace").decode(), err=json)  # names of files may be no text


def check_seed(seed: int) -> None:
    if not 0 <= seed <= 2**62:
        raise ConfigError(f"seed={seed}: expected an integer between 0 and 2^62.")


def check_folder(out: Path | None) -> None:
    if out is not None and (trouble := folder_trouble(out, optional=True)):
        raise ConfigError(f"--out {out}: {trouble}")


def grouped_options(function: Callable[..., None]) -> Callable[..., None]:
    """The function as Typer reads it: a parameter for each field of those that are dataclasses, whose annotations hold
    the options. ``function`` gets the objects."""
    hints = get_type_hints(function, include_extras=True)
    own = inspect.signature(function).parameters
    groups = {name: hints[name] for name in own if dataclasses.is_dataclass(hints[name])}

    @functools.wraps(function)
    def flat(**values: Any) -> None:
        parts = {name: {f.name: values.pop(f.name) for f in dataclasses.fields(kind)} for name, kind in groups.items()}
        function(**values, **{name: groups[name](**part) for name, part in parts.items()})

    parameters = []
    for name, parameter in own.items():
        if name in groups:
            parameters += _parameters_of(groups[name])
        else:
            parameters.append(parameter.replace(annotation=hints[name]))
    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat


def _parameters_of(group: type) -> list[inspect.Parameter]:
    hints, keyword = get_type_hints(group, include_extras=True), inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(f.name, keyword, default=f.default, annotation=hints[f.name])
        for f in dataclasses.fields(group)
    ]


Json = Annotated[bool, typer.Option("--json", help="print one JSON object as the last line of stdout")]
Tolerance = Annotated[float, typer.Option(help="certified root-mean-square error of each reconstruction")]
MODEL_HELP = "a .safetensors file, a folder that holds one, or a shipped model, see learnreg models"
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
