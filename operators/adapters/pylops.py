"""Operators of PyLops."""

from __future__ import annotations

from typing import Any

import numpy as np

from learnreg.errors import ConfigError, OperatorError
from learnreg.linear.operator import LinearOperator
from learnreg.linear.shapes import Shape
from learnreg.operators.adapters.black_box import BlackBox
from learnreg.operators.adapters.checks import check_adjoint, check_linear, declare
from learnreg.operators.adapters.host import checked_sizes, real_dtype
from learnreg.operators.adapters.scipy import host_operator, to_scipy

__all__ = ["from_pylops", "to_pylops"]


def from_pylops(
    operator: Any,
    domain_shape: Shape | None = None,
    range_shape: Shape | None = None,
    *,
    norm_bound: float | None = None,
    gram_lower_bound: float | None = None,
    check: bool = True,
) -> BlackBox:
    """A real PyLops operator; computes on the host, in the operator's dtype, the whole batch at once where its
    ``matmat`` does.

    Parameters
    ----------
    domain_shape, range_shape: without the batch axis; None: ``operator.dims`` and ``operator.dimsd``, with a channel
        axis if they are two-dimensional.
    norm_bound, gram_lower_bound: declared by you; see :func:`from_callables`.
    check: test linearity and the adjoint (5 calls).

    Raises
    ------
    OperatorError: complex, sizes that do not fit, NaN, a wrong adjoint.
    """
    name = f"from_pylops({type(operator).__name__})"
    for method in ("matmat", "rmatmat", "dims", "dimsd"):
        if not hasattr(operator, method):
            raise OperatorError(f"{name}: expected a pylops.LinearOperator, this has no {method}.", "type")
    domain_shape = with_channel(operator.dims) if domain_shape is None else domain_shape
    range_shape = with_channel(operator.dimsd) if range_shape is None else range_shape
    checked_sizes(operator.shape, domain_shape, range_shape, name)
    adapted = host_operator(operator, domain_shape, range_shape, real_dtype(operator.dtype, name), name)
    if check:
        check_linear(adapted)
        check_adjoint(adapted)
    declare(adapted, norm_bound, gram_lower_bound)
    return adapted


def with_channel(shape: Any) -> Shape:
    """A shape as it is, but (H, W) as (1, H, W): images have a channel axis."""
    sizes = tuple(int(s) for s in shape)
    return (1, *sizes) if len(sizes) == 2 else sizes


def to_pylops(operator: LinearOperator, dtype: Any = np.float64) -> Any:
    """A pylops.LinearOperator with ``dims`` and ``dimsd`` of the operator's shapes, for the solvers of PyLops.

    Parameters
    ----------
    operator: of this package.
    dtype: float32 or float64, in which the operator computes.

    Raises
    ------
    ConfigError: PyLops is not installed. OperatorError: another dtype.
    """
    try:
        import pylops
    except ImportError as error:
        raise ConfigError(f"to_pylops needs the package pylops ({error}). Install it: pip install pylops") from error
    adapted = pylops.LinearOperator(
        to_scipy(operator, dtype), dims=operator.domain_shape, dimsd=operator.range_shape, forceflat=False
    )
    adapted.explicit = False
    return adapted
