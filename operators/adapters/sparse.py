"""Sparse matrices as operators: on the device of the data, with the exact transpose."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor

from learnreg.errors import ConfigError, OperatorError, ShapeError
from learnreg.linear.norms import NormBound, matrix_norm_bound, power_estimate
from learnreg.linear.operator import LinearOperator, linear_map
from learnreg.linear.shapes import Shape, checked_shape
from learnreg.operators.adapters.functions import batched_function, check_matrix

__all__ = ["SparseOperator", "assemble", "compressed_rows"]

_COLUMNS = 8  # images that are multiplied at once on a CPU: fewer waste memory bandwidth, more its cache
_DENSE_ENTRIES = 4_000_000
_GRAM_LIMIT = 1024
_SCHUR_STEPS = 100
_POWER_STEPS = 30


class SparseOperator(LinearOperator):
    """A = M for a sparse matrix M (range size, domain size); M and its transpose are kept in compressed rows.

    Parameters
    ----------
    matrix: a sparse tensor (COO or CSR), float32 or float64. Inputs are multiplied in their own dtype.
    domain_shape, range_shape: without the batch axis.
    transposed: the transpose; with both in CSR, and no index twice in a row, nothing is sorted.

    ``norm_bound`` is rigorous for matrices of any size that are, up to signs, of one kind (all entries >= 0, say), by
    Schur's test; ``gram_lower_bound`` is the smallest eigenvalue of M^T M minus rounding up to 1,024 unknowns, else 0.
    """

    values: Tensor
    rows: Tensor

    def __init__(
        self, matrix: Tensor, domain_shape: Shape, range_shape: Shape, transposed: Tensor | None = None
    ) -> None:
        super().__init__(domain_shape, range_shape)
        expected = (math.prod(self.range_shape), math.prod(self.domain_shape))
        if tuple(matrix.shape) != expected:
            raise ShapeError(
                f"SparseOperator: a matrix of shape {tuple(matrix.shape)} does not map {self.domain_shape} to "
                f"{self.range_shape}, which takes {expected}."
            )
        if transposed is None or matrix.layout != torch.sparse_csr:
            pairs = matrix.detach().to_sparse_coo().coalesce()  # type: ignore[no-untyped-call]
            matrix, transposed = _from_pairs(pairs), _from_pairs(pairs.T.coalesce())
        if not bool(torch.isfinite(matrix.values()).all()):
            raise OperatorError("SparseOperator: the matrix has NaN or infinite entries.", "finite")
        for prefix, part in (("", matrix), ("T_", transposed)):
            self.register_buffer(f"{prefix}rows", _narrow(part.crow_indices(), part), persistent=False)
            self.register_buffer(f"{prefix}columns", _narrow(part.col_indices(), part), persistent=False)
            self.register_buffer(f"{prefix}values", part.values(), persistent=False)
        self._converted: dict[tuple[str, torch.dtype], Tensor] = {}
        self._lowest: float | None = None

    def stored(self) -> dict[str, Any]:
        shapes = {"domain_shape": list(self.domain_shape), "range_shape": list(self.range_shape)}
        columns = getattr(self, "columns")  # noqa: B009
        return {"config": {"rows": self.rows, "columns": columns, "values": self.values, **shapes}}

    @classmethod
    def from_stored(cls, stored: dict[str, Any], image_shape: tuple[int, ...] | None) -> Self:
        config = stored["config"]
        domain, target = tuple(config["domain_shape"]), tuple(config["range_shape"])
        size = (math.prod(target), math.prod(domain))
        return cls(compressed_rows(config["rows"], config["columns"], config["values"], size), domain, target)

    def forward(self, x: Tensor) -> Tensor:
        self.check_domain(x)
        return linear_map(x, self._multiply, self._multiply_transposed)

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_range(y)
        return linear_map(y, self._multiply_transposed, self._multiply)

    def _multiply(self, x: Tensor) -> Tensor:
        return _times(self.compressed("", x.dtype), x, self.range_shape)

    def _multiply_transposed(self, y: Tensor) -> Tensor:
        return _times(self.compressed("T_", y.dtype), y, self.domain_shape)

    def compressed(self, prefix: str, dtype: torch.dtype) -> Tensor:
        """M ("") or its transpose ("T_") as a CSR tensor with values of that dtype, which are kept; float32 for half
        precision."""
        values = getattr(self, f"{prefix}values")
        dtype = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
        if values.dtype != dtype:
            key = (prefix, dtype)
            if key not in self._converted:
                self._converted[key] = values.to(dtype)
            values = self._converted[key]
        return self._csr(prefix, values)

    def _csr(self, prefix: str, values: Tensor) -> Tensor:
        sizes = (math.prod(self.range_shape), math.prod(self.domain_shape))
        starts, columns = getattr(self, f"{prefix}rows"), getattr(self, f"{prefix}columns")
        size = sizes[::-1] if prefix else sizes
        return compressed_rows(starts, columns, values, size)

    def _apply(self, fn: Any, recurse: bool = True) -> SparseOperator:
        self._converted = {}
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_converted": {}}

    # ---- bounds ----------------------------------------------------------------------------------------------------

    def _find_norm(self) -> NormBound:
        size = math.prod(self.range_shape) * math.prod(self.domain_shape)
        if size <= _DENSE_ENTRIES:
            return NormBound(matrix_norm_bound(self.compressed("", torch.float64).to_dense()))
        upper, lower = self._schur_bounds()
        signs = torch.sign(self.values)
        if not (bool((signs >= 0).all()) or bool((signs <= 0).all())):  # else |M| is M up to sign
            gram = lambda v: self._multiply_transposed(self._multiply(v))  # noqa: E731
            lower = power_estimate(gram, self.domain_shape, device=self._device(), steps=_POWER_STEPS)
        if upper <= 1.5 * lower:
            return NormBound(upper)
        return super()._find_norm()

    def _schur_bounds(self) -> tuple[float, float]:
        """sqrt(max_i (|M|^T |M| v)_i / v_i) for a positive v near the leading singular vector of |M|: >= ‖|M|‖ >= ‖M‖
        (Schur's test; Collatz 1942) up to rounding, which is allowed for; and ‖|M| v‖ / ‖v‖."""
        values, transposed = (getattr(self, f"{p}values").double().abs() for p in ("", "T_"))
        absolute, back = self._csr("", values), self._csr("T_", transposed)
        v = torch.ones(absolute.shape[1], dtype=torch.float64, device=values.device)
        upper, lower = math.inf, 0.0
        for _ in range(_SCHUR_STEPS):
            image = back @ (absolute @ v)
            upper = min(upper, float((image / v).max()))
            lower = max(lower, float(image @ v / (v @ v)))
            if upper <= 1.02 * lower:
                break
            v = image / image.max().clamp_min(1e-300) + 1e-6  # positive where the matrix has empty columns
        return math.sqrt(upper) * (1.0 + 1e-9), math.sqrt(lower)

    def gram_lower_bound(self) -> float:
        if self._lowest is None:
            self._lowest = self._smallest_eigenvalue()
        return self._lowest

    @torch.no_grad()
    def _smallest_eigenvalue(self) -> float:
        m, n = math.prod(self.range_shape), math.prod(self.domain_shape)
        if n > min(m, _GRAM_LIMIT):
            return 0.0
        back = self.compressed("T_", torch.float64)
        gram = back @ self.compressed("", torch.float64).to_dense()
        rounding = 1e-14 * n * float(gram.diagonal().sum())  # of the product and the eigenvalue solver
        return max(0.0, float(torch.linalg.eigvalsh(gram)[0]) - rounding)

    def _find_nonnegative(self) -> bool:
        return bool((self.values >= 0).all())

    def row_norms(self, grouped: bool) -> Tensor | float:
        if grouped:
            return self.norm_bound()
        values, starts = self.values.double().square(), self.rows.long()
        ids = torch.repeat_interleave(torch.arange(starts.numel() - 1, device=values.device), starts.diff())
        sums = values.new_zeros(starts.numel() - 1).index_add_(0, ids, values)
        return sums.sqrt().reshape(self.range_shape) * (1.0 + 1e-12)


def compressed_rows(starts: Tensor, columns: Tensor, values: Tensor, size: tuple[int, ...]) -> Tensor:
    """A CSR tensor, unchecked."""
    _use_up_warning()
    return torch.sparse_csr_tensor(starts, columns, values, size, check_invariants=False)


@cache
def _use_up_warning() -> None:
    """Torch says once per process that CSR tensors are beta; all they do here is multiply."""
    one = torch.zeros(2, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(one, one[:0], torch.zeros(0), (1, 1), check_invariants=False)


def assemble(
    operator: LinearOperator | Callable[[Any], Any],
    domain_shape: Shape | None = None,
    range_shape: Shape | None = None,
    *,
    threshold: float = 0.0,
) -> SparseOperator:
    """The matrix of any operator, or of a linear function alone, as a :class:`SparseOperator`, one column per unknown:
    the adjoint becomes exactly the transpose of the forward, in float64, it can be pickled and stored in model files,
    and small ones get rigorous bounds.

    Parameters
    ----------
    operator: a LinearOperator, or a linear function: of tensors (batch, *domain_shape), or of one NumPy array of
        domain_shape, without its first axis where that is 1 and the function wants it so, such as
        skimage.transform.radon. It is called once for each unknown then.
    domain_shape, range_shape: of a function, without the batch axis.
    threshold: entries at most this large in absolute value are dropped.

    Raises
    ------
    OperatorError: a function fails, returns another shape, or is not linear. ConfigError: shapes are missing, or given
    for an operator.
    """
    if isinstance(operator, LinearOperator):
        if domain_shape is not None or range_shape is not None:
            raise ConfigError("assemble(operator, ...): an operator has its shapes; write threshold=... by its name.")
        return _assembled(operator.forward, operator.domain_shape, operator.range_shape, threshold, operator._device())
    if not callable(operator) or domain_shape is None or range_shape is None:
        raise ConfigError(
            f"assemble({type(operator).__name__}): expected a LinearOperator, or a function with its shapes, "
            "assemble(forward, domain_shape, range_shape)."
        )
    domain, target = checked_shape(domain_shape, "domain_shape"), checked_shape(range_shape, "range_shape")
    forward = batched_function(operator, domain, target)
    result = _assembled(forward, domain, target, threshold, None)
    check_matrix(result, forward, threshold)
    return result


def _assembled(
    forward: Callable[[Tensor], Tensor],
    domain_shape: Shape,
    range_shape: Shape,
    threshold: float,
    device: torch.device | None,
) -> SparseOperator:
    size = math.prod(domain_shape)
    indices, values = [], []
    with torch.no_grad():
        for first in range(0, size, 64):
            count = min(64, size - first)
            unit = torch.zeros(count, size, dtype=torch.float64, device=device)
            unit[torch.arange(count), torch.arange(first, first + count)] = 1.0
            columns = forward(unit.reshape(count, *domain_shape)).flatten(1)
            column, row = torch.nonzero(columns.abs() > threshold, as_tuple=True)
            indices.append(torch.stack([row, column + first]))
            values.append(columns[column, row])
    shape = (math.prod(range_shape), size)
    matrix = torch.sparse_coo_tensor(torch.cat(indices, 1), torch.cat(values), shape, check_invariants=False)
    return SparseOperator(matrix, domain_shape, range_shape)


def _from_pairs(matrix: Tensor) -> Tensor:
    """A coalesced COO tensor in compressed rows."""
    row, column = matrix.indices()
    counts = torch.bincount(row, minlength=matrix.shape[0])
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return compressed_rows(starts, column, matrix.values(), tuple(matrix.shape))


def _narrow(indices: Tensor, matrix: Tensor) -> Tensor:
    """32-bit indices where they fit: products are twice as fast."""
    fits = max(matrix.values().numel(), *matrix.shape) < 2**31
    return indices.to(torch.int32 if fits else torch.int64)


def _times(matrix: Tensor, x: Tensor, shape: Shape) -> Tensor:
    """The matrix times each sample, in the matrix's precision; also under autocast: torch multiplies no sparse matrices
    in half precision."""
    flat = x.detach().flatten(1)
    step = _COLUMNS if x.device.type == "cpu" else max(1, flat.shape[0])
    result = flat.new_empty(flat.shape[0], matrix.shape[0])
    with torch.autocast(x.device.type, enabled=False):
        for first in range(0, flat.shape[0], step):
            part = flat[first : first + step].to(matrix.dtype)
            image = (matrix @ part[0])[None] if part.shape[0] == 1 else (matrix @ part.T.contiguous()).T
            result[first : first + step] = image
    return result.reshape(flat.shape[0], *shape)
