"""Descent that only takes certified steps: the published method as published, and this package's own.

    python benchmarks/training_certificates.py --data DIR --record

DIR holds BSDS500.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import Table, arguments, finish

import learnreg as lr
from learnreg.commands.process import large_blocks_kept
from learnreg.datasets import BSDS500, DenoisingPatches
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts, InputConvexNetwork, Regularizer

PATCHES, SIDE, SIGMA, STEPS = 4, 48, 25 / 255, 25
PROBLEMS: dict[str, Callable[[], Regularizer]] = {
    "learned operator, smoothing 0.01": lambda: FieldsOfExperts(16, 5, lr.PseudoHuber(1e-2, 0.3)),
    "learned operator, smoothing 0.001": lambda: FieldsOfExperts(16, 5, lr.PseudoHuber(1e-3, 0.3)),
    "input-convex network": lambda: InputConvexNetwork(features=8, form="lifted"),
}
QUICK = dict(list(PROBLEMS.items())[:1])


@dataclass(frozen=True)
class Kind:
    """A method with its certificate and its rule of steps."""

    method: Callable[[], HypergradientMethod]
    certificate: Any
    descent: dict[str, Any]


KINDS = {
    "published": Kind(lambda: lr.Piggyback(mode="interleaved"), "published", {"scaling": "none", "memory": 0}),
    "published certificate, own steps": Kind(lr.Implicit, "published", {}),
    "own": Kind(lr.Implicit, "auto", {}),
}


@dataclass
class Run:
    """Loss (upper end of its certified interval), operator applications and CPU seconds after each accepted step."""

    losses: list[float]
    applications: list[int]
    seconds: list[float]

    def work_to(self, loss: float) -> tuple[int, float] | None:
        """Applications and CPU seconds of the first step whose loss is not above this one."""
        for value, applications, seconds in zip(self.losses, self.applications, self.seconds, strict=True):
            if value <= loss:
                return applications, seconds
        return None


def descend(folder: Path, problem_name: str, kind_name: str, steps: int) -> Run:
    """So many steps of ``AdaptiveDescent`` on one batch, all certified."""
    kind = KINDS[kind_name]
    torch.manual_seed(0)
    patches = DenoisingPatches(BSDS500(folder / "BSDS500", splits=("train",)), sigma=SIGMA, patch=SIDE)
    b, x_true = (torch.stack(column).double() for column in zip(*(patches[i] for i in range(PATCHES)), strict=True))
    regularizer = PROBLEMS[problem_name]().double()
    problem = lr.LowerLevelProblem(Identity((1, SIDE, SIDE)), regularizer)
    objective = lr.BatchObjective(problem, b, lr.SquaredError(x_true), kind.method(), kind.certificate)
    descent, run, began = lr.AdaptiveDescent(**kind.descent), Run([], [], []), time.process_time()
    for _ in range(steps):
        step = descent.step(objective)
        run.losses.append(step.loss_interval[1])
        run.applications.append(objective.operator_applications)
        run.seconds.append(time.process_time() - began)
        print(f"{kind_name}, {problem_name}: {step}", file=sys.stderr, flush=True)
    return run


@large_blocks_kept()
def main() -> None:
    options = arguments(
        __doc__ or "",
        quick={"steps": 2, "SIDE": 16, "PROBLEMS": QUICK},
        data={"default": os.environ.get("LEARNREG_DATA", ""), "help": "folder of data"},
        steps={"type": int, "default": STEPS, "help": "upper-level steps"},
    )
    folder = Path(options.data)
    if not options.data or not (folder / "BSDS500").is_dir():
        sys.exit("BSDS500 not found: give its folder with --data or LEARNREG_DATA")
    table = Table(
        name="training_certificates",
        order=8,
        title="Training by certified steps",
        command="python benchmarks/training_certificates.py --data DIR --record",
        text=f"""{options.steps} certified steps on {PATCHES} patches of {SIDE}² pixels (BSDS500 train), float64: as
published (interleaved piggyback, bounds by norms, backtracking along the gradient), with the published bounds in this
package's own steps, and its own (default options). Work until the certified upper end of the loss is below the largest
of the final ones.""",
    )
    for name in PROBLEMS:
        runs = {kind: descend(folder, name, kind, options.steps) for kind in KINDS}
        goal = max(run.losses[-1] for run in runs.values())
        entry: dict[str, Any] = {"problem": name, "loss at first": runs["own"].losses[0], "loss": goal}
        for kind, run in runs.items():
            reached = run.work_to(goal)
            assert reached is not None
            entry[f"{kind}: applications"], entry[f"{kind}: CPU s"] = reached
            entry[f"{kind}: last loss"] = run.losses[-1]
        table.rows.append(entry)
    finish(table, options)


if __name__ == "__main__":
    main()
