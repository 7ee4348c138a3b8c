"""The parameters of training commands, from the dataclass of their options."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from learnreg.commands.options import TrainingConfig, regularizers_with
from learnreg.commands.sources import holds_run, training_options
from learnreg.commands.tasks import Task
from learnreg.report.report import in_words
from learnreg.training.launch import is_restart, launched

__all__ = ["help_of", "training_command", "values_of"]


def help_of(kind: type[TrainingConfig], name: str) -> str:
    """Help, choices or range, and default of an option of training, and the regularizers that have it."""
    field = next(field for field in dataclasses.fields(kind) if field.name == name)
    users = regularizers_with(kind, name)
    of = f" [of: {', '.join(users)}]" if users else ""
    values = values_of(field)
    return f"{field.metadata['help']}{values and f': {values}'}{of} [default: {in_words(field.default)}]"


def values_of(field: dataclasses.Field[Any]) -> str:
    """The choices or the range of an option, for people; nothing where all values of its type are."""
    limits = field.metadata
    if limits["choices"]:
        return " | ".join(limits["choices"])
    words = (("above", "above"), ("at_least", "from"), ("at_most", "up to"))
    return " ".join(f"{word} {limits[key]:g}" for key, word in words if limits[key] is not None)


def training_command(task: Task, run: Callable[[Task, TrainingConfig, bool, bool, bool], None]) -> Callable[..., None]:
    """The function of ``learnreg train TASK``, which Typer reads: a parameter for each option of the task, of which
    ``--help`` shows the main ones. It calls ``run`` with the task, its options, whether ``--resume``, ``--force`` and
    ``--json`` were given, as one of several workers where torchrun or srun started them. What torchrun starts again
    resumes."""

    def command(
        *, config: Path | None, set_: list[str] | None, resume: bool, force: bool, json: bool, **explicit: Any
    ) -> None:
        del explicit["help_all"]
        given = (task.config, config, set_ or [], explicit)

        def read() -> tuple[TrainingConfig, bool]:
            go_on = resume or (is_restart() and holds_run(*given))
            return training_options(*given, go_on, force), go_on

        with launched() as group:
            options, go_on = group.first(read)
            run(task, options, go_on, force, json)

    parameters = [*_options_of(task.config), *_other_parameters(task.config)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = inspect.cleandoc(task.help)
    return command


def _options_of(kind: type[TrainingConfig]) -> list[inspect.Parameter]:
    """What is the task's own first: the data set and how it is measured."""
    hints, own = get_type_hints(kind), set(vars(kind)["__annotations__"])
    fields = sorted(dataclasses.fields(kind), key=lambda field: field.name not in own or field.name in _INHERITED)
    return [_parameter(f.name, hints[f.name] | None, None, help_of(kind, f.name), f.metadata["main"]) for f in fields]


_INHERITED = {field.name for field in dataclasses.fields(TrainingConfig)}


def _other_parameters(kind: type[TrainingConfig]) -> list[inspect.Parameter]:
    every = "set any option that --help-all shows, repeatable: --set filters=8"
    all_the_same = "with --resume, go on although data or options differ from those of the run"
    go_on = "go on with the run in --out, with its options"
    one_object = "print one JSON object as the last line of stdout"
    return [
        _parameter("config", Path | None, None, "TOML file of options"),
        _parameter("set_", list[str] | None, None, every, flag="--set", metavar="KEY=VALUE"),
        _parameter("resume", bool, False, go_on, flag="--resume"),
        _parameter("force", bool, False, all_the_same, flag="--force"),
        _parameter("json", bool, False, one_object, flag="--json"),
        _parameter("help_all", bool, False, "show every option and exit", flag="--help-all", callback=_show_all),
    ]


def _parameter(
    name: str, kind: Any, default: Any, text: str, shown: bool = True, *, flag: str | None = None, **settings: Any
) -> inspect.Parameter:
    flags = (flag,) if flag else ()
    option = typer.Option(
        *flags, help=text, show_default=False, hidden=not shown, is_eager="callback" in settings, **settings
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _show_all(context: typer.Context, wanted: bool) -> None:
    if not wanted:
        return
    for parameter in context.command.params:
        parameter.hidden = False  # type: ignore[attr-defined]
    typer.echo(context.get_help())
    raise typer.Exit
