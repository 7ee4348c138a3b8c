"""A screening of an operator before training, with seven applications to two images, and a look at what it declares;
only what it suspects is examined property by property."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from learnreg.linear.operator import LinearOperator
from learnreg.testing.adjoint import check_adjoint, gap_from
from learnreg.testing.basics import (
    check_batch,
    check_determinism,
    check_dtype,
    check_finite,
    check_linearity,
    check_purity,
    check_shape,
    has_single_precision,
)
from learnreg.testing.bounds import check_diagonal, spectral_norm_from_below
from learnreg.testing.case import Direction, OperatorCase, largest, norms, operator_case
from learnreg.testing.derivatives import check_parameter_gradients
from learnreg.testing.report import Property, Report, broken, examine, holds, judged, run_check, skipped

__all__ = ["examine_operator_quickly"]

_FACTOR, _POWER_STEPS, _MISMATCH_FACTOR = -2.5, 3, 3.0


def examine_operator_quickly(operator: LinearOperator | Any, dtype: torch.dtype, seed: int = 0) -> Report:
    """The properties without which training goes wrong. Seven applications to two images, some more for a norm
    or diagonal of its own and learnable parameters, and many more only where something is wrong and has to be named. An
    adjoint that is declared inexact (``adjoint_mismatch``) may be so."""
    subject = type(operator).__name__
    case = operator_case(operator, dtype, None, None, seed)
    if dtype == torch.float64 and _is_single(case):
        case = operator_case(operator, torch.float32, None, None, seed)
    mismatch = 0.0 if case.linear_operator is None else case.linear_operator.adjoint_mismatch()
    case.adjoint_tolerance = max(case.adjoint_tolerance, _MISMATCH_FACTOR * mismatch)
    screened = run_check("screening", _screen, case)
    if screened.passed:
        return _with_declarations(subject, case, screened)
    report = examine(subject, case, _PROPERTIES)
    return report if report.failed is not None else Report(subject, (screened,))


def _with_declarations(subject: str, case: OperatorCase, screened: Property) -> Report:
    """The report after a screening that found nothing, with what the operator says of itself."""
    report = examine(subject, case, _DECLARED)
    return Report(subject, (screened, *report.properties))


@torch.no_grad()
def _check_own_norm_bound(case: OperatorCase) -> Property:
    """A ``norm_bound`` of the operator's own is not below what few power steps reach."""
    kind = type(case.operator)
    makers = [c for n in ("norm_bound", "_find_norm") for c in kind.__mro__ if n in vars(c)]
    foreign = any(not c.__module__.startswith("learnreg.") for c in makers)
    if case.linear_operator is None or not foreign:
        return skipped("norm_bound", "the operator has no bound of its own")
    bound, norm = case.linear_operator.norm_bound(), spectral_norm_from_below(case, _POWER_STEPS)
    problem = f"norm_bound() = {bound:.6g} is below the norm, at least {norm:.6g}; step sizes rely on it"
    return judged("norm_bound", norm / bound, 1.0 + 10 * case.rounding, "norm (from below) over norm_bound()", problem)


@torch.no_grad()
def _is_single(case: OperatorCase) -> bool:
    """Whether the operator computes in single precision; one that fails is left to the screening."""
    with contextlib.suppress(Exception):
        return has_single_precision(case.forward.apply(case.randn(2, case.forward.source)))
    return False


@torch.no_grad()
def _screen(case: OperatorCase) -> Property:
    x, y = case.randn(2, case.forward.source), case.randn(2, case.forward.target)
    images = []
    for direction, t in zip(case.directions, (x, y), strict=True):
        image, suspicion = _screen_direction(case, direction, t)
        if suspicion:
            return broken("screening", suspicion)
        images.append(image)
    gap = gap_from(case, x, images[0], y, images[1])
    if not gap <= case.adjoint_tolerance:
        return broken("screening", f"the adjoint has a relative gap of {gap:.1e}", gap)
    return holds("screening", "linear, pure, sample by sample, with its adjoint")


def _screen_direction(case: OperatorCase, direction: Direction, t: Tensor) -> tuple[Tensor, str]:
    """The image of t, and a suspicion: two samples u, v, then v, u - 2.5 v in their places, then the other dtype."""
    kept = t.clone()
    result = direction.apply(t)
    image = result.clone()
    if tuple(image.shape) != (2, *direction.target) or image.dtype != t.dtype or image.device != t.device:
        return image, f"{direction.name} returns another shape, dtype or device than it has to"
    mixed = direction.apply(torch.stack([kept[1], kept[0] + _FACTOR * kept[1]]))
    if not torch.equal(t, kept) or not torch.equal(result, image) or _shares_memory(result, t):
        return image, f"{direction.name} changes its input or an earlier result, or returns its input"
    expected = torch.stack([image[1], image[0] + _FACTOR * image[1]])
    if not largest(mixed - expected, norms(image).max().expand(2)) <= case.rounding:
        return image, f"{direction.name} is not linear, couples samples, or two calls differ"
    other = torch.float64 if t.dtype == torch.float32 else torch.float32
    if direction.apply(kept.to(other)).dtype != other:  # audits are in float64, whatever the data
        return image, f"{direction.name} of {other} returns another dtype"
    return image, ""


def _shares_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _both_precisions(case: OperatorCase) -> Property:
    return check_dtype(case.in_dtype(torch.float64))


_DECLARED: Mapping[str, Callable[[OperatorCase], Property]] = {
    "norm_bound": _check_own_norm_bound,
    "diagonal": check_diagonal,
    "parameter gradients": check_parameter_gradients,
}

_PROPERTIES: Mapping[str, Callable[[OperatorCase], Property]] = {
    "shape": check_shape,
    "dtype": _both_precisions,
    "finite": check_finite,
    "determinism": check_determinism,
    "purity": check_purity,
    "batch": check_batch,
    "linearity": check_linearity,
    "adjoint": check_adjoint,
}
