"""Functions of complex arrays, one image at a time, as functions of batches of two channels of real numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnreg.errors import OperatorError
from learnreg.linear.complex_channels import as_channels, as_complex
from learnreg.linear.shapes import Shape
from learnreg.operators.adapters.black_box import BlackBox
from learnreg.operators.adapters.checks import check_adjoint, check_linear, declare, probe

__all__ = ["adapted", "complex_function", "needs"]


class _ComplexFunction:
    """On the host, whatever the device of the tensors."""

    def __init__(self, function: Callable[[Any], Any], given: Shape, returned: Shape, dtype: Any) -> None:
        self.function, self.given, self.returned, self.dtype = function, given, returned, dtype

    def __call__(self, x: Tensor) -> Tensor:
        images = as_complex(x.detach().cpu()).numpy().astype(self.dtype)
        results = [np.asarray(self.function(image.reshape(self.given).copy())) for image in images]
        return as_channels(
            torch.from_numpy(np.stack([r.reshape(self.returned) for r in results]).astype(np.complex128))
        )


def complex_function(
    function: Callable[[Any], Any], given: Shape, returned: Shape, dtype: Any = np.complex128
) -> Callable[[Tensor], Tensor]:
    """A function of one complex array of the shape ``given`` as one of tensors (batch, 2, ...), with results of the
    shape ``returned``, (batch, 2, *returned); dtype: in which it is called."""
    return _ComplexFunction(function, given, returned, dtype)


def adapted(
    name: str,
    forward: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    domain_shape: Shape,
    range_shape: Shape,
    *,
    single: bool = False,
    norm_bound: float | None = None,
    gram_lower_bound: float | None = None,
    check: bool = True,
    hint: str = "",
) -> BlackBox:
    """The operator of both functions, examined.

    Parameters
    ----------
    single: it computes with the digits of float32.
    hint: what to do about a wrong adjoint.

    Raises
    ------
    OperatorError: as examined. ConfigError: bounds that are no numbers.
    """
    dtype = torch.float32 if single else None
    operator = BlackBox(forward, adjoint, domain_shape, range_shape, name=name, dtype=dtype)
    probe(operator)
    if check:
        check_linear(operator)
        check_adjoint(operator, hint)
    declare(operator, norm_bound, gram_lower_bound)
    return operator


def needs(operator: Any, names: tuple[str, ...], who: str, expected: str) -> None:
    """OperatorError unless it has all of these attributes."""
    missing = [name for name in names if not hasattr(type(operator), name) and name not in dir(operator)]
    if missing:
        raise OperatorError(f"{who}: expected {expected}, this has no {' and no '.join(missing)}.", "type")
