"""Operators and regularizers that are not this package's own: examined before training, watched during it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from learnreg.errors import OperatorError
from learnreg.linear.examination import foreign_operators, is_own_class
from learnreg.linear.operator import LinearOperator
from learnreg.lower_level.blame import nonfinite_result
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.regularizers import Regularizer
from learnreg.testing.quick import examine_operator_quickly
from learnreg.testing.regularizers import examine_regularizer_quickly
from learnreg.testing.report import failure

__all__ = ["examine_problem", "guarded", "is_own_operator", "is_own_regularizer", "take_as_they_are"]

_WHAT_TO_DO = "Repair it, or pass check_operator=False to train all the same."


def is_own_operator(operator: nn.Module) -> bool:
    """Whether an operator, with all it is composed of, is one of this package's, which its tests examine; adapters of
    foreign code are not."""
    return all(is_own_class(type(m)) for m in operator.modules() if m is operator or isinstance(m, LinearOperator))


def is_own_regularizer(regularizer: Regularizer, image_shape: tuple[int, ...]) -> bool:
    """Whether a regularizer, its operator and its potential are this package's."""
    if not is_own_class(type(regularizer)):
        return False
    if (chain := regularizer.chain()) is not None:
        return is_own_regularizer(chain.base, image_shape)
    with torch.no_grad():
        terms = regularizer.saddle_terms(image_shape)
    return is_own_operator(terms.operator) and is_own_class(type(terms.potential))


def examine_problem(problem: LowerLevelProblem, dtype: Callable[[], torch.dtype]) -> None:
    """Examine what is not this package's own with few applications, in the dtype of the data (asked for if there is
    anything to examine).

    Raises
    ------
    OperatorError: a property fails; it names the property.
    """
    operator, regularizer = problem.operator, problem.active_regularizer
    if not is_own_operator(operator):
        _require(examine_operator_quickly(operator, dtype()))
    if not is_own_regularizer(regularizer, operator.domain_shape):
        _require(examine_regularizer_quickly(regularizer, None, dtype()))


def take_as_they_are(problem: LowerLevelProblem) -> None:
    """Leave foreign operators and regularizers unexamined from now on; errors that rest on them are estimates."""
    with torch.no_grad():
        terms = problem.saddle_terms(torch.float64)
    for operator in (problem.operator, terms.operator):
        for part in foreign_operators(operator):
            part.examine = False
    for module in problem.regularizer.modules():
        if isinstance(module, Regularizer) and not is_own_class(type(module)):
            module.examine = False


def _require(report: Any) -> None:
    if report.failed is not None:
        error = failure(report.subject, report.failed)
        raise OperatorError(f"before training: {error} {_WHAT_TO_DO}", error.failed_property)


def guarded(problem: LowerLevelProblem) -> LowerLevelProblem:
    """The problem with an operator that is watched, sharing all parameters; the problem itself if its operator is this
    package's own."""
    if is_own_operator(problem.operator):
        return problem
    twin = copy.copy(problem)
    twin._modules = {**problem._modules, "operator": _watched(problem.operator)}
    return twin


def _watched(operator: LinearOperator) -> LinearOperator:
    """The same operator, with the same parameters and all it declares, but what its maps raise, and NaN or infinite
    results for finite inputs, become OperatorErrors at the call where they arise. The operator itself stays as it is.
    """
    twin = object.__new__(type(operator))
    twin.__dict__.update(operator.__dict__)
    for direction in ("forward", "adjoint"):
        object.__setattr__(twin, direction, _Watched(operator, direction))
    return twin


class _Watched:
    """One map of an operator, watched."""

    def __init__(self, operator: LinearOperator, direction: str) -> None:
        self._operator, self._direction = operator, direction

    def __call__(self, t: Tensor) -> Tensor:
        try:
            result: Tensor = getattr(self._operator, self._direction)(t)
        except Exception as error:
            what = f"{type(self._operator).__name__}.{self._direction}"
            raise OperatorError(f"{what} raised {type(error).__name__}: {error}", "raises") from error
        _check_finite(self._operator, self._direction, t.detach(), result.detach())
        return result


def _check_finite(operator: LinearOperator, direction: str, t: Tensor, result: Tensor) -> None:
    """OperatorError if the operator made the NaN or infinite numbers of a result. On a CPU alone: elsewhere looking at
    the numbers would make the host wait in every iteration, and solvers find out later."""
    if result.device.type != "cpu" or bool(torch.isfinite(result.sum())):
        return
    if not bool(torch.isfinite(result).all()) and bool(torch.isfinite(t).all()):
        raise nonfinite_result(operator, direction)
