"""The matrix W^T diag(s) W of a filter bank, entry by entry, from the filters and s alone."""

from __future__ import annotations

import torch
from torch import Tensor

from learnreg.convolutions.padding import Boundary, margins, source_index

__all__ = ["gram_entries"]

_BLOCK_NUMBERS = 2**19


def gram_entries(
    filters: Tensor, weights: Tensor, boundary: Boundary, sides: tuple[int, int], pairs: tuple[Tensor, Tensor]
) -> Tensor:
    """Entries as ``LocalMatrix`` has them, (k, 2 l - 1, *sides), of filters (n, k, l) and weights (pairs, rows,
    columns) of pairs of filters in float64, those of two different ones in both orders; not for "circular".

    An entry is a sum over pairs and places of s(q) w(p - q) v(p' - q): one matrix product for each coefficient w(u),
    with all coefficients that are not above it.
    """
    (first, second), (_, rows, columns) = pairs, weights.shape
    k, l = filters.shape[1:]
    one, other, different = filters[first], filters[second], (first != second)[:, None, None]
    entries = weights.new_zeros(k, 2 * l - 1, rows + k - 1, columns + l - 1)
    step = max(1, _BLOCK_NUMBERS // (k * l * columns))
    for y in range(k):
        for x in range(l):
            products = one[:, y, x, None, None] * other[:, y:]
            products = products + different * (other[:, y, x, None, None] * one[:, y:])
            coefficients, offsets = products.flatten(1).T, slice(l - 1 - x, 2 * l - 1 - x)
            for begin in range(0, rows, step):
                part = weights[:, begin : begin + step]
                count = part.shape[1]
                added = (coefficients @ part.reshape(len(part), -1)).view(k - y, l, count, columns)
                entries[: k - y, offsets, begin + y : begin + y + count, x : x + columns] += added
    if boundary == "valid":
        return entries
    (top, _), (left, _) = margins(k), margins(l)
    if boundary == "zero":
        return entries[:, :, top : top + sides[0], left : left + sides[1]].contiguous()
    return _folded(entries, boundary, sides)


def _folded(entries: Tensor, boundary: Boundary, sides: tuple[int, int]) -> Tensor:
    """Of an image that repeats pixels: what they add where they come from, which is no further apart."""
    k, l = entries.shape[0], (entries.shape[1] + 1) // 2
    sources = [source_index(n, *margins(m), boundary, entries.device) for n, m in zip(sides, (k, l), strict=True)]
    found = entries.new_zeros(k * (2 * l - 1) * sides[0] * sides[1])
    for a in range(k):
        for b in range(0 if a == 0 else 1 - l, l):
            seen = slice(max(0, -b), len(sources[1]) - max(0, b))
            i, j = sources[0][: len(sources[0]) - a, None], sources[1][seen]
            to_i, to_j = sources[0][a:, None], sources[1][max(0, b) : len(sources[1]) + min(0, b)]
            down, right = (to_i - i).expand(-1, j.numel()), (to_j - j).expand(i.numel(), -1)
            turned = (down < 0) | ((down == 0) & (right < 0))
            i, j = torch.where(turned, to_i, i), torch.where(turned, to_j, j)
            down, right = torch.where(turned, -down, down), torch.where(turned, -right, right)
            value = entries[a, l - 1 + b, : len(sources[0]) - a, seen]
            if (a, b) != (0, 0):  # of a pixel with itself, once for each order
                value = torch.where((down == 0) & (right == 0), 2.0 * value, value)
            flat = ((down * (2 * l - 1) + l - 1 + right) * sides[0] + i) * sides[1] + j
            found.index_add_(0, flat.flatten(), value.flatten())
    return found.view(k, 2 * l - 1, *sides)
