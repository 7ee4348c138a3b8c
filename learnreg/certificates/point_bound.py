"""What the bounds of a hypergradient formed at one point (x, X) have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.certificates.data_parameters import data_groups
from learnreg.certificates.groups import GroupBound
from learnreg.certificates.interval import response_radius
from learnreg.certificates.split import Split
from learnreg.certificates.state import energy_error
from learnreg.linear.parameter_groups import Density, LinearCost, OwnBound, Pairing, ParameterBound, ResponseErrors
from learnreg.linear.samples import sum_samples
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.pairing import Responses
from learnreg.potentials.curvature import CurvatureInterval

__all__ = ["PointBound", "StateError"]


@dataclass(frozen=True)
class StateError:
    """What is known of a state: the norm of the reduced ∇E(x) with its rounding, a bound of ‖x - x^‖, (batch,) each,
    and the split of the energy that the bounds of hypergradients rest on."""

    residual: Tensor
    bound: Tensor
    split: Split

    def times(self, factor: float) -> StateError:
        """Nearer to the solution."""
        return StateError(factor * self.residual, factor * self.bound, self.split)


class PointBound(ABC):
    """Bound of the hypergradient at (x, X), given the errors of X, which are affine in the residual of the adjoint
    equation; the residual waits for the whole batch where the loss couples its samples.

    Parameters
    ----------
    state: what is known of x. pullback: K^T y. active_norm: ‖X‖ on active pixels of a constraint, where X^ = 0,
        (batch,).

    ``stiffness``: ‖√D K‖ is at most this for every curvature D on the interval, (batch,), D = f'' - sigma as the split
    says, of which ``high`` is the largest; ``rise``, ``root`` and ``fall`` are bounds of f'' (``Split.bounds``).
    """

    def __init__(
        self,
        problem: FrozenProblem,
        instance: Instance,
        x: Tensor,
        X: Tensor,
        responses: Responses,
        state: StateError,
        pullback: Tensor,
        active_norm: Tensor,
    ) -> None:
        self.problem, self.instance, self.x, self.X, self.responses = problem, instance, x, X, responses
        self.e, self.split = state.bound, state.split
        self.pullback, self.mu, self.L = pullback, state.split.modulus, instance.analysis.norm_bound()
        t, self.radius = responses.t, response_radius(instance, self.e, responses.t)
        interval = state.split.interval(instance.potential, t, self.radius)
        self.high, self.high_max, self.low = interval.high, interval.high_max, interval.low
        self.smooth = interval.smooth
        self.slope_limit = state.split.limit(interval)
        self.rise, self.root, self.fall = state.split.bounds(instance.potential, interval)
        self.stiffness = self.high_max.sqrt() * self.L * (1.0 + 1e-12)
        self.energy_error = torch.minimum(energy_error(state.residual, self.e, self.mu), self.stiffness * self.e)
        self.bend(interval, instance.potential.bending_size(responses.V, t, self.radius))
        self.jacobian = problem.jacobian_bounds
        self.own_magnitude = torch.zeros_like(self.e)  # of gradients that groups bound themselves
        self.active_norm = active_norm

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
    def of_operator(self, group: Pairing) -> GroupBound:
        """For parameters of K, gradient C(X, y) + C(x, Y)."""

    @abstractmethod
    def of_density(self, group: Density) -> GroupBound:
        """For parameters of the potential, gradient <s(t_g), V_g>."""

    @abstractmethod
    def of_own(self, group: OwnBound) -> GroupBound:
        """For what the potential bounds itself."""

    def of_cost(self, group: LinearCost) -> GroupBound:
        """For the linear cost of latent variables, gradient <1, Z_g> = scale <1, Z^_g> over those that share an
        entry."""
        root = self.instance.latent.scale * group.shared_root(tuple(self.x.shape[2:]))
        self.own_magnitude = self.own_magnitude + root * float(group.cost.norm()) * sum_samples(self.X**2).sqrt()
        return GroupBound.by_norm(torch.zeros_like(self.e), torch.full_like(self.e, root))

    def groups(self) -> list[GroupBound]:
        """Bounds of all parameter groups, in the raw parameters."""
        learned = self.problem.learned_groups
        raw = [
            group.judged(self).scaled(self.jacobian.get(group.name, 1.0))
            for group in self.instance.parameter_groups()
            if group.name in learned
        ]
        weight_max = self.instance.quadratic.largest_weight
        return raw + data_groups(self.problem, self.x, self.X, self.responses, self.e, weight_max)

    def own_parameters(self, group: OwnBound, bent: Tensor) -> ParameterBound:
        """What the group says, for Gamma V of this norm, (batch,)."""
        r, high = self.responses, self.high_max
        dual_error = torch.minimum(high * self.L * self.e, high.sqrt() * self.energy_error)
        errors = ResponseErrors(self.L * self.e, dual_error, bent)
        t, V, y, Y = r.t, r.V, r.y, r.Y
        if group.share is not None:
            t, V, y, Y = map(group.share.within, (t, V, y, Y))
        found = group.bound(t, V, y, Y, errors)
        self.own_magnitude = self.own_magnitude + found.magnitude
        return found

    def seen(self, group: Density) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """t, y, V, the radius and the largest f'' - sigma of the responses that the group is about."""
        r = self.responses
        t, y, V, radius, high = (self.of_group(group, b) for b in (r.t, r.y, r.V, self.radius, self.high))
        return t, y, V, radius, high

    def of_group(self, group: Density, bound: Tensor) -> Tensor:
        """A number of each response, of those that the group is about."""
        if group.share is None:
            return bound
        return group.share.within(bound.expand(len(self.responses.t), *bound.shape[1:]))

    def largest_slope(self, group: Density) -> Tensor:
        """|ds/dt| on the intervals."""
        t, _, _, radius, _ = self.seen(group)
        return group.largest_slope(t, radius, self.of_group(group, self.slope_limit))

    def data_norm(self) -> float:
        """Bound of ‖M_sigma‖, the quadratic part with what the split moved there."""
        return self.instance.quadratic.norm() + self.split.gain * self.L**2

    @property
    def largest_curvature(self) -> Tensor:
        """With which ‖H‖ <= ‖M‖ + this ‖K‖², (batch,)."""
        return self.high_max + self.split.gain

    def boundary_error(self) -> Tensor:
        """Share of X on active pixels in the error of X: by the Schur complement, (1 + sqrt(‖H_AA‖/mu)) ‖X_A‖."""
        hessian_norm = self.data_norm() + self.high_max * self.L**2
        return (1.0 + (hessian_norm / self.mu).sqrt()) * self.active_norm

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
            weight = max(1.0, self.instance.quadratic.largest_weight)
            size = size + weight * (residual + 2.0 * self.instance.forward.norm_bound() * x) * (forward_X + X)
        # K x and K X are rounded relative to ‖k_i‖ ‖x‖, which may be far above |K_i x|
        rows = self.instance.potential.reach(self.instance.analysis)
        longest = max(self.L, float(torch.as_tensor(rows).max()))
        slope = max([self.L, *(group.lipschitz for group in self.instance.analysis.parameter_groups())])
        responses = 0.02 * slope * longest * self.high_max * x * X
        return float((size + self.own_magnitude + responses).sum()) * max([1.0, *self.jacobian.values()])
