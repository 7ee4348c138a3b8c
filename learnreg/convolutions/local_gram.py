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
    operator: LinearOperator, filter_shape: tuple[int, int], device: torch.device | str | None = None
) -> Tensor:
    """W^T W in float64, (size, size), for responses that depend on pixels within windows of ``filter_shape``, images
    (channels, H, W). Boundaries may repeat pixels, but not those of the other side: nothing circular.

    W^T W couples pixels at most k - 1 apart, so that one application serves all pixels of a grid of step 2 k - 1.
    """
    channels, height, width = operator.domain_shape
    steps = [min(n, 2 * k - 1) for n, k in zip((height, width), filter_shape, strict=True)]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = ((rows % steps[0]) * steps[1] + columns % steps[1]).flatten()  # of each pixel
    count = steps[0] * steps[1]
    units = torch.zeros(channels, count, channels, height * width, dtype=torch.float64)
    for channel in range(channels):
        units[channel, grid, channel, torch.arange(height * width)] = 1.0
    units = units.view(channels * count, *operator.domain_shape).to(device)
    images = torch.cat([operator.adjoint(operator(part)) for part in torch.split(units, _BLOCK)])
    near = [
        (a.flatten()[:, None] - a.flatten()[None, :]).abs() < k
        for a, k in zip((rows, columns), filter_shape, strict=True)
    ]
    mine = (near[0] & near[1]).to(device)  # of the pixels of a grid, the one that is near
    image_of = images.view(channels, count, channels, height * width)[:, grid.to(device)]
    gram = torch.where(mine[None, :, None, :], image_of, 0.0)
    return gram.reshape(math.prod(operator.domain_shape), -1)
