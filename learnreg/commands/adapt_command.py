"""``learnreg adapt``: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from learnreg.commands.tasks import TASKS
from learnreg.commands.terminal import Json, ModelName, say
from learnreg.errors import ConfigError

__all__ = ["adapt"]

_ASSIGN = "set any option of learnreg train TASK, repeatable: --set acceleration=4"


def adapt(
    model: ModelName,
    task: Annotated[str, typer.Option(help=f"what it is for from now on: {' | '.join(TASKS)}")],
    out: Annotated[Path, typer.Option(help="folder of the adapted model")],
    data: Annotated[
        str | None, typer.Option(help="images or scans, as for learnreg train TASK", show_default="its own")
    ] = None,
    pairs: Annotated[int, typer.Option(help="training samples that the scalars are tuned on")] = 3,
    criterion: Annotated[
        str, typer.Option(help="pairs: their squared error | discrepancy: no ground truth, the size of the residual")
    ] = "pairs",
    noise: Annotated[
        float | None,
        typer.Option(
            help="with discrepancy: its standard deviation, in units of the measurement", show_default="known"
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option(help="with pairs: certified steps in the factor at most, at the end; 0: none")
    ] = 8,
    set_: Annotated[list[str] | None, typer.Option("--set", help=_ASSIGN, metavar="KEY=VALUE")] = None,
    json: Json = False,
) -> None:
    """Use a learned regularizer in another task: tune a factor, and where it knows one a scale or noise level.

    Writes OUT/model.safetensors, for learnreg reconstruct and evaluate, and compares it with total variation, whose
    weight is tuned on the same samples, on held-out images. Models of grey images see the modulus of complex ones.
    """
    from learnreg.commands.adapt import adapt as run
    from learnreg.commands.process import large_blocks_kept, threads
    from learnreg.commands.sources import merge_config, refuse_idle
    from learnreg.models.model import load
    from learnreg.models.tensor_files import dumps
    from learnreg.report.report import in_words

    if task not in TASKS:
        raise ConfigError(f"--task {task}: expected one of {', '.join(TASKS)}.")
    loaded, assignments = load(model), [*(set_ or []), *([] if data is None else [f"data={data}"])]
    config = merge_config(TASKS[task].config, assignments=assignments)
    refuse_idle(config, {text.partition("=")[0].replace("-", "_") for text in assignments})
    with threads(1), large_blocks_kept():
        summary = run(loaded, TASKS[task].scenario(config), out, pairs, criterion, noise, steps)
    for key, value in summary.items():
        say(f"{key}: {in_words(value)}", json)
    if json:
        typer.echo(dumps(summary))
