"""Options of training commands: their help, and their values from files, ``--set`` and the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from learnreg.commands.options import DenoiseConfig, TrainingConfig, check_resume, merge_config
from learnreg.training.run_folder import RunFolder

__all__ = ["help_of", "settings_help", "training_options"]

C = TypeVar("C", bound=TrainingConfig)


def help_of(name: str, kind: type[TrainingConfig] = DenoiseConfig) -> str:
    """Help and default of an option of training, from the dataclass of options."""
    field = next(field for field in dataclasses.fields(kind) if field.name == name)
    choices = f": {' | '.join(field.metadata['choices'])}" if field.metadata["choices"] else ""
    return f"{field.metadata['help']}{choices} [default: {field.default}]"


def settings_help(kind: type[TrainingConfig]) -> str:
    """Help of ``--set``."""
    return f"set any option, repeatable; one of {', '.join(field.name for field in dataclasses.fields(kind))}"


def training_options(
    kind: type[C], file: Path | None, assignments: list[str], explicit: Mapping[str, Any], resume: bool
) -> C:
    """Defaults, then the file, then assignments, then explicit options; a resumed run starts from its own config.toml.

    Raises
    ------
    ConfigError: what ``merge_config`` names, or an option that a resumed run cannot change.
    """
    first = merge_config(kind, file=file, assignments=assignments, explicit=explicit)
    if not resume:
        return first
    stored = RunFolder(first.out, resume=True).load_config()
    if stored is None:
        return first
    # The folder may have been moved since its config.toml was written.
    here = {**stored, "out": first.out}
    wanted = merge_config(kind, stored=here, file=file, assignments=assignments, explicit=explicit)
    check_resume(merge_config(kind, stored=here), wanted)
    return wanted
