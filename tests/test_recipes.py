"""The recipes of the models that are shipped: their options are those of the command line, stages follow another."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import learnreg as lr
from learnreg.commands.sources import training_options
from learnreg.commands.tasks import TASKS

RECIPES = Path(__file__).parents[1] / "examples" / "recipes"
RECIPE_NAMES = sorted(path.stem for path in RECIPES.glob("*.toml"))


def _runner() -> Any:
    spec = importlib.util.spec_from_file_location("recipes_run", RECIPES / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RUN = _runner()
ADAPTED = [name for name in RECIPE_NAMES if "adapt" in RUN.read_recipe(name)]
TRAINED = [name for name in RECIPE_NAMES if name not in ADAPTED]


def assignments_of(options: dict[str, Any]) -> list[str]:
    command = RUN.command_of("task", options, Path("nowhere"), [])
    return [command[i + 1] for i, word in enumerate(command) if word == "--set"]


@pytest.mark.parametrize("name", TRAINED)
def test_stages_are_options_of_the_command_line(name: str) -> None:
    recipe = RUN.read_recipe(name)
    assert name.startswith("ct" if recipe["task"] == "ct" else "denoise")
    stages = RUN.stages_of(recipe, share=0.01, minutes=10.0)
    assert sum(stage["minutes"] for stage in stages) == pytest.approx(10.0)
    for stage in stages:
        kind = TASKS[recipe["task"]].config
        config = training_options(kind, None, assignments_of(stage), {}, resume=False)
        assert config.updates == stage["updates"] >= 1
    # nothing is chosen on images that models are measured on
    assert recipe["options"]["data"].split("/")[0] in ("BSDS500", "CT")
    assert recipe["task"] == "ct" or recipe["options"]["held_out"] == 20


@pytest.mark.parametrize("name", ADAPTED)
def test_adapted_models_are_shipped_ones(name: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, calls = RUN.read_recipe(name), []
    monkeypatch.setattr(RUN.subprocess, "run", lambda command, check: calls.append(command))
    RUN.adapt(recipe, data, data / "out", ["seed=3"])
    assert recipe["adapt"] in lr.pretrained()
    found = [calls[0][i + 1] for i, word in enumerate(calls[0]) if word == "--set"]
    config = training_options(TASKS[recipe["task"]].config, None, found, {}, resume=False)
    assert (config.seed, config.data) == (3, str(data / recipe["options"]["data"]))
    assert calls[0][3:6] == ["adapt", recipe["adapt"], "--task"]


TINY = {
    "denoise": {"patches": 8, "batch_size": 2, "patch": 16, "held_out": 1},
    "ct": {"images": 2, "batch_size": 1, "size": 16, "angles": 6},
}


def tiny(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """Its stages with few small filters, one update each; from nothing."""
    few = {"filters": 4, "features": 2, "convolutions": "2,4", "knots": 5, "levels": 2}
    stages = [{k: v for k, v in stage.items() if k != "init"} for stage in RUN.stages_of(recipe, share=1e-9)]
    changed = [{**stage, **{k: v for k, v in few.items() if k in stage}, **TINY[recipe["task"]]} for stage in stages]
    regularizer = {"icnn": {"features": 2}, "fields-of-experts": {"size": 3}, "multivariate": {"size": 3}}
    if recipe["task"] == "ct":
        regularizer = {"fields-of-experts": {"filter_size": 3, "filters": 4}}
    return [{**stage, **regularizer.get(stage["regularizer"], {})} for stage in changed]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    for folder in ("BSDS500/data/images/train", "BSDS500/data/images/test", "CT/train"):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(2):
            pixels = (255 * torch.rand(6, 6, 3, generator=generator)).byte().numpy()
            kind = "L" if folder == "CT/train" else "RGB"
            image = Image.fromarray(pixels).convert(kind).resize((24, 24), Image.Resampling.BICUBIC)
            image.save(tmp_path / folder / f"{i}.png")
    return tmp_path


def test_a_recipe_that_was_interrupted_goes_on(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, out, calls = RUN.read_recipe("denoise-ridge-convex"), data / "out", []

    def call(command: list[str], check: bool) -> None:
        folder = Path(command[command.index("--out") + 1])
        calls.append(command)
        (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
        if len(calls) == 2:
            raise KeyboardInterrupt
        for name in ("report.html", "best.safetensors"):
            (folder / name).write_text(str(len(calls)), encoding="utf-8")

    monkeypatch.setattr(RUN.subprocess, "run", call)
    stages = [{**stage, "init": "denoise-ridge-convex"} for stage in RUN.stages_of(recipe)]
    with pytest.raises(KeyboardInterrupt):
        RUN.run(recipe, data, out, stages, [])
    model = RUN.run(recipe, data, out, stages, ["seed=3"])
    assert model.read_text(encoding="utf-8") == "4"
    assert [Path(c[c.index("--out") + 1]).name for c in calls] == ["1", "2", "2", "3"]
    assert ["--resume" in c for c in calls] == [False, False, True, False]
    assert "init=denoise-ridge-convex" in calls[0]
    assert f"init={out / '1' / 'best.safetensors'}" in calls[1]  # not where the first stage began
    assert "tune=false" in calls[1]
    assert "seed=3" in calls[3]


@pytest.mark.slow(seconds=90)
@pytest.mark.parametrize("name", TRAINED)
def test_every_recipe_makes_a_model(name: str, data: Path) -> None:
    recipe = RUN.read_recipe(name)
    model = lr.load(RUN.run(recipe, data, data / "out", tiny(recipe), []))
    assert all(bool(torch.isfinite(p).all()) for p in model.regularizer.parameters())
    stages = sorted(folder.name for folder in (data / "out").iterdir() if folder.is_dir())
    assert stages == [str(k + 1) for k in range(len(recipe["stages"]))]
