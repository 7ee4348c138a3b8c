"""Functions of NumPy arrays as functions of tensors, for libraries that compute on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnreg.errors import OperatorError
from learnreg.linear.shapes import Shape
from learnreg.operators.adapters.black_box import COMPLEX_HINT

__all__ = ["HostFunction", "checked_sizes", "real_dtype"]

_TORCH = {np.dtype(np.float32): torch.float32, np.dtype(np.float64): torch.float64}


class HostFunction:
    """A function of arrays (batch, n) as one of tensors (batch, *shape): to the host and back, both ways in memory of
    its own, since libraries keep, change or return what they are given."""

    def __init__(self, function: Callable[[Any], Any], shape: Shape) -> None:
        self.function, self.shape = function, shape

    def __call__(self, x: Tensor) -> Tensor:
        given = np.array(x.detach().resolve_neg().cpu().flatten(1).numpy())
        result = np.asarray(self.function(given))
        if np.iscomplexobj(result):
            raise OperatorError(f"the wrapped operator returned complex numbers. {COMPLEX_HINT}", "real")
        return torch.tensor(result).reshape(x.shape[0], *self.shape)


def real_dtype(dtype: Any, name: str) -> torch.dtype:
    """The torch dtype in which a host library computes: float32 for itself, float64 for anything else that is real."""
    found = np.dtype(np.float64 if dtype is None else dtype)
    if found.kind == "c":
        raise OperatorError(f"{name}: the operator is complex ({found}). {COMPLEX_HINT}", "real")
    return _TORCH.get(found, torch.float64)


def checked_sizes(matrix_shape: tuple[int, ...], domain_shape: Shape, range_shape: Shape, name: str) -> None:
    """OperatorError unless a (m, n) matrix fits the shapes."""
    m, n = (int(s) for s in matrix_shape)
    for size, shape, what in ((n, domain_shape, "domain_shape"), (m, range_shape, "range_shape")):
        if int(np.prod(shape)) != size:
            raise OperatorError(
                f"{name}: the operator is {m} x {n}, so {what} must hold {size} numbers, but {tuple(shape)} holds "
                f"{int(np.prod(shape))}.",
                "shape",
            )
