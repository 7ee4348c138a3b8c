"""Train by a recipe: ``learnreg train`` in stages, each from the best model of the one before, whose strength is tuned
again only where the recipe says so; or ``learnreg adapt``, of the model that the recipe names.

    python examples/recipes/run.py denoise-ridge-cnc --data DATA --out runs/denoise-ridge-cnc

DATA is the folder that holds what the recipe calls its data (BSDS500, CT/train). Stage k runs in OUT/k; a stage that is
finished is not run again, and one that was interrupted is resumed, so that the same command goes on after any end. The
model is OUT/model.safetensors. ``--share .1`` makes a tenth of the updates of each stage, ``--minutes 40`` shares so
many minutes among the stages by their updates, ``--set KEY=VALUE`` changes an option of all of them.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FINISHED, BEST, LAST = "report.html", "best.safetensors", "model.safetensors"


def read_recipe(name: str) -> dict[str, Any]:
    """The recipe of that name, or in that file: task, options of all stages, and those of each."""
    path = Path(name) if name.endswith(".toml") else HERE / f"{name}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def stages_of(recipe: dict[str, Any], share: float = 1.0, minutes: float | None = None) -> list[dict[str, Any]]:
    """The options of each stage."""
    stages = [{**recipe["options"], **stage} for stage in recipe["stages"]]
    total = sum(stage["cost"] * stage["updates"] for stage in stages)
    for stage in stages:
        part = stage.pop("cost") * stage["updates"] / total
        stage["updates"] = max(1, round(share * stage["updates"]))
        if minutes is not None:
            stage["minutes"] = minutes * part
    return stages


def model_of(folder: Path) -> Path:
    """The best model of a stage on the images held out, or the last one."""
    return folder / (BEST if (folder / BEST).exists() else LAST)


def command_of(task: str, options: dict[str, Any], folder: Path, assignments: list[str]) -> list[str]:
    """``learnreg train``, or its resumption, in the folder of a stage."""
    command = [sys.executable, "-m", "learnreg", "train", task, "--out", str(folder)]
    if (folder / "checkpoint").exists():
        return [*command, "--resume", "--minutes", str(options.get("minutes", 1e6))]
    return command + settings(options, assignments)


def settings(options: dict[str, Any], assignments: list[str]) -> list[str]:
    """The options of a command, and what goes before them."""
    given = [f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in options.items()]
    return [part for assignment in [*given, *assignments] for part in ("--set", assignment)]


def adapt(recipe: dict[str, Any], data: Path, out: Path, assignments: list[str]) -> Path:
    """Two numbers of a model, for the task of the recipe."""
    options = {**recipe["options"], "data": data / recipe["options"]["data"]}
    command = [sys.executable, "-m", "learnreg", "adapt", recipe["adapt"], "--task", recipe["task"], "--out", str(out)]
    command += ["--steps", str(recipe["steps"])] if "steps" in recipe else []
    if not (out / LAST).exists():
        subprocess.run(command + settings(options, assignments), check=True)
    return out / LAST


def run(recipe: dict[str, Any], data: Path, out: Path, stages: list[dict[str, Any]], assignments: list[str]) -> Path:
    """Run what is not finished; returns the model."""
    before: Path | None = None
    for k, stage in enumerate(stages, 1):
        folder = out / str(k)
        options = {**stage, "data": data / stage["data"]}
        if before is not None:
            options = {"tune": False, **options, "init": before}
        if not (folder / FINISHED).exists():
            print(f"stage {k} of {len(stages)}", file=sys.stderr, flush=True)
            subprocess.run(command_of(recipe["task"], options, folder, assignments), check=True)
        before = model_of(folder)
    assert before is not None
    return Path(shutil.copy(before, out / LAST))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="name of a recipe in this folder, or a TOML file")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds BSDS500 and CT")
    parser.add_argument("--out", type=Path, required=True, help="folder of the stages and of the model")
    parser.add_argument("--share", type=float, default=1.0, help="of the updates of each stage")
    parser.add_argument("--minutes", type=float, help="of training in all, at most")
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    recipe = read_recipe(given.recipe)
    if "adapt" in recipe:
        print(adapt(recipe, given.data, given.out, given.assignments))
        return
    stages = stages_of(recipe, given.share, given.minutes)
    print(run(recipe, given.data, given.out, stages, given.assignments))


if __name__ == "__main__":
    main()
