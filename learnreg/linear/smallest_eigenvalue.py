"""Lower bounds of the smallest eigenvalue of symmetric matrices, of either sign.

Ritz values approach it from above, so nothing here returns one as a bound. Rigorous are the dense eigenvalue with
LAPACK's margin, and a Cholesky decomposition of a matrix that couples near pixels alone that runs to its end; Lanczos'
method bounds it from a random start with a stated probability of failure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learnreg.linear.local_matrix import LocalMatrix

__all__ = ["LanczosBound", "dense_lower_bound", "lanczos_lower_bound", "local_lower_bound"]

_UNIT = 2.0**-53
_SHARES, _FEW_SHARES = (0.98, 0.9, 0.75, 0.5, 0.25, 0.08, 0.02), (0.9, 0.6, 0.3)
"""Shares of the estimate that a Cholesky decomposition tries to prove, the largest first; where each try is dear."""

_LOOK_EVERY, _CLOSE = 15, 0.9
"""Lanczos steps between looks at the bound, and the share of the Ritz value that makes more of them idle."""

_EXHAUSTED = 1e-12


def dense_lower_bound(matrices: Tensor, size: Tensor) -> Tensor:
    """For symmetric matrices (batch, n, n) in float64, whose norms are at most ``size`` (batch,): the eigenvalue less
    LAPACK's backward error and what rounding may hide of the entries, (batch,). *Rigorous bound.*"""
    n = matrices.shape[-1]
    symmetric = 0.5 * (matrices + matrices.mT)
    finite = torch.isfinite(symmetric).flatten(1).all(1)
    lowest = torch.linalg.eigvalsh(torch.where(finite[:, None, None], symmetric, 0.0))[:, 0]
    return torch.where(finite, lowest - 1e-14 * max(n, 64) * size, -math.inf)


def local_lower_bound(matrix: LocalMatrix, estimate: float, few: bool = False) -> float:
    """Lower bound of the smallest eigenvalue; -inf where none above 0 was found. estimate: about the eigenvalue, from
    above. few: whether to try few times. *Rigorous bound.*

    Source: Demmel (1989), whatever the order of elimination: where the floating-point Cholesky decomposition of A - s I
    runs to its end, its factor is that of a matrix whose entries differ by at most alpha √(a_ii a_jj), alpha =
    gamma/(1 - gamma) with gamma that of the operations that a number goes through (four times as many, for products
    and triangular solves by blocks). That difference has a norm of at most alpha times the trace.
    """
    diagonal = matrix.diagonal
    if not (estimate > 0 and bool(torch.isfinite(matrix.entries).all())):
        return -math.inf
    gamma = 4 * (matrix.terms + 1) * _UNIT
    alpha = gamma / (1.0 - gamma) / (1.0 - gamma / (1.0 - gamma))
    for share in _FEW_SHARES if few else _SHARES:
        shift = share * estimate
        trace = float((diagonal - shift).abs().sum()) * (1.0 + diagonal.numel() * _UNIT)
        margin = alpha * trace + 4 * _UNIT * (abs(shift) + float(diagonal.abs().amax())) + matrix.rounding
        if matrix.decomposes(shift):
            return shift - margin if shift > margin else -math.inf
    return -math.inf


@dataclass(frozen=True)
class LanczosBound:
    """lower: of the smallest eigenvalue, of each sample too large with the probability asked for; ritz: an upper bound
    of it, (batch,) each. steps: applications."""

    lower: Tensor
    ritz: Tensor
    steps: int


