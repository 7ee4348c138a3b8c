"""What the script for devices computes with: where, how much, until when, and on which images and problems."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import checkout  # noqa: F401  # makes learnreg importable
import torch
from torch import Tensor

import learnreg as lr
from learnreg.operators import Identity
from learnreg.regularizers import (
    FieldsOfExperts,
    InputConvexNetwork,
    Regularizer,
    RidgeRegularizer,
    TotalVariation,
)

Rows = Iterator[dict[str, Any]]

SIGMA, FILTERS, SIZE = 25 / 255, 24, 5


@dataclass
class Plan:
    """Where to compute, how much, and until when."""

    device: torch.device
    quick: bool
    deadline: float
    bandwidth: float = math.nan
    """Bytes per second of copies on the device, as measured."""

    def chosen(self, full: Any, small: Any) -> Any:
        return small if self.quick else full

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Callable[[], object], rounds: int = 3) -> float:
        """The median of some runs, after one that does not count."""
        call()
        found = []
        for _ in range(rounds):
            self.wait()
            began = time.perf_counter()
            call()
            self.wait()
            found.append(time.perf_counter() - began)
        return statistics.median(found)

    @contextlib.contextmanager
    def peak(self) -> Iterator[Callable[[], float]]:
        """MB that were in use at most; NaN where the device does not say."""
        there = self.device.type == "cuda"
        if there:
            torch.cuda.reset_peak_memory_stats(self.device)
        yield lambda: torch.cuda.max_memory_allocated(self.device) / 1e6 if there else math.nan


def phantoms(batch: int, side: int, seed: int = 0) -> Tensor:
    """Random rectangles on a ramp, (batch, 1, side, side), in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.linspace(0.0, 0.5, side).expand(batch, 1, side, side).clone()
    for image in x:
        for _ in range(8):
            top, left = (int(n) for n in torch.randint(0, side - 2, (2,), generator=generator))
            height, width = (int(n) for n in torch.randint(2, max(3, side // 2), (2,), generator=generator))
            image[0, top : top + height, left : left + width] = torch.rand((), generator=generator)
    return x


def noisy(x: Tensor, seed: int = 1) -> Tensor:
    return x + SIGMA * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


def regularizers(small: bool = False) -> dict[str, Callable[[], Regularizer]]:
    """Made anew, on the CPU, with the same numbers each time."""

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    filters, size = (4, 3) if small else (FILTERS, SIZE)
    return {
        "Fields of Experts": lambda: FieldsOfExperts(filters, size, generator=generator()),
        "total variation": lambda: TotalVariation(0.07, 1e-2),
        "ridge": lambda: RidgeRegularizer((2, 4), 3, 9, generator=generator()),
        "input-convex network": lambda: InputConvexNetwork(generator=generator()),
    }


def experts(side: int, device: torch.device) -> lr.LowerLevelProblem:
    R = FieldsOfExperts(FILTERS, SIZE, generator=torch.Generator().manual_seed(0))
    return lr.LowerLevelProblem(Identity((1, side, side)), R).to(device)
