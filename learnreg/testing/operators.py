"""``check_operator``: whether an operator keeps the contract that solvers and certificates rely on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from learnreg.linear.operator import LinearOperator
from learnreg.testing.adjoint import check_adjoint
from learnreg.testing.basics import (
    check_batch,
    check_determinism,
    check_device,
    check_dtype,
    check_finite,
    check_linearity,
    check_precision,
    check_purity,
    check_shape,
)
from learnreg.testing.bounds import (
    check_diagonal,
    check_gram_lower_bound,
    check_nonnegative,
    check_norm_bound,
    check_row_norms,
)
from learnreg.testing.case import OperatorCase, operator_case
from learnreg.testing.derivatives import (
    check_differentiability,
    check_hessian_vector,
    check_parameter_gradients,
    check_parameter_lipschitz,
    check_third_derivative,
)
from learnreg.testing.report import Property, Report, examine

__all__ = ["OPERATOR_PROPERTIES", "check_operator", "examine_operator"]

OPERATOR_PROPERTIES: Mapping[str, Callable[[OperatorCase], Property]] = {
    "shape": check_shape,
    "dtype": check_dtype,
    "precision": check_precision,
    "device": check_device,
    "finite": check_finite,
    "determinism": check_determinism,
    "batch": check_batch,
    "linearity": check_linearity,
    "purity": check_purity,
    "adjoint": check_adjoint,
    "differentiability": check_differentiability,
    "hessian-vector product": check_hessian_vector,
    "third derivative": check_third_derivative,
    "norm_bound": check_norm_bound,
    "gram_lower_bound": check_gram_lower_bound,
    "diagonal": check_diagonal,
    "row_norms": check_row_norms,
    "nonnegative": check_nonnegative,
    "parameter gradients": check_parameter_gradients,
    "parameter_lipschitz": check_parameter_lipschitz,
}
"""Every property by name, the most basic first: the first that fails explains those after it."""


def check_operator(
    operator: LinearOperator | Any,
    dtype: torch.dtype = torch.float64,
    *,
    adjoint_tolerance: float | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
) -> Report:
    """Check that an operator is what it has to be: linear, pure, deterministic, sample by sample, with its exact
    adjoint, derivatives of every order, and true bounds.

    Parameters
    ----------
    operator: a ``LinearOperator``, or anything with ``forward``, ``adjoint``, ``domain_shape`` and ``range_shape``
        (shapes without the batch axis).
    dtype: float64, or float32 for an operator of single precision.
    adjoint_tolerance: largest relative gap between <Ax, y> and <x, adjoint(y)>; 1e-10 in float64 and 2e-5 in float32 by
        default. Operators here reach 1e-14.
    device: of the inputs; by default that of the operator's parameters and buffers.
    seed: of the probes.

    Returns
    -------
    A ``Report``: each property with the number measured and its threshold. Randomised probes reject, they do not prove;
    up to 2048 x 2048 entries the whole matrix of the adjoint is compared.

    Raises
    ------
    OperatorError: ``failed_property`` and the message name the first property that fails, "interface" for something
    that is no operator.
    """
    return examine_operator(operator, dtype, adjoint_tolerance=adjoint_tolerance, device=device, seed=seed).require()


def examine_operator(
    operator: LinearOperator | Any,
    dtype: torch.dtype = torch.float64,
    *,
    adjoint_tolerance: float | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
) -> Report:
    """Like ``check_operator``, but a property that fails is the last one of the report; OperatorError only for
    something that is no operator.

    Parameters
    ----------
    operator, dtype, adjoint_tolerance, device, seed: as of :func:`learnreg.testing.check_operator`.
    """
    case = operator_case(operator, dtype, adjoint_tolerance, device, seed)
    return examine(type(operator).__name__, case, OPERATOR_PROPERTIES)
