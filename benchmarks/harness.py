"""What benchmarks share: interleaved timing in one thread, the result file, the history, and docs/benchmarks.md.

A script builds a :class:`Table` and calls :func:`finish`. ``--record`` writes ``benchmarks/results/NAME.json`` and a
line of ``benchmarks/history.jsonl`` and renders docs/benchmarks.md and the whole tables (``results/NAME.md``),
again; without it nothing is written. Times are CPU seconds of the process, medians over rounds in which the methods
take turns.
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
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

__all__ = ["Table", "arguments", "document", "finish", "interleave", "machine", "peak_bytes", "present", "render"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
HISTORY = ROOT / "benchmarks" / "history.jsonl"
DOCUMENT = ROOT / "docs" / "benchmarks.md"
sys.path.append(str(ROOT / "tests"))  # random problems and their dense truth: ``from truth.hunt import hunt``
_PICTURE = "!["
"""How a note begins that belongs into docs/benchmarks.md, beside its pictures."""
SHORT = 10
"""Rows, or tracked figures, of a section of docs/benchmarks.md at most."""
SLOWDOWN = 1.3
"""A tracked figure this much larger than the best one in the history, on the same processor, is called a slowdown."""


@dataclass
class Table:
    """One table of the benchmarks.

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


def arguments(
    description: str, threads: int | None = 1, quick: Mapping[str, Any] | None = None, **extra: dict[str, Any]
) -> argparse.Namespace:
    """Parse ``--record``, ``--json``, ``--rounds``, ``--quick`` and the script's options; set the number of torch
    threads.

    quick: what ``--quick`` replaces, so that the whole script runs in seconds: options by their names, constants of the
    script by theirs, and those of a module that it imports as "module.NAME".
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write results, history and docs/benchmarks.md")
    parser.add_argument("--json", action="store_true", help="print the table as one JSON object at the end")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each timing (default 5)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that the script works")
    for name, options in extra.items():
        parser.add_argument("--" + name.replace("_", "-"), **options)
    if threads is not None:
        torch.set_num_threads(threads)
    found = parser.parse_args()
    if found.quick and found.record:
        parser.error("--quick measures nothing that could be recorded")
    if found.quick:
        _make_quick(found, quick or {})
    return found


def _make_quick(options: argparse.Namespace, replaced: Mapping[str, Any]) -> None:
    options.rounds = 1
    for name, value in replaced.items():
        module, _, constant = name.rpartition(".")
        target = options if name in vars(options) else sys.modules[module or "__main__"]
        getattr(target, constant)  # a name that does not exist is a mistake
        setattr(target, constant, value)


def present(folder: Path | None, what: str) -> Path | None:
    """The folder, if it is there; else it is said that this is left out."""
    if folder is not None and folder.is_dir():
        return folder
    print(f"no folder of {what}: left out", file=sys.stderr)
    return None


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


def finish(table: Table, options: argparse.Namespace, names: tuple[str, ...] = ()) -> None:
    """Print the table; with ``--record``, store it; name slowdowns against the history either way.

    names: the columns that name a row, where a run may measure some of them: recorded rows of other names stay, and the
    commits of both are told.
    """
    print(to_markdown(table))
    for warning in slowdowns(table):
        print(f"SLOWDOWN {warning}")
    if options.record:
        RESULTS.mkdir(exist_ok=True)
        stamp = {"date": time.strftime("%Y-%m-%d"), "commit": _commit(), "machine": machine()}
        if names:
            stamp["commit"] = _keep_others(table, names, stamp["commit"])
        (RESULTS / f"{table.name}.json").write_text(json.dumps({**asdict(table), **stamp}, indent=1) + "\n")
        with HISTORY.open("a") as file:
            file.write(json.dumps({"name": table.name, **stamp, "tracked": table.tracked}) + "\n")
        render()
    if options.json:
        print(json.dumps(asdict(table)))


def _keep_others(table: Table, names: tuple[str, ...], commit: str) -> str:
    """Add the recorded rows of other names; returns the commits of all rows."""
    path = RESULTS / f"{table.name}.json"
    if not path.exists():
        return commit
    recorded = json.loads(path.read_text(encoding="utf-8"))
    measured = {tuple(row[name] for name in names) for row in table.rows}
    others = [row for row in recorded["rows"] if tuple(row[name] for name in names) not in measured]
    if not others:
        return commit
    table.rows[:0] = others
    return ", ".join(dict.fromkeys([*recorded["commit"].split(", "), commit]))


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
    """The whole table with how it was measured and its notes."""
    lines = [f"## {table.title}", "", f"    {table.command}", "", table.text.strip(), ""]
    lines += [*_rows(table), "", *(f"- {note}" for note in table.notes if not note.startswith(_PICTURE))]
    return "\n".join(lines).rstrip() + "\n"


def _rows(table: Table) -> list[str]:
    if not table.rows:
        return []
    columns = list(dict.fromkeys(key for row in table.rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(_cell(row.get(c, "")) for c in columns) + " |" for row in table.rows]


def _to_summary(table: Table) -> str:
    """A section of docs/benchmarks.md: how it is measured, and a short table, or the first tracked figures of a long
    one."""
    lines = [f"## {table.title}", "", f"    {table.command}", "", table.text.strip(), ""]
    if len(table.rows) <= SHORT:
        lines += _rows(table)
    else:
        lines += [f"- {name}: {_cell(float(value))}" for name, value in list(table.tracked.items())[:SHORT]]
    lines += ["", *(note for note in table.notes if note.startswith(_PICTURE))]
    return "\n".join(lines).rstrip() + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return "" if value is None else str(value)


def render() -> None:
    """Write docs/benchmarks.md and the journal, benchmarks/results/NAME.md."""
    DOCUMENT.write_text(document(), encoding="utf-8")
    for name, text in journal().items():
        (RESULTS / name).write_text(text, encoding="utf-8")


def document() -> str:
    """docs/benchmarks.md, from all result files."""
    sections = [
        f"{_to_summary(table)}\n{stamp}\n\n[All rows and notes](../benchmarks/results/{table.name}.md)\n"
        for table, stamp in _recorded()
    ]
    return _INTRODUCTION + "\n" + "\n".join(sections)


def journal() -> dict[str, str]:
    """The whole tables by the names of their files."""
    return {f"{table.name}.md": f"{to_markdown(table)[1:]}\n{stamp}\n" for table, stamp in _recorded()}


def _recorded() -> list[tuple[Table, str]]:
    """The tables of all result files in order, each with where it was measured."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*.json")]
    results.sort(key=lambda r: (r["order"], r["name"]))
    known, found = Table.__dataclass_fields__, []
    for result in results:
        m = result["machine"]
        stamp = (
            f"*Measured {result['date']} at commit {result['commit']}: {m['processor']}, {m['cores']} cores, "
            f"{m['threads']} torch thread(s), torch {m['torch']}, Python {m['python']}.*"
        )
        found.append((Table(**{key: value for key, value in result.items() if key in known}), stamp))
    return found


_INTRODUCTION = """# Benchmarks

Every section and its whole table in `benchmarks/results` are written by the command in it (with `--record`; data from
`--data DIR` or the environment variable `LEARNREG_DATA`; `--quick` runs any of them in seconds on small sizes).
"Real CT slices" needs a model that is trained first, by the command in its text; "Learned regularizers on Set12" trains
what is missing in RUNS. Methods take turns within one run; times are CPU seconds, medians; ratios within a run are what
counts, absolute times depend on the machine. Operator applications count K and K^T once each per batch. Peers run as
their authors published them, from outside this repository, each with its best settings on a stated grid;
`benchmarks/peers/README.md` says how to install them. `benchmarks/history.jsonl` keeps the tracked figures of earlier
recordings, and every run names a figure that became worse than the best one by more than 1.3 times.

Rows are read as: *true error* against a float64 reference solved to rounding; *certified* when the library itself
guarantees the accuracy. In place of a long table stand its first tracked figures, of which smaller ones are better.
"""


if __name__ == "__main__":
    render()
