"""Rewrites the tables of the documentation that follow from tables in the code: ``python docs/tables.py``."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import torch

import learnreg as lr
from learnreg.commands.common import initial_regularizer
from learnreg.commands.options import DenoiseConfig
from learnreg.operators import Identity
from learnreg.regularizers import REGULARIZERS, trainable
from learnreg.regularizers.options import RegularizerOptions

FOLDER = Path(__file__).parent
_SHAPE = (1, 8, 8)


def regularizers() -> list[str]:
    """What the command line trains, and by which solvers; an option that changes these has a row of its own."""
    rows = ["| class | R(x) | `--regularizer` | solvers |", "|---|---|---|---|"]
    for name in trainable():
        kind, start = REGULARIZERS[name], DenoiseConfig(regularizer=name, filters=4, features=4, layers=1)
        usual = _solvers(start)
        rows.append(f"| `{kind.__name__}` | {kind.summary} | {name} | {usual} |")
        for field in fields(RegularizerOptions):
            for choice in field.metadata["choices"]:
                found = _solvers(replace(start, **{field.name: choice}))
                if found != usual:
                    changed = f'{kind.__name__}({field.name}="{choice}")'
                    rows.append(
                        f"| `{changed}` | as above, with that option | {name}, `--{field.name} {choice}` | {found} |"
                    )
    return rows


def _solvers(options: DenoiseConfig) -> str:
    problem = lr.LowerLevelProblem(Identity(_SHAPE), initial_regularizer(options))
    try:
        lr.solve(problem, torch.zeros(1, *_SHAPE), tolerance=1.0, solver="pdhg", max_steps=1)
    except lr.ConfigError:
        return "primal"
    return "all"


TABLES = {"regularizers.md": {"regularizers": regularizers}}
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
