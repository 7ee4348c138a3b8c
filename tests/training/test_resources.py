"""What a process holds does not grow with the number of updates."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import learnreg as lr
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="what a process holds as Linux says it")

EARLY, LATE = 8, 20
ROOM = 8.0
"""MB that allocators may take and keep between the two; 2,000 updates took less than 3."""


class Held(lr.Callback):
    """Threads and open files, and megabytes of memory, after two of the updates."""

    def __init__(self) -> None:
        self.counts: dict[int, tuple[int, int]] = {}
        self.memory: dict[int, float] = {}

    def on_update(self, row: Mapping[str, Any]) -> None:
        if row["step"] in (EARLY, LATE):
            self.counts[row["step"]] = (len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")))
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            self.memory[row["step"]] = pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_memory_threads_and_files_stay(tmp_path: Path) -> None:
    """With audits, checkpoints, validation and callbacks."""
    x = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, 2)
    x = x.repeat_interleave(2, 3)
    b = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    problem, held = lr.LowerLevelProblem(Identity((1, 8, 8)), FieldsOfExperts(2, 3), ridge=0.1), Held()
    options: dict[str, Any] = {"batch_size": 2, "validation": 0.3, "audit_every": 5}
    lr.train(problem, (b, x), out=tmp_path, updates=LATE, tune=False, report=False, callbacks=held, **options)
    assert held.counts[EARLY] == held.counts[LATE]
    assert held.memory[LATE] - held.memory[EARLY] < ROOM
