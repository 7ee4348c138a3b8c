"""A sparse matrix with nonnegative entries and its transpose, applied to batches of images.

Both are compressed sparse rows with int32 indices: torch multiplies them 2 to 5 times faster than with int64.

The entries are float32. They are kept as bits, which ``.double()`` and ``.half()`` leave alone: a computation in
float64 uses exactly the same matrix.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learnreg.errors import ShapeError
from learnreg.operators.tomography.astra_matrix import SparseRows, check_entries, require
from learnreg.operators.tomography.symmetric_product import SymmetricProduct
from learnreg.operators.tomography.symmetry import Symmetry

__all__ = ["SystemMatrix", "all_rows"]


class SystemMatrix(SymmetricProduct):
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

    def __init__(self, rows: SparseRows, symmetry: Symmetry, scale: float = 1.0) -> None:
        super().__init__(symmetry)
        stored = _scipy_matrix(rows._replace(values=rows.values * np.float32(scale)), self.pixels)
        transposed = stored.tocsc()
        self._keep(starts=stored.indptr, columns=stored.indices, bits=stored.data.view(np.int32))
        self._keep(starts_T=transposed.indptr, columns_T=transposed.indices, bits_T=transposed.data.view(np.int32))
        self._torch: dict[tuple[bool, torch.dtype], Tensor] = {}

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

    def _norm_start(self) -> tuple[Tensor, int]:
        terms = int(self.starts.diff().max()) + self.order * (int(self.starts_T.diff().max()) + 1) + 4
        return torch.ones(1, self.pixels, device=self.starts.device), terms

    def _row_squares(self) -> Tensor:
        return torch.segment_reduce(
            self.bits.view(torch.float32).double().square(), "sum", lengths=self.starts.diff().long(), unsafe=True
        )

    # ---- as a module -------------------------------------------------------------------------------------------------

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
