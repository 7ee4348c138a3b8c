"""SciPy's sparse matrices and linear operators, both ways."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from learnreg.errors import ConfigError, OperatorError
from learnreg.linear.operator import LinearOperator
from learnreg.linear.shapes import Shape, checked_shape
from learnreg.operators.adapters.black_box import COMPLEX_HINT, BlackBox
from learnreg.operators.adapters.checks import check_adjoint, check_linear, declare, probe
from learnreg.operators.adapters.host import HostFunction, checked_sizes, real_dtype
from learnreg.operators.adapters.sparse import SparseOperator, compressed_rows

__all__ = ["Columns", "from_scipy", "host_operator", "sparse_operator", "to_scipy"]


class Columns:
    """A block method (``matmat``, ``rmatmat``) as a function of rows (batch, n)."""

    def __init__(self, operator: Any, method: str) -> None:
        self.operator, self.method = operator, method

    def __call__(self, x: Any) -> Any:
        return np.asarray(getattr(self.operator, self.method)(x.T)).T  # columns of x.T lie in one piece


def from_scipy(
    linear_operator: Any,
    domain_shape: Shape,
    range_shape: Shape,
    *,
    norm_bound: float | None = None,
    gram_lower_bound: float | None = None,
    check: bool = False,
) -> LinearOperator:
    """A scipy.sparse matrix or array, a scipy.sparse.linalg.LinearOperator, or a dense NumPy matrix.

    A sparse matrix becomes a :class:`SparseOperator` in torch (on any device, exact transpose, the dtype of the input).
    Everything else runs on the host in its own dtype, through ``matmat`` and ``rmatmat`` on the whole batch.

    Parameters
    ----------
    linear_operator: a ``scipy.sparse.linalg.LinearOperator``, or a matrix.
    domain_shape, range_shape: without the batch axis; images are flattened in C order.
    norm_bound, gram_lower_bound: declared by you, for host operators; see :func:`from_callables`.
    check: test linearity and the adjoint of a LinearOperator.

    Raises
    ------
    OperatorError: complex, sizes that do not fit, no ``rmatvec``, NaN; with ``check`` a wrong adjoint. ConfigError:
    declared bounds of a sparse matrix.
    """
    if isinstance(linear_operator, torch.Tensor):
        raise OperatorError("from_scipy: got a torch tensor, expected a matrix; pass tensor.numpy().", "type")
    scipy = _scipy("from_scipy")
    domain_shape = checked_shape(domain_shape, "from_scipy(domain_shape)")
    range_shape = checked_shape(range_shape, "from_scipy(range_shape)")
    name = f"from_scipy({type(linear_operator).__name__})"
    if len(getattr(linear_operator, "shape", ())) != 2:
        raise OperatorError(
            f"{name}: expected a two-dimensional sparse matrix, scipy.sparse.linalg.LinearOperator or NumPy matrix.",
            "type",
        )
    checked_sizes(linear_operator.shape, domain_shape, range_shape, name)
    dtype = real_dtype(getattr(linear_operator, "dtype", None), name)
    if scipy.sparse.issparse(linear_operator):
        if norm_bound is not None or gram_lower_bound is not None:
            raise ConfigError(f"{name}: the bounds of a sparse matrix are computed; declare none.")
        return sparse_operator(linear_operator, dtype, domain_shape, range_shape)
    host = scipy.sparse.linalg.aslinearoperator(linear_operator)
    operator = host_operator(host, domain_shape, range_shape, dtype, name)
    if check:
        check_linear(operator)
        check_adjoint(operator)
    declare(operator, norm_bound, gram_lower_bound)
    return operator


def host_operator(host: Any, domain_shape: Shape, range_shape: Shape, dtype: torch.dtype, name: str) -> BlackBox:
    """A probed operator from anything with ``matmat`` and ``rmatmat``."""
    forward = HostFunction(Columns(host, "matmat"), tuple(range_shape))
    adjoint = HostFunction(Columns(host, "rmatmat"), tuple(domain_shape))
    operator = BlackBox(forward, adjoint, domain_shape, range_shape, name=name, dtype=dtype)
    probe(operator)
    return operator


def sparse_operator(matrix: Any, dtype: torch.dtype, domain_shape: Shape, range_shape: Shape) -> SparseOperator:
    """A scipy.sparse matrix as an operator with values of that dtype, in memory of its own."""

    def compressed(part: Any) -> torch.Tensor:
        rows = part.tocsr(copy=True)
        rows.sum_duplicates()
        tensors = (torch.tensor(rows.indptr), torch.tensor(rows.indices), torch.tensor(rows.data, dtype=dtype))
        return compressed_rows(*tensors, rows.shape)

    return SparseOperator(compressed(matrix), domain_shape, range_shape, compressed(matrix.T))


def to_scipy(operator: LinearOperator, dtype: Any = np.float64, device: torch.device | str | None = None) -> Any:
    """A scipy.sparse.linalg.LinearOperator on flattened images, with matvec, rmatvec, matmat and rmatmat.

    Parameters
    ----------
    operator: of this package.
    dtype: float32 or float64, in which the operator computes.
    device: where; None: where the operator's own tensors are.

    Raises
    ------
    OperatorError: another dtype.
    """
    scipy = _scipy("to_scipy")
    kind = np.dtype(dtype)
    if kind not in (np.float32, np.float64):
        raise OperatorError(f"to_scipy(dtype={kind}): expected float32 or float64. {COMPLEX_HINT}", "real")
    rows = _Rows(operator, real_dtype(kind, "to_scipy"), device)
    shape = (math.prod(operator.range_shape), math.prod(operator.domain_shape))
    return scipy.sparse.linalg.LinearOperator(
        shape, matvec=rows.forward, rmatvec=rows.adjoint, matmat=rows.forward, rmatmat=rows.adjoint, dtype=kind
    )


def _scipy(purpose: str) -> Any:
    try:
        import scipy.sparse.linalg
    except ImportError as error:
        raise ConfigError(f"{purpose} needs the package scipy ({error}). Install it with: pip install scipy") from error
    return scipy


class _Rows:
    """An operator on arrays (n,) or (n, batch)."""

    def __init__(self, operator: LinearOperator, dtype: torch.dtype, device: torch.device | str | None) -> None:
        self.operator, self.dtype, self.device = operator, dtype, device

    def forward(self, x: Any) -> Any:
        return self._apply(self.operator.forward, x, self.operator.domain_shape)

    def adjoint(self, y: Any) -> Any:
        return self._apply(self.operator.adjoint, y, self.operator.range_shape)

    def _apply(self, function: Any, x: Any, shape: Shape) -> Any:
        array = np.asarray(x)
        if np.iscomplexobj(array):
            raise OperatorError(f"to_scipy: got a complex vector. {COMPLEX_HINT}", "real")
        device = self.operator._device() if self.device is None else self.device
        batch = torch.tensor(array.reshape(array.shape[0], -1).T, dtype=self.dtype, device=device)
        with torch.no_grad():
            result = function(batch.reshape(-1, *shape)).flatten(1).cpu().numpy().T
        return result if array.ndim == 2 else result[:, 0]
