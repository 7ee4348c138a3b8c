"""Runs that are killed (SIGKILL) and resumed until they are finished, against the run that nobody disturbed.

Every run is a process of its own, forked from this one before anything is computed. It is killed at a random time, or
by itself at a random one of its writes (before the data, between data and flush, between flush and rename, after it),
and resumed, several times; at the end parameters, metrics but the seconds, and the model file have to be equal to the
bit, no half-written file may be left, and the lock of the killed process must not be in the way.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from harness import Table, arguments, finish
from torch import Tensor

import learnreg as lr
from learnreg.operators import Identity, ParallelBeam2D
from learnreg.regularizers import FieldsOfExperts, InputConvexNetwork, Regularizer
from learnreg.training import start_tuning
from learnreg.training.run_folder import RunFolder
from learnreg.training.schedule import is_milestone

SIDE, IMAGES = 16, 12
UPDATES = {"adam": 30, "lbfgs": 10, "adaptive": 10}
TUNED = [("FoE", "adam")]
"""What starts at the best factor of the regularizer; finding it takes longer than what is trained here."""
KILLS_IN_A_RUN = 6
CALLS_OF_A_SAVE = 24
"""About so many moments before and after system calls there are."""
PATIENCE = 1800.0  # seconds, on a busy machine


def images(seed: int = 3) -> Tensor:
    """Blocks of random grey values."""
    x = torch.rand(IMAGES, 1, SIDE // 4, SIDE // 4, generator=torch.Generator().manual_seed(seed))
    return x.repeat_interleave(4, -1).repeat_interleave(4, -2)


def denoising(regularizer: Regularizer) -> tuple[lr.LowerLevelProblem, Any]:
    x = images()
    b = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    return lr.LowerLevelProblem(Identity((1, SIDE, SIDE)), regularizer, ridge=0.01), (b, x)


def tomography() -> tuple[lr.LowerLevelProblem, Any]:
    x, operator = images(), ParallelBeam2D(SIDE, 12)
    with torch.no_grad():
        b = operator(x)
        b = b + 0.01 * torch.randn(b.shape, generator=torch.Generator().manual_seed(4))
    return lr.LowerLevelProblem(operator, FieldsOfExperts(3, 3), ridge=1e-2, constraint=lr.Nonnegative()), (b, x)


def icnn() -> tuple[lr.LowerLevelProblem, Any]:
    return denoising(InputConvexNetwork(features=3, layers=2, size=3))


def foe() -> tuple[lr.LowerLevelProblem, Any]:
    return denoising(FieldsOfExperts(3, 3))


PROBLEMS: dict[str, Callable[[], tuple[lr.LowerLevelProblem, Any]]] = {"FoE": foe, "ICNN": icnn, "CT": tomography}


@dataclass
class Kills:
    """What was counted: kills by the parent's clock, by the run at one of its own writes, and runs that were over
    before theirs."""

    timed: int = 0
    writing: int = 0
    missed: int = 0
    wrong: list[str] = field(default_factory=list)


def train(problem: str, optimizer: str, out: Path, resume: bool, last_write: int | None) -> None:
    """In a process of its own."""
    torch.manual_seed(0)
    p, data = PROBLEMS[problem]()
    if last_write is not None:
        _die_at_write(last_write)
    options: dict[str, Any] = {"optimizer": optimizer, "batch_size": 4, "samples": IMAGES, "audit_every": 3}
    options["tune"] = (problem, optimizer) in TUNED
    start_tuning._WEIGHING_STEPS = 1
    lr.train(p, data, out=out, updates=UPDATES[optimizer], resume=resume, validate=lambda: _validated(p), **options)


def _validated(problem: lr.LowerLevelProblem) -> float:
    """A number that goes up and down."""
    return math.sin(1e3 * math.fsum(float(p.detach().double().sum()) for p in problem.learnable().values()))


def _die_at_write(number: int) -> None:
    """Kill this process in its n-th call of fsync or rename, before or after it."""
    left = [number]

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **settings: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*words, **settings)
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for name in ("fsync", "replace", "link", "open"):
        setattr(os, name, deadly(getattr(os, name)))


def start(problem: str, optimizer: str, out: Path, last_write: int | None = None) -> int:
    """Fork a run, or go on with the one in the folder; the process."""
    resume = (out / "config.toml").exists()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        train(problem, optimizer, out, resume, last_write)
        code = 0
    except BaseException as error:
        print(f"{problem}, {optimizer}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def wait_for(child: int, seconds: float) -> int | None:
    """The exit status within so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.005)
    return None


