"""The errors users meet. Each message names what came, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "AssumptionError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "LearnregError",
    "OperatorError",
    "ShapeError",
    "SolverError",
    "WorkerError",
]


class LearnregError(Exception):
    """Base class of every error raised by learnreg. ``exit_code`` is what the command line returns for it."""

    exit_code = 1


class ConfigError(LearnregError, ValueError):
    """An option, key or value that does not exist or is out of range. lines: of what is wrong, each to be shown on a
    line of its own after the message."""

    exit_code = 2

    def __init__(self, message: str = "", lines: Sequence[str] = ()) -> None:
        self.message, self.lines = message, tuple(lines)
        super().__init__("\n  ".join((message, *lines)))


class DataError(LearnregError, ValueError):
    """Data that is missing, unreadable or unusable.

    Parameters
    ----------
    reason: what is wrong, one sentence.
    path: the file or folder at fault, if there is one.
    hint: what to do about it.
    """

    exit_code = 3

    def __init__(self, reason: str, path: object = None, hint: str = "") -> None:
        self.reason = reason
        self.path = None if path is None else str(path)
        self.hint = hint
        super().__init__(": ".join(part for part in (self.path, reason) if part) + (f" {hint}" if hint else ""))


class OperatorError(LearnregError, ValueError):
    """A linear operator that breaks its contract; ``failed_property`` names the property."""

    exit_code = 4

    def __init__(self, message: str, failed_property: str = "") -> None:
        self.failed_property = failed_property
        super().__init__(message)


class ShapeError(LearnregError, ValueError):
    """A tensor whose shape, dtype or device does not fit the call."""

    exit_code = 4


class AssumptionError(LearnregError, ValueError):
    """A mathematical assumption is missing, so that what was asked for does not exist (a bound without a modulus,
    say)."""

    exit_code = 5


class SolverError(LearnregError, RuntimeError):
    """A tolerance was not reached and ``on_failure="raise"`` was asked for; ``result`` carries everything computed."""

    exit_code = 5

    def __init__(self, message: str, result: Any = None) -> None:
        self.result = result
        super().__init__(message)


class CheckpointError(LearnregError, RuntimeError):
    """A model or checkpoint file that is missing, damaged or of another kind."""

    exit_code = 6


class WorkerError(LearnregError, RuntimeError):
    """A worker of a training run in several processes that failed, was killed or hangs, or that does not do what the
    others do."""

    exit_code = 1
