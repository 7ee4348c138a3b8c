"""Several processes that train as one, by torch.distributed."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Generic, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from learnreg.convolutions.correlation import adopt_kernels, agree_on_kernels, chosen_kernels
from learnreg.errors import WorkerError
from learnreg.training.group import Group, Mapper, Parcel
from learnreg.training.lifeline import Lifeline, Watch
from learnreg.training.messages import dumps, loads

__all__ = ["ProcessGroup", "joined"]

T = TypeVar("T")
R = TypeVar("R")

_BLOCK, _LENGTH = 4096, 8
"""Bytes that one exchange takes, of which these say how many there are; only longer messages take a second one."""

_LOOK = 0.25
_CONNECTION = 2.0
"""Seconds for the cause of a lost connection to become known."""

_HEARD = 1.5
"""Seconds for the others to hear of a cause, before the store may end with this process."""

_ENDLESS = timedelta(days=3)


@dataclass(frozen=True)
class _Outcome(Generic[R]):
    """What a call returned, or raised."""

    value: R | None = None
    error: BaseException | None = None

    def get(self) -> R:
        if self.error is not None:
            raise self.error
        return cast(R, self.value)


class ProcessGroup(Group):
    """The processes of torch's default process group, whatever its backend.

    All that is exchanged is small beside what is computed, and goes over gloo, from the memory of the CPU, in a group
    of its own. An exchange ends with a WorkerError as soon as a worker is lost; then the group is broken, and the first
    worker goes on alone, to save what can be saved.
    """

    def __init__(self, patience: float | None = None) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._group = dist.new_group(backend="gloo", timeout=_ENDLESS)
        torchs = dist.distributed_c10d
        store = torchs.PrefixStore(f"learnreg/{self._group.group_name}", torchs._get_default_store())
        self._exchanges, self._cause = 0, ""
        self._is_origin = self._is_over = self._is_closed = False
        self.bytes_sent = 0  # by this worker, without what gloo passes on
        self.line = Lifeline(store, self.rank, self.size, patience)
        self._places: list[tuple[str, int]] = self.gather((socket.gethostname(), os.getpid()))

    @property
    def local_rank(self) -> int:
        """The number of this worker among those on its machine."""
        host = self._places[self.rank][0]
        return sum(place[0] == host for place in self._places[: self.rank])

    def device(self, named: torch.device) -> torch.device:
        if str(named) != "cuda":
            return named
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())

    # ---- who does what ---------------------------------------------------------------------------------------------

    def map(
        self,
        run: Mapper,
        function: Callable[[T], R],
        items: Sequence[T],
        sent: Callable[[R], R],
        owners: Sequence[int] | None = None,
    ) -> list[R]:
        count = len(items)
        owners = [self.owner(k, count) for k in range(count)] if owners is None else owners
        own: list[_Outcome[R]] = run(
            partial(_outcome, function), [x for x, o in zip(items, owners, strict=True) if o == self.rank]
        )
        everyone = self.gather([o if o.error is not None else _Outcome(sent(o.get())) for o in own])
        everyone[self.rank] = own
        parts = [iter(part) for part in everyone]
        return [outcome.get() for outcome in [next(parts[owner]) for owner in owners]]

    def first(self, function: Callable[[], R]) -> R:
        if self._cause or self._is_over:
            return function() if self.rank == 0 else cast(R, None)
        outcome = _outcome(lambda _: function(), None) if self.rank == 0 else None
        received = self._broadcast(outcome)
        return (received if outcome is None else outcome).get()

    def last(self, function: Callable[[], R], otherwise: R) -> R:
        self._is_over = True
        return function() if self.rank == 0 else otherwise

    # ---- what is exchanged -----------------------------------------------------------------------------------------

    def gather(self, value: T) -> list[T]:
        data = dumps(value)
        blocks = self._all_gathered(_block(data), _BLOCK)
        lengths = [_length(block) for block in blocks]
        found = [block[_LENGTH : _LENGTH + length] for block, length in zip(blocks, lengths, strict=True)]
        longest = max(lengths) - (_BLOCK - _LENGTH)
        if longest > 0:
            rests = self._all_gathered(data[_BLOCK - _LENGTH :], longest)
            found = [(a + b)[:length] for a, b, length in zip(found, rests, lengths, strict=True)]
        return [value if k == self.rank else loads(part, self.place) for k, part in enumerate(found)]

    def _all_gathered(self, data: bytes, size: int) -> list[bytes]:
        """That of every worker, with zeros after it up to the size."""
        own = _as_tensor(data.ljust(size, b"\0"))
        found = [torch.empty_like(own) for _ in range(self.size)]
        self.bytes_sent += size
        self._exchange(lambda: dist.all_gather(found, own, self._group, async_op=True))
        return [t.numpy().tobytes() for t in found]

    def _broadcast(self, value: Any) -> Any:
        """The first worker's."""
        data = dumps(value) if self.rank == 0 else b""
        block = _as_tensor(_block(data).ljust(_BLOCK, b"\0"))
        self.bytes_sent += max(len(data), _BLOCK) * (self.rank == 0)
        self._exchange(lambda: dist.broadcast(block, 0, self._group, async_op=True))
        if self.rank == 0:
            length, rest = len(data), _as_tensor(data[_BLOCK - _LENGTH :])
        else:
            length = _length(block.numpy().tobytes())
            rest = torch.empty(max(0, length - (_BLOCK - _LENGTH)), dtype=torch.uint8)
        if rest.numel():
            self._exchange(lambda: dist.broadcast(rest, 0, self._group, async_op=True))
        return (
            None
            if self.rank == 0
            else loads((block.numpy().tobytes()[_LENGTH:] + rest.numpy().tobytes())[:length], self.place)
        )

    def move(self, parcels: Sequence[Parcel]) -> list[list[Tensor]]:
        """By one exchange of bytes, whose numbers follow from the parcels."""
        own = sorted((p for p in parcels if p.source == self.rank), key=lambda p: p.target)
        coming = sorted((p for p in parcels if p.target == self.rank), key=lambda p: p.source)
        data = torch.cat([torch.empty(0, dtype=torch.uint8), *(_bytes_of(t) for p in own for t in p.tensors)])
        sizes_in, sizes_out = [0] * self.size, [0] * self.size
        for p in own:
            sizes_in[p.target] += _size(p)
        for p in coming:
            sizes_out[p.source] += _size(p)
        received = torch.empty(sum(sizes_out), dtype=torch.uint8)
        self.bytes_sent += sum(sizes_in)
        self._exchange(lambda: dist.all_to_all_single(received, data, sizes_out, sizes_in, self._group, async_op=True))
        found, at = {}, 0
        for p in coming:
            found[id(p)] = [
                _view(received, at + sum(_bytes(u) for u in p.tensors[:k]), t) for k, t in enumerate(p.tensors)
            ]
            at += _size(p)
        return [found.get(id(p), p.tensors) for p in parcels]

    def share_kernels(self) -> None:
        chosen: dict[str, str] = {}
        for others in reversed(self.gather(chosen_kernels())):
            chosen |= others
        adopt_kernels(chosen)
        agree_on_kernels(self.line.agreed)

    def check_same(self, what: str, values: Callable[[], Mapping[str, Any]]) -> None:
        everyone = self.gather(dict(values()))
        for name in everyone[0]:
            others = [k for k, found in enumerate(everyone) if found.get(name) != everyone[0][name]]
            if others:
                k = others[0]
                values_of = f"{everyone[0][name]!r} at worker 0 and {everyone[k].get(name)!r} at worker {k}"
                raise WorkerError(
                    f"the workers differ in {what}: {name} is {values_of}. Start all of them with the same program, "
                    "data and options."
                )

    # ---- how it ends -----------------------------------------------------------------------------------------------

    def _exchange(self, begin: Callable[[], Any]) -> None:
        """Take part in an exchange, looking meanwhile whether the others still do.

        Raises
        ------
        WorkerError: a worker is lost.
        """
        if self._cause:
            raise WorkerError(self._cause)
        self._exchanges += 1
        watch = Watch(self.line)
        try:
            work = begin()
        except RuntimeError as error:
            raise self._broken(error) from error
        while True:
            try:
                work.wait(timedelta(seconds=_LOOK))
                return
            except RuntimeError as error:
                if work.is_completed():
                    raise self._broken(error) from error
            cause = watch.look(_LOOK)
            if cause is not None:
                raise self._lost(cause)

    def _broken(self, error: RuntimeError) -> WorkerError:
        """A connection ended: somebody may know why."""
        dead: list[int] = []
        for _ in range(round(_CONNECTION / _LOOK)):
            self.line.rest(_LOOK)
            dead = [k for k in range(self.size) if k != self.rank and self._is_dead(k)]
            if self.line.failure is not None or dead:
                break
        who = f"worker {dead[0]} ended" if dead else "the connection to another worker broke"
        detail = "" if dead else f" ({' '.join(str(error).split())[:200]})"
        return self._lost(self.line.failure or f"{who}: was it killed, or did it run out of memory?{detail}")

    def _lost(self, cause: str) -> WorkerError:
        self._cause = self.line.tell(cause)
        hangs = self.line.hangs
        if hangs is not None and self._places[hangs][0] == self._places[self.rank][0]:
            with suppress(OSError):
                os.kill(self._places[hangs][1], signal.SIGKILL)  # or what started it waits for it
        return WorkerError(self._cause)

    def _is_dead(self, rank: int) -> bool:
        """Whether a worker on this machine is no more; of another machine nobody knows."""
        host, process = self._places[rank]
        if host != self._places[self.rank][0]:
            return False
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return _state_of(process) == "Z"

    @property
    def speaks(self) -> bool:
        if self.rank == 0:
            return True
        if not (self._is_dead(0) or self.line.is_cut or self.line.hangs == 0):
            return False
        with suppress(RuntimeError):
            return self.line.agreed("speaker", str(self.rank)) == str(self.rank)
        return True  # nobody can be asked

    def settle(self, error: BaseException) -> bool:
        if self._is_closed:
            return self._is_origin
        if self._is_over:
            self._is_origin = self.rank == 0
            return self._is_origin
        if not self._cause and not self.line.is_shared(self._exchanges):
            text = " ".join(str(error).split())
            self._cause = self.line.tell(f"worker {self.rank} failed: {type(error).__name__}{text and f': {text}'}")
            self._is_origin = True
        return self._is_origin

    def close(self) -> None:
        agree_on_kernels(None)
        if not self._cause and not self._is_over:
            with suppress(WorkerError):
                self.gather(None)
        if self._cause:
            self.line.rest(_HEARD)
        self.line.stop()
        self._is_closed = True
        if not self._cause:
            dist.destroy_process_group(self._group)


