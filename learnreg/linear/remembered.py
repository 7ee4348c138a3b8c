"""Norm bounds shared by equal operators: regularizers form a new operator at every call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable

from learnreg.linear.operator import LinearOperator, NormKind

__all__ = ["RememberedNorms"]


class RememberedNorms:
    """The latest bounds by key, at most ``capacity``; safe to use from several threads."""

    def __init__(self, capacity: int = 64) -> None:
        self._capacity, self._lock = capacity, threading.Lock()
        self._known: dict[Hashable, tuple[float, NormKind, float]] = {}

    def bound(
        self, key: Hashable, operator: LinearOperator, compute: Callable[[], tuple[float, NormKind]]
    ) -> tuple[float, NormKind]:
        """That of the key, or a new one, whose failure probability the operator carries."""
        with self._lock:
            known = self._known.get(key)
        if known is None:
            known = (*compute(), operator.norm_failure_probability)
            with self._lock:
                while len(self._known) >= self._capacity:
                    del self._known[next(iter(self._known))]
                self._known[key] = known
        bound, kind, operator.norm_failure_probability = known
        return bound, kind
