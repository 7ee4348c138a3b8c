"""Every option of training is on the command line, from the dataclass alone; the tables that commands read."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import learnreg as lr
from learnreg.commands import tasks
from learnreg.commands.cli import app
from learnreg.commands.options import DenoiseConfig, regularizers_with
from learnreg.commands.parameters import help_of
from learnreg.commands.process import large_blocks_kept, threads
from learnreg.commands.tasks import TASKS, Task
from learnreg.datasets import DATASETS
from learnreg.hypergradients import METHODS
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.linear.operator import LinearOperator
from learnreg.models.names import build_operator, describe_operator, operator_tensors, stored_geometry
from learnreg.operators import (
    OPERATORS,
    Blur,
    CartesianMRI,
    ConeBeam3D,
    FanBeam2D,
    FourierSampling,
    Identity,
    Inpainting,
    ParallelBeam2D,
    assemble,
)
from learnreg.regularizers import trainable
from learnreg.report.report import in_words

ROOT = Path(__file__).resolve().parents[2]


def shown(*arguments: str) -> str:
    """What a command prints, without white space: lines are broken at hyphens, too."""
    result = CliRunner().invoke(app, [*arguments])
    assert result.exit_code == 0
    return "".join(result.stdout.split())


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_each_field_is_an_option_with_its_help(task: Task) -> None:
    brief, full = shown("train", task.name, "--help"), shown("train", task.name, "--help-all")
    for field in dataclasses.fields(task.config):
        text = help_of(task.config, field.name)
        assert field.metadata["help"] in text
        assert f"[default: {in_words(field.default)}]" in text
        users = regularizers_with(task.config, field.name)
        assert (f"[of: {', '.join(users)}]" in text) == bool(users)
        flag, text = f"--{field.name.replace('_', '-')}", "".join(text.split())
        assert flag in full
        assert text in full
        named = f"{flag}/--no-{flag[2:]}" if field.type == "bool" else f"{flag}<"
        assert (text in brief and named in brief) == field.metadata["main"]
    for flag in ("--config", "--set", "--resume", "--json"):
        assert flag in brief


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_each_option_reaches_its_field(task: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    got: list[Any] = []
    monkeypatch.setattr(tasks, "run_task", lambda task, config, resume, _: got.append((task, config, resume)) or {})
    changed = {"out": str(tmp_path), "sigma": "0.5", "data": "elsewhere", "device": "cpu:0"}
    changed |= {"init": "model.safetensors", "convolutions": "2,3", "held_out_of": "train/"}
    for field in dataclasses.fields(task.config):
        if field.metadata["choices"]:
            changed[field.name] = field.metadata["choices"][-1]
        elif isinstance(field.default, bool):
            changed[field.name] = not field.default
        elif isinstance(field.default, int | float):
            most = field.metadata["at_most"]
            changed[field.name] = type(field.default)(min(2 * field.default + 1, math.inf if most is None else most))
    names = {field.name for field in dataclasses.fields(task.config)}
    changed = {
        name: value for name, value in (changed | {"smoothing": 9.0, "potential": "square"}).items() if name in names
    }
    reached: set[str] = set()
    others: list[dict[str, Any]] = [{"regularizer": name} for name in trainable()]
    others += [{"optimizer": "adam"}, {"photons": 0.0}, {"sigma": "0.1:0.5", "regularizer": "ridge"}]
    for other in others:
        values = changed | {name: value for name, value in other.items() if name in names}
        wanted = {name: value for name, value in values.items() if name in task.config(**values).in_force()}
        arguments = []
        for name, value in wanted.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                arguments.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                arguments += [f"--{flag}", str(value)]
        result = CliRunner().invoke(app, ["train", task.name, *arguments])
        assert result.exit_code == 0, result.stderr
        assert got.pop() == (task, task.config(**wanted), False)
        reached |= wanted.keys()
    assert reached == names


def test_a_task_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, task in TASKS.items():
        assert task.name == name
        assert list(inspect.signature(task.scenario).parameters) == ["config"]
        assert "".join(task.help.splitlines()[0].split()) in shown("train", "--help")


def test_methods_are_made_without_arguments() -> None:
    assert all(isinstance(make(), HypergradientMethod) for make in METHODS.values())
    assert DenoiseConfig().method == next(iter(METHODS)), "the method of lr.train, too"


@pytest.mark.parametrize("name", DATASETS)
def test_named_data_sets_have_two_parts(name: str) -> None:
    if name == "natural":
        pytest.importorskip("skimage")
    training, held_out = DATASETS[name](size=32, count=3, seed=1)
    assert len(training) == 3
    assert held_out
    assert not set(training) & set(held_out)
    for image in (*training.values(), *held_out.values()):
        assert image.dim() == 3
        assert image.shape[0] == 1
        assert 0.0 <= float(image.min()) <= float(image.max()) <= 1.0
    again, _ = DATASETS[name](size=32, count=3, seed=1)
    assert all(torch.equal(training[key], again[key]) for key in training)


BLUR = Blur(torch.rand(3, 3), (1, 8, 8))
STORED: dict[str, Callable[[], LinearOperator]] = {
    "identity": lambda: Identity((1, 8, 8)),
    "parallel-beam": lambda: ParallelBeam2D(8, 5),
    "fan-beam": lambda: FanBeam2D(8, 5, source_to_center=3.0),
    "inpainting": lambda: Inpainting(torch.rand(1, 8, 8)),
    "blur": lambda: BLUR,
    "fourier-sampling": lambda: FourierSampling(torch.rand(8, 8)),
    "cartesian-mri": lambda: CartesianMRI(torch.rand(8, 8)),
    "cone-beam": lambda: ConeBeam3D(6, 4),
    "sparse": lambda: assemble(BLUR),
    "scaled": lambda: 2.0 * BLUR,
    "composition": lambda: BLUR @ Identity((1, 8, 8)),
    "sum": lambda: BLUR + BLUR,
    "stack": lambda: lr.vstack(BLUR, Identity((1, 8, 8))),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_stored_operators_come_back_from_json(name: str) -> None:
    if name.endswith("beam"):
        pytest.importorskip("astra")
    operator = STORED[name]()
    described, tensors = describe_operator(operator)
    description = json.loads(json.dumps(described))
    assert description["name"] == name
    assert operator_tensors(description) == set(tensors)
    again = build_operator(description, operator.domain_shape, tensors)
    x = torch.rand(1, *operator.domain_shape)
    assert torch.equal(again(x), operator(x))
    assert stored_geometry(description) == getattr(operator, "geometry", None)


def test_tables_of_the_documentation_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for document in module.TABLES:
        text = (ROOT / "docs" / document).read_text(encoding="utf-8")
        assert module.updated(document) == text, "run: python docs/tables.py"
    rows = re.findall(
        r"^\| `(\w+)` \| .* \| ([\w-]+) \| (?:all|primal) \|$", module.updated("regularizers.md"), flags=re.MULTILINE
    )
    assert rows == [(module.REGULARIZERS[name].__name__, name) for name in module.trainable()]


def test_the_process_is_as_before_afterwards() -> None:
    torch.set_num_threads(2)

    @threads(1)
    @large_blocks_kept()
    def interrupted() -> None:
        assert torch.get_num_threads() == 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.get_num_threads() == 2
