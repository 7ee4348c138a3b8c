"""Learned interpolation of forward differences: kernels that sum to one, and the filters that they make with
differences.

Vertical forward differences live half a pixel below the pixels of their image, horizontal ones half a pixel to the
right.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from learnreg.convolutions.dct import LARGEST_SIDE, MOST_FILTERS
from learnreg.convolutions.padding import BOUNDARIES
from learnreg.errors import ConfigError
from learnreg.linear.arguments import check_generator, check_one_of, is_whole, model_scale, shown

__all__ = [
    "across",
    "bilinear",
    "check_interpolation",
    "difference_norm",
    "down",
    "middle",
    "placed",
    "positions_in_pixel",
    "sum_to_one",
]

_POSITIONS = ((0.5, 0.0), (0.0, 0.5), (0.0, 0.0), (0.5, 0.5))
"""The first positions, from a pixel's centre: two edges of the pixel, its centre, its corner."""


def check_interpolation(name: str, positions: int, size: int, boundary: str, **positive: float) -> None:
    """ConfigError for numbers of positions, sides of kernels, boundaries and positive options that do not fit."""
    if not is_whole(positions, 1, MOST_FILTERS) or not is_whole(size, 3, LARGEST_SIDE) or size % 2 == 0:
        raise ConfigError(
            f"{name}(positions={shown(positions)}, size={shown(size)}): expected integers, positions from 1 to "
            f"{MOST_FILTERS:,}, size odd, from 3 to {LARGEST_SIDE:,}."
        )
    for option, value in positive.items():
        model_scale(value, f"{name}({option})")
    check_one_of(boundary, BOUNDARIES, "boundary")


def positions_in_pixel(count: int, generator: torch.Generator | None) -> list[tuple[float, float]]:
    """(row, column) from a pixel's centre: two of its edges, its centre, its corner, then random points of it."""
    check_generator(generator)
    points = list(_POSITIONS[:count])
    for _ in range(count - len(points)):
        row, column = torch.rand(2, dtype=torch.float64, generator=generator).tolist()
        points.append((row, column))
    return points


def bilinear(points: list[tuple[float, float]], origin: tuple[float, float], size: int) -> Tensor:
    """Kernels (m, k, k) that interpolate values on a grid whose point of index 0 is at ``origin`` to the points."""
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    found = []
    for point in points:
        rows, columns = ((1.0 - (offsets - (p - o)).abs()).clamp_min(0.0) for p, o in zip(point, origin, strict=True))
        found.append(torch.outer(rows, columns))
    return torch.stack(found)


def middle(count: int, size: int) -> Tensor:
    """Kernels (m, k, k) that change nothing."""
    result = torch.zeros(count, size, size, dtype=torch.float64)
    result[:, size // 2, size // 2] = 1.0
    return result


def sum_to_one(kernels: Tensor) -> Tensor:
    """Raw kernels (..., k, k) plus the constant that makes each sum to one; in float64, so that the gradient of the raw
    kernels is rounded once, at the end."""
    kernels = kernels.double()
    return kernels - kernels.mean((-2, -1), keepdim=True) + 1.0 / (kernels.shape[-1] * kernels.shape[-2])


def down(kernels: Tensor) -> Tensor:
    """Filters (..., k + 1, k + 1): vertical forward differences, then the kernels."""
    return F.pad(kernels, (0, 1, 1, 0)) - F.pad(kernels, (0, 1, 0, 1))


def across(kernels: Tensor) -> Tensor:
    """Filters (..., k + 1, k + 1): horizontal forward differences, then the kernels."""
    return F.pad(kernels, (1, 0, 0, 1)) - F.pad(kernels, (0, 1, 0, 1))


def placed(kernels: Tensor) -> Tensor:
    """The kernels themselves on the grid of such filters, (..., k + 1, k + 1)."""
    return F.pad(kernels, (0, 1, 0, 1))


def difference_norm(size: int) -> float:
    """Of ``down`` and ``across``, whose Gram matrices have the eigenvalues 2 - 2 cos(j pi/(k + 1)), j = 1 ... k.
    *Rigorous bound.*"""
    return 2.0 * math.cos(0.5 * math.pi / (size + 1)) * (1.0 + 1e-12)
