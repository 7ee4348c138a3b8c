"""How fast a device is, and by which paths: the parts of the script for devices that measure seconds."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from gpu_plan import FILTERS, SIZE, Plan, Rows, experts, noisy, phantoms, regularizers
from torch import Tensor

import learnreg as lr
from learnreg.kernels.loader import COMPILERS, triton_works
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts
from learnreg.solvers.replay import RECORDERS


def iterations(plan: Plan) -> Rows:
    """Seconds of an iteration by batch, the share of the memory bandwidth if responses were written and read twice, and
    two threads of this machine's CPU beside it."""
    side = plan.chosen(256, 32)
    for batch in plan.chosen((1, 4, 16, 64), (1, 2)):
        b, problem = noisy(phantoms(batch, side)).to(plan.device), experts(side, plan.device)
        for solver in ("lbfgs", "pdhg"):
            seconds = _step_seconds(partial(lr.solve, problem, b, 1e-12, solver=solver), plan)
            traffic = 4 * 4 * batch * FILTERS * side**2
            row = {"batch": batch, "side": side, "solver": solver, "seconds": seconds}
            row["share of bandwidth"] = traffic / plan.bandwidth / max(seconds, 1e-12)
            yield row
    threads, cpu = torch.get_num_threads(), torch.device("cpu")
    torch.set_num_threads(2)
    try:
        b, problem = noisy(phantoms(1, side)), experts(side, cpu)
        seconds = _step_seconds(partial(lr.solve, problem, b, 1e-12), replace(plan, device=cpu))
        yield {"batch": 1, "side": side, "solver": "two CPU threads", "seconds": seconds}
    finally:
        torch.set_num_threads(threads)


def _step_seconds(solve: Callable[..., object], plan: Plan, counts: tuple[int, int] = (20, 60)) -> float:
    """Of one iteration, from solves of few and of many."""
    few, many = (plan.seconds(partial(solve, max_steps=count), 2) for count in counts)
    return (many - few) / (counts[1] - counts[0])


@contextlib.contextmanager
def _without(table: dict[str, Any], device: torch.device) -> Iterator[None]:
    """The entry of a kind of device left out of a table for a while."""
    kept = table.pop(device.type, None)
    try:
        yield
    finally:
        if kept is not None:
            table[device.type] = kept


def kernels(plan: Plan) -> Rows:
    """Seconds of an iteration with the kernels of the device and in plain torch; one row where it has none."""
    compiler = COMPILERS.get(plan.device.type)
    if compiler is None or not compiler.works():
        yield {"left out": "no kernels for this device", "triton": triton_works()}
        return
    side = plan.chosen(256, 16)
    for name, make in regularizers(plan.quick).items():
        problem = lr.LowerLevelProblem(Identity((1, side, side)), make()).to(plan.device)
        if name == "input-convex network":  # has none
            continue
        for batch in plan.chosen((1, 16), (1,)):
            b = noisy(phantoms(batch, side)).to(plan.device)
            solve = partial(lr.solve, problem, b, 1e-12, solver="pdhg")
            row = {"regularizer": name, "batch": batch, "side": side, "seconds, kernels": _step_seconds(solve, plan)}
            fast = solve(max_steps=60)
            with _without(COMPILERS, plan.device):  # type: ignore[arg-type]
                row["seconds, torch"] = _step_seconds(solve, plan)
                row["apart"] = float((solve(max_steps=60).x - fast.x).abs().max())
            yield row


def convolutions(plan: Plan) -> Rows:
    """Seconds of a bank of filters and of its transpose: conv2d as the library calls it, the same on images whose
    channels are last in memory, and as a product with all windows (im2col)."""
    side, F = plan.chosen(256, 16), torch.nn.functional
    for filters, size in plan.chosen(((24, 5), (32, 13)), ((3, 3),)):
        for batch in plan.chosen((1, 16), (1,)):
            x = phantoms(batch, side).to(plan.device)
            w = torch.randn(filters, 1, size, size, generator=torch.Generator().manual_seed(0)).to(plan.device)
            y, last = F.conv2d(x, w), {"memory_format": torch.channels_last}
            results = (y, F.conv_transpose2d(y, w))
            ways: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
                "contiguous": (partial(F.conv2d, x, w), partial(F.conv_transpose2d, y, w)),
                "channels last": (
                    partial(F.conv2d, x.to(**last), w.to(**last)),
                    partial(F.conv_transpose2d, y.to(**last), w.to(**last)),
                ),
                "windows": (partial(_by_windows, x, w), partial(_by_windows_adjoint, y, w)),
            }
            row: dict[str, Any] = {"filters": filters, "size": size, "batch": batch, "side": side}
            for name, calls in ways.items():
                for kind, call, result in zip(("forward", "adjoint"), calls, results, strict=True):
                    row[f"{kind}, {name}"] = plan.seconds(call)
                    apart = float((call() - result).abs().max() / result.abs().max())
                    row["apart"] = max(row.get("apart", 0.0), apart)
            yield row


def _by_windows(x: Tensor, w: Tensor) -> Tensor:
    rows, columns = (n - k + 1 for n, k in zip(x.shape[-2:], w.shape[-2:], strict=True))
    return (w.flatten(1) @ torch.nn.functional.unfold(x, w.shape[-2:])).unflatten(2, (rows, columns))


def _by_windows_adjoint(y: Tensor, w: Tensor) -> Tensor:
    sides = [n + k - 1 for n, k in zip(y.shape[-2:], w.shape[-2:], strict=True)]
    return torch.nn.functional.fold(w.flatten(1).T @ y.flatten(2), sides, w.shape[-2:])


def graphs(plan: Plan) -> Rows:
    """Seconds of an iteration replayed as a CUDA graph and launched step by step; other devices replay nothing."""
    for side in plan.chosen((64, 256), (16,)):
        b, problem = noisy(phantoms(1, side)).to(plan.device), experts(side, plan.device)
        for solver in ("pdhg", "lbfgs"):
            solve = partial(lr.solve, problem, b, 1e-12, solver=solver)
            row: dict[str, Any] = {"solver": solver, "side": side, "recorded": plan.device.type in RECORDERS}
            row["seconds, replayed"] = _step_seconds(solve, plan, (60, 260))
            replayed = solve(max_steps=60)
            with _without(RECORDERS, plan.device):
                row["seconds, launched"] = _step_seconds(solve, plan, (60, 260))
                row["apart"] = float((solve(max_steps=60).x - replayed.x).abs().max())
            yield row


def hypergradients(plan: Plan) -> Rows:
    """Certified against uncertified ones, cold and warm, and plain torch unrolling of gradient descent, with memory."""
    side, batch = plan.chosen((64, 64), (16, 2))
    x = phantoms(batch, side)
    b, loss = noisy(x).to(plan.device), lr.SquaredError(x.to(plan.device))
    problem = experts(side, plan.device)
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
        problem = experts(side, device)
        pairs = [(noised.to(device), clean.to(device)) for noised, clean in zip(b, x, strict=True)]
        rows: list[dict[str, Any]] = []
        limits: dict[str, Any] = {"updates": 2} if plan.quick else {"minutes": seconds / 60}
        lr.train(problem, pairs, batch_size=batch, seed=0, on_update=rows.append, progress=False, **limits)
        updates, psnr = len(rows), statistics.fmean(row["train_psnr"] for row in rows[-5:])
        yield {"device": str(device), "seconds": seconds, "updates": updates, "PSNR of the last batches": psnr}
    torch.set_num_threads(threads)
