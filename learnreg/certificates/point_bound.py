"""What the bounds of a hypergradient formed at one point (x, X) have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from learnreg.certificates.data_parameters import data_groups
from learnreg.certificates.groups import GroupBound
from learnreg.certificates.interval import CurvatureInterval, curvature_interval, response_radius
from learnreg.certificates.state import energy_error
from learnreg.linear.samples import sum_samples
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.pairing import Responses
from learnreg.lower_level.regularizer import ParameterRole
from learnreg.potentials.base import Potential
from learnreg.potentials.convex_function import ParameterBound, ResponseErrors

__all__ = ["PointBound"]


class PointBound(ABC):
    """Bound of the hypergradient at (x, X), given the errors of X, which are affine in the residual of the adjoint
    equation; the residual waits for the whole batch where the loss couples its samples.

    Parameters
    ----------
    state_norm: ‖∇E(x)‖ with its rounding. e: bound of ‖x - x^‖. X_active: the part of X on active pixels of a
        constraint, where X^ = 0; None without one. pullback: K^T y.

    ``stiffness``: ‖√D K‖ is at most this for every curvature D on the interval, (batch,). For weakly convex potentials
    D = f'' + rho, of which ``high`` is the largest; f'' <= ``rise`` and f'' >= -``fall`` (None for convex ones).
    """

    def __init__(
        self,
        problem: FrozenProblem,
        instance: Instance,
        x: Tensor,
        X: Tensor,
        responses: Responses,
        state_norm: Tensor,
        e: Tensor,
        pullback: Tensor,
        X_active: Tensor | None = None,
    ) -> None:
        self.problem, self.instance, self.x, self.X, self.responses, self.e = problem, instance, x, X, responses, e
        self.pullback, self.mu, self.L = pullback, instance.strong_convexity, instance.analysis.norm_bound()
        t, radius = responses.t, response_radius(instance, e, responses.t)
        interval = curvature_interval(instance.potential, t, radius)
        self.high, self.high_max, self.sensitivity = interval.high, interval.high_max, interval.sensitivity
        self.smooth = interval.smooth
        self.rise, self.fall = _true_curvature(instance.potential, interval)
        self.stiffness = self.high_max.sqrt() * self.L * (1.0 + 1e-12)
        self.energy_error = torch.minimum(energy_error(state_norm, e, self.mu), self.stiffness * e)
        self.bend(interval, instance.potential.bending_size(responses.V, t, radius))
        self.jacobian = problem.jacobian_bounds
        self.latent_magnitude = 0.0
        self.potential_magnitude = torch.zeros_like(e)
        self.active_norm = torch.zeros_like(e) if X_active is None else sum_samples(X_active**2).sqrt()

    @abstractmethod
    def bend(self, interval: CurvatureInterval, size: Tensor) -> None:
        """Keep what is needed of Gamma V, the change of f''(K x) K X on an interval, |V| = size: the intervals
        themselves would take the memory of five responses."""

    @abstractmethod
    def adjoint_error(self) -> Tensor:
        """Bound of ‖X - X^‖ for a vanishing residual, which itself adds residual / mu."""

    def energy_adjoint_error(self) -> Tensor:
        """Bound of ‖√D^ K (X - X^)‖ for a vanishing residual, which itself adds residual / (2√mu)."""
        return torch.zeros_like(self.e)

    @abstractmethod
    def regularizer_groups(self) -> dict[ParameterRole, GroupBound]:
        """Bounds of the gradient in what the regularizer's roles are about: entries of operators, logarithms."""

    def groups(self) -> list[GroupBound]:
        """Bounds of all parameter groups, in the raw parameters."""
        own = self.regularizer_groups()
        raw = [group.scaled(self.jacobian.get(role, 1.0)) for role, group in own.items()]
        weight_max = float(self.instance.data_weights.max())
        return raw + data_groups(self.problem, self.x, self.X, self.responses, self.e, weight_max)

    def roles(self) -> set[str]:
        """What the regularizer's learnable parameters do."""
        own = self.problem.parameter_roles()
        return {own[n] for n, p in self.problem.regularizer.named_parameters() if p.requires_grad}

    def smoothing_slope(self) -> Tensor:
        """The largest |ds/dt| on the interval for s = v ∂f'/∂v."""
        radius = response_radius(self.instance, self.e, self.responses.t)
        return self.instance.potential.smoothing_slope(self.responses.t, radius)

    def potential_parameters(self, bent: Tensor) -> ParameterBound:
        """What the potential says of its own parameters, for Gamma V of this norm, (batch,)."""
        r, high = self.responses, self.high_max
        dual_error = torch.minimum(high * self.L * self.e, high.sqrt() * self.energy_error)
        errors = ResponseErrors(self.L * self.e, dual_error, bent)
        found = self.instance.potential.parameter_bound(r.t, r.V, r.y, r.Y, errors)
        self.potential_magnitude = found.magnitude
        return found

    def weight_gradient(self) -> Tensor:
        """l ∂f'/∂l at t, which is y unless a part of f has no weight."""
        return self.responses.y if self.fall is None else self.instance.potential.weight_gradient(self.responses.t)

    def steepest(self, excess: Tensor | float) -> Tensor:
        """The largest f'' + rho on the interval, plus the excess; a convex potential has none."""
        return self.high if self.fall is None else self.high + excess

    def data_norm(self) -> float:
        """Bound of ‖M‖."""
        return float(self.instance.data_weights.max()) * self.instance.forward.norm_bound() ** 2 + self.instance.ridge

    def boundary_error(self) -> Tensor:
        """Share of X on active pixels in the error of X: by the Schur complement, (1 + sqrt(‖H_AA‖/mu)) ‖X_A‖."""
        hessian_norm = self.data_norm() + self.high_max * self.L**2
        return (1.0 + (hessian_norm / self.mu).sqrt()) * self.active_norm

    def latent_cost_group(self) -> GroupBound:
        """For the linear cost of latent variables, gradient <1, Z_g> = scale <1, Z^_g> over those that share an
        entry."""
        latent = self.instance.latent
        assert latent is not None, "the role latent_cost is that of regularizers with latent variables"
        root = math.sqrt(latent.channels * math.prod(self.x.shape[2:]) / latent.cost.numel())
        self.latent_magnitude = self.instance.latent_scale * root * float(latent.cost.norm())
        on_E = torch.full_like(self.e, self.instance.latent_scale * root)
        return GroupBound.by_norm(torch.zeros_like(self.e), on_E)

    def magnitude(self) -> float:
        """Size of the terms summed in the gradient: the scale of its rounding errors."""
        r = self.responses
        x, X, y, Y, V = (sum_samples(t * t).sqrt() for t in (self.x, self.X, r.y, r.Y, r.V))
        size = x * Y + X * y + 2.0 * y * V  # the last for weights and smoothings, |f'' t| <= |f'|
        if self.fall is not None:  # parts of f' and t f'' that may cancel
            steep = torch.as_tensor(self.instance.potential.curvature_limit).max() + self.high_max
            size = size + 2.0 * steep * sum_samples(r.t * r.t).sqrt() * V
        if r.residual is not None and r.forward_X is not None:
            residual, forward_X = (sum_samples(t * t).sqrt() for t in (r.residual, r.forward_X))
            weight = max(1.0, float(self.instance.data_weights.max()))
            size = size + weight * (residual + 2.0 * self.instance.forward.norm_bound() * x) * (forward_X + X)
        size = size + self.latent_magnitude * X
        # K x and K X are rounded relative to ‖k_i‖ ‖x‖, which may be far above |K_i x|
        rows = self.instance.analysis.row_norms(self.instance.potential.grouped)
        longest = max(self.L, float(torch.as_tensor(rows).max()))
        slope = max(self.L, self.instance.analysis_lipschitz or 0.0)
        responses = 0.02 * slope * longest * self.high_max * x * X
        size = size + self.potential_magnitude
        return float((size + responses).sum()) * max([1.0, *self.jacobian.values()])


def _true_curvature(potential: Potential, interval: CurvatureInterval) -> tuple[Tensor, Tensor | None]:
    """Bounds of f'' and of -f'' on the interval, which is that of f'' + rho."""
    if potential.convex:
        return interval.high, None
    rho, margin = potential.concavity, 4.0 * torch.finfo(interval.high.dtype).eps
    rise = (interval.high - rho * (1.0 - margin)).clamp_min_(0.0)
    return rise, (rho * (1.0 + margin) - interval.low).clamp_min_(0.0)
