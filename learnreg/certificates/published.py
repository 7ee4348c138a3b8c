"""The published-style hypergradient bound: norms of every term of the bilinear expansion, cross terms included.

The hypergradient is C(X, y) + C(x, Y) for parameters of K, C(u, p) = ∂_theta <K_theta u, p>, plus elementwise terms for
the potential's parameters. With errors e of x, E of X, e_y of y = f'(Kx), e_Y of Y = f''(Kx) K X:

    G - G^ = C(dX, y) + C(X, dy) + C(dx, Y) + C(x, dY) - C(dX, dy) - C(dx, dY).

Source: the a-posteriori bound of Bogensperger, Ehrhardt, Pock, Salehi, Wong (2025), with intervals of f'' where they
use global Lipschitz constants. All functions return *rigorous bounds* per sample, shape (batch,).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.certificates.adjoint import CurvatureInterval
from learnreg.convex import sum_samples

__all__ = [
    "ErrorTerms",
    "data_weight_bound",
    "error_terms",
    "operator_bound",
    "ridge_bound",
    "smoothing_bound",
    "weight_bound",
]


@dataclass(frozen=True)
class ErrorTerms:
    """Norms and error bounds of the four iterates, per sample: x and X (state and adjoint), y and Y (their duals)."""

    x: Tensor
    X: Tensor
    y: Tensor
    Y: Tensor
    e: Tensor
    E: Tensor
    e_y: Tensor
    e_Y: Tensor


def _norm(t: Tensor) -> Tensor:
    return sum_samples(t * t).sqrt()


def error_terms(
    x: Tensor,
    X: Tensor,
    y: Tensor,
    Y: Tensor,
    e: Tensor,
    E: Tensor,
    energy_error: Tensor,
    interval: CurvatureInterval,
    operator_norm: float,
) -> ErrorTerms:
    """e_y <= min(hi ‖K‖ e, sqrt(hi) ‖sqrt(D) K dx‖) and e_Y <= hi ‖K‖ E + ‖Delta K X‖, hi = max f'' on the
    intervals."""
    e_y = torch.minimum(interval.high_max * operator_norm * e, interval.high_max.sqrt() * energy_error)
    e_Y = interval.high_max * operator_norm * E + interval.change_norm
    return ErrorTerms(_norm(x), _norm(X), _norm(y), _norm(Y), e, E, e_y, e_Y)


def operator_bound(terms: ErrorTerms, lipschitz: float) -> Tensor:
    """For parameters of an operator affine in them, ‖C(u, p)‖ <= lipschitz ‖u‖ ‖p‖."""
    state = terms.X * terms.e_y + terms.Y * terms.e + terms.x * terms.e_Y + terms.e * terms.e_Y
    adjoint = terms.y * terms.E + terms.E * terms.e_y
    return lipschitz * (state + adjoint)


def _group_norm(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Largest norm of a group of t (batch, ...), (batch,): a group is what one entry of a parameter of this shape,
    broadcast against t without its batch axis, multiplies."""
    aligned = (1,) * (t.dim() - 1 - len(shape)) + shape
    shared = [axis + 1 for axis, size in enumerate(aligned) if size == 1]
    square = (t * t).sum(shared, keepdim=True) if shared else t * t
    return square.flatten(1).amax(1).sqrt()


def _potential_bound(values: Tensor, slope_on_V: Tensor, slope: Tensor, terms: ErrorTerms, L: float) -> Tensor:
    return values * L * terms.E + slope_on_V * L * terms.e + slope * L * terms.e * L * terms.E


def weight_bound(
    f_prime: Tensor, V: Tensor, interval: CurvatureInterval, terms: ErrorTerms, L: float, shape: tuple[int, ...]
) -> Tensor:
    """For log-weights of this shape: the gradient is <f'(t_c), V_c> per entry c; |f'(t^) - f'(t)| <= hi |dt|."""
    high_V = _group_norm(interval.high * V, shape)
    return _potential_bound(_group_norm(f_prime, shape), high_V, interval.high_max, terms, L)


def smoothing_bound(
    sensitivity: Tensor, V: Tensor, interval: CurvatureInterval, terms: ErrorTerms, L: float, shape: tuple[int, ...]
) -> Tensor:
    """For log-smoothings of this shape: <s(t_c), V_c> per entry with s = v ∂f'/∂v (the argument), |s(t^) - s(t)| <=
    q hi |dt|."""
    slope = interval.sensitivity * interval.high
    slope_V = _group_norm(slope * V, shape)
    slope_max = slope.expand(V.shape[0], *slope.shape[1:]).flatten(1).amax(1)
    return _potential_bound(_group_norm(sensitivity, shape), slope_V, slope_max, terms, L)


def data_weight_bound(
    residual: Tensor, forward_X: Tensor, terms: ErrorTerms, forward_norm: float, shape: tuple[int, ...]
) -> Tensor:
    """For data-term weights of this shape: (A x - b)_i (A X)_i, summed over the measurements that share a weight."""
    r_max, X_max = _group_norm(residual, shape), _group_norm(forward_X, shape)
    return forward_norm * (r_max * terms.E + X_max * terms.e + forward_norm * terms.e * terms.E)


def forward_operator_bound(
    residual: Tensor, forward_X: Tensor, terms: ErrorTerms, forward_norm: float, lipschitz: float, weight_max: float
) -> Tensor:
    """For parameters of A: C(X, w(Ax - b)) + C(x, w A X), with errors w ‖A‖ e and w ‖A‖ E of the second arguments."""
    e_r, E_r = weight_max * forward_norm * terms.e, weight_max * forward_norm * terms.E
    return lipschitz * (
        weight_max * _norm(residual) * terms.E
        + (terms.X + terms.E) * e_r
        + weight_max * _norm(forward_X) * terms.e
        + (terms.x + terms.e) * E_r
    )


def ridge_bound(terms: ErrorTerms) -> Tensor:
    """For the ridge: <x, X>."""
    return terms.x * terms.E + terms.X * terms.e + terms.e * terms.E
