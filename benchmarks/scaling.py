"""Seconds per hypergradient against pixels, batch and filters, with fitted exponents, and one thread against two.

A hypergradient is what one training step computes: state, adjoint state and gradient of a cold-started batch in
float32, at the tolerances below. For the smaller sizes also ``learnreg.hypergradient(tolerance=1.0)``, certified.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from harness import Table, arguments, finish, interleave
from torch import Tensor

import learnreg as lr
from learnreg.commands.process import large_blocks_kept
from learnreg.datasets import add_noise, natural_images
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.hypergradients.compute import Start
from learnreg.hypergradients.implicit import Implicit
from learnreg.hypergradients.piggyback import Piggyback
from learnreg.losses import SquaredError
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.operators import Identity
from learnreg.potentials.pseudo_huber import PseudoHuber
from learnreg.regularizers import FieldsOfExperts
from learnreg.training.tolerances import BatchGradient, Tolerances, improve_batch

SIGMA = 25 / 255
TOLERANCES = Tolerances(state=5e-4, adjoint=1e-2)
"""Root-mean-square error of the state, about 1e-3 of the grey values, and relative residual of the adjoint equation."""
SIDES = (32, 64, 128, 256, 512)
METHODS: dict[str, type[HypergradientMethod]] = {"implicit": Implicit, "piggyback": Piggyback}
SECONDS = 4.0
"""What the repetitions at one size may take; slow ones are repeated less often."""
FITTED_SIDE = 64
"""Exponents in pixels are fitted from this side on: below, costs that do not depend on the size rule."""
CERTIFIED_PIXELS = 128 * 128
"""Certified hypergradients are timed up to this many pixels in the batch."""


@dataclass(frozen=True)
class Size:
    """A batch of square images under a bank of 5x5 filters."""

    side: int = 64
    batch: int = 1
    filters: int = 24

    @property
    def pixels(self) -> int:
        return self.batch * self.side**2


@dataclass(frozen=True)
class Sweep:
    """Sizes that differ in one respect, and the number that is scaled up."""

    name: str
    sizes: list[Size]
    number: Callable[[Size], float]
    label: Callable[[Size], str]


def sweeps(quick: bool) -> list[Sweep]:
    filters = Size(side=96)
    found = [
        Sweep(
            "pixels",
            [Size(side=side) for side in SIDES],
            lambda s: s.side**2,
            lambda s: f"{s.side}², batch 1, 24 filters",
        ),
        Sweep(
            "batch",
            [Size(batch=batch) for batch in (1, 2, 4, 8, 16)],
            lambda s: s.batch,
            lambda s: f"64², batch {s.batch}, 24 filters",
        ),
        Sweep(
            "filters",
            [replace(filters, filters=count) for count in (8, 16, 32, 64)],
            lambda s: s.filters,
            lambda s: f"96², batch 1, {s.filters} filters",
        ),
    ]
    return [replace(sweep, sizes=sweep.sizes[:3]) for sweep in found] if quick else found


# ---- what is timed ---------------------------------------------------------------------------------------------------


def samples(size: Size) -> tuple[Tensor, Tensor]:
    """Noisy and clean crops of natural images, mirrored where an image is too small."""
    images = list(natural_images("train").values())
    clean = torch.stack([crop(images[i % len(images)], size.side, i // len(images)) for i in range(size.batch)])
    return add_noise(clean, SIGMA, seed=0), clean


def crop(image: Tensor, side: int, index: int) -> Tensor:
    """The central crop of that side, moved by its own size for further ones."""
    while min(image.shape[-2:]) < side:
        image = torch.cat([image, image.flip(-1)], -1)
        image = torch.cat([image, image.flip(-2)], -2)
    top, left = ((n - side) // 2 for n in image.shape[-2:])
    top = min(top + index * side, image.shape[-2] - side)
    return image[:, top : top + side, left : left + side]


def new_problem(size: Size) -> LowerLevelProblem:
    regularizer = FieldsOfExperts(size.filters, 5, PseudoHuber(1e-2, 0.3), generator=torch.Generator().manual_seed(0))
    return LowerLevelProblem(Identity((1, size.side, size.side)), regularizer)


class Case:
    """The calls that are timed at one size."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.b, x_true = samples(size)
        self.loss, self.problem = SquaredError(x_true), new_problem(size)

    def improve(self, method: str) -> BatchGradient:
        start = Start(self.b, torch.zeros_like(self.b))
        return improve_batch(self.problem, self.b, self.loss, METHODS[method](), start, TOLERANCES)

    def certified(self) -> lr.Hypergradient:
        return lr.hypergradient(self.problem, self.b, self.loss, tolerance=1.0)

    def calls(self) -> dict[str, Callable[[], Any]]:
        found: dict[str, Callable[[], Any]] = {name: lambda name=name: self.improve(name) for name in METHODS}
        if self.size.pixels <= CERTIFIED_PIXELS:
            found["certified"] = self.certified
        return found


