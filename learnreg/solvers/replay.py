"""Blocks of iterations recorded once and replayed: on a GPU a block is hundreds of launches, which take the host longer
than the device where images are small.

A recording reads its input from, and leaves its output in, the memory of one state; others are copied there. Only
blocks that do the same are replayed: see ``Iteration.recurring``. All else, and every other device, runs step by step.
What comes out is judged as any other point.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from learnreg.kernels.loader import is_current
from learnreg.solvers.base import Iteration, SolverState

__all__ = ["RECORDERS", "Blocks"]

_TIMES = 2
"""A block runs so often before it is recorded: what libraries choose or keep at a first call is then in place."""

Recorder = Callable[[Callable[[], None]], Callable[[], None]]
"""From a function that only launches work on a device to one that launches the same work again; the first is called,
but its work is not done."""


def _cuda_graph(block: Callable[[], None]) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        block()
    return graph.replay


RECORDERS: dict[str, Recorder] = {"cuda": _cuda_graph}
"""By the type of the device."""


class Blocks:
    """The blocks of one run of an iteration."""

    def __init__(self, solver: Iteration[Any, Any]) -> None:
        self.solver = solver
        self._part: Any = None
        self._kind: Hashable = None
        self._seen = 0
        self._recording: _Recording | None = None

    def steps(self, part: Any, state: Any, count: int) -> Any:
        """``count`` iterations; the state that is given is not used again."""
        solver = self.solver
        kind = solver.recurring(state) if count == solver.check_every else None
        tensors = list(_tensors(state)) if kind is not None else []
        recorder = RECORDERS.get(tensors[0][0].device.type) if tensors else None
        if recorder is None or not is_current(tensors[0][0].device):
            return solver.steps(part, state, count)
        kind = (kind, *((tensor.shape, tensor.dtype, tensor.device) for tensor, _ in tensors))
        if part is not self._part or kind != self._kind:
            self._part, self._kind, self._seen, self._recording = part, kind, 0, None
        self._seen += 1
        if self._seen <= _TIMES:
            return solver.steps(part, state, count)
        if self._recording is None:
            try:
                self._recording = _Recording(recorder, solver, part, state)
            except RuntimeError:  # something in it cannot be recorded; nothing has been done yet
                self._seen = -(2**62)
                return solver.steps(part, state, count)
        return self._recording.replay(state)


class _Recording:
    """A block in the memory of a state: of the tensors that belong to it, and of copies of the others."""

    def __init__(self, recorder: Recorder, solver: Iteration[Any, Any], part: Any, state: Any) -> None:
        self._memory = [tensor if owned else tensor.clone() for tensor, owned in _tensors(state)]
        self._counter, self._count = part.counter, solver.check_every
        start, before = _with_tensors(state, iter(self._memory)), part.counter.applications

        def block() -> None:
            self._keep([tensor for tensor, _ in _tensors(solver.steps(part, start, self._count))])

        try:
            self._run = recorder(block)
        finally:
            self._applications = part.counter.applications - before
            part.counter.applications = before

    def _keep(self, found: list[Tensor]) -> None:
        """Copy what came out to where the next block reads it; first aside, where that is the place of another."""
        places = {memory.data_ptr() for memory in self._memory}
        moved = [(m, t) for m, t in zip(self._memory, found, strict=True) if t.data_ptr() != m.data_ptr()]
        aside = [(m, t.clone() if t.data_ptr() in places else t) for m, t in moved]
        for memory, tensor in aside:
            memory.copy_(tensor)

    def replay(self, state: Any) -> Any:
        for memory, (tensor, _) in zip(self._memory, _tensors(state), strict=True):
            if tensor.data_ptr() != memory.data_ptr():
                memory.copy_(tensor)
        self._run()
        self._counter.applications += self._applications
        after = _with_tensors(state, iter(self._memory))
        return replace(after, steps=state.steps + self._count) if hasattr(state, "steps") else after


def _tensors(state: SolverState) -> Iterator[tuple[Tensor, bool]]:
    """The tensors of a state in a fixed order, and whether their memory is the state's own."""
    for field in fields(state):
        value = getattr(state, field.name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Tensor):
                yield part, "owned" in field.metadata
            elif isinstance(part, SolverState):
                yield from _tensors(part)


def _with_tensors(state: Any, tensors: Iterator[Tensor]) -> Any:
    """The state with others in their place."""

    def put(value: Any) -> Any:
        if isinstance(value, Tensor):
            return next(tensors)
        if isinstance(value, SolverState):
            return _with_tensors(value, tensors)
        return tuple(map(put, value)) if isinstance(value, tuple) else value

    return replace(state, **{f.name: put(getattr(state, f.name)) for f in fields(state)})
