"""A sparse matrix with nonnegative entries and its transpose, applied to batches of images.

Both are compressed sparse rows with int32 indices: torch multiplies them 2 to 5 times faster than with int64. Images
are columns, (pixels, batch), a few at a time, so that an entry is read once for all of them and what it meets stays in
the cache. A symmetric scan stores one row for up to eight rays and applies it to the eight motions of each image:
a single image then already is a block of eight columns.

The entries are float32. They are kept as bits, which ``.double()`` and ``.half()`` leave alone: a computation in
float64 uses exactly the same matrix.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from learnreg.errors import ShapeError
from learnreg.operators.tomography.astra_matrix import SparseRows, check_entries, require
from learnreg.operators.tomography.symmetry import Symmetry

__all__ = ["SystemMatrix", "all_rows", "take"]

_COLUMNS = 32
"""Columns of a block: more do not fit the cache, fewer read the matrix more often."""

_POWER_STEPS = 200
_CLOSE = 1.02
"""Power steps stop when the bound is within this factor of the norm."""


class SystemMatrix(nn.Module):
    """A (rays, pixels) and A^T, in torch's sparse format on the device of the module; no part of a state dict.

    Parameters
    ----------
    rows: the stored rows. symmetry: which rays they serve. scale: a factor of all entries.
    """

    starts: Tensor
    columns: Tensor
    bits: Tensor
    starts_T: Tensor
    columns_T: Tensor
    bits_T: Tensor
    source: Tensor
    slots: Tensor
    gather: Tensor
    gather_T: Tensor

    def __init__(self, rows: SparseRows, symmetry: Symmetry, scale: float = 1.0) -> None:
        super().__init__()
        order, pixels = symmetry.pixels.shape
        self.order, self.pixels, self.rays = order, pixels, symmetry.source.size
        stored = _scipy_matrix(rows._replace(values=rows.values * np.float32(scale)), pixels)
        transposed = stored.tocsc()
        self._keep(starts=stored.indptr, columns=stored.indices, bits=stored.data.view(np.int32))
        self._keep(starts_T=transposed.indptr, columns_T=transposed.indices, bits_T=transposed.data.view(np.int32))
        inverse = np.argsort(symmetry.pixels, axis=1)
        self._keep(source=symmetry.source, slots=symmetry.slots)
        self._keep(gather=symmetry.pixels.T, gather_T=inverse * order + np.arange(order)[:, None])
        self._torch: dict[tuple[bool, torch.dtype], Tensor] = {}

    def _keep(self, **arrays: Any) -> None:
        for name, array in arrays.items():
            whole = np.require(array, np.int32, ("C", "W"))
            self.register_buffer(name, torch.from_numpy(whole.reshape(-1)), persistent=False)

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
        step = max(1, _COLUMNS // self.order)
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

    def _multiply(self, transposed: bool, x: Tensor) -> Tensor:
        if x.is_meta:
            raise ShapeError("the projector: got a tensor on the device 'meta', which has no data.")
        matrix = self._matrix(transposed, x.dtype)
        with torch.autocast(x.device.type, enabled=False):  # torch multiplies no sparse matrices in half precision
            return (matrix @ x[:, 0]).unsqueeze(1) if x.shape[1] == 1 else matrix @ x

    def _matrix(self, transposed: bool, dtype: torch.dtype) -> Tensor:
        """The stored rows or their transpose for torch; values in float64 are made when they are first asked for."""
        key = (transposed, dtype)
        if key not in self._torch:
            starts, columns, values = self._parts(transposed)
            others = self.starts.numel() - 1 if transposed else self.pixels
            with warnings.catch_warnings():  # that sparse rows are in beta
                warnings.simplefilter("ignore", UserWarning)
                self._torch[key] = torch.sparse_csr_tensor(
                    starts, columns, values.to(dtype), (starts.numel() - 1, others), check_invariants=False
                )
        return self._torch[key]

    def _parts(self, transposed: bool) -> tuple[Tensor, Tensor, Tensor]:
        if transposed:
            return self.starts_T, self.columns_T, self.bits_T.view(torch.float32)
        return self.starts, self.columns, self.bits.view(torch.float32)

    # ---- bounds ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def norm_bound(self, kept: Tensor | None = None) -> float:
        """Upper bound of ‖A‖, or of ‖diag(kept) A‖ for zeros and ones (rays,), within a few percent. *Rigorous.*

        For a matrix G >= 0 and any v > 0 the spectral radius is at most max_i (Gv)_i / v_i (Collatz and Wielandt;
        Horn and Johnson, Matrix Analysis, Theorem 8.1.26); power steps bring it down. Sums of nonnegative float32
        terms are too small by a relative error of at most their number times the unit roundoff.
        """
        terms = int(self.starts.diff().max()) + self.order * (int(self.starts_T.diff().max()) + 1) + 4
        vector, bound = torch.ones(1, self.pixels, device=self.starts.device), math.inf
        for _ in range(_POWER_STEPS):
            views = self.apply_to(vector)
            image = self.apply_transpose_to(views if kept is None else views * kept)
            largest = float(image.max())
            if largest == 0.0:
                return 0.0
            bound = min(bound, float((image / vector).max()))
            if bound <= _CLOSE**2 * float((image * vector).sum() / vector.square().sum()):
                break
            vector = (image / largest).clamp_min(1e-6)
        margin: float = terms * torch.finfo(torch.float32).eps
        return math.sqrt(bound) * (1.0 + margin)

    @torch.no_grad()
    def row_norms(self) -> Tensor:
        """2-norms of the rows, (rays,) float64, rounded up."""
        squares = torch.segment_reduce(
            self.bits.view(torch.float32).double().square(), "sum", lengths=self.starts.diff().long(), unsafe=True
        )
        return squares.sqrt()[torch.div(self.source.long(), self.order, rounding_mode="floor")] * (1.0 + 1e-12)

    # ---- as a module -------------------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Memory of the buffers; values made for float64 come on top."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    @property
    def entries(self) -> int:
        """Number of stored entries of A."""
        return self.columns.numel()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._torch.clear()
        return cast(Self, super()._apply(fn, recurse))  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_torch": {}}

    def __deepcopy__(self, memo: dict[int, Any]) -> SystemMatrix:
        """Another module with the same tensors, which nothing changes in place."""
        copied = SystemMatrix.__new__(SystemMatrix)
        copied.__dict__ = {**self.__dict__, "_torch": {}, "_buffers": dict(self._buffers)}
        return copied


def take(rows: Tensor, index: Tensor) -> Tensor:
    """rows[index]; torch is four times faster on vectors than on matrices of one column."""
    return rows[:, 0].index_select(0, index).unsqueeze(1) if rows.shape[1] == 1 else rows.index_select(0, index)


def all_rows(rows: SparseRows, symmetry: Symmetry, rays: npt.NDArray[np.int64]) -> SparseRows:
    """The rows of these rays, each a copy of a stored one with its pixels moved.

    Raises
    ------
    OperatorError: more than 2^31 - 1 entries.
    """
    stored, motion = np.divmod(symmetry.source[rays], symmetry.order)
    counts = np.diff(rows.starts)[stored].astype(np.int64)
    ends = np.cumsum(counts)
    check_entries(int(ends[-1]))
    entries = np.arange(ends[-1]) + np.repeat(rows.starts[stored] - (ends - counts), counts)
    columns = symmetry.pixels[np.repeat(motion, counts), rows.columns[entries]]
    matrix = _scipy_matrix(SparseRows(np.concatenate([[0], ends]), columns, rows.values[entries]), columns.max() + 1)
    matrix.sort_indices()
    return SparseRows(matrix.indptr, matrix.indices, matrix.data)


def _scipy_matrix(rows: SparseRows, columns: int) -> Any:
    shape = (rows.starts.size - 1, columns)
    return require("scipy.sparse", "SciPy").csr_matrix((rows.values, rows.columns, rows.starts), shape=shape)
