"""What is wrong with an adjoint B that is not A^T: a factor, a transposed or flipped image, weights, the boundary.

A candidate C explains B when <x, C y> = <A x, y> on gaussian probes up to a small share of B's own gap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from learnreg.testing.case import OperatorCase, norms
from learnreg.testing.weights import describe_location, describe_weights

__all__ = ["diagnose"]

_EXPLAINED = 0.01
_PROBES = 6
_SINGLE = 1e-5

Map = Callable[[Tensor], Tensor]


def diagnose(case: OperatorCase, gap: float) -> str:
    """One sentence on what ``adjoint`` computes instead of A^T y; at least that it differs, by how much."""
    probes = _Probes(case)
    for explain in (_by_factor, _by_images, _by_own_map):
        found = explain(case, probes)
        if found:
            return found
    found = describe_weights(case) or describe_location(case)
    if not found and gap <= _SINGLE and case.dtype == torch.float64:
        found = "adjoint is A^T up to single precision: constants that were rounded to float32?"
    return found or f"adjoint differs from A^T by {gap:.1e} relative; it is the gradient of <forward(x), y> in x"


class _Probes:
    """Gaussian x and y with A x, B y, and for the factor y = A x."""

    def __init__(self, case: OperatorCase) -> None:
        self.x, self.y = case.randn(_PROBES, case.forward.source), case.randn(_PROBES, case.forward.target)
        self.y[0] = case.forward.apply(self.x[:1].clone())[0]
        self.Ax = case.forward.apply(self.x.clone()).clone()
        self._adjoint = case.adjoint
        self.own = self.misfit(self.apply_adjoint)[1]

    def apply_adjoint(self, y: Tensor) -> Tensor:
        """B y."""
        return self._adjoint.apply(y.clone())

    def misfit(self, candidate: Map) -> tuple[float, float]:
        """The factor c that fits candidate = c A^T best, and the relative gap that is left then."""
        back = candidate(self.y)
        left = _inner(self.Ax, self.y)
        right = _inner(self.x, back)
        total = float((left * left).sum())
        factor = float((left * right).sum()) / total if total > 0 else 0.0
        if factor == 0.0 or not math.isfinite(factor):
            return 1.0, math.inf
        scale = norms(self.Ax) * norms(self.y) / math.sqrt(self.y[0].numel())
        scale = torch.maximum(scale, norms(self.x) * norms(back) / math.sqrt(self.x[0].numel()) / abs(factor))
        return factor, float(((right / factor - left).abs() / scale).max())

    def explains(self, case: OperatorCase, candidate: Map) -> bool:
        """Whether a candidate is A^T up to a factor."""
        left = self.misfit(candidate)[1]
        return left <= max(10 * case.adjoint_tolerance, _EXPLAINED * min(self.own, 1.0))


def _by_factor(case: OperatorCase, probes: _Probes) -> str:
    factor = _plain_factor(case, probes)
    if factor is None:
        return ""
    hint = "constant weights of an inner product, such as the size of a pixel, are a usual cause"
    return f"adjoint is off by a factor {factor:.6g}, adjoint(y) = {factor:.6g} A^T y; divide by it ({hint})"


def _plain_factor(case: OperatorCase, probes: _Probes) -> float | None:
    """c where B = c A^T, judged against the distance of c from 1."""
    factor, left = probes.misfit(probes.apply_adjoint)
    off = abs(factor - 1.0)
    return factor if off > 10 * case.adjoint_tolerance and left <= _EXPLAINED * off else None


def _by_images(case: OperatorCase, probes: _Probes) -> str:
    for words, move in _movements(case.forward.source):
        if probes.explains(case, _composed(move, probes.apply_adjoint)):
            return f"adjoint is transposed: its result is A^T y with {words}"
    for words, move in _movements(case.forward.target):
        if probes.explains(case, _composed(probes.apply_adjoint, move)):
            return f"adjoint is transposed: it is A^T applied to y with {words}"
    return ""


def _composed(outer: Map, inner: Map) -> Map:
    return lambda t: outer(inner(t))


def _by_own_map(case: OperatorCase, probes: _Probes) -> str:
    """Forward itself (a kernel that was not flipped), or an inverse."""
    if case.forward.source == case.forward.target and _same(probes.apply_adjoint(probes.x), probes.Ax):
        return "adjoint is forward itself, but the operator is not symmetric (for a correlation, flip the kernel)"
    if _same(probes.apply_adjoint(probes.Ax), probes.x):
        return "adjoint(forward(x)) = x: it is an inverse of forward, not its adjoint (filtered back-projection, ifft)"
    return ""


def _same(a: Tensor, b: Tensor) -> bool:
    return bool((norms(a - b) <= 1e-4 * norms(b)).all())


def _movements(shape: tuple[int, ...]) -> Iterator[tuple[str, Map]]:
    """Symmetries of an image's last two axes, other than the identity."""
    if len(shape) < 2:
        if shape[0] > 1:
            yield "its entries in reverse order", lambda t: t.flip(-1)
        return
    rows, cols = shape[-2:]
    if rows > 1:
        yield "rows flipped", lambda t: t.flip(-2)
    if cols > 1:
        yield "columns flipped", lambda t: t.flip(-1)
    if rows > 1 and cols > 1:
        yield "rows and columns flipped", lambda t: t.flip(-2, -1)
    if rows == cols and rows > 1:
        yield "rows and columns exchanged", lambda t: t.mT
        yield "rows and columns exchanged, then rows flipped", lambda t: t.mT.flip(-2)
        yield "rows and columns exchanged, then columns flipped", lambda t: t.mT.flip(-1)
        yield "rows and columns exchanged, then both flipped", lambda t: t.mT.flip(-2, -1)
    elif rows > 1 and cols > 1:
        yield "rows and columns exchanged (reshaped)", lambda t: t.reshape(*t.shape[:-2], cols, rows).mT.contiguous()
        yield "rows and columns exchanged (reshaped back)", lambda t: t.mT.reshape(t.shape)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() * b.double()).flatten(1).sum(1)