def finished(problem: str, optimizer: str, out: Path) -> bool:
    child = start(problem, optimizer, out)
    status = wait_for(child, PATIENCE)
    if status is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return status == 0


def result_of(out: Path) -> dict[str, Any]:
    """What has to be equal, by name."""
    rows = [{**row, "seconds": None} for row in RunFolder(out, resume=True).rows()]
    parameters = {n: t.numpy().tobytes().hex() for n, t in lr.load(out).regularizer.state_dict().items()}
    return {
        "parameters": parameters,
        "metrics": json.dumps(rows),
        "model file": hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest(),
        "best model": hashlib.sha256((out / "best.safetensors").read_bytes()).hexdigest(),
        "left over": [str(path.name) for path in out.rglob("*.tmp")],
    }


def killed(problem: str, optimizer: str, seconds: float, writes: int, folder: Path, chance: random.Random) -> Kills:
    """One run, killed some times, against the undisturbed one in ``folder / "whole"``."""
    found, out = Kills(), folder / f"parts-{chance.randrange(10**9)}"
    for k in range(KILLS_IN_A_RUN):
        if k % 2:
            status = wait_for(start(problem, optimizer, out, chance.randrange(1, writes)), PATIENCE)
            found.writing += status == signal.SIGKILL
        else:
            child = start(problem, optimizer, out)
            status = wait_for(child, 0.7 * seconds * chance.random())
            if status is None:
                os.kill(child, signal.SIGKILL)
                status = os.waitpid(child, 0)[1]
            found.timed += status == signal.SIGKILL
        if status == 0:
            found.missed += 1
            break
        if status != signal.SIGKILL:
            found.wrong.append(f"ended with status {status}")
    if not finished(problem, optimizer, out):
        found.wrong.append("could not be finished")
        return found
    whole, parts = result_of(folder / "whole"), result_of(out)
    found.wrong += [what for what in whole if whole[what] != parts[what]]
    shutil.rmtree(out)
    return found


def main() -> None:
    options = arguments(
        __doc__ or "",
        quick={"runs": 1, "problems": ["FoE"], "UPDATES": {"adam": 6, "lbfgs": 3, "adaptive": 3}},
        problems={"nargs": "+", "default": list(PROBLEMS), "choices": list(PROBLEMS), "help": "which"},
        runs={"type": int, "default": 2, "help": "killed runs of each problem and optimizer"},
        seed={"type": int, "default": 0, "help": "of the times"},
    )
    table = Table(
        "run_kills",
        "Kills",
        "python benchmarks/run_kills.py --record",
        "Runs that are killed and resumed, with the bits of those that were not.",
    )
    torch.optim.Adam([torch.zeros(1)])  # imports much, which no forked process should do again
    chance, total = random.Random(options.seed), Kills()
    for problem in options.problems:
        for optimizer, updates in UPDATES.items():
            folder = Path(tempfile.mkdtemp(prefix="kills-"))
            began = time.monotonic()
            if not finished(problem, optimizer, folder / "whole"):
                raise SystemExit(f"{problem}, {optimizer}: the undisturbed run failed")
            seconds = time.monotonic() - began
            writes = CALLS_OF_A_SAVE * sum(is_milestone(update) for update in range(1, updates + 1)) // 2
            runs = [killed(problem, optimizer, seconds, writes, folder, chance) for _ in range(options.runs)]
            wrong = [what for run in runs for what in run.wrong]
            row = {
                "problem": problem,
                "optimizer": optimizer,
                "updates": updates,
                "killed by time": sum(run.timed for run in runs),
                "killed writing": sum(run.writing for run in runs),
                "over before": sum(run.missed for run in runs),
                "runs": len(runs),
                "differing": ", ".join(wrong) or "0",
            }
            print(row, file=sys.stderr, flush=True)
            table.rows.append(row)
            total.wrong += wrong
            shutil.rmtree(folder)
    finish(table, options)
    if total.wrong:
        raise SystemExit(f"differing: {total.wrong}")


if __name__ == "__main__":
    main()
