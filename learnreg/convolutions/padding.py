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


def pad(x: Tensor, filter_shape: tuple[int, int], boundary: Boundary) -> Tensor:
    """Extend (batch, 1, H, W) so that a valid correlation has H x W responses; nothing to do for "valid"."""
    if boundary == "valid":
        return x
    (top, bottom), (left, right) = (margins(k) for k in filter_shape)
    if boundary == "zero":
        return F.pad(x, (left, right, top, bottom))
    if boundary in _KERNELS and x.device.type == "cpu":
        return F.pad(x, (left, right, top, bottom), _KERNELS[boundary][0])
    if boundary == "circular" and bottom <= x.shape[-2] and right <= x.shape[-1]:
        return F.pad(x, (left, right, top, bottom), "circular")
    rows = source_index(x.shape[-2], top, bottom, boundary, x.device)
    cols = source_index(x.shape[-1], left, right, boundary, x.device)
    return x.index_select(-2, rows).index_select(-1, cols)


def pad_adjoint(y: Tensor, filter_shape: tuple[int, int], boundary: Boundary, shape: tuple[int, int]) -> Tensor:
    """The exact transpose of :func:`pad`, back to an image of the given sides."""
    if boundary == "valid":
        return y
    (top, bottom), (left, right) = (margins(k) for k in filter_shape)
    if boundary == "zero":
        return y[..., top : top + shape[0], left : left + shape[1]]
    if boundary in _KERNELS and y.device.type == "cpu":
        return _KERNELS[boundary][1](y, y.new_empty(*y.shape[:-2], *shape), [left, right, top, bottom])
    rows = source_index(shape[0], top, bottom, boundary, y.device)
    cols = source_index(shape[1], left, right, boundary, y.device)
    folded = y.new_zeros(*y.shape[:-2], shape[0], y.shape[-1]).index_add(-2, rows, y)
    return folded.new_zeros(*folded.shape[:-1], shape[1]).index_add(-1, cols, folded)


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
