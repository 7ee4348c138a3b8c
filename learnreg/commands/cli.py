"""The command line: ``learnreg --help``."""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from learnreg.commands import tasks
from learnreg.commands.adapt_command import adapt
from learnreg.commands.models_command import models
from learnreg.commands.outcome import DEBUG_VARIABLE, CommandGroup, command
from learnreg.commands.reconstruct_command import reconstruct
from learnreg.commands.tasks import TASKS, Task, tasks_with
from learnreg.commands.terminal import MODEL_HELP, Json, ModelName, Tolerance, check_folder, check_seed, say

if TYPE_CHECKING:
    from learnreg.commands.options import TrainingConfig

# Whatever imports torch is imported by the commands themselves: no help and no mistyped command waits for it.

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the command ``learnreg``.

    Exit codes: 0, 2 usage or configuration, 3 data, 4 operator, 5 numerical, 6 model or checkpoint file, 130
    interrupted, 143 and 129 ended by SIGTERM and SIGHUP, 1 anything else.
    """
    app()


class _TaskGroup(TyperGroup):
    """``learnreg train``: the parameters of a task are those of its options, read when it is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, _task_command(TASKS[name]) if name in TASKS else listed, rest


class _TaskCommand(TyperCommand):
    """Says of an unknown option which other task has it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # NoSuchOption, which Typer does not export
            others = tasks_with(getattr(error, "option_name", "").lstrip("-"))
            if others and ctx.info_name not in others and hasattr(error, "possibilities"):
                error.message = f"{error.message}; learnreg train {' and '.join(others)} has it."  # type: ignore[attr-defined]
                error.possibilities = None
            raise


@command
def _task_command(task: Task) -> Any:
    from learnreg.commands.parameters import training_command

    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    alone.command(task.name, cls=_TaskCommand)(command(training_command(task, _train)))
    return typer.main.get_command(alone)


app = typer.Typer(
    name="learnreg",
    cls=CommandGroup,
    help="Learn regularizers for imaging by bilevel optimisation, with certified hypergradients.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
train_app = typer.Typer(
    name="train", cls=_TaskGroup, help="Learn a regularizer.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(train_app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"learnreg {version('learnreg')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help=f"show tracebacks (also {DEBUG_VARIABLE}=1)")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="show the version and exit")
    ] = False,
) -> None:
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"


def _train(task: Task, config: TrainingConfig, resume: bool, force: bool, json: bool) -> None:
    from learnreg.training.run_folder import contents_of

    try:
        _say_summary(tasks.run_task(task, config, resume, force), json)
    except KeyboardInterrupt as error:
        go_on = f"learnreg train {task.name} --resume --out {shlex.quote(config.out)}"
        kept = bool(contents_of(config.out))
        error.add_note(f"all updates are saved. Go on with: {go_on}" if kept else "nothing was learned yet")
        raise


def _not_called() -> None:
    raise NotImplementedError("the group makes the command of a task anew")


for _task in TASKS.values():
    train_app.command(_task.name, help=_task.help)(_not_called)


def _say_summary(summary: Mapping[str, Any], json: bool) -> None:
    from learnreg.models.tensor_files import dumps
    from learnreg.report.report import in_words

    for key, value in summary.items():
        unaudited = value is None and key.startswith("hypergradient")
        say(f"{key}: {'not audited, the run was too short' if unaudited else in_words(value)}", json)
    if json:
        typer.echo(dumps(summary))


app.command()(command(reconstruct))


@app.command()
@command
def evaluate(
    model: ModelName,
    data: Annotated[
        Path, typer.Option(help="folder of clean images (png, jpg, tif), not searched recursively, or LoDoPaB's files")
    ],
    sigma: Annotated[
        str | None,
        typer.Option(
            help="noise level: the standard deviation for images in [0, 1], for CT relative to the mean sinogram value",
            show_default="that of the model",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="the noise of image i has the seed SEED + i")] = 0,
    tolerance: Tolerance = 1e-4,
    json: Json = False,
) -> None:
    """Measure a model: PSNR and SSIM, means over a folder of clean images whose measurements are simulated, or over
    measured sinograms with their ground truth in the layout of LoDoPaB."""
    from learnreg.commands.evaluate import evaluate as run_evaluation
    from learnreg.datasets import parse_sigma
    from learnreg.models.model import load
    from learnreg.models.tensor_files import dumps

    check_seed(seed)
    level = None if sigma is None else parse_sigma(sigma)
    result = run_evaluation(load(model), data, level, seed, tolerance)
    tomography = result.psnr_fbp is not None
    noise = f"noise {100 * result.sigma:.4g} %" if tomography else f"sigma {result.sigma * 255:.4g}/255"
    setting = "measured" if math.isnan(result.sigma) else f"{noise}, seed {seed}"
    for note in result.notes:
        typer.echo(f"note: {note}", err=True)
    say(
        f"{result.n} images, {setting}: PSNR {result.psnr:.3f} dB "
        f"({'FBP' if tomography else 'noisy'} {result.psnr_input:.3f} dB), SSIM {result.ssim:.4f}, "
        f"{result.seconds_per_image:.2f} s per image",
        json,
    )
    of = {"global": "", "local": " for local minimisers", "given weights": " given the weights of the last problem"}
    kind = f"certified{of[result.certified_scope]}" if result.certified_scope in of else "NOT certified"
    say(f"largest error bound {result.error_bound:.2e}, tolerance {tolerance:.0e}: {kind}", json)
    if json:
        figures = dataclasses.asdict(result)
        figures = {key: value for key, value in figures.items() if key != "psnr_fbp" or tomography}
        typer.echo(dumps(figures))


@app.command()
@command
def accuracy(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help=MODEL_HELP, show_default=False)] = None,
    methods: Annotated[str, typer.Option(help="all, or some of them, by their names")] = "implicit,piggyback",
    tolerances: Annotated[
        str, typer.Option(help="requested relative errors of the hypergradient")
    ] = "1,1e-1,1e-2,1e-3",
    out: Annotated[
        Path | None, typer.Option(help="folder of accuracy.json, .png and .pdf", show_default="none written")
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of patches, noise and perturbations")] = 0,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="threads; more than one slow such small problems")] = 1,
    json: Json = False,
) -> None:
    """Compare certified bounds of hypergradients with their true errors.

    On a built-in set of small problems, or on MODEL's own problem, each method runs at every tolerance with the
    published and the sharp certificate; the reference is solved to rounding. Exit code 5 if a bound was violated.
    """
    from learnreg.accuracy.figure import write_accuracy
    from learnreg.accuracy.measure import measure
    from learnreg.accuracy.problems import builtin_problems, model_problem
    from learnreg.accuracy.report import describe, parse_methods, parse_tolerances
    from learnreg.commands import process
    from learnreg.models.extras import require
    from learnreg.models.model import load
    from learnreg.models.tensor_files import dumps

    wanted, levels = parse_methods(methods), parse_tolerances(tolerances)
    check_seed(seed)
    check_folder(out)
    if out is not None:
        require("matplotlib", "drawing the figure", "matplotlib")  # now, not after the work
    problems = builtin_problems(seed) if model is None else model_problem(load(model), model, seed)
    with process.threads(threads):
        report = measure(problems, wanted, levels, seed)
    for line in describe(report):
        say(line, json)
    if json:
        typer.echo(dumps(report.as_dict()))
    try:
        for path in write_accuracy(report, out) if out else ():
            say(f"wrote {path}", json)
    finally:
        report.check()


app.command()(command(adapt))
app.command()(command(models))


@app.command("check-operator")
@command
def check_operator(
    target: Annotated[str, typer.Argument(metavar="PACKAGE.MODULE:FACTORY", help="what makes the operator, or is one")],
    dtype: Annotated[str, typer.Option(help="float64, or float32 for an operator of single precision")] = "float64",
    json: Json = False,
) -> None:
    """Check that an operator of your own is what it has to be: linear, with its exact adjoint, derivatives and bounds.

    Prints one line for each property with the number measured; exit code 4 at the first that fails. FACTORY is called
    without arguments; modules are found from the current directory, too.
    """
    from learnreg.commands.check_operator import check_operator_command, report_as_dict
    from learnreg.models.tensor_files import dumps

    report = check_operator_command(target, dtype)
    for line in str(report).splitlines():
        say(line, json)
    if json:
        typer.echo(dumps(report_as_dict(report)))
    report.require()


@app.command()
@command
def doctor(json: Json = False) -> None:
    """Show versions and what the machine offers, and test that learnreg works here; exit code 1 if it does not."""
    from learnreg.commands.doctor import describe_facts, examine
    from learnreg.models.tensor_files import dumps

    facts = examine()
    for line in describe_facts(facts):
        say(line, json)
    if json:
        typer.echo(dumps(facts))
    if not facts["ok"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
