"""How kernels are compiled: without the GIL and Python's checks, cached on disk where that is possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

__all__ = ["compiled", "compiled_fast"]

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False}

_FAST = {"contract", "reassoc", "nsz", "arcp"}
"""Rounding may differ; NaN and infinity keep their meaning."""


def compiled(function: F) -> F:
    """Plain IEEE arithmetic, in the order that is written: for bounds."""
    return _compile(function, False)


def compiled_fast(function: F) -> F:
    """Fused multiply-adds, reordered sums and reciprocals are allowed: for iterations."""
    return _compile(function, _FAST)


def _compile(function: F, fastmath: bool | set[str]) -> F:
    try:
        return numba.njit(cache=True, fastmath=fastmath, **_OPTIONS)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # no folder to keep the result in is writable
        return numba.njit(fastmath=fastmath, **_OPTIONS)(function)  # type: ignore[no-any-return]
