"""Products of a projector with batches of images when one row of its matrix serves several rays.

Images are columns, (pixels, batch), a few at a time, so that a row is read or computed once for all of them and what it
meets stays in the cache. A symmetric scan has one row for up to eight rays and applies it to the eight motions of each
image: a single image then already is a block of eight columns.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from learnreg.linear.norms import nonnegative_norm_bound
from learnreg.operators.tomography.symmetry import Symmetry

__all__ = ["SymmetricProduct", "take"]

_COLUMNS, _NUMBERS = 32, 2**25
"""Columns of a block: more do not fit the cache, fewer read or compute rows more often; and how many numbers they have
at most, unless one image has more."""


class SymmetricProduct(nn.Module):
    """A (rays, pixels) >= 0 and A^T by the rows that symmetries leave; no part of a state dict.

    Parameters
    ----------
    symmetry: which rays a row serves.
    """

    source: Tensor
    slots: Tensor
    gather: Tensor
    gather_T: Tensor

    def __init__(self, symmetry: Symmetry) -> None:
        super().__init__()
        order, pixels = symmetry.pixels.shape
        self.order, self.pixels, self.rays = order, pixels, symmetry.source.size
        inverse = np.argsort(symmetry.pixels, axis=1)
        self._keep(source=symmetry.source, slots=symmetry.slots)
        self._keep(gather=symmetry.pixels.T, gather_T=inverse * order + np.arange(order)[:, None])

    def _keep(self, dtype: Any = np.int32, **arrays: Any) -> None:
        for name, array in arrays.items():
            whole = np.require(array, dtype, ("C", "W"))
            self.register_buffer(name, torch.from_numpy(whole.reshape(-1)), persistent=False)

    @abstractmethod
    def _multiply(self, transposed: bool, x: Tensor) -> Tensor:
        """The product of the rows that are kept, or of their transpose, with columns: (pixels, columns) to (rows,
        columns), or back."""

    @abstractmethod
    def _row_squares(self) -> Tensor:
        """Sums of squared entries of the rows that are kept, (rows,) float64."""

    @abstractmethod
    def _norm_start(self) -> tuple[Tensor, int]:
        """A positive image (1, pixels) where the power steps for the norm start, and at most how many numbers an entry
        of A^T A times an image adds up."""

    def mismatch(self) -> float:
        """The transpose is exact."""
        return 0.0

    @property
    def nbytes(self) -> int:
        """Memory of the buffers."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    # ---- products ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def apply_to(self, images: Tensor) -> Tensor:
        """A x for x (batch, pixels); returns (batch, rays)."""
        return self._in_blocks(images, self.rays, self._forward)

    @torch.no_grad()
    def apply_transpose_to(self, sinograms: Tensor) -> Tensor:
        """A^T y for y (batch, rays); returns (batch, pixels)."""
        return self._in_blocks(sinograms, self.pixels, self._backward)

    def _in_blocks(self, batch: Tensor, size: int, product: Callable[[Tensor], Tensor]) -> Tensor:
        result = batch.new_empty(batch.shape[0], size)
        step = max(1, min(_COLUMNS, _NUMBERS // self.pixels) // self.order)
        for first in range(0, batch.shape[0], step):
            block = batch[first : first + step]
            block = block if block.dtype == torch.float64 else block.float()
            result[first : first + step] = product(block.T.contiguous()).T
        return result

    def _forward(self, x: Tensor) -> Tensor:
        """A x for x (pixels, batch)."""
        moved = x if self.order == 1 else take(x, self.gather).reshape(self.pixels, -1)
        return take(self._multiply(False, moved).reshape(-1, x.shape[1]), self.source)

    def _backward(self, y: Tensor) -> Tensor:
        """A^T y for y (rays, batch)."""
        padded = torch.cat([y, y.new_zeros(1, y.shape[1])])
        moved = take(padded, self.slots).reshape(-1, self.order * y.shape[1])
        images = self._multiply(True, moved).reshape(-1, y.shape[1])
        if self.order == 1:
            return images
        first, *others = self.gather_T.reshape(self.order, -1)
        result = take(images, first)
        for index in others:
            result += take(images, index)
        return result

    # ---- bounds ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def norm_bound(self, kept: Tensor | None = None) -> float:
        """Upper bound of ‖A‖, or of ‖diag(kept) A‖ for zeros and ones (rays,), within a few percent. *Rigorous.*"""

        def gram(vector: Tensor) -> Tensor:
            views = self.apply_to(vector)
            return self.apply_transpose_to(views if kept is None else views * kept.to(views))

        return nonnegative_norm_bound(gram, *self._norm_start())

    @torch.no_grad()
    def row_norms(self) -> Tensor:
        """2-norms of the rows, (rays,) float64, rounded up."""
        norms = self._row_squares().sqrt()
        return norms[torch.div(self.source.long(), self.order, rounding_mode="floor")] * (1.0 + 1e-12)


def take(rows: Tensor, index: Tensor) -> Tensor:
    """rows[index]; torch is four times faster on vectors than on matrices of one column."""
    return rows[:, 0].index_select(0, index).unsqueeze(1) if rows.shape[1] == 1 else rows.index_select(0, index)
