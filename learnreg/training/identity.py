"""What a training run is about: data, problem and options, which a resumed run keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from learnreg.errors import ConfigError
from learnreg.losses import loss_at
from learnreg.training.options import TrainingOptions
from learnreg.training.session import Session

__all__ = ["DATA", "differences", "identity_of", "mismatch"]

DATA = ("data", "sha256")
"""The names of what tells data sets apart."""


def identity_of(session: Session, options: TrainingOptions) -> dict[str, Any]:
    """What tells apart the options, problems and data of runs."""
    problem, operator = session.problem, session.problem.operator
    box = problem.constraint
    return {
        **options.lasting(),
        "batch_size": session.source.batch_size,
        "chunk_size": session.chunk_size,
        "loss": _loss(session),
        "regularizer": type(problem.regularizer).__name__,
        "parameters": ", ".join(f"{name} {tuple(p.shape)}" for name, p in problem.learnable().items()),
        "operator": f"{type(operator).__name__} {tuple(operator.domain_shape)} -> {tuple(operator.range_shape)}",
        "data_term": type(problem.data_term).__name__,
        "constraint": "none" if box is None else f"{float(box.lower.min())} to {float(box.upper.max())}",
        "ridge": "learned" if isinstance(problem.ridge, torch.nn.Parameter) else problem.ridge_value,
        "noise_level": problem.noise_level,
        **session.source.digest(),
    }


@torch.no_grad()
def _loss(session: Session) -> str:
    """The class of the loss and its value at images that do not depend on the data: functions have no better mark."""
    x_true = session.source.first(1)[0].x_true
    ramp = torch.linspace(0.1, 0.9, x_true.numel()).to(x_true).view_as(x_true)[None]
    loss = loss_at(session.loss, ramp)
    return f"{type(loss).__name__} {float(loss.value(0.5 * ramp)):.4g}"


def differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """What differs from the run so far, by its name, in words; nothing of what only one of two versions says."""
    found = {}
    for name in now.keys() & stored.keys():
        before, new = stored[name], now[name]
        if new == before or (name == "sha256" and "random" in (new, before)) or (name == "batch_size" and not before):
            continue  # earlier versions did not know the batch size that was left out
        what = "other training samples" if name == "sha256" else f"{before!r} in the run, {new!r} now"
        found[name] = f"{name}: {what}"
    return dict(sorted(found.items()))


def mismatch(folder: Path | str, lines: Sequence[str]) -> ConfigError:
    """What to say of a run that would go on otherwise than it was begun; a line for each difference."""
    return ConfigError(
        f"{folder}: the run was begun with other data or options. Leave out what differs, start a new run with another "
        "--out, or go on with what is given now by --force (force=True):",
        lines,
    )
