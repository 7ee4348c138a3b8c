"""What a run takes at least is held against what is free, before it is taken."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import learnreg as lr
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts, Regularizer, Reweighted, TotalVariation
from learnreg.training import memory
from learnreg.training.memory import free_bytes

pytestmark = pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="what is free as Linux says it")


class Ramps:
    """Of any length, of images of any side."""

    def __init__(self, count: int, side: int) -> None:
        self._count, self._side = count, side

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = torch.linspace(0.0, 1.0, self._side).expand(1, self._side, self._side)
        return 0.9 * x, x


def train(regularizer: Regularizer, count: int, side: int, **options: Any) -> lr.TrainResult:
    problem = lr.LowerLevelProblem(Identity((1, side, side)), regularizer, ridge=0.01)
    return lr.train(problem, Ramps(count, side), tune=False, updates=1, **options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch_size": 10**6}, "1,000,000 samples in a batch"),
        ({"batch_size": 10**6, "chunk_size": 10**6}, "of which 1,000,000 are solved at once"),
        ({"optimizer": "lbfgs", "samples": 10**6}, "1,000,000 samples"),
        ({"optimizer": "adaptive", "sampling": "fixed", "samples": 10**6}, "1,000,000 samples"),
    ],
)
def test_more_than_any_machine_has(options: dict[str, Any], named: str) -> None:
    """4 TB of pixels; a batch is no larger than the data."""
    with pytest.raises(lr.ConfigError, match=rf"{named}.* take at least [\d.]+ GB, and [\d.]+ GB are free"):
        train(TotalVariation(0.1), 10**7, 512, **options)


@pytest.mark.parametrize("wrapped", [False, True])
def test_responses_count(wrapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """9 filters see an image of 8² pixels as 9 of them."""
    R: Regularizer = FieldsOfExperts(9, 3)
    R = Reweighted(R) if wrapped else R
    numbers = 4 * (2 * 64 * 2) + 3 * 4 * 2 * (64 + 9 * 64)  # bytes of two samples, and of three copies while they solve
    for free, fits in ((numbers, True), (numbers - 1, False)):
        monkeypatch.setattr(memory, "free_bytes", lambda free=free: free)
        if fits:
            assert train(R, 2, 8).updates == 1
            continue
        with pytest.raises(lr.ConfigError, match="with 640 numbers each"):
            train(R, 2, 8)


def test_a_limit_of_address_space_counts() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (1024 * int(size.split()[1]) + 10**9, before[1]))
    try:
        found = free_bytes()
        with pytest.raises(lr.ConfigError, match="are free"):
            train(FieldsOfExperts(1024, 3), 64, 512)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert found is not None
    assert 0 < found <= 10**9


def test_nothing_is_refused_where_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_available", "_of_control_group", "_below_limit"):
        monkeypatch.setattr(memory, name, lambda: None)
    assert free_bytes() is None
    assert train(TotalVariation(0.1), 2, 8).updates == 1
