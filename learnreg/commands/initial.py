"""Training that starts from a model, as the later stages of a recipe do."""

from __future__ import annotations

import torch

from learnreg.errors import ConfigError
from learnreg.models.model import load
from learnreg.regularizers import Regularizer

__all__ = ["start_from"]


@torch.no_grad()
def start_from(regularizer: Regularizer, path: str) -> None:
    """Set the parameters of a regularizer, or of the part that is of the model's kind, to those of a model; what the
    model does not have, such as exponents of the noise level or depths of concave parts, stays as it is.

    Raises
    ------
    ConfigError: the model's regularizer is of another kind or size, or has parameters that this one has not.
    CheckpointError: an unreadable model file.
    """
    given, whole = load(path).regularizer, regularizer
    parts = (part for part in regularizer.modules() if isinstance(part, Regularizer))
    regularizer = next((part for part in parts if type(part) is type(given)), regularizer)
    if type(given) is not type(regularizer):
        raise ConfigError(
            f"init={path}: its regularizer is {type(given).__name__}, the options ask for {type(regularizer).__name__}."
        )
    lines = _differences(given, regularizer)
    parameters = dict(regularizer.named_parameters())
    lines += [
        f"{name}: learned by the model, unknown now" for name, _ in given.named_parameters() if name not in parameters
    ]
    if lines:
        raise ConfigError(f"init={path}: the options ask for another regularizer than that of the model:", lines)
    for name, p in given.named_parameters():
        parameters[name].copy_(regularizer.adapted(name, p))
    if regularizer is not whole:
        whole.fit_part_()


def _differences(given: Regularizer, regularizer: Regularizer) -> list[str]:
    """Between the descriptions of two of a kind, but for what this kind grows in; those of parts by their names."""
    before, now = given.config(), regularizer.config()
    lines: list[str] = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Regularizer) and isinstance(new, Regularizer) and type(new) is type(old):
            lines += [f"{name}.{line}" for line in _differences(old, new)]
        elif old != new and name not in regularizer.grows_in:
            lines.append(f"{name}: {old!r} in the model, {new!r} now")
    return lines
