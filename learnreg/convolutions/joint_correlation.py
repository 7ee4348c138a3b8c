"""Correlation with filters across channels, and of signals and volumes: what ``correlation`` has for one image channel.

The kernels are matrix products of filters and windows, block by block so that windows stay in the cache; other devices
than the CPU, half precision and deterministic mode use torch's convolutions. Differentiable any number of times.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from learnreg.convolutions.correlation import BankMaps, correlate, correlate_adjoint, differentiates, eager

__all__ = ["correlate_any", "correlate_any_adjoint"]

_BLOCK_BYTES = 2 * 1024**2
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSES = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def correlate_any(x: Tensor, filters: Tensor, out: Tensor | None = None) -> Tensor:
    """Valid correlation of (batch, c, *sides) with (n, c, *filter sides), one to three of them: (batch, n, *rest).

    ``out``: memory for the result, contiguous, for callers that do not differentiate.
    """
    if filters.dim() == 4 and filters.shape[1] == 1:
        return correlate(x, filters.squeeze(1), out)
    if out is None and differentiates(x, filters):
        return _MAPS.recorded(x, filters, transposed=False)
    if not eager(x):
        found = _CONVOLUTIONS[filters.dim() - 2](x, filters)
        return found if out is None else out.copy_(found)
    rest = _rest(x, filters)
    out = x.new_empty(x.shape[0], filters.shape[0], *rest) if out is None else out
    matrix = filters.flatten(1)
    for image, flat in zip(x, out.flatten(2), strict=True):
        for first, windows in _blocks(image, filters.shape[2:], rest):
            torch.mm(matrix, windows, out=flat[:, first : first + windows.shape[1]])
    return out


def correlate_any_adjoint(y: Tensor, filters: Tensor) -> Tensor:
    """Transpose of :func:`correlate_any` in the image: (batch, n, *rest) to (batch, c, *sides)."""
    if filters.dim() == 4 and filters.shape[1] == 1:
        return correlate_adjoint(y, filters.squeeze(1))
    if differentiates(y, filters):
        return _MAPS.recorded(y, filters, transposed=True)
    if not eager(y):
        return _TRANSPOSES[filters.dim() - 2](y, filters)
    (_, channels, *sides), (batch, _, *rest) = filters.shape, y.shape
    out = y.new_zeros(batch, channels, *(r + k - 1 for r, k in zip(rest, sides, strict=True)))
    matrix, slab = filters.flatten(1).T, math.prod(rest[1:])
    block = _block(matrix.shape[0] * slab * y.element_size(), rest[0])
    for image, responses in zip(out, y.flatten(2), strict=True):
        for first in range(0, rest[0], block):
            count = min(block, rest[0] - first)
            taps = torch.mm(matrix, responses[:, first * slab : (first + count) * slab])
            shifts = taps.view(channels, math.prod(sides), count, *rest[1:]).unbind(1)
            for shift, tap in zip(product(*map(range, sides)), shifts, strict=True):
                places = [slice(first + shift[0], first + shift[0] + count)]
                places += [slice(s, s + r) for s, r in zip(shift[1:], rest[1:], strict=True)]
                image[(slice(None), *places)].add_(tap)
    return out


def _filter_gradient(x: Tensor, y: Tensor, sides: tuple[int, ...]) -> Tensor:
    """∂_w <w * x, y>: (n, c, *sides) for images (batch, c, ...) and responses (batch, n, *rest)."""
    (batch, n, *rest), channels = y.shape, x.shape[1]
    if not eager(x) or differentiates(x, y):
        windows = x
        for axis, side in enumerate(rest):
            windows = windows.unfold(axis + 2, side, 1)  # (batch, c, *sides, *rest)
        return torch.einsum("bkp,bnp->nk", windows.reshape(batch, channels * math.prod(sides), -1), y.flatten(2)).view(
            n, channels, *sides
        )
    gradient = y.new_zeros(n, channels * math.prod(sides))
    for image, responses in zip(x, y.flatten(2), strict=True):
        for first, windows in _blocks(image, sides, tuple(rest)):
            gradient.addmm_(responses[:, first : first + windows.shape[1]], windows.T)
    return gradient.view(n, channels, *sides)


_MAPS = BankMaps(correlate_any, correlate_any_adjoint, _filter_gradient)


def _rest(x: Tensor, filters: Tensor) -> tuple[int, ...]:
    return tuple(n - k + 1 for n, k in zip(x.shape[2:], filters.shape[2:], strict=True))


def _block(row: int, rows: int) -> int:
    """Rows of so many bytes at a time."""
    return max(1, min(rows, _BLOCK_BYTES // row))


def _blocks(image: Tensor, sides: tuple[int, ...], rest: tuple[int, ...]) -> Iterator[tuple[int, Tensor]]:
    """Windows of (c, ...), a column (c · filter sides) each, from the response of index ``first`` on."""
    channels, column, slab = image.shape[0], image.shape[0] * math.prod(sides), math.prod(rest[1:])
    block = _block(column * slab * image.element_size(), rest[0])
    steps = image.stride()
    for first in range(0, rest[0], block):
        count = min(block, rest[0] - first)
        shifted = image.as_strided(
            (channels, *sides, count, *rest[1:]),
            (steps[0], *steps[1:], *steps[1:]),
            image.storage_offset() + first * steps[1],
        )
        yield first * slab, shifted.reshape(column, count * slab)
