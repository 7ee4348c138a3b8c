"""Whether ``adjoint`` is the adjoint of ``forward``: <A x, y> = <x, B y> for probes of many kinds.

For independent gaussian x and y the gap <A x, y> - <x, B y> has the standard deviation ‖A - B^T‖_F, and ‖A x‖ ‖y‖ is
about ‖A‖_F sqrt(m), so that gap sqrt(m) / (‖A x‖ ‖y‖) estimates ‖A - B^T‖_F / ‖A‖_F: a few wrong entries show, and
rounding does not grow with the size. A wrong factor shows best at y = A x, where the gap over ‖A x‖² is |c - 1|.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learnreg.testing.bounds import spectral_norm
from learnreg.testing.case import OperatorCase, norms
from learnreg.testing.diagnosis import diagnose
from learnreg.testing.report import Property, judged

__all__ = ["adjoint_gap", "check_adjoint", "gap_from"]

_ROUNDS, _NORM_STEPS, _NULL_SHARE = 2, 3, 1e-2


@torch.no_grad()
def check_adjoint(case: OperatorCase) -> Property:
    """``adjoint`` is the Euclidean adjoint of ``forward``; where it is not, the message says in what way."""
    value = adjoint_gap(case)
    measured = "relative gap between <Ax, y> and <x, adjoint(y)>"
    return judged("adjoint", value, case.adjoint_tolerance, measured, lambda: diagnose(case, value))


def adjoint_gap(case: OperatorCase) -> float:
    """The largest relative gap over random, sparse, constant and nonnegative probes, over images of such probes, and
    on small operators over all entries of the matrix."""
    gaps = [_gaussian_gap(case)]
    norm = spectral_norm(case, _NORM_STEPS)
    for _ in range(_ROUNDS):
        x, y = case.probes(case.operator.domain_shape), case.probes(case.operator.range_shape)
        Ax, By = case.forward.apply(x).clone(), case.adjoint.apply(y).clone()
        for shift in range(len(x)):  # every kind of x against every kind of y
            gaps.append(_gap(x, Ax, y.roll(shift, 0), By.roll(shift, 0), norm))
        gaps.append(_gap(x, Ax, Ax, case.adjoint.apply(Ax.clone()), norm))
        gaps.append(_gap(By, case.forward.apply(By.clone()), y, By, norm))
    if case.has_matrix:
        size = float(case.matrix.abs().max())
        difference = float((case.matrix - case.adjoint_matrix).abs().max())
        gaps.append(difference / size if size > 0 else difference)
    return math.inf if any(math.isnan(gap) for gap in gaps) else max(gaps)


def _gaussian_gap(case: OperatorCase) -> float:
    """The gap from two applications of each map: independent gaussian x and y, and the image of x."""
    x, y = case.randn(1, case.forward.source), case.randn(1, case.forward.target)
    return gap_from(case, x, case.forward.apply(x.clone()).clone(), y, case.adjoint.apply(y.clone()).clone())


def gap_from(case: OperatorCase, x: Tensor, Ax: Tensor, y: Tensor, By: Tensor) -> float:
    """The same for given gaussian x and y with their images; one more application."""
    per_row = norms(Ax) * norms(y) / math.sqrt(y[0].numel())
    per_column = norms(x) * norms(By) / math.sqrt(x[0].numel())
    random = _ratio(_inner(Ax, y) - _inner(x, By), torch.maximum(per_row, per_column))
    gaps = (random, _gap(x, Ax, Ax, case.adjoint.apply(Ax.clone())))
    return math.inf if any(math.isnan(gap) for gap in gaps) else max(gaps)


def _gap(x: Tensor, Ax: Tensor, y: Tensor, By: Tensor, norm: float = 0.0) -> float:
    """|<A x, y> - <x, B y>| over the larger product of norms, but not over less than a share of ‖A‖ ‖x‖ ‖y‖: what is
    left of an x in the null space is rounding."""
    scale = torch.maximum(norms(Ax) * norms(y), norms(x) * norms(By))
    return _ratio(_inner(Ax, y) - _inner(x, By), scale + _NULL_SHARE * norm * norms(x) * norms(y))


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() * b.double()).flatten(1).sum(1)


def _ratio(gap: Tensor, scale: Tensor) -> float:
    return float(torch.where(gap == 0, gap, gap.abs() / scale).max())
