"""The numbers an operator declares about itself: bounds of its norm, its Gram matrix and its rows, its diagonal."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learnreg.linear.norms import DENSE_LIMIT
from learnreg.testing.case import OperatorCase, largest, norms
from learnreg.testing.report import Property, broken, holds, judged, skipped

__all__ = [
    "check_diagonal",
    "check_gram_lower_bound",
    "check_nonnegative",
    "check_norm_bound",
    "check_row_norms",
    "spectral_norm",
    "spectral_norm_from_below",
]

_POWER_STEPS, _LARGEST_EXCESS, _ROWS = 20, 1.5, 16
_NEGATIVE = 1e-6


@torch.no_grad()
def check_norm_bound(case: OperatorCase) -> Property:
    """``norm_bound()`` is not below the norm (an estimate from power steps, the norm itself on small operators), and on
    small operators at most 1.5 times it."""
    name = "norm_bound"
    if not hasattr(case.operator, "norm_bound"):
        return skipped(name, "the operator has no norm_bound()")
    try:
        bound = float(case.operator.norm_bound())
    except Exception as error:
        if case.dtype == torch.float64:
            raise
        return skipped(name, f"norm_bound() works in float64, which the operator does not ({type(error).__name__})")
    norm = spectral_norm(case)
    wrong = f"norm_bound() = {bound:.6g} is below the norm, at least {norm:.6g}; step sizes and certificates rely on it"
    below = norm / bound if bound > 0 else (math.inf if norm > 0 else 0.0)
    if not (below <= 1.0 + 10 * case.rounding) or not has_exact_norm(case) or norm == 0.0:
        return judged(name, below, 1.0 + 10 * case.rounding, "norm (from below) over norm_bound()", wrong)
    loose = (
        f"norm_bound() = {bound:.6g} is more than {_LARGEST_EXCESS} times the norm {norm:.6g}; solvers would be slow"
    )
    return judged(name, bound / norm, _LARGEST_EXCESS * (1.0 + 10 * case.rounding), "norm_bound() over the norm", loose)


def has_exact_norm(case: OperatorCase) -> bool:
    """Whether the norm of the whole matrix is computed."""
    return case.has_matrix and min(case.matrix.shape) <= DENSE_LIMIT


def spectral_norm(case: OperatorCase, steps: int = _POWER_STEPS) -> float:
    """The norm of small operators, a lower bound of it otherwise, from power steps."""
    if has_exact_norm(case):
        return float(torch.linalg.matrix_norm(case.matrix, 2))
    return spectral_norm_from_below(case, steps)


def spectral_norm_from_below(case: OperatorCase, steps: int = _POWER_STEPS) -> float:
    """A lower bound of the norm from power steps, two applications each."""
    v = case.randn(1, case.forward.source)
    norm = 0.0
    for _ in range(steps):
        v = v / v.norm().clamp_min(torch.finfo(case.dtype).tiny)
        image = case.forward.apply(v.clone())
        norm = max(norm, float(norms(image) / norms(v).clamp_min(1e-300)))
        v = case.adjoint.apply(image.clone())
    return norm


@torch.no_grad()
def check_gram_lower_bound(case: OperatorCase) -> Property:
    """``gram_lower_bound()`` is not above the smallest eigenvalue of A^T A: the eigenvalue itself on small operators,
    on large ones the smallest Rayleigh quotient that probes and power steps on ‖A‖² I - A^T A find."""
    name, operator = "gram_lower_bound", case.linear_operator
    if operator is None:
        return skipped(name, "the operator has no gram_lower_bound()")
    bound = float(operator.gram_lower_bound())
    if bound < 0:
        return broken(name, f"gram_lower_bound() = {bound:g} is negative; 0 is always valid")
    if bound == 0:
        return holds(name, "0 is always valid (certificates then need a ridge)")
    lowest, square = _lowest_eigenvalue(case), max(spectral_norm(case) ** 2, 1e-300)
    excess = (bound - lowest) / square
    wrong = f"gram_lower_bound() = {bound:.6g} is above an eigenvalue of A^T A, at most {lowest:.6g}; bounds rely on it"
    return judged(name, excess, 100 * case.rounding, "excess over the smallest eigenvalue found, over ‖A‖²", wrong)


def _lowest_eigenvalue(case: OperatorCase) -> float:
    if has_exact_norm(case):
        if case.matrix.shape[0] < case.matrix.shape[1]:
            return 0.0
        return float(torch.linalg.svdvals(case.matrix)[-1].square())
    shift = 1.05 * spectral_norm(case) ** 2
    v = torch.cat([case.probes(case.forward.source), _alternating(case)])
    lowest = math.inf
    for _ in range(_POWER_STEPS):
        v = v / v.flatten(1).norm(dim=1).clamp_min(1e-30).reshape(-1, *(1,) * (v.dim() - 1))
        image = case.forward.apply(v.clone())
        lowest = min(lowest, float((norms(image) / norms(v).clamp_min(1e-300)).min()) ** 2)
        v = shift * v - case.adjoint.apply(image.clone())
    return lowest


def _alternating(case: OperatorCase) -> Tensor:
    """A checkerboard: the image that smoothing operators damp most."""
    shape = case.forward.source
    index = torch.stack(torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")).sum(0)
    return (1.0 - 2.0 * (index % 2)).to(case.device, case.dtype)[None]


@torch.no_grad()
def check_diagonal(case: OperatorCase) -> Property:
    """A x = d · x where ``diagonal()`` returns d."""
    name, operator = "diagonal", case.linear_operator
    diagonal = None if operator is None else operator.diagonal()
    if diagonal is None:
        return skipped(name, "the operator declares no diagonal()")
    if tuple(diagonal.shape) != tuple(case.operator.domain_shape):
        return broken(name, f"diagonal() has shape {tuple(diagonal.shape)}, not domain_shape")
    x = case.probes(case.forward.source)
    expected = diagonal.to(case.device, case.dtype) * x
    image = case.forward.apply(x)
    value = largest(image - expected, expected, norms(image).max().expand(len(x)))
    return judged(name, value, case.rounding, "relative error of diagonal() · x", "forward(x) is not diagonal() · x")


@torch.no_grad()
def check_nonnegative(case: OperatorCase) -> Property:
    """A x >= 0 for x >= 0, up to the rounding of float32, where ``is_nonnegative()`` or a declaration says so."""
    name, operator = "nonnegative", case.linear_operator
    examined = case.dtype == torch.float64  # in which operators are asked for their entries
    if operator is None or not (operator.nonnegative or (examined and operator.is_nonnegative())):
        return skipped(name, "nothing says that the operator has no negative entries")
    image = case.matrix if case.has_matrix else case.forward.apply(case.probes(case.forward.source).abs())
    value = -float(image.min()) / max(float(image.abs().max()), 1e-300)
    wrong = "images >= 0 have negative responses; likelihoods of counts rely on A x >= 0"
    return judged(name, max(0.0, value), _NEGATIVE, "most negative entry, relative to the largest", wrong)


@torch.no_grad()
def check_row_norms(case: OperatorCase) -> Property:
    """``row_norms`` bounds the norm of some rows of A, and of some groups of rows along the first range axis."""
    name, operator = "row_norms", case.linear_operator
    if operator is None:
        return skipped(name, "the operator has no row_norms()")
    if case.dtype != torch.float64:
        return skipped(name, "in float64 alone")
    shape = case.forward.target
    group = shape[0] if len(shape) > 1 else 1
    places = math.prod(shape) // group
    chosen = torch.randperm(places, generator=case.generator)[: max(1, _ROWS // group)]
    units = torch.zeros(len(chosen), group, group, places, dtype=case.dtype, device=case.device)
    for k, place in enumerate(chosen.tolist()):
        units[k, torch.arange(group), torch.arange(group), place] = 1.0
    rows = case.adjoint.apply(units.reshape(-1, *shape)).flatten(1).reshape(len(chosen), group, -1)
    single, grouped = (
        torch.as_tensor(operator.row_norms(g), dtype=torch.float64, device=case.device).expand(shape).reshape(group, -1)
        for g in (False, True)
    )
    by_row = rows.norm(dim=2).T / single[:, chosen].clamp_min(1e-300)
    by_group = torch.linalg.matrix_norm(rows, 2) / grouped.amin(0)[chosen].clamp_min(1e-300)
    value = max(float(by_row.max()), float(by_group.max()))
    wrong = "row_norms() is below the norm of a row (or group of rows); certificates rely on it"
    return judged(name, value, 1.0 + 10 * case.rounding, "largest norm of rows over row_norms()", wrong)
