"""Filters of the discrete cosine transform, from which learning starts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learnreg.linear.arguments import check_generator

__all__ = ["LARGEST_SIDE", "MOST_FILTERS", "dct_filters"]

MOST_FILTERS, LARGEST_SIDE = 10_000, 1_024
"""More of them, or larger ones, are slips that would fill the memory before they fail."""


def dct_filters(count: int, size: int, generator: torch.Generator | None = None) -> Tensor:
    """The first ``count`` DCT-II basis filters without the constant, by increasing frequency, unit norm; beyond
    size² - 1 of them, random zero-mean unit-norm filters. Shape (count, size, size)."""
    check_generator(generator)
    n = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi * (n[None, :] + 0.5) * n[:, None] / size)
    basis = basis / basis.norm(dim=1, keepdim=True)
    pairs = sorted(((i, j) for i in range(size) for j in range(size)), key=lambda p: (p[0] + p[1], max(p), p))[1:]
    filters = [torch.outer(basis[i], basis[j]) for i, j in pairs[:count]]
    for _ in range(count - len(filters)):
        w = torch.randn(size, size, dtype=torch.float64, generator=generator)
        w = w - w.mean()
        filters.append(w / w.norm())
    return torch.stack(filters).to(torch.get_default_dtype())
