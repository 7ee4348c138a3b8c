"""What a preconditioner needs to know of an analysis operator that is a convolution away from the boundary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Stencil"]


@dataclass(frozen=True)
class Stencil:
    """An operator W on images (channels, *sides) whose responses belong to filters, each applied to so many of the
    channels at a time as it sees.

    filters: (n, channels that a filter sees, *filter sides), correlated with the image away from its boundary.
    circular: whether the boundary wraps around. gram_diagonal: weights w of the range, (batch, *range), to the diagonal
    of W^T diag(w) W, (batch, channels, *sides). means: such weights to their mean for each filter at each of the
    channels that it sees, (batch, channels / those at a time, n). inside: whether every response sees pixels of the
    image alone, nothing that continues it. taps: coefficients of the filters that do not vanish; 0: all of them.
    """

    filters: Tensor
    circular: bool
    gram_diagonal: Callable[[Tensor], Tensor]
    means: Callable[[Tensor], Tensor]
    inside: bool = False
    taps: int = 0

    @property
    def coefficients(self) -> int:
        """Of all filters: how dear an application is."""
        return self.taps or self.filters.numel()