_JOINED: ContextVar[Group | None] = ContextVar("learnreg group", default=None)


@contextmanager
def joined() -> Iterator[Group]:
    """The workers of torch's default process group, where there is one of several processes; entered again within, the
    same ones."""
    known = _JOINED.get()
    if known is not None:
        yield known
        return
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    group = ProcessGroup() if several else Group()
    token = _JOINED.set(group)
    try:
        yield group
    except BaseException as error:
        group.settle(error)
        raise
    finally:
        _JOINED.reset(token)
        group.close()


def _outcome(function: Callable[[T], R], item: T) -> _Outcome[R]:
    try:
        return _Outcome(function(item))
    except BaseException as error:
        return _Outcome(error=error)


def _state_of(process: int) -> str:
    """The letter of its state on Linux, "" elsewhere."""
    try:
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _block(data: bytes) -> bytes:
    return len(data).to_bytes(_LENGTH, "little") + data[: _BLOCK - _LENGTH]


def _length(block: bytes) -> int:
    return int.from_bytes(block[:_LENGTH], "little")


def _as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _bytes(t: Tensor) -> int:
    return t.numel() * t.element_size()


def _size(parcel: Parcel) -> int:
    return sum(_bytes(t) for t in parcel.tensors)


def _bytes_of(t: Tensor) -> Tensor:
    return t.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _view(data: Tensor, at: int, like: Tensor) -> Tensor:
    """The numbers of a tensor out of the bytes of several."""
    return data[at : at + _bytes(like)].clone().view(like.dtype).reshape(like.shape)
