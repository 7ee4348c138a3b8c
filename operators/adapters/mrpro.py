"""Linear operators of MRpro, by what they offer: calls and ``adjoint``, each of which returns a tuple of one tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from learnreg.errors import OperatorError
from learnreg.linear.complex_channels import as_channels, as_complex
from learnreg.linear.shapes import Shape, checked_shape
from learnreg.operators.adapters.black_box import BlackBox
from learnreg.operators.adapters.complex_host import adapted, needs

__all__ = ["from_mrpro"]


def from_mrpro(
    operator: Any,
    domain_shape: Shape,
    *,
    norm_bound: float | None = None,
    gram_lower_bound: float | None = None,
    check: bool = True,
) -> BlackBox:
    """A linear operator of MRpro, such as ``FourierOp(...) @ SensitivityOp(...)``, on complex tensors; mrpro itself is
    not imported.

    Parameters
    ----------
    operator: a call and ``adjoint`` take (batch, coils, z, y, x) and return a tuple of one such tensor.
    domain_shape: (2, y, x) for slices, (2, z, y, x) for volumes, (2, coils, z, y, x) as it is: real and imaginary part.
        The range is (2, coils, k2, k1, k0).
    norm_bound, gram_lower_bound: declared by you; see :func:`from_callables`.
    check: test linearity and the adjoint (5 calls).

    Raises
    ------
    OperatorError: something else, a call that fails for that shape, NaN, a wrong adjoint. ShapeError: no such shape.
    """
    name = f"from_mrpro({type(operator).__name__})"
    needs(operator, ("adjoint", "__call__"), name, "a linear operator of mrpro")
    domain_shape = checked_shape(domain_shape, "from_mrpro(domain_shape)")
    if domain_shape[0] != 2 or len(domain_shape) > 5:
        raise OperatorError(
            f"{name}: domain_shape={domain_shape}, expected (2, y, x): real and imaginary part.", "shape"
        )
    image = (*(1,) * (5 - len(domain_shape)), *domain_shape[1:])
    try:
        with torch.no_grad():
            returned = tuple(_only(operator(torch.zeros(1, *image, dtype=torch.complex64))).shape[1:])
    except OperatorError:
        raise
    except Exception as error:
        raise OperatorError(
            f"{name}: it raised {type(error).__name__} for a complex image of shape {(1, *image)}: {error}. Check "
            "domain_shape.",
            "forward",
        ) from error
    return adapted(
        name,
        _TupleFunction(operator, image, returned),
        _TupleFunction(operator.adjoint, returned, domain_shape[1:]),
        domain_shape,
        (2, *returned),
        norm_bound=norm_bound,
        gram_lower_bound=gram_lower_bound,
        check=check,
    )


class _TupleFunction:
    """A function of complex tensors that returns a tuple, on batches of two channels."""

    def __init__(self, function: Callable[[Tensor], Any], given: Shape, returned: Shape) -> None:
        self.function, self.given, self.returned = function, given, returned

    def __call__(self, x: Tensor) -> Tensor:
        result = _only(self.function(as_complex(x).reshape(len(x), *self.given)))
        return as_channels(result.reshape(len(x), *self.returned))


def _only(result: Any) -> Tensor:
    """The one tensor of a tuple, or the tensor itself."""
    if isinstance(result, tuple) and len(result) == 1:
        result = result[0]
    if not isinstance(result, Tensor):
        raise OperatorError(
            f"from_mrpro: a call returned {type(result).__name__}, expected a tuple of one tensor.", "type"
        )
    return result
