"""Whose fault NaN and infinite numbers are: an operator that makes them of finite ones is named."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from learnreg.errors import OperatorError
from learnreg.linear.operator import LinearOperator
from learnreg.lower_level.instance import Instance

__all__ = ["blame_operators", "nonfinite_result"]


def nonfinite_result(operator: object, direction: str, what: str = "the operator") -> OperatorError:
    """The error for an operator that makes NaN or infinite numbers of finite ones in "forward" or "adjoint"."""
    return OperatorError(
        f"{what} {type(operator).__name__} returned NaN or infinite numbers in {direction} for a finite input; "
        "learnreg.testing.check_operator examines it.",
        "finite",
    )


@torch.no_grad()
def blame_operators(instance: Instance, x: Tensor) -> None:
    """Raise OperatorError if the forward operator, or the operator of the regularizer, makes NaN or infinite numbers of
    the finite entries of x or of what they become; to be called where a solve met such numbers. Counts nothing."""
    x = torch.nan_to_num(x, nan=0.0, posinf=1.0, neginf=-1.0).clamp(-1e3, 1e3)
    _blame(instance.forward, x, "the forward operator")
    _blame(instance.analysis, x, "the operator of the regularizer")


def _blame(operator: LinearOperator, x: Tensor, what: str) -> None:
    image = _finite(operator, operator, "forward", x, what)
    _finite(operator, operator.adjoint, "adjoint", image, what)


def _finite(
    operator: LinearOperator, apply: Callable[[Tensor], Tensor], direction: str, t: Tensor, what: str
) -> Tensor:
    result = apply(t)
    if not bool(torch.isfinite(result).all()):
        raise nonfinite_result(operator, direction, what)
    return result
