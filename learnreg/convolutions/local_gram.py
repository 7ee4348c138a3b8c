"""The Gram matrix of filters on a small image, from few applications: filters far apart do not meet."""

from __future__ import annotations

import torch
from torch import Tensor

from learnreg.linear.operator import LinearOperator

__all__ = ["local_gram"]

_BLOCK = 64


@torch.no_grad()
def local_gram(
    operator: LinearOperator, filter_shape: tuple[int, int], device: torch.device | str | None = None
) -> Tensor:
    """W^T W in float64, (size, size), for responses that depend on pixels within windows of ``filter_shape``, images
    (channels, H, W). Boundaries may repeat pixels, but not those of the other side: nothing circular.

    W^T W couples pixels at most k - 1 apart, so that one application serves all pixels of a grid of step 2 k - 1.
    """
    channels, height, width = operator.domain_shape
    pixels = height * width
    steps = [min(n, 2 * k - 1) for n, k in zip((height, width), filter_shape, strict=True)]
    count = steps[0] * steps[1]
    grid = (torch.arange(height)[:, None] % steps[0] * steps[1] + torch.arange(width) % steps[1]).flatten()
    units = torch.zeros(channels, count, channels, pixels, dtype=torch.float64)
    for channel in range(channels):
        units[channel, grid, channel, torch.arange(pixels)] = 1.0
    units = units.view(channels * count, *operator.domain_shape).to(device)
    images = torch.cat([operator.adjoint(operator(part)) for part in torch.split(units, _BLOCK)])
    (row, near_row), (column, near_column) = map(_near, (height, width), filter_shape)
    pixel, near = ((a[:, None] * width + b).flatten().to(device) for a, b in ((row, column), (near_row, near_column)))
    gram = images.new_zeros(channels, pixels, channels, pixels)
    image_of = grid.to(device)[pixel]  # of the pixels of a grid, the one that is near
    gram[:, pixel, :, near] = images.view(channels, count, channels, pixels)[:, image_of, :, near]
    return gram.view(channels * pixels, -1)


def _near(n: int, k: int) -> tuple[Tensor, Tensor]:
    """The pairs of places below n that are less than k apart."""
    places = torch.arange(n)
    first, second = ((places[:, None] - places).abs() < k).nonzero(as_tuple=True)
    return first, second
