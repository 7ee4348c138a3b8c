"""What a preconditioner needs to know of an analysis operator that is a convolution away from the boundary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Stencil"]


@dataclass(frozen=True)
class Stencil:
    """An operator W on images (1, H, W) whose range, its leading axes in one, has a channel for each filter.

    filters: (n, k, l), correlated with the image away from its boundary. circular: whether the boundary wraps around.
    gram_diagonal: weights w of the range, (batch, n, ...), to the diagonal of W^T diag(w) W, (batch, 1, H, W).
    inside: whether every response sees pixels of the image alone, nothing that continues it.
    """

    filters: Tensor
    circular: bool
    gram_diagonal: Callable[[Tensor], Tensor]
    inside: bool = False
