"""The sign pattern of a lower level with an l1-norm, by a primal-dual active-set method from a good guess.

Source: Hintermueller, Ito and Kunisch, The primal-dual active set strategy as a semismooth Newton method (2002).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.lower_level.sign_pattern import DenseAnalysis, ReducedSystem

__all__ = ["PatternState", "settle"]

_ROUNDS, _PROJECTIONS, _ROUGH_PROJECTIONS = 30, 1000, 50
_AT_LIMIT, _WITHIN = 1.0 - 1e-9, (0.9, 0.99, 0.9999)
"""Shares of the weight: above the first dual entries count as touching it; within the others they are looked for where
several dual points belong to one solution."""


@dataclass(frozen=True)
class PatternState:
    """x (n,) and y (m,) of the reduced system for signs (m,), 0 of vanishing responses; settled: no sign and no dual
    entry contradicts the pattern."""

    system: ReducedSystem
    signs: Tensor
    x: Tensor
    y: Tensor
    settled: bool


def settle(dense: DenseAnalysis, y: Tensor) -> PatternState:
    """The pattern, from that of a dual point (m,): what contradicts it changes sides, all at once, until nothing does
    or a pattern comes back."""
    touching = y.abs() >= _AT_LIMIT * dense.weight
    signs = torch.where(touching, y.sign(), 0.0)
    seen: set[bytes] = set()
    while True:
        state = _state(dense, signs, y)
        signs, y = state.signs, state.y
        wrong = (signs != 0) & ~(signs * (dense.K @ state.x) > 0)
        beyond = (signs == 0) & ~(y.abs() < dense.weight)
        key = signs.to(torch.int8).cpu().numpy().tobytes()
        if state.settled or key in seen or len(seen) >= _ROUNDS:
            return state
        seen.add(key)
        signs = torch.where(wrong, 0.0, torch.where(beyond, y.sign(), signs))


def _state(dense: DenseAnalysis, signs: Tensor, y: Tensor) -> PatternState:
    """That of a pattern; y: a guess, of which only entries of dependent rows matter."""
    zero = signs == 0
    system = ReducedSystem(dense, zero)
    y_A = dense.weight * signs
    rhs = dense.q - dense.K.T @ y_A
    x, y_B = system.solve(rhs)
    wrong = ~zero & ~(signs * (dense.K @ x) > 0)
    effort = _ROUGH_PROJECTIONS if bool(wrong.any()) else _PROJECTIONS
    y_I = y_B if not len(system.rest) else _spread(dense, zero, rhs - dense.M @ x, y, effort)
    y = torch.where(zero, y_I, y_A)
    contradicted = wrong | (zero & ~(y.abs() < dense.weight))
    return PatternState(system, signs, x, y, not bool(contradicted.any()))


def _spread(dense: DenseAnalysis, zero: Tensor, force: Tensor, y: Tensor, effort: int) -> Tensor:
    """y with K_I^T y_I = force, one of several, far from the weight: so many alternating projections onto these and
    onto each of a few smaller boxes, from a guess."""
    rows, limit = dense.K[zero], dense.weight[zero]
    U, sizes, Vh = torch.linalg.svd(rows, full_matrices=False)
    kept = sizes > 1e-9 * sizes[0]
    inverse = (U[:, kept] / sizes[kept]) @ Vh[kept]
    best = point = y[zero] + inverse @ (force - rows.T @ y[zero])
    for share in _WITHIN:
        for _ in range(effort):
            point = torch.minimum(torch.maximum(point, -share * limit), share * limit)
            point = point + inverse @ (force - rows.T @ point)
            if bool((point.abs() < 0.5 * (1.0 + share) * limit).all()):
                break
        if float((point.abs() / limit).amax()) < float((best.abs() / limit).amax()):
            best = point
        if bool((best.abs() < 0.5 * (1.0 + share) * limit).all()):
            break
    found = torch.zeros_like(y)
    found[zero] = best
    return found
