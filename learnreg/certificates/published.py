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


def _channel_norm(t: Tensor, grouped: bool) -> Tensor:
    """Largest norm of a channel; for grouped or scalar parameters the norm of everything."""
    return _norm(t) if grouped else (t * t).flatten(2).sum(2).amax(1).sqrt()


def _potential_bound(values: Tensor, slope_on_V: Tensor, slope: Tensor, terms: ErrorTerms, L: float) -> Tensor:
    return values * L * terms.E + slope_on_V * L * terms.e + slope * L * terms.e * L * terms.E


def weight_bound(
    f_prime: Tensor, V: Tensor, interval: CurvatureInterval, terms: ErrorTerms, L: float, per_channel: bool
) -> Tensor:
    """For log-weights: the gradient is <f'(t_c), V_c> per channel; |f'(t^) - f'(t)| <= hi |dt|."""
    high_V = _channel_norm(interval.high * V, not per_channel)
    return _potential_bound(_channel_norm(f_prime, not per_channel), high_V, interval.high_max, terms, L)


def smoothing_bound(
    sensitivity: Tensor, V: Tensor, interval: CurvatureInterval, terms: ErrorTerms, L: float, per_channel: bool
) -> Tensor:
    """For log-smoothings: <s(t_c), V_c> per channel with s = v ∂f'/∂v (the argument), |s(t^) - s(t)| <= q hi |dt|."""
    slope = interval.sensitivity * interval.high
    slope_V = _channel_norm(slope * V, not per_channel)
    slope_max = slope.expand(V.shape[0], *slope.shape[1:]).flatten(1).amax(1)
    return _potential_bound(_channel_norm(sensitivity, not per_channel), slope_V, slope_max, terms, L)


def data_weight_bound(residual: Tensor, forward_X: Tensor, terms: ErrorTerms, forward_norm: float) -> Tensor:
    """For data-term weights: (A x - b)_i (A X)_i elementwise."""
    r_max, X_max = residual.flatten(1).abs().amax(1), forward_X.flatten(1).abs().amax(1)
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
