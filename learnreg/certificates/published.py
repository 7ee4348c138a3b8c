"""The published-style hypergradient bound: norms of every term of the bilinear expansion, cross terms included.

The hypergradient is C(X, y) + C(x, Y) for parameters of K, C(u, p) = ∂_theta <K_theta u, p>, plus elementwise terms for
the potential's parameters. With errors e of x, E of X, e_y of y = f'(Kx), e_Y of Y = f''(Kx) K X:

    G - G^ = C(dX, y) + C(X, dy) + C(dx, Y) + C(x, dY) - C(dX, dy) - C(dx, dY).

Source: the a-posteriori bound of Bogensperger, Ehrhardt, Pock, Salehi, Wong (2025), with intervals of f'' where they
use global Lipschitz constants. All numbers are *rigorous bounds* per sample, shape (batch,).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.certificates.groups import GroupBound, density_bound
from learnreg.certificates.point_bound import PointBound
from learnreg.certificates.resolvent import adjoint_bound
from learnreg.linear.parameter_groups import Density, OwnBound, Pairing
from learnreg.linear.samples import norm_samples
from learnreg.potentials.curvature import CurvatureInterval

__all__ = ["ErrorTerms", "PublishedBound", "error_terms", "operator_bound"]


@dataclass(frozen=True)
class ErrorTerms:
    """Norms of the four iterates, x and X (state and adjoint), y and Y (their duals); e, e_y bound the errors of x and
    y; that of Y is at most slope_Y ‖X - X^‖ + change_Y. Per sample, (batch,)."""

    x: Tensor
    X: Tensor
    y: Tensor
    Y: Tensor
    e: Tensor
    e_y: Tensor
    slope_Y: Tensor
    change_Y: Tensor


def error_terms(
    x: Tensor,
    X: Tensor,
    y: Tensor,
    Y: Tensor,
    e: Tensor,
    energy_error: Tensor,
    high_max: Tensor,
    change_norm: Tensor,
    operator_norm: float,
    fall_max: Tensor | None = None,
) -> ErrorTerms:
    """e_y <= min(hi ‖K‖ e, sqrt(hi) ‖sqrt(D) K dx‖), and the error of Y is at most hi ‖K‖ ‖dX‖ + ‖Delta K X‖, hi =
    max f'' on the intervals. Where f'' may be -fall_max: with D = f'' + rho, which f'' >= 0 does not exceed, e_y has a
    term of fall_max ‖K‖ e more in the energy norm, and |f''| <= max(hi, fall_max)."""
    by_energy = high_max.sqrt() * energy_error
    if fall_max is not None:
        by_energy = by_energy + fall_max * operator_norm * e
        high_max = torch.maximum(high_max, fall_max)
    e_y = torch.minimum(high_max * operator_norm * e, by_energy)
    return ErrorTerms(
        norm_samples(x),
        norm_samples(X),
        norm_samples(y),
        norm_samples(Y),
        e,
        e_y,
        high_max * operator_norm,
        change_norm,
    )


def operator_bound(terms: ErrorTerms, lipschitz: float) -> GroupBound:
    """For parameters of an operator affine in them, ‖C(u, p)‖ <= lipschitz ‖u‖ ‖p‖."""
    around = terms.x + terms.e
    constant = terms.X * terms.e_y + terms.Y * terms.e + around * terms.change_Y
    return GroupBound.by_norm(lipschitz * constant, lipschitz * (around * terms.slope_Y + terms.y + terms.e_y))


class PublishedBound(PointBound):
    """Norms of everything."""

    def bend(self, interval: CurvatureInterval, size: Tensor) -> None:
        self.change_norm = norm_samples(interval.change * size)

    def adjoint_error(self) -> Tensor:
        return adjoint_bound(torch.zeros_like(self.e), self.change_norm, self.L, self.mu) + self.boundary_error()

    def of_operator(self, group: Pairing) -> GroupBound:
        r, high_max, fall_max = self.responses, self.high_max, None
        if self.fall is not None:
            high_max, fall_max = (bound.flatten(1).amax(1) for bound in (self.rise, self.fall))
        terms = error_terms(
            self.x, self.X, r.y, r.Y, self.e, self.energy_error, high_max, self.change_norm, self.L, fall_max
        )
        return operator_bound(terms, group.lipschitz)

    def of_density(self, group: Density) -> GroupBound:
        t, y, V, _, _ = self.seen(group)
        return density_bound(group.size(t, y), V, self.largest_slope(group), self.e, self.L, group.shape)

    def of_own(self, group: OwnBound) -> GroupBound:
        own = self.own_parameters(group, self.change_norm)
        return GroupBound.by_norm(own.constant, self.L * (own.on_V + self.high_max * own.on_Y))
