"""Damaged files by the thousand: every loader reads seeds that are changed at random or keep their checksums and layout
(``tests/support/mutations.py``), in a process of its own with 6 GB of address space. Counted is what no user should
meet: other exceptions than the documented ones, warnings of other packages, words on stderr, ends by a signal or the
time limit, memory far beyond the file.

    python benchmarks/fuzz_files.py --files 10000 --record
    python benchmarks/fuzz_files.py --loaders "image PNG,model" --files 500
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["LEARNREG_CACHE"] = ""  # no file of the user's decides

from harness import Table, arguments, finish
from support.file_loaders import LOADERS, Loader, damaged_files

ADDRESS_SPACE = 6 * 2**30
SECONDS = 60.0
MEMORY = 256 * 2**20
"""A file of a few kB that takes more beyond what the process had is counted."""

TEXT = """{files} damaged files for each loader, from seeds of 0.1 to 20 kB: bits flipped, bytes written, cut,
repeated, left out, zeroed, spliced and inserted, numbers of other sizes, and changes of chunks, directories, headers,
elements and descriptions that keep checksums (PNG, SHA-256 of models) and layout right. *read*: the file was still
whole enough, or
its values changed. *wrong*: an exception that is not documented, a warning of another package, words on stderr, a
signal, more than 60 s, or more than 256 MB beyond the process; that of ISMRMRD is a signal inside
libhdf5 (SECURITY.md). Seconds and MB: of the worst file."""


@dataclass
class Outcome:
    """Of one loader. wrong: what happened, and the number of a file that repeats it."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: dict[str, list[int]] = field(default_factory=dict)
    seconds: float = 0.0
    memory: int = 0
    slowest: int = 0
    largest: int = 0


def fuzz(name: str, files: range, folder: Path) -> Outcome:
    """Read the damaged files of these numbers; a process that dies is replaced."""
    outcome, following = Outcome(), files.start
    while following < files.stop:
        for row in _run(name, range(following, files.stop), folder):
            following = row["number"] + 1
            _count(outcome, row)
    return outcome


def _count(outcome: Outcome, row: dict[str, Any]) -> None:
    outcome.counts["files"] += 1
    outcome.counts[row["what"]] += 1
    if row["seconds"] > outcome.seconds:
        outcome.seconds, outcome.slowest = row["seconds"], row["number"]
    if row["memory"] > outcome.memory:
        outcome.memory, outcome.largest = row["memory"], row["number"]
    for complaint in row["wrong"]:
        outcome.wrong.setdefault(complaint, []).append(row["number"])


def _run(name: str, files: range, folder: Path) -> Any:
    """The rows that a process writes for these files, and one for the file that ended it."""
    sys.stdout.flush()
    source, sink = os.pipe()
    child = os.fork()
    if not child:
        os.close(source)
        _read_all(LOADERS[name], name, files, folder, sink)
    os.close(sink)
    last = files.start - 1
    with os.fdopen(source) as rows:
        for line in rows:
            row = json.loads(line)
            last = row["number"]
            yield row
    status = os.waitpid(child, 0)[1]
    if status:
        number = os.WTERMSIG(status)
        reason = "more than the time limit" if number == signal.SIGALRM else f"ended by signal {number}"
        yield {"number": last + 1, "what": "ended", "seconds": 0.0, "memory": 0, "wrong": [reason]}


def _read_all(loader: Loader, name: str, files: range, folder: Path, sink: int) -> None:
    """In the child, which ends here."""
    try:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        words = os.open(folder / "stderr", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        kept = os.dup(2)
        os.dup2(words, 2)
        for number in files:
            place = folder / "damaged"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of packages that write what is damaged
                write(damaged_files(loader, random.Random(f"{name} {number}")), place)
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            row = {"number": number, **_read_one(loader, place)}
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            if size := os.lseek(words, 0, os.SEEK_END):
                first = os.pread(words, 80, 0).decode(errors="replace").splitlines()[0]
                row["wrong"].append(f"stderr: {first} ({size} bytes)"[:60])
                os.ftruncate(words, 0)
                os.lseek(words, 0, os.SEEK_SET)
            os.write(sink, (json.dumps(row) + "\n").encode())
        os._exit(0)
    except BaseException:
        os.dup2(kept, 2)
        traceback.print_exc()
        os._exit(1)


def _read_one(loader: Loader, place: Path) -> dict[str, Any]:
    wrong = []
    before = _peak_memory(reset=True)
    began = time.process_time()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            loader.read(place)
            what = "read"
        except loader.may_raise as error:
            what = type(error).__name__
        except Exception as error:
            what = "other"
            wrong.append(f"{type(error).__name__}: {error}"[:90])
    seconds = time.process_time() - began
    memory = max(0, _peak_memory() - before)
    wrong += [f"{w.category.__name__}: {w.message}"[:90] for w in heard if "site-packages" in w.filename]
    if memory > MEMORY:
        wrong.append("memory beyond 256 MB")
    return {"what": what, "seconds": seconds, "memory": memory, "wrong": wrong}


def _peak_memory(reset: bool = False) -> int:
    """Of the resident memory, in bytes; with ``reset`` it starts again from what there is."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def write(files: dict[str, bytes], folder: Path) -> None:
    """A folder of exactly these files."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def main() -> None:
    options = arguments(
        __doc__ or "",
        quick={"files": 20},
        files={"type": int, "default": 1000, "help": "for each loader"},
        first={"type": int, "default": 0, "help": "number of the first one"},
        loaders={"default": ",".join(LOADERS), "help": "names, with commas between"},
    )
    table = Table(
        "fuzz_files",
        "Damaged files",
        "python benchmarks/fuzz_files.py --files 10000 --record",
        TEXT.format(files=f"{options.files:,}"),
        order=95,
    )
    complaints = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in options.loaders.split(","):
            outcome = fuzz(name, range(options.first, options.first + options.files), Path(folder))
            raised = outcome.counts.total() - outcome.counts["files"] - outcome.counts["read"]
            wrong = len({number for numbers in outcome.wrong.values() for number in numbers})
            complaints += wrong
            row = {
                "loader": name,
                "files": outcome.counts["files"],
                "read": outcome.counts["read"],
                "refused": raised - outcome.counts["other"],
            }
            table.rows.append(
                {**row, "wrong": wrong, "seconds": round(outcome.seconds, 2), "MB": round(outcome.memory / 2**20)}
            )
            print(table.rows[-1], f"slowest {outcome.slowest}, largest {outcome.largest}", file=sys.stderr, flush=True)
            for complaint, numbers in outcome.wrong.items():
                print(f"  {len(numbers)} x {complaint!r}, as {numbers[:3]}", file=sys.stderr, flush=True)
    table.tracked["wrong"] = float(complaints)
    finish(table, options, ("loader",))


if __name__ == "__main__":
    main()
