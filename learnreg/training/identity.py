"""What a training run is about: data, problem and options, which a resumed run cannot change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from learnreg.errors import ConfigError
from learnreg.training.options import TrainingOptions
from learnreg.training.session import Session

__all__ = ["check_identity", "identity_of"]


def identity_of(session: Session, options: TrainingOptions) -> dict[str, Any]:
    """What tells apart the options, problems and data of runs."""
    problem, operator = session.problem, session.problem.operator
    return {
        **options.lasting(),
        "regularizer": type(problem.regularizer).__name__,
        "operator": f"{type(operator).__name__} {tuple(operator.domain_shape)} -> {tuple(operator.range_shape)}",
        "data_term": type(problem.data_term).__name__,
        "ridge": "learned" if isinstance(problem.ridge, torch.nn.Parameter) else problem.ridge_value,
        "noise_level": problem.noise_level,
        **session.source.digest(),
    }


def check_identity(stored: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """ConfigError where data or options differ from those of the run so far."""
    for name, before in stored.items():
        found = now.get(name)
        if found != before:
            differs = "random" not in (found, before) and name == "content"
            what = "other training samples" if differs else f"{name}={before!r}, not {found!r}"
            raise ConfigError(
                f"{folder}: the run was begun with {what}; a resumed run goes on with the same data and "
                "options. Start a new one with another --out."
            )
