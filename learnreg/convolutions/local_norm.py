"""Norms of convolutions whose boundary repeats pixels, from their Gram matrix on a small image."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from learnreg.convolutions.local_gram import local_gram
from learnreg.linear.operator import LinearOperator

__all__ = ["local_norm_bound"]

_POWERS = (4, 2, 1)
_LARGEST_MATRIX = 1600


def local_norm_bound(
    build: Callable[[tuple[int, ...]], LinearOperator],
    filter_shape: tuple[int, ...],
    sides: tuple[int, ...],
    device: torch.device | str | None = None,
) -> float:
    """Bound of ‖W‖ for filters on images of one or more channels, ``build`` on images of given sides. *Rigorous bound.*

    The largest absolute row sum of (W^T W)^m bounds its norm. A row depends on pixels at most m (k - 1) away and on
    which of these are within k of a border, so that large images have no rows but those of an image whose sides are 2
    (m (k - 1) + k) + 1. Infinite for filters so large that this image is, too.
    """
    for power in _POWERS:
        reaches = [power * (k - 1) + k for k in filter_shape]
        operator = build(tuple(min(n, 2 * reach + 1) for n, reach in zip(sides, reaches, strict=True)))
        if math.prod(operator.domain_shape) <= _LARGEST_MATRIX:
            break
    else:
        return math.inf
    gram = local_gram(operator, filter_shape, device)
    scale = float(gram.abs().max())
    if scale == 0.0:
        return 0.0
    product = gram / scale
    for _ in range(power.bit_length() - 1):
        product = product @ product
    largest = float(product.abs().sum(1).max())
    return float((scale * largest ** (1.0 / power)) ** 0.5) * (1.0 + 1e-10)
