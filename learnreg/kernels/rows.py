"""Kernels that go through responses (batch, n, ...) channel by channel, with constants per sample and channel."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, Self

from torch import Tensor

from learnreg.kernels.loader import as_array, kernels_for
from learnreg.kernels.numbers import number_like

__all__ = ["ChannelKernels", "as_rows"]


@dataclass(frozen=True)
class ChannelKernels:
    """The kernels of a module, and constants that do not vary within a channel, as arrays (batch · n,)."""

    kernels: ModuleType
    constants: tuple[Any, ...]

    @classmethod
    def of(cls, name: str, responses: tuple[Tensor, ...], *constants: Tensor | float) -> Self | None:
        """For responses of one shape and dtype and constants that broadcast against them; None where the kernels of
        ``learnreg.kernels.<name>`` do not fit."""
        like = responses[0]
        if like.dim() < 3 or any(r.shape != like.shape or r.dtype != like.dtype for r in responses):
            return None
        kernels = kernels_for(name, *responses)
        if kernels is None:
            return None
        rows = tuple(_per_channel(c, like) for c in constants)
        return None if any(row is None for row in rows) else cls(kernels, rows)


def as_rows(t: Tensor) -> Any:
    """Responses as an array (batch · n, pixels) that shares their memory."""
    return as_array(t.view(t.shape[0] * t.shape[1], -1))


def _per_channel(value: Tensor | float, like: Tensor) -> Any:
    """An array (batch · n,), or None where the value varies within a channel, needs a gradient or is elsewhere."""
    if isinstance(value, Tensor) and value.device != like.device:
        return None
    value = number_like(value, like)
    if value.requires_grad or type(value) is not Tensor:
        return None
    if any(size > 1 for size in value.shape[max(0, value.dim() - like.dim() + 2) :]):
        return None
    return as_array(value.expand(*like.shape[:2], *(1,) * (like.dim() - 2)).reshape(-1))
