"""Filters of the discrete cosine transform, from which learning starts."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from learnreg.linear.arguments import check_generator

__all__ = ["LARGEST_SIDE", "MOST_FILTERS", "dct_filters"]

MOST_FILTERS, LARGEST_SIDE = 10_000, 1_024
"""More of them, or larger ones, are slips that would fill the memory before they fail."""


def dct_filters(
    count: int, size: int, generator: torch.Generator | None = None, dimensions: int = 2, channels: int = 0
) -> Tensor:
    """The first ``count`` DCT-II basis filters without the constant, by increasing frequency, unit norm; beyond all of
    them, random zero-mean unit-norm filters. Shape (count, *(size,) * dimensions), or with an axis of ``channels``
    behind the first: products with the DCT basis of the channels, all of zero mean in each of them."""
    check_generator(generator)
    basis, of_channels = _basis(size), _basis(channels) if channels else torch.ones(1, 1, dtype=torch.float64)
    axes = tuple(range(-dimensions, 0))
    places = [p for p in itertools.product(range(size), repeat=dimensions) if any(p)]
    pairs = [(c, p) for c in range(len(of_channels)) for p in places]
    pairs.sort(key=lambda pair: (sum(pair[1]) + pair[0], max(pair[1]), pair))
    filters = []
    for channel, place in pairs[:count]:
        kernel = of_channels[channel]
        for frequency in place:
            kernel = kernel[..., None] * basis[frequency]
        filters.append(kernel)
    for _ in range(count - len(filters)):
        w = torch.randn(*of_channels.shape[1:], *(size,) * dimensions, dtype=torch.float64, generator=generator)
        w = w - w.mean(axes, keepdim=True)
        filters.append(w / w.norm())
    found = torch.stack(filters).to(torch.get_default_dtype())
    return found if channels else found[:, 0]


def _basis(size: int) -> Tensor:
    """The orthonormal DCT-II basis, a function in each row."""
    n = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi * (n[None, :] + 0.5) * n[:, None] / size)
    unit: Tensor = basis / basis.norm(dim=1, keepdim=True)
    return unit
