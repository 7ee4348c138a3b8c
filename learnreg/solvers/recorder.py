"""What a solve saw on its way, without a look more at the iterates."""

from __future__ import annotations

from torch import Tensor

from learnreg.lower_level.instance import Counter
from learnreg.result import History
from learnreg.solvers.loop import Record

__all__ = ["Recorder"]


class Recorder:
    """Rows of a ``History``, of solvers that follow each other, on all samples or on some."""

    def __init__(self, counter: Counter, batch: int) -> None:
        self._counter, self._batch = counter, batch
        self._rows: list[tuple[int, int, Tensor, Tensor]] = []

    def following(self, index: Tensor | None = None) -> Record:
        """What a solver that begins now calls, for the samples ``index``; the others stay as they were seen last."""
        before = self._rows[-1][0] if self._rows else 0

        def record(steps: int, bound: Tensor, residual: Tensor) -> None:
            if index is not None and self._rows:
                _, _, last_bound, last_residual = self._rows[-1]
                bound = last_bound.to(bound.dtype).index_copy(0, index, bound)
                residual = last_residual.to(residual.dtype).index_copy(0, index, residual)
            self._rows.append((before + steps, self._counter.applications, bound, residual))

        return record

    def history(self, steps: int, error_bound: Tensor, residual: Tensor, scale: float) -> History:
        """With what is returned as the last row. scale: from root-mean-square errors to 2-norms."""
        dtype = error_bound.dtype
        rows = [(s, n, bound.to(dtype) / scale, r.to(dtype)) for s, n, bound, r in self._rows]
        rows.append((steps, self._counter.applications, error_bound, residual.to(dtype)))
        return History.of(rows, self._batch)
