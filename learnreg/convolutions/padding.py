"""Extending images beyond their border, as a linear map with an exact transpose."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["BOUNDARIES", "Boundary", "margins", "pad", "pad_adjoint", "source_index"]


Boundary = Literal["valid", "zero", "circular", "reflect", "replicate"]

BOUNDARIES: tuple[str, ...] = ("valid", "zero", "circular", "reflect", "replicate")


def pad(x: Tensor, filter_shape: tuple[int, int], boundary: Boundary) -> Tensor:
    """Extend (batch, 1, H, W) so that a valid correlation has H x W responses; nothing to do for "valid"."""
    if boundary == "valid":
        return x
    (top, bottom), (left, right) = (margins(k) for k in filter_shape)
    if boundary == "zero":
        return F.pad(x, (left, right, top, bottom))
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
