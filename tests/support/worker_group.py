"""Processes on this machine that train as one, for tests: what each returned, or its exit code."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import learnreg as lr
from learnreg.errors import WorkerError
from learnreg.operators import Identity, ParallelBeam2D
from learnreg.regularizers import FieldsOfExperts, InputConvexNetwork

__all__ = ["Ended", "different", "learned_bits", "lost", "run_in_group", "two_runs"]

_START = multiprocessing.get_context("forkserver")


class Ended:
    """How a worker ended. code: of its process, None where it had to be killed at the end. seconds: from the start."""

    def __init__(self, code: int | None, value: Any, seconds: float) -> None:
        self.code, self.value, self.seconds = code, value, seconds


def run_in_group(size: int, function: Callable[..., Any], *args: Any, limit: float = 300.0) -> list[Ended]:
    """Call ``function(rank, *args)`` in so many processes of one group; a single one has none."""
    _START.set_forkserver_preload([__name__])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    pipes = [_START.Pipe(duplex=False) for _ in range(size)]
    began = time.monotonic()
    processes = [
        _START.Process(target=_one, args=(rank, size, port, pipes[rank][1], function, args)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    seconds = [limit] * size
    while any(process.is_alive() for process in processes) and time.monotonic() - began < limit:
        time.sleep(0.05)
        seconds = [
            s if s < limit or process.is_alive() else time.monotonic() - began
            for s, process in zip(seconds, processes, strict=True)
        ]
    ended = []
    for process, (receiver, sender), when in zip(processes, pipes, seconds, strict=True):
        sender.close()
        code = process.exitcode
        if process.is_alive():
            process.kill()
        process.join()
        try:
            value = receiver.recv()
        except EOFError:  # it ended without any
            value = None
        ended.append(Ended(code, value, when))
        receiver.close()
    return ended


def _one(rank: int, size: int, port: int, sender: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # no measurement decides
    if size > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    sender.send(function(rank, *args))


def problem_of(kind: str) -> tuple[lr.LowerLevelProblem, Any]:
    """A small problem, and 12 pairs for it."""
    torch.manual_seed(0)
    x = torch.rand(12, 1, 4, 4).repeat_interleave(2, -1).repeat_interleave(2, -2)
    operator = ParallelBeam2D(8, 6) if kind == "ct" else Identity((1, 8, 8))
    clean = operator.forward(x)
    regularizer: Any = FieldsOfExperts(2, 3, lr.PseudoHuber(0.05, 0.2))
    if kind == "icnn":
        regularizer = InputConvexNetwork(1, 3, 2, 3, generator=torch.Generator().manual_seed(0))
    return lr.LowerLevelProblem(operator, regularizer, ridge=0.1), (clean + 0.05 * torch.randn(clean.shape), x)


def learned_bits(rank: int, kind: str, out: Path | None, options: dict[str, Any]) -> str:
    """Train, and the bits of all parameters."""
    problem, pairs = problem_of(kind)
    lr.train(problem, pairs, out=out, **{"tune": False, "batch_size": 6, "chunk_size": 2, **options})
    return "".join(p.detach().numpy().tobytes().hex() for p in problem.learnable().values())


def two_runs(rank: int, out: Path) -> list[str]:
    """Begin a run, and one whose data cannot be read by the second worker alone."""
    learned_bits(rank, "foe", out, {"updates": 2})
    problem, pairs = problem_of("foe")

    class Unreadable:
        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            reads.append(index)
            if rank == 1 and len(reads) > 100:  # not where all look at the first ones
                raise OSError(f"image {index} is gone")
            return pairs[0][index], pairs[1][index]

    reads: list[int] = []
    try:
        lr.train(problem, Unreadable(), tune=False, chunk_size=2, updates=50)
    except Exception as error:
        return [type(error).__name__, str(error), *error.__notes__]
    return []


def lost(rank: int, out: Path, number: int) -> None:
    """The second worker gets a signal in its third update."""

    def loss(x_true: Tensor) -> lr.UpperLoss:
        visits.append(0)
        if rank == 1 and len(visits) > 8:
            os.kill(os.getpid(), number)
        return lr.SquaredError(x_true)

    visits: list[int] = []
    os.environ["LEARNREG_PATIENCE"] = "4"
    problem, pairs = problem_of("foe")
    try:
        lr.train(problem, pairs, loss, out, tune=False, batch_size=6, chunk_size=2, updates=500)
    except WorkerError as error:
        (out / f"said-{rank}").write_text(f"{error} {' '.join(error.__notes__)}", encoding="utf-8")
        sys.exit(error.exit_code)


def different(rank: int, what: str) -> str:
    """What a run ends with whose second worker has other data, options or parameters."""
    problem, (b, x_true) = problem_of("foe")
    options: dict[str, Any] = {"tune": False, "updates": 1}
    if rank == 1:
        if what == "data":
            b = b + 1e-3
        elif what == "seed":
            options["seed"] = 1
        elif what == "ridge":
            problem.ridge = 0.2
        elif what == "parameters":
            with torch.no_grad():
                problem.regularizer.log_weight.add_(1.0)  # type: ignore[union-attr, operator]
    try:
        result = lr.train(problem, (b, x_true), **options)
    except WorkerError as error:
        return str(error)
    return str(result.rows[-1]["loss"])
