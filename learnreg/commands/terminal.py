"""What commands share on the terminal: lines for people, options that several have, checks of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from learnreg.errors import ConfigError
from learnreg.linear.paths import folder_trouble

__all__ = ["Json", "ModelName", "Tolerance", "check_folder", "check_seed", "say"]


def say(message: str, json: bool) -> None:
    """A line for people: on stdout, or on stderr where stdout belongs to JSON."""
    typer.echo(message.encode(errors="replace").decode(), err=json)  # names of files may be no text


def check_seed(seed: int) -> None:
    if not 0 <= seed <= 2**62:
        raise ConfigError(f"seed={seed}: expected an integer between 0 and 2^62.")


def check_folder(out: Path | None) -> None:
    if out is not None and (trouble := folder_trouble(out, optional=True)):
        raise ConfigError(f"--out {out}: {trouble}")


Json = Annotated[bool, typer.Option("--json", help="print one JSON object as the last line of stdout")]
Tolerance = Annotated[float, typer.Option(help="certified root-mean-square error of each reconstruction")]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="a .safetensors file")]