@torch.no_grad()
def lanczos_lower_bound(
    apply: Callable[[Tensor], Tensor],
    start: Tensor,
    failure: float,
    steps: int,
    size: Tensor | float = 0.0,
    stop_below: float = 0.0,
    settled: float = 0.0,
) -> LanczosBound:
    """Of symmetric maps, one for each sample of a batch, from so many Lanczos steps at most, fully orthogonalised.

    With the Lanczos polynomials p_j, q_j = p_j(A) q_0, and the component c of q_0 along the eigenvector of lambda_min,
    sum_j p_j(lambda_min)² c² <= 1. P(|c| < t) <= t √(2 n/pi) for a start that is uniform on the sphere, and the sum
    falls below all Ritz values: lambda_min is at least the lambda there where it is 2 n/(pi failure²).

    Parameters
    ----------
    apply: (batch, *shape) to (batch, *shape). start: random, (batch, *shape), normal, and drawn afresh: what was known
        when the map was made must not depend on it. size: norms, whose rounding counts. stop_below: of Ritz values, at
        which a sample needs no bound any more. settled: the same where they fall by less than this share between looks.

    Source: van Dorsselaer, Hochstenbach and van der Vorst, SIAM J. Matrix Anal. Appl. 22 (2001).
    """
    shape, batch = start.shape, start.shape[0]
    n = start[0].numel()
    q = start.flatten(1) / start.flatten(1).norm(dim=1, keepdim=True)
    steps = min(steps, n)
    basis = q.new_zeros(batch, steps, n)
    diagonal, below = q.new_zeros(batch, steps), q.new_zeros(batch, steps)
    lower, ritz = q.new_full((batch,), -math.inf), q.new_full((batch,), math.inf)
    target = math.log(2.0 * n / math.pi) - 2.0 * math.log(failure)
    count = 0
    for k in range(steps):
        basis[:, k] = q
        image = apply(q.reshape(shape)).flatten(1)
        diagonal[:, k] = (image * q).sum(1)
        known = basis[:, : k + 1]
        for _ in range(2):
            image = image - torch.einsum("bk,bkn->bn", torch.einsum("bkn,bn->bk", known, image), known)
        length = image.norm(dim=1)
        below[:, k], count = length, k + 1
        spent = length <= _EXHAUSTED * diagonal[:, : k + 1].abs().amax(1).clamp_min(1e-300)
        if count % _LOOK_EVERY == 0 or count == steps or bool(spent.any()):
            rows = zip(diagonal[:, :count].tolist(), below[:, :count].tolist(), strict=True)
            found = [_below_all_ritz_values(*row, target) for row in rows]
            before = ritz
            lower, ritz = (q.new_tensor(column) for column in zip(*found, strict=True))
            idle = (lower >= _CLOSE * ritz) | (ritz <= stop_below) | (before - ritz < settled * ritz)
            if bool(idle.all()) or bool(spent.any()):
                break
        q = image / length[:, None]
    return LanczosBound(lower - 1e-14 * max(count, 64) * size, ritz, count)


def _below_all_ritz_values(diagonal: list[float], below: list[float], target: float) -> tuple[float, float]:
    """The lambda below all Ritz values where the logarithm of sum_j p_j(lambda)² is the target, and the lowest of
    them."""
    a, b = np.array(diagonal), np.array(below)
    inner = np.diag(a) + np.diag(b[:-1], 1) + np.diag(b[:-1], -1)
    ritz = float(np.linalg.eigvalsh(inner)[0]) if np.isfinite(inner).all() else -math.inf
    if not math.isfinite(ritz):
        return -math.inf, math.inf
    high, low, spread = ritz, ritz, float(np.abs(inner).sum(0).max()) + 1e-300
    step = 1e-3 * spread
    while _log_sum(low, a, b) < target:
        low, step = ritz - step, 2.0 * step
        if step > 1e6 * spread:
            return -math.inf, ritz
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _log_sum(middle, a, b) >= target else (low, middle)
    return low, ritz


def _log_sum(value: float, diagonal: np.ndarray, below: np.ndarray) -> float:
    """log sum_j p_j(value)², j < the number of steps; scaled on the way, since it overflows."""
    before, now, scale, total = 0.0, 1.0, 0.0, 1.0
    for j in range(len(diagonal) - 1):
        last = below[j - 1] if j else 0.0
        before, now = now, ((value - diagonal[j]) * now - last * before) / below[j]
        total += now * now
        if total > 1e200:
            before, now, total, scale = before * 1e-100, now * 1e-100, total * 1e-200, scale + 200.0 * math.log(10.0)
    return scale + math.log(total)
