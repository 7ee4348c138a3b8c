"""The frame of the benchmarks: what is written down is what was measured, and a slowdown is named."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # benchmarks are scripts, no package
import harness

import learnreg as lr
from learnreg.models.model import save_model
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts

COMMANDS = re.findall(r"^    python (benchmarks/.*)$", harness.DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_document_is_made_of_the_results() -> None:
    assert harness.DOCUMENT.read_text(encoding="utf-8") == harness.document()
    for name, text in harness.journal().items():
        assert (harness.RESULTS / name).read_text(encoding="utf-8") == text


def test_every_result_can_be_regenerated() -> None:
    for path in harness.RESULTS.glob("*.json"):
        command = json.loads(path.read_text(encoding="utf-8"))["command"]
        assert (harness.ROOT / command.split()[1]).is_file(), command


def run_quickly(*words: str) -> str:
    """What a script prints with ``--quick``."""
    done = subprocess.run(
        [sys.executable, *words, "--quick"],
        cwd=harness.ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow(seconds=20)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: Path(command.split()[0]).stem)
def test_the_commands_of_the_document_run(command: str, shared_data: Path, tmp_path: Path) -> None:
    """On small sizes, without peers."""
    problem = lr.LowerLevelProblem(Identity((1, 8, 8)), FieldsOfExperts(3, 3, lr.PseudoHuber(1e-2, 1e-3)), ridge=1e-3)
    save_model(tmp_path / "model.safetensors", problem)
    save_model(tmp_path / "denoise-foe.safetensors", problem)
    (tmp_path / "recipe" / "1").mkdir(parents=True)
    (tmp_path / "recipe" / "1" / "metrics.jsonl").write_text('{"step": 1, "seconds": 90.0, "psnr": 28.5}\n')
    places = {
        "DIR": shared_data,
        "RUNS": tmp_path,
        "MODELS": tmp_path,
        "RUN/model.safetensors": tmp_path / "model.safetensors",
    }
    words = [str(places.get(word, word)) for word in command.split() if word != "--record"]
    assert "|---|" in run_quickly(*words), "no table"


@pytest.mark.slow(seconds=20)
def test_the_script_for_devices_runs_in_small(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    run_quickly("benchmarks/gpu.py", "--device", "cpu", "--out", str(out))
    found = json.loads(out.read_text(encoding="utf-8"))
    assert all(part["rows"] and "error" not in part for part in found.values())
    assert found["bounds"]["rows"][0]["violations"] == 0
    for row in found["agreement"]["rows"]:
        assert row["x"] < 1e-10
        assert row["implicit"] < 1e-10
    assert all(row["apart"] < 1e-5 for row in found["convolutions"]["rows"])


def test_quick_runs_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["script", "--quick", "--record"])
    with pytest.raises(SystemExit):
        harness.arguments("text")


def test_quick_replaces_options_and_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["script", "--quick"])
    monkeypatch.setattr(harness, "SLOWDOWN", 1.3)
    options = harness.arguments("text", None, {"images": 1, "harness.SLOWDOWN": 2.0}, images={"default": 30})
    assert (options.images, options.rounds, harness.SLOWDOWN) == (1, 1, 2.0)
    with pytest.raises(AttributeError):
        harness.arguments("text", None, {"harness.UNKNOWN": 1})


def test_a_slowdown_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "HISTORY", tmp_path / "history.jsonl")
    table = harness.Table("t", "T", "python benchmarks/t.py", "text", tracked={"ratio": 1.4, "count": 10.0})
    assert harness.slowdowns(table) == []
    past = {"name": "t", "machine": harness.machine(), "tracked": {"ratio": 1.0, "count": 9.0}}
    other = {**past, "machine": {**harness.machine(), "processor": "another"}, "tracked": {"count": 1.0}}
    harness.HISTORY.write_text(json.dumps(past) + "\n" + json.dumps(other) + "\n")
    assert harness.slowdowns(table) == ["t: ratio is 1.4, the best so far 1"]


def test_rows_that_were_not_measured_again_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    for name in ("HISTORY", "DOCUMENT"):
        monkeypatch.setattr(harness, name, tmp_path / name)
    options = argparse.Namespace(record=True, json=False)
    commits = iter(("first", "second"))
    monkeypatch.setattr(harness, "_commit", lambda: next(commits))
    for rows in ([{"model": "a", "dB": 1}, {"model": "b", "dB": 2}], [{"model": "b", "dB": 3}]):
        harness.finish(harness.Table("t", "T", "c", "text", rows=rows), options, names=("model",))
    recorded = json.loads((tmp_path / "t.json").read_text())
    assert recorded["rows"] == [{"model": "a", "dB": 1}, {"model": "b", "dB": 3}]
    assert recorded["commit"] == "first, second"


def test_methods_take_turns() -> None:
    calls: list[str] = []
    seconds = harness.interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, warmup=0)
    assert calls[-6:] == ["a", "b"] * 3
    assert set(seconds) == {"a", "b"}


def test_peak_memory_counts_what_lives_at_once() -> None:
    def both() -> torch.Tensor:
        first = torch.ones(1000, dtype=torch.float64)
        return first + torch.ones(1000, dtype=torch.float64)

    assert harness.peak_bytes(both) == 3 * 8000


def test_missing_cells_are_empty() -> None:
    table = harness.Table("t", "T", "c", "text", rows=[{"a": 1.5, "b": None}, {"a": 1234.5}], notes=["n"])
    assert "| a | b |\n|---|---|\n| 1.5 |  |\n| 1234 |  |\n\n- n\n" in harness.to_markdown(table)
