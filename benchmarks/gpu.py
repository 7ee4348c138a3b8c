"""Everything on a device: the same numbers as on the CPU, bounds that hold, waits for the host, seconds, memory.

    python benchmarks/gpu.py --device cuda --out gpu.json

Needs torch, NumPy and this repository alone, and ends within ``--minutes``: parts that no longer fit are left out and
named. The JSON file is written again after each row, which is printed, too. ``--quick`` is a dry run of all parts in
small, on any device.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import checkout  # noqa: F401  # makes learnreg importable
import torch
from gpu_plan import Plan, Rows, noisy, phantoms, regularizers
from gpu_speed import convolutions, graphs, hypergradients, iterations, kernels, training
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import learnreg as lr
from learnreg.operators import Blur, Identity, ParallelBeam2D
from learnreg.regularizers import FieldsOfExperts

WAITS = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select"}
"""Operations whose result the host waits for."""


def machine(plan: Plan) -> Rows:
    """The device, and how fast it copies: what shares of the memory bandwidth refer to."""
    numbers = plan.chosen(2**28, 2**22)
    a = torch.ones(numbers, device=plan.device)
    b = torch.empty_like(a)
    seconds = plan.seconds(lambda: b.copy_(a))
    plan.bandwidth = 2 * 4 * numbers / seconds
    side = plan.chosen(4096, 256)
    rates = {}
    for dtype in (torch.float32, torch.float64):
        m = torch.ones(side, side, device=plan.device, dtype=dtype)
        rates[str(dtype).removeprefix("torch.")] = 2e-9 * side**3 / plan.seconds(partial(torch.mm, m, m))
    name = torch.cuda.get_device_name(plan.device) if plan.device.type == "cuda" else platform.processor()
    yield {
        "device": name or str(plan.device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "copies, GB/s": 1e-9 * plan.bandwidth,
        **{f"{dtype} products, GFLOP/s": rate for dtype, rate in rates.items()},
    }


def _cases(plan: Plan) -> Iterator[tuple[str, Callable[[], lr.LowerLevelProblem], Tensor, Tensor]]:
    """Problems with measurements and true images, float64 on the CPU."""
    side = plan.chosen(32, 12)
    x = phantoms(2, side).double()
    shape = tuple(x.shape[1:])
    kernel = torch.full((3, 3), 1 / 9, dtype=torch.float64)
    for name, make in regularizers(True).items():
        yield name, lambda make=make: lr.LowerLevelProblem(Identity(shape), make().double()), noisy(x).double(), x  # type: ignore[misc]
    make = regularizers(True)["Fields of Experts"]
    blur = Blur(kernel, shape)
    yield "blur", lambda: lr.LowerLevelProblem(Blur(kernel, shape), make().double(), ridge=0.1), blur(x), x
    scan = ParallelBeam2D(side, 12).double()
    yield "CT", lambda: lr.LowerLevelProblem(ParallelBeam2D(side, 12).double(), make().double(), ridge=0.1), scan(x), x
    box = lr.Box(0.1, 0.6)
    yield "box", lambda: lr.LowerLevelProblem(Identity(shape), make().double(), constraint=box), noisy(x).double(), x


def agreement(plan: Plan) -> Rows:
    """Solutions, hypergradients by each method, and their bounds, in float64 there and on the CPU."""
    for name, make, b, x_true in _cases(plan):
        here, there = make(), make().to(plan.device)
        b_there, x_there = b.to(plan.device), x_true.to(plan.device)
        row: dict[str, Any] = {"problem": name}
        ours, theirs = lr.solve(here, b, 1e-9), lr.solve(there, b_there, 1e-9)
        row["x"] = float((ours.x - theirs.x.cpu()).abs().max())
        row["both bounds of x"] = float(ours.error_bound.max() + theirs.error_bound.max())
        for method in (lr.Implicit(), lr.Piggyback()):
            if name == "input-convex network" and method.name == "piggyback":
                continue
            first = lr.hypergradient(here, b, lr.SquaredError(x_true), tolerance=1e-6, method=method)
            second = lr.hypergradient(there, b_there, lr.SquaredError(x_there), tolerance=1e-6, method=method)
            apart = sum(float((first.gradient[n] - g.cpu()).square().sum()) for n, g in second.gradient.items())
            row[method.name] = math.sqrt(apart) / max(first.norm, 1e-300)
            row[f"{method.name}, both bounds"] = first.relative_error_bound + second.relative_error_bound
            row[f"{method.name}, certified"] = second.certified
        yield row


def bounds(plan: Plan) -> Rows:
    """Random problems at loose tolerances on the device, against accurate solutions on the CPU."""
    draw = torch.Generator().manual_seed(5)

    def number(low: float, high: float) -> float:
        t = float(torch.rand((), generator=draw))
        return math.exp(math.log(low) + t * (math.log(high) - math.log(low)))

    compared, violated, certified, ratios, count = 0, 0, 0, [], 0
    for _ in range(plan.chosen(200, 4)):
        if plan.left < 0:
            break
        potential = lr.PseudoHuber(number(1e-3, 1.0), number(1e-2, 1.0))
        R = FieldsOfExperts(int(torch.randint(1, 5, (), generator=draw)), 3, potential, generator=draw).double()
        problem = lr.LowerLevelProblem(Identity((1, 8, 8)), R)
        dtype = torch.float32 if torch.rand((), generator=draw) < 0.5 else torch.float64
        b = (torch.rand(2, 1, 8, 8, generator=draw) * number(0.1, 3.0)).to(dtype)
        x_true = torch.rand(2, 1, 8, 8, generator=draw).to(dtype)
        exact_x = lr.solve(problem, b.double(), 1e-12).x
        exact = lr.hypergradient(problem, b.double(), lr.SquaredError(x_true.double()), tolerance=1e-9)
        there = problem.to(plan.device)
        b, loss = b.to(plan.device), lr.SquaredError(x_true.to(plan.device))
        found = lr.solve(there, b, number(1e-4, 0.3))
        error = (found.x.double().cpu() - exact_x).square().mean((1, 2, 3)).sqrt()
        hg = lr.hypergradient(there, b, loss, tolerance=number(1e-3, 10.0))
        apart = math.sqrt(sum(float((exact.gradient[n] - g.cpu()).square().sum()) for n, g in hg.gradient.items()))
        violated += int((error > found.error_bound.double().cpu() + 1e-11).sum())
        violated += int(apart > hg.error_bound + exact.error_bound + 1e-11)
        count, compared, certified = count + 1, compared + 3, certified + int(hg.certified)
        ratios.append(hg.error_bound / max(apart, 1e-15))
    middle = statistics.median(ratios) if ratios else math.nan
    counts = {"problems": count, "comparisons": compared, "violations": violated, "certified": certified}
    yield {**counts, "bound/error": middle}


class _Waits(TorchDispatchMode):
    """Counts what the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += func.overloadpacket.__name__ in WAITS
        return func(*args, **(kwargs or {}))


