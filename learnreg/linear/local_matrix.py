"""Symmetric matrices on the pixels of an image that couple near ones alone: their entries, and whether they are
positive definite, by nested dissection."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LocalMatrix", "dissection_work"]

_LEAF = 24
"""Side up to which a rectangle is not divided."""

_BLOCK_BYTES = 2**26


@dataclass(frozen=True)
class LocalMatrix:
    """entries: (k, 2 l - 1, height, width) in float64; [a, l - 1 + b, i, j] is that of the pixels (i, j) and (i + a, j
    + b). What has a = 0 > b, or a second pixel outside, is not read. rounding: how far the matrix is from the one that
    is meant, a bound of the 2-norm of the difference."""

    entries: Tensor
    rounding: float

    @classmethod
    def probed(
        cls,
        apply: Callable[[Tensor], Tensor],
        sides: tuple[int, int],
        window: tuple[int, int],
        like: Tensor,
        entry_error: float,
    ) -> LocalMatrix:
        """Of a map of images (images, 1, *sides) whose pixels less than the window apart are coupled; each entry is
        off by ``entry_error`` at most. One application serves all pixels of a grid so wide that what they are coupled
        to does not meet."""
        (k, l), (height, width) = _clipped(window, sides), sides
        steps = min(height, 2 * k - 1), min(width, 2 * l - 1)
        rows, columns = torch.arange(height, device=like.device), torch.arange(width, device=like.device)
        grid = rows[:, None] % steps[0] * steps[1] + columns % steps[1]
        units = torch.zeros(steps[0] * steps[1], 1, height, width, dtype=torch.float64, device=like.device)
        units[grid, 0, rows[:, None], columns] = 1.0
        at_once = max(1, _BLOCK_BYTES // (8 * height * width))
        images = torch.cat([apply(part) for part in torch.split(units, at_once)])[:, 0]
        entries = units.new_zeros(k, 2 * l - 1, height, width)
        for a in range(k):
            for b in range(1 - l, l):
                seen = slice(max(0, -b), width - max(0, b))
                pixels = grid[: height - a, seen], rows[: height - a, None] + a, columns[seen] + b
                entries[a, l - 1 + b, : height - a, seen] = images[pixels]
        return cls(entries, entry_error * (2 * k - 1) * (2 * l - 1))

    def __add__(self, other: LocalMatrix) -> LocalMatrix:
        k, l = (max(n, m) for n, m in zip(self.window, other.window, strict=True))
        return LocalMatrix(self._widened(k, l) + other._widened(k, l), self.rounding + other.rounding)

    @property
    def window(self) -> tuple[int, int]:
        """(k, l): pixels less far apart along each axis are coupled, no others."""
        return self.entries.shape[0], (self.entries.shape[1] + 1) // 2

    @property
    def sides(self) -> tuple[int, int]:
        return self.entries.shape[2], self.entries.shape[3]

    @property
    def diagonal(self) -> Tensor:
        """(height, width)."""
        return self.entries[0, self.window[1] - 1]

    def _widened(self, k: int, l: int) -> Tensor:
        more = l - self.window[1]
        return F.pad(self.entries, (0, 0, 0, 0, more, more, 0, k - self.window[0]))

    @torch.no_grad()
    def decomposes(self, shift: float) -> bool:
        """Whether the Cholesky decomposition of A - shift I runs to its end in floating-point numbers."""
        return _Dissection(self, shift).runs()

    @property
    def terms(self) -> int:
        """How many operations any number goes through in the decomposition, at most."""
        return _terms(self.sides, _reach(self.window))


class _Dissection:
    """Nested dissection (George, 1973): a strip as wide as pixels are coupled divides a rectangle in two halves, which
    are eliminated before it. What a rectangle adds to the pixels around it is a dense matrix; so are all that are
    decomposed."""

    def __init__(self, matrix: LocalMatrix, shift: float) -> None:
        self.matrix, self.shift, self.reach = matrix, shift, _reach(matrix.window)
        height, width = matrix.sides
        device = matrix.entries.device
        self.pixels = torch.arange(height * width, device=device).reshape(height, width)
        self.place = torch.full((height * width,), -1, device=device)
        (k, l) = matrix.window
        self.down = torch.arange(1 - k, k, device=device).repeat_interleave(2 * l - 1)
        self.right = torch.arange(1 - l, l, device=device).repeat(2 * k - 1)

    def runs(self) -> bool:
        height, width = self.matrix.sides
        return self._eliminate((0, height, 0, width)) is not None

    def _eliminate(self, box: tuple[int, int, int, int]) -> tuple[Tensor, Tensor] | None:
        """The pixels around a rectangle, and what its elimination adds to the matrix between them; None where the
        decomposition ends early."""
        parts, strip = _divided(box, self.reach)
        top, bottom, left, right = strip
        own = self.pixels[top:bottom, left:right].flatten()
        updates = []
        for part in parts:
            eliminated = self._eliminate(part)
            if eliminated is None:
                return None
            updates.append(eliminated)
        ring = self._around(box)
        both = torch.cat([own, ring])
        self.place[both] = torch.arange(len(both), device=both.device)
        front = self._front(own, len(both))
        while updates:
            pixels, update = updates.pop()
            index = self.place[pixels]
            front[index[:, None], index] += update
            del update
        self.place[both] = -1
        count = len(own)
        front[:count, :count].diagonal().sub_(self.shift)
        factor, failed = torch.linalg.cholesky_ex(front[:count, :count])
        if int(failed) != 0:
            return None
        row = torch.linalg.solve_triangular(factor, front[:count, count:], upper=False)
        return ring, torch.addmm(front[count:, count:], row.T, row, alpha=-1.0)

    def _around(self, box: tuple[int, int, int, int]) -> Tensor:
        (top, bottom, left, right), (down, across) = box, self.reach
        first, start = max(0, top - down), max(0, left - across)
        near = self.pixels[first : bottom + down, start : right + across].clone()
        near[top - first : bottom - first, left - start : right - start] = -1
        return near[near >= 0]

    def _front(self, own: Tensor, size: int) -> Tensor:
        """The rows and columns of the pixels ``own``, which come first, in a matrix of all that have a place."""
        (height, width), l = self.matrix.sides, self.matrix.window[1]
        row, column = own // width, own % width
        second = row[:, None] + self.down, column[:, None] + self.right
        inside = (second[0] >= 0) & (second[0] < height) & (second[1] >= 0) & (second[1] < width)
        place = self.place[(second[0] * width + second[1]).where(inside, own[:, None])]
        mine, offset = (inside & (place >= 0)).nonzero(as_tuple=True)
        a, b, i, j = self.down[offset], self.right[offset], row[mine], column[mine]
        turned = (a < 0) | ((a == 0) & (b < 0))
        i, j = torch.where(turned, i + a, i), torch.where(turned, j + b, j)
        a, b = torch.where(turned, -a, a), torch.where(turned, -b, b)
        front = self.matrix.entries.new_zeros(size, size)
        front[mine, place[mine, offset]] = self.matrix.entries[a, l - 1 + b, i, j]
        front[len(own) :, : len(own)] = front[: len(own), len(own) :].T
        return front


def _divided(
    box: tuple[int, int, int, int], reach: tuple[int, int]
) -> tuple[list[tuple[int, int, int, int]], tuple[int, int, int, int]]:
    """The halves of a rectangle, and the strip between them: all of it where it is small."""
    top, bottom, left, right = box
    sides, axis = (bottom - top, right - left), _axis((bottom - top, right - left), reach)
    if axis is None:
        return [], box
    begin = (top, left)[axis] + (sides[axis] - reach[axis]) // 2
    end = begin + reach[axis]
    if axis == 0:
        return [(top, begin, left, right), (end, bottom, left, right)], (begin, end, left, right)
    return [(top, bottom, left, begin), (top, bottom, end, right)], (top, bottom, begin, end)


def _axis(sides: tuple[int, int], reach: tuple[int, int]) -> int | None:
    """Along which a rectangle is divided, by the strip of fewer pixels."""
    strips = [(reach[axis] * sides[1 - axis], axis) for axis in range(2) if sides[axis] >= max(3 * reach[axis], _LEAF)]
    return min(strips)[1] if strips else None


@cache
def _terms(sides: tuple[int, int], reach: tuple[int, int]) -> int:
    """Of the half that has more."""
    parts, (top, bottom, left, right) = _divided((0, sides[0], 0, sides[1]), reach)
    halves = [_terms((part[1] - part[0], part[3] - part[2]), reach) for part in parts]
    return (bottom - top) * (right - left) + 2 + max(halves, default=0)


def _reach(window: tuple[int, int]) -> tuple[int, int]:
    return max(1, window[0] - 1), max(1, window[1] - 1)


def _clipped(window: tuple[int, int], sides: tuple[int, int]) -> tuple[int, int]:
    return min(window[0], sides[0]), min(window[1], sides[1])


def dissection_work(sides: tuple[int, int], window: tuple[int, int]) -> float:
    """About the multiplications of a decomposition (George, 1973, for 9-point stencils, on blocks)."""
    reach = _reach(_clipped(window, sides))
    return float(10.0 * math.prod(sides) ** 1.5 * math.prod(reach) ** 1.5)
