"""What benchmarks share: interleaved timing in one thread, the result file, the history, and docs/benchmarks.md.

A script builds a :class:`Table` and calls :func:`finish`. ``--record`` writes ``benchmarks/results/NAME.json`` and a
line of ``benchmarks/history.jsonl`` and renders docs/benchmarks.md again; without it nothing is written. Times are CPU
seconds of the process, medians over rounds in which the methods take turns.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

__all__ = ["Table", "arguments", "document", "finish", "interleave", "machine", "peak_bytes", "render"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
HISTORY = ROOT / "benchmarks" / "history.jsonl"
DOCUMENT = ROOT / "docs" / "benchmarks.md"
sys.path.append(str(ROOT / "tests"))  # random problems and their dense truth: ``from truth.hunt import hunt``
SLOWDOWN = 1.3
"""A tracked figure this much larger than the best one in the history, on the same processor, is called a slowdown."""


@dataclass
class Table:
    """One table of docs/benchmarks.md.

    name: of the result file. command: regenerates it. text: what was measured, Markdown. rows: one dict per row, keys
    are column titles. tracked: figures kept in the history, smaller is better (prefer ratios and counts: they travel
    between machines). notes: Markdown lines below the table.
    """

    name: str
    title: str
    command: str
    text: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    tracked: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    order: int = 0


def arguments(description: str, threads: int | None = 1, **extra: dict[str, Any]) -> argparse.Namespace:
    """Parse ``--record``, ``--json``, ``--rounds`` and the script's options; set the number of torch threads."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write results, history and docs/benchmarks.md")
    parser.add_argument("--json", action="store_true", help="print the table as one JSON object at the end")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each timing (default 5)")
    for name, options in extra.items():
        parser.add_argument("--" + name.replace("_", "-"), **options)
    if threads is not None:
        torch.set_num_threads(threads)
    return parser.parse_args()


def interleave(
    methods: dict[str, Callable[[], Any]], rounds: int, warmup: int = 1, seconds_per_round: float = 0.0
) -> dict[str, float]:
    """Median CPU seconds of one call of each method; the methods take turns in every round, so that a noisy moment
    hits all of them. Short calls are repeated within a round for at least ``seconds_per_round``."""
    repeats = {}
    for name, method in methods.items():
        for _ in range(warmup):
            method()
        began = time.process_time()
        method()
        once = max(time.process_time() - began, 1e-6)
        repeats[name] = max(1, int(seconds_per_round / once))
    samples: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, method in methods.items():
            gc.collect()
            began = time.process_time()
            for _ in range(repeats[name]):
                method()
            samples[name].append((time.process_time() - began) / repeats[name])
    return {name: statistics.median(values) for name, values in samples.items()}


def peak_bytes(method: Callable[[], Any]) -> int:
    """Largest number of bytes in live tensors that ``method`` allocated itself (not scratch space inside a kernel)."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        method()
    live = peak = 0
    for event in recorded.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def machine() -> dict[str, Any]:
    """The machine and versions a result belongs to."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    clean = {key.strip(): value.strip() for key, value in facts.items()}
    return f"{clean.get('model name', 'unknown')} (family {clean.get('cpu family')}, model {clean.get('model')})"


def finish(table: Table, options: argparse.Namespace) -> None:
    """Print the table; with ``--record``, store it; name slowdowns against the history either way."""
    print(to_markdown(table))
    for warning in slowdowns(table):
        print(f"SLOWDOWN {warning}")
    if options.record:
        RESULTS.mkdir(exist_ok=True)
        stamp = {"date": time.strftime("%Y-%m-%d"), "commit": _commit(), "machine": machine()}
        (RESULTS / f"{table.name}.json").write_text(json.dumps({**asdict(table), **stamp}, indent=1) + "\n")
        with HISTORY.open("a") as file:
            file.write(json.dumps({"name": table.name, **stamp, "tracked": table.tracked}) + "\n")
        render()
    if options.json:
        print(json.dumps(asdict(table)))


def slowdowns(table: Table) -> list[str]:
    """Tracked figures that are worse than the best one recorded on the same processor by more than ``SLOWDOWN``."""
    if not HISTORY.exists():
        return []
    past = [json.loads(line) for line in HISTORY.read_text().splitlines()]
    past = [p for p in past if p["name"] == table.name and p["machine"]["processor"] == _processor()]
    found = []
    for key, value in table.tracked.items():
        earlier = [p["tracked"][key] for p in past if key in p["tracked"]]
        if earlier and value > SLOWDOWN * min(earlier):
            found.append(f"{table.name}: {key} is {value:.4g}, the best so far {min(earlier):.4g}")
    return found


def _commit() -> str:
    run = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return run.stdout.strip() or "unknown"


def to_markdown(table: Table) -> str:
    """The table as a section of docs/benchmarks.md."""
    lines = [f"## {table.title}", "", f"    {table.command}", "", table.text.strip(), ""]
    if table.rows:
        columns = list(dict.fromkeys(key for row in table.rows for key in row))
        lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(_cell(row.get(c, "")) for c in columns) + " |" for row in table.rows]
    lines += ["", *(f"- {note}" for note in table.notes)]
    return "\n".join(lines).rstrip() + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return "" if value is None else str(value)


def render() -> None:
    """Write docs/benchmarks.md."""
    DOCUMENT.write_text(document())


def document() -> str:
    """docs/benchmarks.md, from all result files."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    results.sort(key=lambda r: (r["order"], r["name"]))
    return _INTRODUCTION + "\n" + "\n".join(_section(r) for r in results)


def _section(result: dict[str, Any]) -> str:
    known = Table.__dataclass_fields__
    table = Table(**{key: value for key, value in result.items() if key in known})
    m = result["machine"]
    stamp = (
        f"*Measured {result['date']} at commit {result['commit']}: {m['processor']}, {m['cores']} cores, "
        f"{m['threads']} torch thread(s), torch {m['torch']}, Python {m['python']}.*"
    )
    return f"{to_markdown(table)}\n{stamp}\n"


_INTRODUCTION = """# Benchmarks

Every table is written by the command above it (with `--record`; data from `--data DIR` or the environment variable
`LEARNREG_DATA`). Methods take turns within one run; times are CPU seconds, medians; ratios within a run are what
counts, absolute times depend on the machine. Operator applications count K and K^T once each per batch. Peers run as
their authors published them, from outside this repository, each with its best settings on a stated grid;
`benchmarks/peers/README.md` says how to install them. `benchmarks/history.jsonl` keeps the tracked figures of earlier
recordings, and every run names a figure that became worse than the best one by more than 1.3 times.

Rows are read as: *true error* against a float64 reference solved to rounding; *certified* when the library itself
guarantees the accuracy.
"""


if __name__ == "__main__":
    render()