def waits(plan: Plan) -> Rows:
    """Operations that wait for the device, per iteration of a whole solve, checks of its bound included."""
    side = plan.chosen(64, 16)
    b = noisy(phantoms(4, side)).to(plan.device)
    for name, make in regularizers(plan.quick).items():
        problem = lr.LowerLevelProblem(Identity((1, side, side)), make()).to(plan.device)
        with _Waits() as few:
            first = lr.solve(problem, b, 1e-12, max_steps=20)
        with _Waits() as many:
            second = lr.solve(problem, b, 1e-12, max_steps=60)
        steps = second.steps - first.steps
        yield {"regularizer": name, "steps": steps, "waits per step": (many.seen - few.seen) / max(steps, 1)}


PARTS: dict[str, tuple[Callable[[Plan], Rows], float]] = {
    "machine": (machine, 5.0),
    "agreement": (agreement, 40.0),
    "waits": (waits, 15.0),
    "iterations": (iterations, 60.0),
    "kernels": (kernels, 40.0),
    "graphs": (graphs, 30.0),
    "convolutions": (convolutions, 10.0),
    "hypergradients": (hypergradients, 60.0),
    "training": (training, 80.0),
    "bounds": (bounds, 60.0),
}
"""The parts in order, and seconds that must be left for each to begin."""


@dataclass
class Record:
    """What was found, written after each row."""

    path: Path | None
    parts: dict[str, Any] = field(default_factory=dict)

    def write(self) -> None:
        if self.path is not None:
            self.path.write_text(json.dumps(self.parts, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="a JSON file")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--quick", action="store_true", help="all parts in small")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    plan = Plan(torch.device(options.device), options.quick, time.monotonic() + 60 * options.minutes)
    record, failed = Record(options.out), False
    for name in options.parts:
        part, needed = PARTS[name]
        found: dict[str, Any] = {"rows": []}
        record.parts[name] = found
        if not plan.quick and plan.left < needed:
            found["left out"] = f"{plan.left:.0f} s were left"
            continue
        began = time.monotonic()
        try:
            for row in part(plan):
                found["rows"].append(row)
                print(f"{name}: {json.dumps(row)}", flush=True)
                record.write()
        except Exception as error:  # the parts after it are worth having
            found["error"] = f"{type(error).__name__}: {error}"
            print(f"{name}: {found['error']}", file=sys.stderr, flush=True)
            failed = True
        found["seconds"] = round(time.monotonic() - began, 1)
        record.write()
    violated = sum(row["violations"] for row in record.parts.get("bounds", {}).get("rows", []))
    return 1 if failed or violated else 0


if __name__ == "__main__":
    sys.exit(main())
