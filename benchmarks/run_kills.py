"""Runs that are killed or interrupted and resumed until they are finished, against the run that nobody disturbed.

Every run is a process of its own, forked from this one before anything is computed. It is killed at a random time, or
by itself at a random one of its writes (before the data, between data and flush, between flush and rename, after it),
and resumed, several times; at the end parameters, metrics but the seconds, and the model file have to be equal to the
bit, no half-written file may be left, and the lock of the killed process must not be in the way.

``--signal`` sends SIGINT, SIGTERM or SIGHUP instead of SIGKILL, ``--again`` a second one after a second: the process
has to end by itself, soon, with the exit code of the signal, and after a single one it says how to go on. "command" is
the whole of ``learnreg train denoise``, with its baseline and report, "workers" the same by two workers of torchrun.

    python benchmarks/run_kills.py --problems command --signal SIGTERM --runs 3
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Table, arguments, finish
from PIL import Image
from torch import Tensor

import learnreg as lr
from learnreg.__main__ import main as command_line
from learnreg.operators import Identity, ParallelBeam2D
from learnreg.regularizers import FieldsOfExperts, InputConvexNetwork, Regularizer
from learnreg.training import start_tuning
from learnreg.training.run_folder import RunFolder
from learnreg.training.schedule import is_milestone

SIDE, IMAGES = 16, 12
UPDATES = {"adam": 30, "lbfgs": 10, "adaptive": 10}
UPDATES_OF_COMMANDS = 10
TUNED = [("FoE", "adam")]
"""What starts at the best factor of the regularizer; finding it takes longer than what is trained here."""
KILLS_IN_A_RUN = 6
CALLS_OF_A_SAVE = 24
"""About so many moments before and after system calls there are."""
PATIENCE = 1800.0  # seconds, on a busy machine
END_WITHIN = 120.0
"""Seconds from a signal to the end of the process: of the update in progress, on a busy machine."""
AGAIN_AFTER = 1.0
COMMANDS = ("command", "workers")
OPTIONS = (
    *("filters=3", "size=3", "patch=16", "patches=12", "batch_size=4", "chunk_size=2", "audit_every=3"),
    *("tune=false", "samples=8"),
)
_SAID = ("--resume", "resume=True", "nothing was learned yet")


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


SIGNALS = ("SIGKILL", "SIGINT", "SIGTERM", "SIGHUP")
PROBLEMS: dict[str, Callable[[], tuple[lr.LowerLevelProblem, Any]]] = {"FoE": foe, "ICNN": icnn, "CT": tomography}


@dataclass(frozen=True)
class Blow:
    """A signal, and whether it is sent twice."""

    number: int
    again: bool = False

    def strike(self, child: int) -> int | None:
        """Send it; the exit code, None where the process does not end by itself."""
        for second in range(1 + self.again):
            if second:
                code = wait_for(child, AGAIN_AFTER)
                if code is not None:
                    return code
            os.kill(child, self.number)
        return wait_for(child, END_WITHIN)

    def explains(self, code: int | None) -> bool:
        """Whether a process that it hits may end so."""
        return code in (-self.number, 128 + self.number)


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
    """Fork a run, or go on with the one in the folder; the process, whose words are in ``out.log``."""
    resume = (out / "config.toml").exists()
    log = out.with_suffix(".log")
    if problem == "workers":
        return _started_by_torchrun(optimizer, out, resume, log)
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with log.open("wb") as file, open(os.devnull, "wb") as nowhere:
            os.dup2(file.fileno(), 2)
            os.dup2(nowhere.fileno(), 1)
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        if problem == "command":
            if last_write is not None:
                _die_at_write(last_write)
            sys.argv = ["learnreg", *_command(optimizer, out, resume)]
            command_line()
        else:
            train(problem, optimizer, out, resume, last_write)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except KeyboardInterrupt as error:
        print(error, *getattr(error, "__notes__", ()), file=sys.stderr)
        code = 130
    except BaseException as error:
        print(f"{problem}, {optimizer}: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(code)


def _command(optimizer: str, out: Path, resume: bool) -> list[str]:
    """The words of ``learnreg``, with names relative to the folder, since they are part of the model."""
    os.chdir(out.parent)
    _write_pictures(Path("pictures"))
    sets = [word for option in (*OPTIONS, f"optimizer={optimizer}") for word in ("--set", option)]
    go_on = ["--resume"] if resume else ["--data", "pictures", *sets]
    return ["train", "denoise", "--out", out.name, "--updates", str(UPDATES_OF_COMMANDS), *go_on]


def _write_pictures(folder: Path) -> None:
    """Small images."""
    folder.mkdir(exist_ok=True)
    for k, image in enumerate(images()[:8]):
        wide = image[0].repeat_interleave(2, 0).repeat_interleave(2, 1).numpy()
        Image.fromarray((255 * wide).astype(np.uint8)).save(folder / f"{k}.png")


def _started_by_torchrun(optimizer: str, out: Path, resume: bool, log: Path) -> int:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "learnreg"]
    words = _command(optimizer, out, resume)
    there = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, *launcher, *words], stdout=subprocess.DEVNULL, stderr=file, env=there, cwd=out.parent
        ).pid


def wait_for(child: int, seconds: float) -> int | None:
    """The exit code within so many seconds, minus the signal that ended the process."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def stop(child: int) -> None:
    """Kill a process that does not end by itself."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def finished(problem: str, optimizer: str, out: Path) -> bool:
    child = start(problem, optimizer, out)
    code = wait_for(child, PATIENCE)
    if code is None:
        stop(child)
    if code != 0:
        print(out.with_suffix(".log").read_text(errors="replace"), file=sys.stderr, flush=True)
    return code == 0


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


def killed(
    problem: str, optimizer: str, seconds: float, writes: int, folder: Path, chance: random.Random, blow: Blow
) -> Kills:
    """One run, killed some times, against the undisturbed one in ``folder / "whole"``."""
    found, out = Kills(), folder / f"part-{chance.randrange(10**9)}" / "whole"
    out.parent.mkdir()
    fatal = blow.number == signal.SIGKILL
    for k in range(KILLS_IN_A_RUN):
        if fatal and k % 2:
            code = wait_for(start(problem, optimizer, out, chance.randrange(1, writes)), PATIENCE)
            found.writing += code == -signal.SIGKILL
        else:
            child = start(problem, optimizer, out)
            left = 1.0 / (1.0 + 0.3 * k) if problem in COMMANDS else 0.7  # what every process of a command repeats
            code = wait_for(child, left * seconds * chance.random())
            if code is None:
                code = blow.strike(child)
                found.timed += 1
                found.wrong += _complaints(blow, code, problem, out)
                if code is None:
                    stop(child)
        if code == 0:
            found.missed += 1
            break
        if fatal and code != -signal.SIGKILL:
            found.wrong.append(f"ended with {code}")
    if not finished(problem, optimizer, out):
        found.wrong.append("could not be finished")
        return found
    whole, parts = result_of(folder / "whole"), result_of(out)
    found.wrong += [what for what in whole if whole[what] != parts[what]]
    shutil.rmtree(out.parent)
    return found


def _complaints(blow: Blow, code: int | None, problem: str, out: Path) -> list[str]:
    """What is wrong with the end of a process that was hit."""
    if blow.number == signal.SIGKILL or code == 0:
        return []
    if code is None:
        return [f"no end within {END_WITHIN:g} s"]
    if problem == "workers":  # torchrun has its own exit codes, and says much
        return []
    words = out.with_suffix(".log").read_text(errors="replace")
    found = [] if blow.explains(code) else [f"exit code {code}"]
    found += ["traceback"] if "Traceback" in words else []
    if code > 0 and not blow.again and not any(said in words for said in _SAID):
        found.append(f"says nothing of how to go on: {words[-200:]!r}")
    return found


def main() -> None:
    options = arguments(
        __doc__ or "",
        quick={"runs": 1, "problems": ["FoE"], "UPDATES": {"adam": 6, "lbfgs": 3, "adaptive": 3}},
        problems={"nargs": "+", "default": list(PROBLEMS), "choices": [*PROBLEMS, *COMMANDS], "help": "which"},
        optimizers={"nargs": "+", "default": list(UPDATES), "choices": list(UPDATES), "help": "which"},
        signal={"default": "SIGKILL", "choices": [*SIGNALS], "help": "that is sent"},
        again={"action": "store_true", "help": "send it once more, a second later"},
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
    blow = Blow(signal.Signals[options.signal], options.again)
    for problem in options.problems:
        for optimizer in options.optimizers:
            updates = UPDATES_OF_COMMANDS if problem in COMMANDS else UPDATES[optimizer]
            folder = Path(tempfile.mkdtemp(prefix="kills-"))
            began = time.monotonic()
            if not finished(problem, optimizer, folder / "whole"):
                raise SystemExit(f"{problem}, {optimizer}: the undisturbed run failed")
            seconds = time.monotonic() - began
            writes = CALLS_OF_A_SAVE * sum(is_milestone(update) for update in range(1, updates + 1)) // 2
            runs = [killed(problem, optimizer, seconds, writes, folder, chance, blow) for _ in range(options.runs)]
            wrong = [what for run in runs for what in run.wrong]
            row = {
                "problem": problem,
                "optimizer": optimizer,
                "signal": options.signal + " twice" * options.again,
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
