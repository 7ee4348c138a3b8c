"""Everything on a device: the same numbers as on the CPU, bounds that hold, waits for the host, seconds, memory.

    python benchmarks/gpu.py --device cuda --out gpu.json

Needs torch, NumPy and this repository alone, and ends within ``--minutes``: parts that no longer fit are left out and
named. The JSON file is written again after each row, which is printed, too. ``--quick`` is a dry run of all parts in
small, on any device.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import checkout  # noqa: F401  # makes learnreg importable
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import learnreg as lr
from learnreg.operators import Blur, Identity, ParallelBeam2D
from learnreg.regularizers import (
    FieldsOfExperts,
    InputConvexNetwork,
    Regularizer,
    RidgeRegularizer,
    TotalVariation,
)

Rows = Iterator[dict[str, Any]]

SIGMA, FILTERS, SIZE = 25 / 255, 24, 5
WAITS = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select"}
"""Operations whose result the host waits for."""


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


# ---- what is the same ------------------------------------------------------------------------------------------------


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


# ---- how fast --------------------------------------------------------------------------------------------------------


def _experts(side: int, device: torch.device) -> lr.LowerLevelProblem:
    R = FieldsOfExperts(FILTERS, SIZE, generator=torch.Generator().manual_seed(0))
    return lr.LowerLevelProblem(Identity((1, side, side)), R).to(device)


def iterations(plan: Plan) -> Rows:
    """Seconds of an iteration by batch, the share of the memory bandwidth if responses were written and read twice, and
    two threads of this machine's CPU beside it."""
    side = plan.chosen(256, 32)
    for batch in plan.chosen((1, 4, 16, 64), (1, 2)):
        b, problem = noisy(phantoms(batch, side)).to(plan.device), _experts(side, plan.device)
        for solver in ("lbfgs", "pdhg"):
            seconds = _step_seconds(partial(lr.solve, problem, b, 1e-12, solver=solver), plan)
            traffic = 4 * 4 * batch * FILTERS * side**2
            row = {"batch": batch, "side": side, "solver": solver, "seconds": seconds}
            row["share of bandwidth"] = traffic / plan.bandwidth / max(seconds, 1e-12)
            yield row
    threads, cpu = torch.get_num_threads(), torch.device("cpu")
    torch.set_num_threads(2)
    try:
        b, problem = noisy(phantoms(1, side)), _experts(side, cpu)
        seconds = _step_seconds(partial(lr.solve, problem, b, 1e-12), replace(plan, device=cpu))
        yield {"batch": 1, "side": side, "solver": "two CPU threads", "seconds": seconds}
    finally:
        torch.set_num_threads(threads)


def _step_seconds(solve: Callable[..., object], plan: Plan) -> float:
    """Of one iteration, from solves of 20 and of 60."""
    few, many = (plan.seconds(partial(solve, max_steps=count), 2) for count in (20, 60))
    return (many - few) / 40


def hypergradients(plan: Plan) -> Rows:
    """Certified against uncertified ones, cold and warm, and plain torch unrolling of gradient descent, with memory."""
    side, batch = plan.chosen((64, 64), (16, 2))
    x = phantoms(batch, side)
    b, loss = noisy(x).to(plan.device), lr.SquaredError(x.to(plan.device))
    problem = _experts(side, plan.device)
    start = lr.Start.after(lr.hypergradient(problem, b, loss, tolerance=0.5))
    for kind, begin in (("cold", None), ("warm", start)):
        for certificate in ("none", "auto"):
            with plan.peak() as peak:
                call = partial(lr.hypergradient, problem, b, loss, tolerance=0.5, start=begin)
                seconds = plan.seconds(partial(call, certificate=certificate))
                yield {"start": kind, "certificate": certificate, "seconds": seconds, "MB": peak()}
    with plan.peak() as peak:
        seconds = plan.seconds(lambda: _unrolled(problem, b, x.to(plan.device), plan.chosen(100, 5)), 1)
        yield {"start": "cold", "certificate": "torch, unrolled", "seconds": seconds, "MB": peak()}


def _unrolled(problem: lr.LowerLevelProblem, b: Tensor, x_true: Tensor, steps: int) -> None:
    """Gradient descent kept for reverse mode: what one would write without this package."""
    R = problem.regularizer
    assert isinstance(R, FieldsOfExperts)
    filters, weights, scales = R.filters[:, None], R.weights[:, None, None], R.smoothing[:, None, None]
    conv, back = torch.nn.functional.conv2d, torch.nn.functional.conv_transpose2d
    half, x = SIZE // 2, b
    step = 1.0 / (1.0 + float((weights / scales).max().detach()) * float(R.filters.detach().square().sum()))
    for _ in range(steps):
        t = conv(x, filters, padding=half)
        x = x - step * (x - b + back(weights * t / (t * t + scales**2).sqrt(), filters, padding=half))
    torch.autograd.grad(0.5 * (x - x_true).square().sum() / len(b), list(problem.learnable().values()))


def training(plan: Plan) -> Rows:
    """Updates of Adam for a number of seconds, on the device and with two threads of the CPU: loss and PSNR."""
    side, batch = plan.chosen((64, 64), (16, 2))
    seconds = 30.0
    x = phantoms(4 * batch, side, 7)
    b = noisy(x, 8)
    threads = torch.get_num_threads()
    for device in dict.fromkeys((plan.device, torch.device("cpu"))):
        torch.set_num_threads(2 if device.type == "cpu" else threads)
        problem = _experts(side, device)
        pairs = [(noised.to(device), clean.to(device)) for noised, clean in zip(b, x, strict=True)]
        rows: list[dict[str, Any]] = []
        limits: dict[str, Any] = {"updates": 2} if plan.quick else {"minutes": seconds / 60}
        lr.train(problem, pairs, batch_size=batch, seed=0, on_update=rows.append, progress=False, **limits)
        updates, psnr = len(rows), statistics.fmean(row["train_psnr"] for row in rows[-5:])
        yield {"device": str(device), "seconds": seconds, "updates": updates, "PSNR of the last batches": psnr}
    torch.set_num_threads(threads)


PARTS: dict[str, tuple[Callable[[Plan], Rows], float]] = {
    "machine": (machine, 5.0),
    "agreement": (agreement, 40.0),
    "waits": (waits, 15.0),
    "iterations": (iterations, 60.0),
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
