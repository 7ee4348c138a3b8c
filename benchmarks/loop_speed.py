"""Updates of the default ``learnreg train denoise`` for each CPU second, beside those of an earlier version.

Both versions train in processes of their own, with one thread and the same seed, and take turns: one update here, one
there, so that a noisy moment hits both. Counted is CPU time, of all threads of a process, from the end of the first
update on: audits, validation on held-out images, logging and checkpoints are part of it, reading the data and tuning
the start are not. A step of the earlier version may need other numbers of operator applications, since its parameters
take another course: seconds for 1,000 of them are what the loop itself costs.

    git worktree add --detach /tmp/earlier fd13195
    python benchmarks/loop_speed.py --against /tmp/earlier --updates 60 --rounds 3
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import ROOT, Table, arguments, finish

LEAST_UPDATES = 3
"""Of which the first one, with all that is done once, is not counted."""


def learn(tree: Path, seed: int, updates: int) -> None:
    """In a process of its own: train, and before each update wait for a line of stdin. Says after each update how much
    CPU time and how many operator applications there were so far."""
    _import_from(tree)
    import torch

    import learnreg.commands.common as common
    from learnreg.commands.denoise import scenario
    from learnreg.commands.options import DenoiseConfig
    from learnreg.training.run_folder import RunFolder

    torch.set_num_threads(1)

    class Turns(common.Progress):
        def on_update(self, row: Any) -> None:
            print(json.dumps([time.process_time(), row["operator_applications"]]), file=words, flush=True)
            sys.stdin.readline()

        __call__ = on_update  # as earlier versions called it

    words, sys.stdout = sys.stdout, sys.stderr
    with tempfile.TemporaryDirectory() as folder:
        config = DenoiseConfig(updates=updates, minutes=1e6, seed=seed, out=f"{folder}/run")
        chosen = scenario(config)
        torch.manual_seed(seed)
        problem = chosen.problem(common.initial_regularizer(config))
        progress = Turns(config.minutes, updates)
        if hasattr(common, "joined"):
            with common.joined() as group, common.folder_of(config.out, False, group).held() as out:
                common._learn(common._trainer(chosen, problem, progress, group), config, out, False, False)
        else:
            common._learn(common._trainer(chosen, problem, progress), config, RunFolder(config.out), False)


def _import_from(tree: Path) -> None:
    """Whatever version is installed, import the one of this tree."""
    for name, module in list(sys.modules.items()):
        if name.startswith("__editable___learnreg") and hasattr(module, "MAPPING"):
            parts = {"": "learnreg", ".datasets": "datasets", ".operators": "operators"}
            module.MAPPING.update({f"learnreg{part}": str(tree / place) for part, place in parts.items()})
            return
    raise SystemExit("loop_speed.py needs an editable installation of learnreg.")


def take_turns(trees: dict[str, Path], seed: int, updates: int) -> dict[str, list[list[float]]]:
    """What each process said after each of its updates."""
    said: dict[str, list[list[float]]] = {name: [] for name in trees}
    children = {}
    for name, tree in trees.items():
        words = [sys.executable, __file__, "--learn", str(tree), str(seed), str(updates)]
        children[name] = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        said[name].append(_said_by(children[name]))  # the start of one after that of the other
    for _ in range(updates - 1):
        for name, child in children.items():
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
            said[name].append(_said_by(child))
    for child in children.values():
        child.communicate("\n")
    return said


def _said_by(child: subprocess.Popen[str]) -> list[float]:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise SystemExit(f"a training process ended with {child.wait()}")
    found: list[float] = json.loads(line)
    return found


def main() -> None:
    if sys.argv[1:2] == ["--learn"]:
        learn(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
        return
    options = arguments(
        __doc__ or "",
        quick={"updates": LEAST_UPDATES},
        against={"type": Path, "default": ROOT, "help": "tree of another version"},
        updates={"type": int, "default": 60, "help": "of each process in a round"},
    )
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    table = Table(
        "loop_speed",
        "Speed of the loop",
        "python benchmarks/loop_speed.py --against TREE",
        "CPU seconds of an update, and of 1,000 operator applications, beside those of another version.",
    )
    trees = {"before": options.against, "now": ROOT}
    for seed in range(options.rounds):
        row: dict[str, Any] = {"seed": seed}
        for name, said in take_turns(trees, seed, max(LEAST_UPDATES, options.updates)).items():
            seconds, applications = (said[-1][k] - said[0][k] for k in (0, 1))
            row |= {f"s/update {name}": round(seconds / (len(said) - 1), 4)}
            row |= {f"applications/update {name}": round(applications / (len(said) - 1), 1)}
            row |= {f"s/1000 {name}": round(1000.0 * seconds / applications, 4)}
        for what in ("s/update", "s/1000"):
            row[f"ratio {what}"] = round(row[f"{what} now"] / row[f"{what} before"], 3)
        print(row, file=sys.stderr, flush=True)
        table.rows.append(row)
    for what in ("s/update", "s/1000"):
        table.tracked[f"ratio {what}"] = statistics.median(row[f"ratio {what}"] for row in table.rows)
    finish(table, options)


if __name__ == "__main__":
    main()
