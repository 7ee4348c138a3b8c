"""How an operator works through an image by bands of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Bands"]


@dataclass(frozen=True)
class Bands:
    """An operator W on images (batch, 1, H, W) whose every row of responses depends on a few rows of the image extended
    beyond its border: rows i to j of the responses on rows i to j + overlap of it. Rows are the last axis but one.

    extend: images to extended images, linear. contract: its transpose. respond: rows of the extended image to rows of
    responses. pull: its transpose. pull_diagonal: rows of weights w of the responses to the rows of the diagonal of
    respond^T diag(w) respond.
    """

    extend: Callable[[Tensor], Tensor]
    contract: Callable[[Tensor], Tensor]
    respond: Callable[[Tensor], Tensor]
    pull: Callable[[Tensor], Tensor]
    pull_diagonal: Callable[[Tensor], Tensor]
    overlap: int
