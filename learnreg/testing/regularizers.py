"""``check_regularizer``: whether a regularizer keeps the contract that solvers and certificates rely on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from learnreg.lower_level.regularizer import Regularizer
from learnreg.testing.potentials import check_potential
from learnreg.testing.quick import examine_operator_quickly
from learnreg.testing.report import Property, Report, examine
from learnreg.testing.structure import (
    check_analysis_operator,
    check_parameter_gradients,
    check_parameter_lipschitz,
    check_parameter_roles,
    check_saddle_terms,
)
from learnreg.testing.values import (
    RegularizerCase,
    check_batch,
    check_boundedness,
    check_convexity,
    check_determinism,
    check_dtype,
    check_finite,
    check_gradient,
    check_hessian,
    check_purity,
    check_shape,
    regularizer_case,
)

__all__ = ["REGULARIZER_PROPERTIES", "check_regularizer", "examine_regularizer", "examine_regularizer_quickly"]

REGULARIZER_PROPERTIES: Mapping[str, Callable[[RegularizerCase], Property]] = {
    "shape": check_shape,
    "dtype": check_dtype,
    "finite": check_finite,
    "purity": check_purity,
    "determinism": check_determinism,
    "batch": check_batch,
    "gradient": check_gradient,
    "hessian": check_hessian,
    "convexity": check_convexity,
    "bounded below": check_boundedness,
    "saddle_terms": check_saddle_terms,
    "analysis operator": check_analysis_operator,
    "potential": check_potential,
    "parameter gradients": check_parameter_gradients,
    "parameter_roles": check_parameter_roles,
    "parameter_lipschitz": check_parameter_lipschitz,
}
"""Every property by name, the most basic first."""

_QUICK_PROPERTIES: Mapping[str, Callable[[RegularizerCase], Property]] = {
    "shape": check_shape,
    "finite": check_finite,
    "gradient": check_gradient,
    "saddle_terms": check_saddle_terms,
    "analysis operator": lambda case: check_analysis_operator(case, examine_operator_quickly),
    "potential": check_potential,
    "parameter gradients": check_parameter_gradients,
}


def check_regularizer(
    regularizer: Regularizer | Any,
    image_shape: tuple[int, ...] | None = None,
    dtype: torch.dtype = torch.float64,
    *,
    seed: int = 0,
) -> Report:
    """Check that a regularizer is what it has to be: a convex function of each sample (or as weakly convex a one as its
    potential's concavity says) with true derivatives in the image and the parameters, and the same function in its
    saddle form R(x) = f(W x), with an operator, a potential, roles and constants that hold.

    Parameters
    ----------
    regularizer: a ``Regularizer``, or an nn.Module with ``value`` and ``saddle_terms``.
    image_shape: of the images, without the batch axis; by default the domain of the regularizer's own operator, or
        (1, 12, 13). Up to 400 pixels convexity is judged by dense Hessians.
    dtype: float64, or float32 with thresholds for it.
    seed: of the probes.

    Raises
    ------
    OperatorError: ``failed_property`` and the message name the first property that fails, "interface" for something
    that is no regularizer.
    """
    return examine_regularizer(regularizer, image_shape, dtype, seed=seed).require()


def examine_regularizer(
    regularizer: Regularizer | Any,
    image_shape: tuple[int, ...] | None = None,
    dtype: torch.dtype = torch.float64,
    *,
    seed: int = 0,
) -> Report:
    """Like ``check_regularizer``, but a property that fails is the last one of the report; OperatorError only for
    something that is no regularizer.

    Parameters
    ----------
    regularizer, image_shape, dtype, seed: as of :func:`learnreg.testing.check_regularizer`.
    """
    case = regularizer_case(regularizer, image_shape, dtype, seed)
    return examine(type(regularizer).__name__, case, REGULARIZER_PROPERTIES)


def examine_regularizer_quickly(
    regularizer: Regularizer | Any, image_shape: tuple[int, ...] | None, dtype: torch.dtype, seed: int = 0
) -> Report:
    """The properties without which training goes wrong, with few evaluations: for use before each run."""
    return examine(
        type(regularizer).__name__, regularizer_case(regularizer, image_shape, dtype, seed), _QUICK_PROPERTIES
    )