def wall_seconds(case: Case, rounds: int) -> dict[int, float]:
    """Median wall seconds of an implicit hypergradient with one thread and with two, taking turns."""
    found: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for threads, seconds in found.items():
            torch.set_num_threads(threads)
            case.improve("implicit")
            began = time.perf_counter()
            case.improve("implicit")
            seconds.append(time.perf_counter() - began)
    torch.set_num_threads(1)
    return {threads: statistics.median(seconds) for threads, seconds in found.items()}


# ---- table -----------------------------------------------------------------------------------------------------------


def measure(sweep: Sweep, size: Size, rounds: int) -> dict[str, Any]:
    """One row."""
    case = Case(size)
    rounds = affordable(case, rounds)
    seconds = interleave(case.calls(), rounds, warmup=0, seconds_per_round=0.1)
    wall = wall_seconds(case, rounds)
    certified = case.certified() if "certified" in seconds else None
    print(
        f"{sweep.label(size):32s} " + ", ".join(f"{name} {value:.3g} s" for name, value in seconds.items()), flush=True
    )
    return {
        "varied": sweep.name,
        "size": sweep.label(size),
        "implicit, CPU s": seconds["implicit"],
        "applications": case.improve("implicit").applications,
        "piggyback, CPU s": seconds["piggyback"],
        "applications ": case.improve("piggyback").applications,
        "certified, CPU s": seconds.get("certified"),
        "certified bound": None if certified is None else certified.relative_error_bound,
        "implicit, wall s, 1 thread": wall[1],
        "2 threads": wall[2],
    }


def affordable(case: Case, rounds: int) -> int:
    """Rounds that take about ``SECONDS``, at least one; the calls made here warm up."""
    began = time.process_time()
    for call in case.calls().values():
        call()
    return max(1, min(rounds, int(SECONDS / (time.process_time() - began))))


def slope(numbers: list[float], values: list[float]) -> float:
    """Exponent of a power law, by least squares in logarithms."""
    u, v = [math.log(n) for n in numbers], [math.log(w) for w in values]
    mean_u, mean_v = statistics.fmean(u), statistics.fmean(v)
    return sum((p - mean_u) * (q - mean_v) for p, q in zip(u, v, strict=True)) / sum((p - mean_u) ** 2 for p in u)


def exponents(sweep: Sweep, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Exponents of CPU seconds, and of CPU seconds per operator application."""
    kept = [k for k, size in enumerate(sweep.sizes) if size.side >= FITTED_SIDE]
    rows, numbers = [rows[k] for k in kept], [sweep.number(sweep.sizes[k]) for k in kept]
    found = {}
    for method, counts in (("implicit", "applications"), ("piggyback", "applications ")):
        seconds = [row[f"{method}, CPU s"] for row in rows]
        each = [s / row[counts] for s, row in zip(seconds, rows, strict=True)]
        found[method], found[f"{method} per application"] = slope(numbers, seconds), slope(numbers, each)
    return found


def run(options: argparse.Namespace) -> Table:
    table = Table(
        "scaling",
        "Scaling of a hypergradient",
        "python benchmarks/scaling.py --record",
        "Denoising at sigma 25/255 with 5x5 filters, smoothing 1e-2, crops of natural images, cold starts, float32; "
        f"state to a certified root-mean-square error of {TOLERANCES.state:g}, adjoint equation to a relative residual "
        f"of {TOLERANCES.adjoint:g}. *certified*: `learnreg.hypergradient(tolerance=1.0)`, checks in float64 included, "
        f"up to {CERTIFIED_PIXELS} pixels in the batch. One thread except in the last column.",
        order=60,
    )
    for sweep in sweeps(options.quick):
        rows = [measure(sweep, size, options.rounds) for size in sweep.sizes]
        table.rows += rows
        found = exponents(sweep, rows)
        table.tracked |= {f"{method}: exponent in {sweep.name}": value for method, value in found.items()}
        text = ", ".join(f"{method} {value:.2f}" for method, value in found.items())
        start = f" (from {FITTED_SIDE}² on)" if sweep.name == "pixels" else ""
        table.notes.append(f"CPU seconds grow like {sweep.name}{start} to the power: {text}.")
    for method in METHODS:
        small, fitted = (row[f"{method}, CPU s"] for row in table.rows[:2])
        table.tracked[f"{method}: {SIDES[0]}² over {SIDES[1]}²"] = small / fitted
    largest = [row for row in table.rows if row["varied"] == "pixels"][-1]
    gain = largest["implicit, wall s, 1 thread"] / largest["2 threads"]
    table.notes.append(f"Two threads make the hypergradient at {largest['size']} {gain:.2f} times faster.")
    return table


@large_blocks_kept()
def main() -> None:
    options = arguments(__doc__ or "", quick={"SECONDS": 0.0})
    finish(run(options), options)


if __name__ == "__main__":
    main()
