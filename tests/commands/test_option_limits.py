"""Absurd numbers: every number that a command takes is refused by its name, in one line, before memory is taken.

Options are found, not listed: a new one is tested by being there."""

from __future__ import annotations

import inspect
import math
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from support.command_line import complaint

import learnreg as lr
from learnreg.commands.cli import app
from learnreg.commands.common import initial_regularizer
from learnreg.commands.options import DenoiseConfig, regularizers_with
from learnreg.commands.sources import merge_config
from learnreg.commands.tasks import TASKS

NUMBERS = sorted(
    {
        (name, field.metadata["at_most"]): (task, name)
        for task, found in TASKS.items()
        for name, field in found.config.__dataclass_fields__.items()
        if field.type in ("int", "float")
    }.values()
)
SIZES = [(name, r) for _, name in NUMBERS for r in regularizers_with(DenoiseConfig, name)]
NOTE = "note: the model does not say its noise level; 25/255 is used\n"
SLOW = ("size", "multivariate")  # an orthogonal basis of 4,096 numbers


@pytest.fixture
def little_memory() -> Iterator[None]:
    """2 GB beyond what the process has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (1024 * int(size.split()[1]) + 2 * 10**9, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize(("task", "name"), NUMBERS)
def test_every_number_has_a_limit(task: str, name: str, tmp_path: Path) -> None:
    """Whichever way it comes."""
    kind = TASKS[task].config
    most = kind.__dataclass_fields__[name].metadata["at_most"]
    whole = get_type_hints(kind)[name] is int
    assert most is not None, "an option without a limit: give it at_most"
    for value in (
        (most + 1, 10**30, -(10**30)) if whole else (math.nextafter(most, math.inf), 1e308, math.inf, math.nan)
    ):
        (tmp_path / "options.toml").write_text(f"{name} = {value}\n", encoding="utf-8")
        for source in (
            {"assignments": [f"{name}={value}"]},
            {"file": tmp_path / "options.toml"},
            {"explicit": {name: value}},
        ):
            with pytest.raises(lr.ConfigError, match=f"^{name}="):
                merge_config(kind, **source)  # type: ignore[arg-type]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="sizes of processes as Linux says them")
@pytest.mark.parametrize(
    ("name", "regularizer"), [pytest.param(*s, marks=pytest.mark.slow(seconds=5)) if s == SLOW else s for s in SIZES]
)
def test_what_the_limits_allow_is_made_of_little_memory(name: str, regularizer: str, little_memory: None) -> None:
    most = DenoiseConfig.__dataclass_fields__[name].metadata["at_most"]
    kind = get_type_hints(DenoiseConfig)[name]
    refused = ""
    try:
        initial_regularizer(DenoiseConfig(**{"regularizer": regularizer, name: kind(most)}))
    except lr.ConfigError as error:
        refused = str(error)
    assert name in refused or not refused


@pytest.mark.parametrize("command", ["adapt", "evaluate", "reconstruct", "accuracy"])
def test_numbers_of_the_other_commands(command: str, learnreg: Any, model: Path, images: Path, tmp_path: Path) -> None:
    """Those that cannot be meant end it in one line."""
    needed: dict[str, tuple[object, ...]] = {
        "adapt": (
            model,
            "--task",
            "denoise",
            "--data",
            images,
            "--set",
            "patch=8",
            "--out",
            tmp_path / "out",
            "--criterion",
            "discrepancy",
        ),
        "evaluate": (model, "--data", images),
        "reconstruct": (model, images / "a.png", "--out", tmp_path / "out"),
        "accuracy": (),
    }
    (found,) = (c for c in app.registered_commands if command in (c.name, getattr(c.callback, "__name__", "")))
    assert found.callback is not None
    words = {n: str(p.annotation) for n, p in inspect.signature(found.callback).parameters.items()}
    numbers = [n for n, text in words.items() if re.search(r"\b(int|float|Tolerance)\b", text)]
    assert numbers
    for name in numbers:
        for value in ("-1", "9" * 30) if re.search(r"\bint\b", words[name]) else ("-1", "nan"):
            flag = f"--{name.replace('_', '-')}"
            given = learnreg(command, *needed[command], flag, value)
            assert (given.code, given.out) == (2, ""), f"{flag} {value}"
            assert flag.lstrip("-") in complaint(given.err.removeprefix(NOTE))


def test_a_noise_that_nothing_reads(learnreg: Any, model: Path, images: Path, tmp_path: Path) -> None:
    words = ("--task", "denoise", "--data", images, "--set", "patch=8", "--out", tmp_path / "out", "--noise", "0.1")
    assert "--criterion discrepancy" in complaint(learnreg("adapt", model, *words).err)
