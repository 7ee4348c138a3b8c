"""How a command ends: errors, and signals that end a process, become one line on stderr and an exit code."""

from __future__ import annotations

import errno
import functools
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import typer
from typer.core import TyperGroup

from learnreg.errors import ConfigError, DataError, LearnregError
from learnreg.training.interrupts import Interrupts

__all__ = ["DEBUG_VARIABLE", "CommandGroup", "command"]

DEBUG_VARIABLE = "LEARNREG_DEBUG"
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")  # RuntimeErrors of torch

P = ParamSpec("P")
T = TypeVar("T")


class CommandGroup(TyperGroup):
    """Commands of which a mistyped one is answered by one line: what is wrong, how it is written, where help is."""

    def main(self, *args: Any, **settings: Any) -> Any:
        if not settings.get("standalone_mode", True):
            return super().main(*args, **settings)
        try:
            code = super().main(*args, **{**settings, "standalone_mode": False})
        except typer.Abort:
            _complain("interrupted")
            sys.exit(1)
        except Exception as error:  # UsageError and its kinds, which Typer does not export
            if not hasattr(error, "format_message"):
                raise
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()  # type: ignore[attr-defined]
            else:
                _complain(_usage(error))
            sys.exit(error.exit_code)  # type: ignore[attr-defined]
        sys.exit(code if isinstance(code, int) else 0)


def _usage(error: Any) -> str:
    """What is wrong with a command, and how it is written."""
    message = re.sub(r"Input should be a valid (\w+),.*", r"expected a \1", error.format_message().strip())
    message = message if message.endswith((".", "?", ")")) else f"{message}."
    context = getattr(error, "ctx", None)
    if context is None:
        return message
    needed = [p.metavar or p.name.upper() for p in context.command.params if p.param_type_name == "argument"]
    options = [p for p in context.command.params if p.param_type_name == "option" and p.required]
    needed += [f"{p.opts[0]} {p.name.upper()}" for p in options]
    path = context.command_path
    expected = f" Expected: {' '.join((path, *needed))}." if "Missing" in message and needed else ""
    return f"{message}{expected} Help: {path} -h"


def command(function: Callable[P, T]) -> Callable[P, T]:
    """Turns errors that have a cause outside of learnreg, and what ends a process, into one line on stderr and an exit
    code."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with Interrupts(_say_that_it_ends, _end_at_once):
            try:
                return function(*args, **kwargs)
            except KeyboardInterrupt as error:
                notes = getattr(error, "__notes__", ())
                _complain("; ".join(("interrupted", *notes[-1:])))
                raise typer.Exit(128 + getattr(error, "number", signal.SIGINT)) from error
            except Exception as error:
                found = _complaint(error)
                if found is None or _is_debugging():
                    raise
                lines = error.lines if isinstance(error, ConfigError) else ()
                _complain(found[0], *lines, *getattr(error, "__notes__", ()))
                raise typer.Exit(found[1]) from error

    return wrapped


def _complaint(error: Exception) -> tuple[str, int] | None:
    """What to say of an error, and the exit code; None for one that nobody foresaw."""
    if isinstance(error, LearnregError):
        return error.message if isinstance(error, ConfigError) else str(error), error.exit_code
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object!r}: holds bytes that are not UTF-8. Rename the file or folder.", ConfigError.exit_code
    if isinstance(error, OSError) and error.errno != errno.EPIPE:
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return f"{where}{error.strerror or error}.", DataError.exit_code
    if isinstance(error, RecursionError):
        return "a file is nested too deeply to be read.", DataError.exit_code
    text = str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in text for w in _NO_MEMORY)):
        return f"there is not enough memory ({text or 'MemoryError'}). Ask for smaller images, batches or models.", 1
    return None


def _is_debugging() -> bool:
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")


def _complain(message: str, *lines: str) -> None:
    """What is wrong in one line, and perhaps some more that belong to it."""
    typer.secho(f"learnreg: {' '.join(message.split())}", fg=typer.colors.RED, err=True)
    for line in lines:
        typer.secho(f"  {' '.join(line.split())}", fg=typer.colors.RED, err=True)


def _say_that_it_ends(number: int) -> None:
    """In a signal handler, where Python's own streams may be busy."""
    bar = b"\n" if os.isatty(2) else b""
    os.write(2, bar + b"learnreg: ending after this update; once more: at once\n")


def _end_at_once(number: int) -> None:
    os._exit(128 + number)
