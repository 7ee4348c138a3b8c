"""The Gram matrix of filters on a small image, from few applications: filters far apart do not meet."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learnreg.linear.operator import LinearOperator

__all__ = ["local_gram"]

_BLOCK = 64


@torch.no_grad()
def local_gram(
    operator: LinearOperator, filter_shape: tuple[int, ...], device: torch.device | str | None = None
) -> Tensor:
    """W^T W in float64, (size, size), for responses that depend on pixels within windows of ``filter_shape``, images
    (channels, *sides). Boundaries may repeat pixels, but not those of the other side: nothing circular.

    W^T W couples pixels at most k - 1 apart, so that one application serves all pixels of a grid of step 2 k - 1.
    """
    channels, *sides = operator.domain_shape
    pixels = math.prod(sides)
    steps = [min(n, 2 * k - 1) for n, k in zip(sides, filter_shape, strict=True)]
    count = math.prod(steps)
    grid = _places([torch.arange(n) % step for n, step in zip(sides, steps, strict=True)], steps)
    units = torch.zeros(channels, count, channels, pixels, dtype=torch.float64)
    for channel in range(channels):
        units[channel, grid, channel, torch.arange(pixels)] = 1.0
    units = units.view(channels * count, *operator.domain_shape).to(device)
    images = torch.cat([operator.adjoint(operator(part)) for part in torch.split(units, _BLOCK)])
    near = [_near(n, k) for n, k in zip(sides, filter_shape, strict=True)]
    pixel, other = (_places([pair[i] for pair in near], sides).to(device) for i in range(2))
    gram = images.new_zeros(channels, pixels, channels, pixels)
    image_of = grid.to(device)[pixel]  # of the pixels of a grid, the one that is near
    gram[:, pixel, :, other] = images.view(channels, count, channels, pixels)[:, image_of, :, other]
    return gram.view(channels * pixels, -1)


def _places(indices: list[Tensor], sides: list[int]) -> Tensor:
    """Flat indices of all combinations of indices along each axis."""
    flat = torch.zeros((), dtype=torch.int64)
    for index, n in zip(indices, sides, strict=True):
        flat = flat[..., None] * n + index
    return flat.flatten()


def _near(n: int, k: int) -> tuple[Tensor, Tensor]:
    """The pairs of places below n that are less than k apart."""
    places = torch.arange(n)
    first, second = ((places[:, None] - places).abs() < k).nonzero(as_tuple=True)
    return first, second
