"""Whose fault it is when solvers do not come to an end: an operator that makes NaN or infinite numbers of finite ones,
or one that nobody examined and that is wrong, is named."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from learnreg.errors import OperatorError
from learnreg.linear.examination import unexamined_fault
from learnreg.linear.operator import LinearOperator
from learnreg.lower_level.instance import Instance

__all__ = ["blame_operators", "nonfinite_result", "why_stagnated"]


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


def why_stagnated(instance: Instance) -> str:
    """A sentence about an operator whose examination was declined and that would not pass, "" if there is none; to be
    called where a solve stagnated, which a wrong adjoint explains before any tolerance does. Counts nothing."""
    return unexamined_fault(instance.forward, "forward") or unexamined_fault(instance.analysis, "analysis")


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
