"""The frame of the benchmarks: what is written down is what was measured, and a slowdown is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # benchmarks are scripts, no package
import harness


def test_the_document_is_made_of_the_results() -> None:
    assert harness.DOCUMENT.read_text(encoding="utf-8") == harness.document()


def test_every_result_can_be_regenerated() -> None:
    for path in harness.RESULTS.glob("*.json"):
        command = json.loads(path.read_text(encoding="utf-8"))["command"]
        assert (harness.ROOT / command.split()[1]).is_file(), command


def test_a_slowdown_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "HISTORY", tmp_path / "history.jsonl")
    table = harness.Table("t", "T", "python benchmarks/t.py", "text", tracked={"ratio": 1.4, "count": 10.0})
    assert harness.slowdowns(table) == []
    past = {"name": "t", "machine": harness.machine(), "tracked": {"ratio": 1.0, "count": 9.0}}
    other = {**past, "machine": {**harness.machine(), "processor": "another"}, "tracked": {"count": 1.0}}
    harness.HISTORY.write_text(json.dumps(past) + "\n" + json.dumps(other) + "\n")
    assert harness.slowdowns(table) == ["t: ratio is 1.4, the best so far 1"]


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
