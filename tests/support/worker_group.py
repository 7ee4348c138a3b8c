"""Processes on this machine that train as one, for tests: what each returned, or its exit code."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import learnreg as lr
from learnreg.operators import Identity, ParallelBeam2D
from learnreg.regularizers import FieldsOfExperts, InputConvexNetwork

__all__ = ["Ended", "learned_bits", "problem_of", "run_in_group"]

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
