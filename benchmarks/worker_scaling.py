"""Weak scaling of training: as many samples for each worker, one worker and two, each on one core of this machine.

    python benchmarks/worker_scaling.py [--updates 12] [--side 64] [--rounds 2]

Prints, for each number of workers: updates per second, CPU seconds of a worker for an update, bytes that the first
worker sends for an update, and how long an exchange of a few bytes takes. What the workers exchange is
``learnreg.training.process_group``; docs/scaling.md reads the numbers.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist

import learnreg as lr
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts
from learnreg.training.process_group import ProcessGroup

_SAMPLES = 8
_PINGS = 200


def _train(rank: int, size: int, port: int, updates: int, side: int, sender: Any) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(64, 1, side // 4, side // 4, generator=generator)
    x = x.repeat_interleave(4, -1).repeat_interleave(4, -2)
    b = x + 0.1 * torch.randn(x.shape, generator=generator)
    problem = lr.LowerLevelProblem(Identity((1, side, side)), FieldsOfExperts(24, 5, lr.PseudoHuber(0.05, 0.2)))
    groups: list[ProcessGroup] = []
    made = ProcessGroup.__init__

    def remembered(group: ProcessGroup, *args: Any) -> None:
        made(group, *args)
        groups.append(group)

    ProcessGroup.__init__ = remembered  # type: ignore[method-assign]
    marks: list[tuple[float, float, int]] = []

    def mark() -> None:
        marks.append((time.monotonic(), time.process_time(), groups[0].bytes_sent if groups else 0))

    lr.train(
        problem,
        (b, x),
        updates=updates,
        batch_size=size * _SAMPLES,
        chunk_size=_SAMPLES,
        tune=False,
        on_update=lambda row: mark(),
    )
    wall, cpu, sent = (
        ((b - a) / (len(marks) - 1) for a, b in zip(marks[0], marks[-1], strict=True)) if marks else (0, 0, 0)
    )
    ping = 0.0
    if size > 1:
        group = ProcessGroup()
        began = time.monotonic()
        for _ in range(_PINGS):
            group.gather(rank)
        ping = (time.monotonic() - began) / _PINGS
        group.close()
    sender.send((wall, cpu, sent, ping))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--updates", type=int, default=12)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    found: dict[int, list[tuple[float, ...]]] = {1: [], 2: []}
    for _ in range(options.rounds):
        for size, rows in found.items():
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                port = listener.getsockname()[1]
            receiver, sender = context.Pipe(duplex=False)
            _unread, nothing = context.Pipe(duplex=False)
            workers = [
                context.Process(
                    target=_train, args=(k, size, port, options.updates, options.side, nothing if k else sender)
                )
                for k in range(size)
            ]
            for worker in workers:
                worker.start()
            rows.append(receiver.recv())
            for worker in workers:
                worker.join()
    for size, rows in found.items():
        wall, cpu, sent, ping = (statistics.median(column) for column in zip(*rows, strict=True))
        print(
            f"{size} workers, batch {size * _SAMPLES} of {options.side}²: {1 / wall:.2f} updates/s, "
            f"{cpu:.3f} CPU s of a worker, {sent / 1024:.1f} KiB sent, {1e6 * ping:.0f} µs an exchange"
        )


if __name__ == "__main__":
    main()
