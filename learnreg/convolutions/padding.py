"""Extending images beyond their border, as a linear map with an exact transpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["BOUNDARIES", "Boundary", "margins", "pad", "pad_adjoint", "source_index"]


Boundary = Literal["valid", "zero", "circular", "reflect", "replicate"]

BOUNDARIES: tuple[str, ...] = ("valid", "zero", "circular", "reflect", "replicate")


_Transpose = Callable[[Tensor, Tensor, list[int]], Tensor]

_KERNELS: dict[str, tuple[str, _Transpose]] = {
    "reflect": ("reflect", torch.ops.aten.reflection_pad2d_backward),
    "replicate": ("replicate", torch.ops.aten.replication_pad2d_backward),
}
"""torch's own padding and its transpose, on the CPU alone: on a GPU the transposes sum in no fixed order."""


def pad(x: Tensor, filter_shape: tuple[int, ...], boundary: Boundary) -> Tensor:
    """Extend (batch, channels, *sides) so that a valid correlation has as many responses; nothing to do for "valid"."""
    if boundary == "valid":
        return x
    ends = [margins(k) for k in filter_shape]
    around = [n for end in reversed(ends) for n in end]
    planar, sides = len(ends) == 2, x.shape[2:]
    if boundary == "zero":
        return F.pad(x, around)
    if boundary in _KERNELS and planar and x.device.type == "cpu":
        return F.pad(x, around, _KERNELS[boundary][0])
    if boundary == "circular" and planar and all(after <= n for (_, after), n in zip(ends, sides, strict=True)):
        return F.pad(x, around, "circular")
    for axis, (n, end) in enumerate(zip(sides, ends, strict=True), 2):
        x = x.index_select(axis, source_index(n, *end, boundary, x.device))
    return x


def pad_adjoint(y: Tensor, filter_shape: tuple[int, ...], boundary: Boundary, shape: tuple[int, ...]) -> Tensor:
    """The exact transpose of :func:`pad`, back to an image of the given sides."""
    if boundary == "valid":
        return y
    ends = [margins(k) for k in filter_shape]
    if boundary == "zero":
        for axis, ((before, _), n) in enumerate(zip(ends, shape, strict=True), 2):
            y = y.narrow(axis, before, n)
        return y
    if boundary in _KERNELS and len(ends) == 2 and y.device.type == "cpu":
        around = [n for end in reversed(ends) for n in end]
        return _KERNELS[boundary][1](y, y.new_empty(*y.shape[:-2], *shape), around)
    for axis, (n, end) in enumerate(zip(shape, ends, strict=True), 2):
        index = source_index(n, *end, boundary, y.device)
        y = y.new_zeros(*y.shape[:axis], n, *y.shape[axis + 1 :]).index_add(axis, index, y)
    return y


def margins(k: int) -> tuple[int, int]:
    return (k - 1) // 2, k // 2


def source_index(n: int, before: int, after: int, boundary: Boundary, device: torch.device) -> Tensor:
    index = torch.arange(-before, n + after, device=device)
    if boundary == "circular":
        return index % n
    if boundary == "replicate":
        return index.clamp(0, n - 1)
    index = index.abs()
    return torch.where(index >= n, 2 * (n - 1) - index, index)
