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

from learnreg.certificates.groups import GroupBound, group_norm, parameter_shape
from learnreg.certificates.interval import CurvatureInterval
from learnreg.certificates.knots import channel_shape, spline_of, weakly_convex_spline_of
from learnreg.certificates.point_bound import PointBound
from learnreg.certificates.resolvent import adjoint_bound
from learnreg.linear.samples import norm_samples
from learnreg.lower_level.regularizer import ParameterRole

__all__ = ["ErrorTerms", "PublishedBound", "error_terms", "operator_bound", "potential_bound"]


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


def potential_bound(
    gradient: Tensor, V: Tensor, slope: Tensor, e: Tensor, L: float, shape: tuple[int, ...]
) -> GroupBound:
    """For parameters of the potential of this shape: <s(t_c), V_c> per entry c with |s(t^) - s(t)| <= slope |dt|.
    Log-weights have s = f' and the slope hi (hi + rho and their excess, where weakly convex), log-smoothings s = v
    ∂f'/∂v. ``gradient``: s(t), or what bounds its norms."""
    slope_V = group_norm(slope * V, shape)
    slope_max = slope.expand(V.shape[0], *slope.shape[1:]).flatten(1).amax(1)
    return GroupBound.by_norm(slope_V * L * e, group_norm(gradient, shape) * L + slope_max * L * e * L)


class PublishedBound(PointBound):
    """Norms of everything."""

    def bend(self, interval: CurvatureInterval, size: Tensor) -> None:
        self.change_norm = norm_samples(interval.change * size)

    def adjoint_error(self) -> Tensor:
        return adjoint_bound(torch.zeros_like(self.e), self.change_norm, self.L, self.mu) + self.boundary_error()

    def regularizer_groups(self) -> dict[ParameterRole, GroupBound]:
        r, instance, potential = self.responses, self.instance, self.instance.potential
        roles = self.roles()
        found: dict[ParameterRole, GroupBound] = {}
        if "operator" in roles and instance.analysis_lipschitz is not None:
            high_max, fall_max = self.high_max, None
            if self.fall is not None:
                high_max, fall_max = (bound.flatten(1).amax(1) for bound in (self.rise, self.fall))
            terms = error_terms(
                self.x, self.X, r.y, r.Y, self.e, self.energy_error, high_max, self.change_norm, self.L, fall_max
            )
            found["operator"] = operator_bound(terms, instance.analysis_lipschitz)
        if "log_weight" in roles:
            shape, slope = parameter_shape(potential.weight), self.steepest(potential.weight_excess)
            found["log_weight"] = potential_bound(self.weight_gradient(), r.V, slope, self.e, self.L, shape)
        if "log_factor" in roles:
            slope = self.steepest(potential.concavity)
            found["log_factor"] = potential_bound(r.y, r.V, slope, self.e, self.L, ())
        if "log_smoothing" in roles:
            shape = parameter_shape(potential.smoothing)
            sensitivity = potential.smoothing_gradient(r.t)
            found["log_smoothing"] = potential_bound(sensitivity, r.V, self.smoothing_slope(), self.e, self.L, shape)
        if "log_curvature" in roles:
            spline = spline_of(instance)
            # |s_j| over all knots j is at most |s| of the weight, and its change is at most that of s
            shape, slope = channel_shape(spline.convex_coefficients), self.steepest(spline.weight_excess)
            found["log_curvature"] = potential_bound(self.weight_gradient(), r.V, slope, self.e, self.L, shape)
        if "log_depth" in roles:
            concave = weakly_convex_spline_of(instance)
            shape, slope = channel_shape(concave.depths), self.steepest(concave.depth_excess)
            found["log_depth"] = potential_bound(concave.depth_gradient_size(r.t), r.V, slope, self.e, self.L, shape)
        if "latent_cost" in roles:
            found["latent_cost"] = self.latent_cost_group()
        if "potential" in roles:
            own = self.potential_parameters(self.change_norm)
            found["potential"] = GroupBound.by_norm(own.constant, self.L * (own.on_V + self.high_max * own.on_Y))
        return found
