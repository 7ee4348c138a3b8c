"""Descent that only takes certified steps: with the sharp certificate against the published-style one.

    python benchmarks/training_certificates.py --data DIR --record

DIR holds BSDS500.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import Table, arguments, finish

import learnreg as lr
from learnreg.commands.process import large_blocks_kept
from learnreg.datasets import BSDS500, DenoisingPatches
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts

PATCHES, SIDE, SIGMA, SMOOTHINGS = 4, 48, 25 / 255, (1e-2, 1e-3)


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


def descend(folder: Path, smoothing: float, certificate: Any, steps: int) -> Run:
    """So many steps of ``AdaptiveDescent`` on one batch, all certified."""
    torch.manual_seed(0)
    patches = DenoisingPatches(BSDS500(folder / "BSDS500", splits=("train",)), sigma=SIGMA, patch=SIDE)
    b, x_true = (torch.stack(column).double() for column in zip(*(patches[i] for i in range(PATCHES)), strict=True))
    regularizer = FieldsOfExperts(16, 5, lr.PseudoHuber(smoothing, 0.3)).double()
    problem = lr.LowerLevelProblem(Identity((1, SIDE, SIDE)), regularizer)
    objective = lr.BatchObjective(problem, b, lr.SquaredError(x_true), certificate=certificate)
    descent, run, began = lr.AdaptiveDescent(), Run([], [], []), time.process_time()
    for _ in range(steps):
        step = descent.step(objective)
        run.losses.append(step.loss_interval[1])
        run.applications.append(objective.operator_applications)
        run.seconds.append(time.process_time() - began)
        print(f"{certificate} {smoothing:g}: {step}", file=sys.stderr, flush=True)
    return run


@large_blocks_kept()
def main() -> None:
    options = arguments(
        __doc__ or "",
        quick={"steps": 2, "SIDE": 16, "SMOOTHINGS": (1e-2,)},
        data={"default": os.environ.get("LEARNREG_DATA", ""), "help": "folder of data"},
        steps={"type": int, "default": 25, "help": "upper-level steps"},
    )
    folder = Path(options.data)
    if not options.data or not (folder / "BSDS500").is_dir():
        sys.exit("BSDS500 not found: give its folder with --data or LEARNREG_DATA")
    table = Table(
        name="training_certificates",
        order=8,
        title="Training by certified steps",
        command="python benchmarks/training_certificates.py --data DIR --record",
        text=f"""{options.steps} steps of `AdaptiveDescent` (gradient certified to a relative error of 0.5, decrease of
the loss certified) on {PATCHES} patches of {SIDE}² pixels (BSDS500 train), 16 filters 5x5, float64, with the sharp
certificate and with the published-style one. Work until the certified upper end of the loss is below the larger of the
two final ones.""",
    )
    for smoothing in SMOOTHINGS:
        runs = {kind: descend(folder, smoothing, kind, options.steps) for kind in ("published", "sharp")}
        goal = max(run.losses[-1] for run in runs.values())
        entry: dict[str, Any] = {"initial smoothing": smoothing, "loss at first": runs["sharp"].losses[0], "loss": goal}
        for kind, run in runs.items():
            reached = run.work_to(goal)
            assert reached is not None
            entry[f"{kind}: applications"], entry[f"{kind}: CPU s"] = reached
        entry["published / sharp, applications"] = entry["published: applications"] / entry["sharp: applications"]
        entry["published / sharp, CPU"] = entry["published: CPU s"] / entry["sharp: CPU s"]
        table.rows.append(entry)
    finish(table, options)


if __name__ == "__main__":
    main()
