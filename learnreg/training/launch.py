"""The processes that torchrun or srun has started, as the workers of one training run."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from learnreg.errors import ConfigError, LearnregError
from learnreg.training.group import Group
from learnreg.training.process_group import joined

__all__ = ["Place", "first_host", "is_restart", "launched", "place_in"]

_RESTARTS = "TORCHELASTIC_RESTART_COUNT"
_FIRST_PORT, _PORTS = 20_000, 20_000
_MEETING = timedelta(minutes=5)
_STORES: Any = dist
_LOOPBACK = {"linux": "lo", "darwin": "lo0"}


@dataclass(frozen=True)
class Place:
    """One of ``size`` workers, and where the first one listens. threads: cores that the launcher gives to each; None:
    it says nothing."""

    rank: int
    size: int
    host: str
    port: int
    threads: int | None = None


def place_in(environment: Mapping[str, str]) -> Place | None:
    """What the variables of torchrun (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) or of srun (SLURM_PROCID,
    SLURM_NTASKS, SLURM_JOB_NODELIST, SLURM_JOB_ID) say; None for a single process.

    Raises
    ------
    ConfigError: variables that are missing, or no numbers.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        rank, size = _whole(environment, "RANK"), _whole(environment, "WORLD_SIZE")
        host, port, threads = environment.get("MASTER_ADDR", ""), environment.get("MASTER_PORT", ""), None
    elif "SLURM_PROCID" in environment:
        rank = _whole(environment, "SLURM_PROCID")
        size = _whole(environment, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS")
        nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
        host = environment.get("MASTER_ADDR") or first_host(nodes or environment.get("SLURM_NODELIST", ""))
        job = environment.get("SLURM_JOB_ID", "0")
        port = environment.get("MASTER_PORT") or str(_FIRST_PORT + int(job or 0) % _PORTS)
        threads = None if "OMP_NUM_THREADS" in environment else _whole(environment, "SLURM_CPUS_PER_TASK", 1)
    else:
        return None
    if size == 1:
        return None
    if not 0 <= rank < size:
        raise ConfigError(f"worker {rank} of {size}: expected a number from 0 to {size - 1}.")
    if not host or not port.isdecimal():
        raise ConfigError(
            f"{size} workers, but where they meet is unknown: set MASTER_ADDR to the machine of the first one and "
            "MASTER_PORT to a free port, or start them with torchrun."
        )
    return Place(rank, size, host, int(port), threads)


def first_host(nodes: str) -> str:
    """Of a SLURM node list, such as ``gpu[003-010,12],login1``: gpu003."""
    found = re.match(r"((?:[^,\[]|\[[^\]]*\])*)", nodes.strip())
    return re.sub(r"\[([^\]]*)\]", lambda m: re.split(r"[-,]", m[1])[0], found[1] if found else "")


def is_restart() -> bool:
    """Whether torchrun has started the workers again, after a failure."""
    return os.environ.get(_RESTARTS, "0") not in ("", "0")


@contextlib.contextmanager
def launched() -> Iterator[Group]:
    """The group of the processes that torchrun or srun has started; a single process by itself where it has not.

    Workers other than the first are quiet: what the first one says of an error is said once. They end with the exit
    code of the error.
    """
    place = place_in(os.environ)
    if place is None or dist.is_initialized():
        with joined() as group:
            yield group
        return
    _meet(place)
    member = Group()
    try:
        with joined() as group, contextlib.ExitStack() as stack:
            member = group
            if torch.cuda.is_available():
                torch.cuda.set_device(group.device(torch.device("cuda")))
            if place.rank > 0:
                nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
                stack.enter_context(contextlib.redirect_stderr(nowhere))
            yield group
    except BaseException as error:
        unforeseen = not isinstance(error, (LearnregError, KeyboardInterrupt))
        if member.speaks or (unforeseen and member.settle(error)):
            raise
        raise SystemExit(_exit_code(error)) from None
    dist.destroy_process_group()


def _meet(place: Place) -> None:
    """Initialise torch's process group."""
    if place.threads is not None:
        torch.set_num_threads(place.threads)
    if _is_loopback(place.host) and sys.platform in _LOOPBACK:  # all workers are on this machine
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _LOOPBACK[sys.platform])
    try:
        has_store = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(_listener(place)) if has_store else None
            store = _STORES.TCPStore(
                place.host,
                place.port,
                place.size,
                has_store,
                _MEETING,
                master_listen_fd=None if listener is None else listener.detach(),
            )
        # torchrun may keep its store, and all that is in it, when it starts the workers again
        store = _STORES.PrefixStore(f"learnreg/{os.environ.get(_RESTARTS, 0)}", store)
        dist.init_process_group("gloo", store=store, rank=place.rank, world_size=place.size, timeout=_MEETING)
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"worker {place.rank} of {place.size} did not meet the others at {place.host}:{place.port} ({reason}). Are "
            "all of them running, and may they connect to that port?"
        ) from error


def _listener(place: Place) -> socket.socket:
    """On the address where the first worker is expected, and no other."""
    family, kind, protocol, _, address = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen(1024)
    return listener


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 128 + int(getattr(error, "number", 2))
    return int(getattr(error, "exit_code", 1))


def _whole(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise ConfigError(f"{name}={text!r}: expected a whole number, as torchrun and srun set it.")
    return int(text)
