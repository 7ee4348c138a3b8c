"""Rewrites the tables of the documentation that follow from tables in the code: ``python docs/tables.py``."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import torch
import typer

import learnreg as lr
from learnreg.commands.cli import app
from learnreg.commands.common import initial_regularizer
from learnreg.commands.options import DenoiseConfig, regularizers_with
from learnreg.commands.parameters import values_of
from learnreg.commands.tasks import TASKS, Task
from learnreg.models.cards import card_lines
from learnreg.operators import Identity
from learnreg.regularizers import REGULARIZERS, trainable
from learnreg.regularizers.options import RegularizerOptions
from learnreg.report.report import in_words

FOLDER = Path(__file__).parent
_SHAPE = (1, 8, 8)
_ANY = {"method": "closed-form"}  # which all potentials take


def regularizers() -> list[str]:
    """What the command line trains, and by which solvers; an option that changes these has a row of its own."""
    rows = ["| class | R(x) | `--regularizer` | solvers |", "|---|---|---|---|"]
    for name in trainable():
        kind, start = REGULARIZERS[name], DenoiseConfig(regularizer=name, filters=4, features=4, layers=1, **_ANY)
        usual = _solvers(start)
        rows.append(f"| `{kind.__name__}` | {kind.summary} | {name} | {usual} |")
        for field in fields(RegularizerOptions):
            for choice in field.metadata["choices"]:
                found = _solvers(replace(start, **{field.name: choice}))
                if found not in (usual, "") and name in regularizers_with(DenoiseConfig, field.name):
                    changed = f'{kind.__name__}({field.name}="{choice}")'
                    rows.append(
                        f"| `{changed}` | as above, with that option | {name}, `--{field.name} {choice}` | {found} |"
                    )
    return rows


def _solvers(options: DenoiseConfig) -> str:
    """ "" where the options do not fit together."""
    try:
        problem = lr.LowerLevelProblem(Identity(_SHAPE), initial_regularizer(options))
    except lr.AssumptionError:
        return ""
    try:
        lr.solve(problem, torch.zeros(1, *_SHAPE), tolerance=1.0, solver="pdhg", max_steps=1)
    except lr.ConfigError:
        return "primal"
    return "all"


def options(task: Task) -> list[str]:
    """The options of a training command."""
    rows = ["| option | default | values | of | what it is |", "|---|---|---|---|---|"]
    for field in fields(task.config):
        values = values_of(field).replace(" | ", ", ") or {str: "text", bool: "true, false"}.get(
            type(field.default), ""
        )
        users = ", ".join(regularizers_with(task.config, field.name))
        default = in_words(field.default)
        rows.append(f"| `{field.name}` | {default} | {values} | {users} | {field.metadata['help']} |")
    return rows


def commands() -> list[str]:
    """The arguments and options of every other command."""
    rows = []
    for name, command in vars(typer.main.get_command(app))["commands"].items():
        if not command.params:
            continue
        summary = command.get_short_help_str(1000)
        rows += [f"### `learnreg {name}`", "", summary, ""]
        rows += ["| argument or option | default | what it is |", "|---|---|---|"]
        for found in command.params:
            shown = ", ".join(found.opts) if found.opts[0].startswith("-") else (found.name or "").upper()
            default = "" if found.default is None or found.required else in_words(found.default)
            text = (found.help or "").replace(" | ", ", ")
            rows.append(f"| `{shown}` | {'required' if found.required else default} | {text} |")
        rows.append("")
    return rows[:-1]


def peers() -> list[str]:
    """Shipped models beside their peers, as ``benchmarks/model_cards.py --record`` measured them."""
    path = FOLDER.parent / "benchmarks" / "results" / "model_cards.json"
    if not path.is_file():
        return ["No model is shipped in this version."]
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    lines = [" | ".join(str(cell) for cell in row.values()) for row in rows]
    return [f"| {' | '.join(rows[0])} |", "|" + "---|" * len(rows[0]), *(f"| {line} |" for line in lines)]


_FIGURES = {
    ".jpg": "noisy, denoised, clean",
    "-filters.png": "filters",
    "-potentials.png": "potentials",
    "-weights.jpg": "weights of terms",
}


def cards() -> list[str]:
    """Of each shipped model, with its figures."""
    rows = []
    for name, card in lr.pretrained().items():
        rows += [f"## {name}", "", *card_lines(card), ""]
        for file, what in _FIGURES.items():
            if (FOLDER / "models" / f"{name}{file}").is_file():
                rows += [f"![{name}: {what}](models/{name}{file})", ""]
    return rows


TABLES = {
    "regularizers.md": {"regularizers": regularizers},
    "models.md": {"peers": peers, "cards": cards},
    "command_line.md": {"commands": commands, **{name: partial(options, task) for name, task in TASKS.items()}},
}
"""By document and by the name in its markers ``<!-- table: NAME -->`` and ``<!-- end of table -->``."""


def updated(document: str) -> str:
    """The text of a document with its tables as they should be."""
    text = (FOLDER / document).read_text(encoding="utf-8")
    for name, make in TABLES[document].items():
        start, end = f"<!-- table: {name} -->\n", "<!-- end of table -->"
        before, _, rest = text.partition(start)
        _, found, after = rest.partition(end)
        assert found, f"{document}: no markers {start}"
        text = before + start + "".join(f"{row}\n" for row in make()) + end + after
    return text


if __name__ == "__main__":
    for path in TABLES:
        (FOLDER / path).write_text(updated(path), encoding="utf-8")
