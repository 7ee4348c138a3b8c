"""Lemma 4: the sharp bound of the hypergradient formed at a point, by energy norms and Gram matrices.

In the expansion of ``published.py`` the errors of the duals are dy = Dbar K dx and dY = D^ K dX - Gamma K X, and energy
norms of dx and dX are small where f'' is large:

    ‖√Dbar K dx‖ <= e_en (Lemma 1),   ‖√D^ K dX‖ <= E_en (Lemma 3),   √Dbar, √D^ <= √hi.

So C(x, dY) is bounded by the norm of v -> C(x, √hi v), not by ‖x‖ ‖hi‖ ‖K‖ ‖dX‖. Where f'' may be negative, D~ = D +
rho takes the place of D in the energy norms; of dy = Dbar K dx the entries with Dbar_i >= 0 are at most hi_i/√(hi_i +
rho_i) √D~bar_i |dt_i|, the others at most fall_i |dt_i|, with ‖dt‖ <= ‖K‖ e; likewise dY. *Rigorous bounds* per sample,
(batch,).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learnreg.certificates.groups import GroupBound, group_norm, group_pullback_norm, parameter_shape
from learnreg.certificates.interval import CurvatureInterval, response_budget
from learnreg.certificates.knots import channel_shape, knots_norm, spline_of, weakly_convex_spline_of
from learnreg.certificates.parameter_norms import Pairing, pairing_of
from learnreg.certificates.point_bound import PointBound
from learnreg.certificates.resolvent import Perturbation, sharp_adjoint_bound, sharp_energy_bound
from learnreg.linear.samples import expand, norm_samples
from learnreg.lower_level.regularizer import ParameterRole

__all__ = ["SharpBound", "operator_bound", "potential_bound"]

_NEGLIGIBLE = 0.1
"""Share of a bound below which a term is left at what norms say, without a Gram matrix."""


def operator_bound(
    pairing: Pairing,
    x: Tensor,
    X: Tensor,
    y: Tensor,
    Y: Tensor,
    high: Tensor,
    fall: Tensor | None,
    bent: Perturbation,
    e: Tensor,
    e_energy: Tensor,
) -> GroupBound:
    """For parameters of K: ‖C(., y)‖ ‖dX‖ + ‖C(X, √hi .)‖ e_en + ‖C(., Y)‖ e + ‖C(x, √hi .)‖ E_en + ‖C(x, Gamma V)‖
    and the cross terms; where f'' may be -fall, C(., fall .) in the 2-norm, too.

    Parameters
    ----------
    high: with |f''| <= √(high (f'' + rho)) where f'' >= 0. bent: Gamma V. e, e_energy: errors of x in both norms.
    """
    root, lipschitz = high.flatten(1).amax(1).sqrt(), pairing.lipschitz
    cross = lipschitz * e * (norm_samples(Y) + bent.norm())
    on_energy = pairing.weighted_norm(x, high) + lipschitz * e * root
    perturbed = torch.minimum(pairing.weighted_norm(x, bent.together**2), pairing.perturbation_norm(x, bent.alone))
    constant = pairing.weighted_norm(X, high) * e_energy + perturbed + cross
    dual_norm = lipschitz * norm_samples(y)
    # a residual rho adds rho/mu to the error of X, and rho/(2√mu) in the energy norm
    if not bool((dual_norm <= _NEGLIGIBLE * 0.5 * math.sqrt(bent.mu) * on_energy).all()):
        dual_norm = pairing.dual_norm(y)
    on_E = dual_norm + lipschitz * root * e_energy
    if fall is not None:
        L, most = bent.operator_norm, fall.flatten(1).amax(1)

        def fallen(u: Tensor, scale: Tensor | float, rest: Tensor) -> Tensor:
            by_norm = lipschitz * norm_samples(u) * most * scale
            small = bool((by_norm <= _NEGLIGIBLE * rest).all())
            return by_norm if small else torch.minimum(by_norm, pairing.weighted_norm(u, fall * fall) * scale)

        constant = constant + fallen(X, L * e, constant)
        on_E = on_E + 2.0 * lipschitz * most * L * e
        on_E = on_E + fallen(x, L, on_E + 0.5 * math.sqrt(bent.mu) * on_energy)
    return GroupBound(constant, on_E, on_energy)


def potential_bound(
    pullback_norm: Tensor,
    V: Tensor,
    high: Tensor,
    factor: Tensor,
    shape: tuple[int, ...],
    e_energy: Tensor,
    operator_norm: float,
    excess: Tensor | None = None,
    e: Tensor | None = None,
) -> GroupBound:
    """For parameters of the potential, gradient <s(t_g), V_g> per group g with |ds/dt| <= factor (f'' + rho) + excess:
    log-weights (s = f', factor 1) and log-smoothings.

    Parameters
    ----------
    pullback_norm: that of u -> (<s_g, (K u)_g>)_g. e: the error of x, which an excess multiplies.
    """
    scaled = factor * high.sqrt()
    largest = scaled.expand(V.shape[0], *scaled.shape[1:]).flatten(1).amax(1)
    constant, on_E = group_norm(scaled * V, shape) * e_energy, pullback_norm + largest * e_energy * operator_norm
    if excess is not None and e is not None:
        constant = constant + group_norm(excess * V, shape) * operator_norm * e
        on_E = on_E + excess.max() * operator_norm**2 * e
    return GroupBound.by_norm(constant, on_E)


def split_bound(
    pullback_norm: Tensor,
    V: Tensor,
    factor: Tensor,
    slope: Tensor,
    shape: tuple[int, ...],
    e_energy: Tensor,
    e_plain: Tensor,
    operator_norm: float,
) -> GroupBound:
    """The same where a potential has |ds| <= factor √Dbar |dt| and |ds| <= slope |dt|: each response counts by the
    cheaper of ‖√Dbar dt‖ <= e_energy and ‖dt‖ <= e_plain. ``factor`` may be infinite, or not a number where f''
    vanishes."""
    by_energy = factor * expand(e_energy, V) <= slope * expand(e_plain, V)
    constant, on_E = torch.zeros_like(e_energy), pullback_norm
    for chosen, rate, error in ((by_energy, factor, e_energy), (~by_energy, slope, e_plain)):
        own = torch.where(chosen, rate, 0.0)
        constant = constant + group_norm(own * V, shape) * error
        on_E = on_E + own.flatten(1).amax(1) * error * operator_norm
    return GroupBound.by_norm(constant, on_E)


class SharpBound(PointBound):
    """Lemma 4 with what Lemmas 0, 1 and 3 say of the errors."""

    def bend(self, interval: CurvatureInterval, size: Tensor) -> None:
        budget = response_budget(interval, self.e, self.energy_error, self.L)
        self.bent = Perturbation.of(interval, size, budget, self.L, self.mu)

    def adjoint_error(self) -> Tensor:
        none = torch.zeros_like(self.e)
        return sharp_adjoint_bound(none, self.bent) + self.boundary_error()

    def energy_adjoint_error(self) -> Tensor:
        """On active pixels, where X^ = 0, X_A acts through H_FA = M_FA + K_F^T D^ K_A and by itself."""
        inside = sharp_energy_bound(torch.zeros_like(self.e), self.bent)
        active = 0.5 * self.data_norm() / self.mu**0.5 + 2.0 * self.high_max.sqrt() * self.L
        result: Tensor = inside + active * self.active_norm
        return result

    def regularizer_groups(self) -> dict[ParameterRole, GroupBound]:
        r, instance, potential = self.responses, self.instance, self.instance.potential
        roles, pairing = self.roles(), pairing_of(instance)
        found: dict[ParameterRole, GroupBound] = {}
        if "operator" in roles and pairing is not None:
            high = self.high
            if self.fall is not None:  # f'' / √(f'' + rho) rises in f'' >= 0
                high = self.rise * (self.rise / self.high.clamp_min(torch.finfo(self.high.dtype).tiny))
            found["operator"] = operator_bound(
                pairing, self.x, self.X, r.y, r.Y, high, self.fall, self.bent, self.e, self.energy_error
            )
        if "log_weight" in roles:
            shape = parameter_shape(potential.weight)
            s = self.weight_gradient()
            norm = self._pullback_norm(s, shape, found, self.pullback if s is r.y else None)
            found["log_weight"] = self._potential_group(norm, shape, potential.weight_excess)
        if "log_factor" in roles:
            norm = self._pullback_norm(r.y, (), found, self.pullback)
            found["log_factor"] = self._potential_group(norm, (), potential.concavity)
        if "log_smoothing" in roles:
            shape = parameter_shape(potential.smoothing)
            norm = self._pullback_norm(potential.smoothing_gradient(r.t), shape, found)
            found["log_smoothing"] = self._smoothing_group(norm, shape)
        if "log_curvature" in roles:
            spline = spline_of(instance)
            shape = channel_shape(spline.convex_coefficients)
            norm = group_norm(self.weight_gradient(), shape) * self.L
            if not self._negligible(norm, found):
                norm = torch.minimum(norm, knots_norm(spline.coefficient_gradients(r.t), shape != ()) * self.L)
            found["log_curvature"] = self._potential_group(norm, shape, spline.weight_excess)
        if "log_depth" in roles:
            concave = weakly_convex_spline_of(instance)
            shape = channel_shape(concave.depths)
            norm = group_norm(concave.depth_gradient_size(r.t), shape) * self.L
            if not self._negligible(norm, found):
                norm = torch.minimum(norm, knots_norm(concave.depth_gradients(r.t), shape != ()) * self.L)
            found["log_depth"] = self._potential_group(norm, shape, concave.depth_excess)
        if "latent_cost" in roles:
            found["latent_cost"] = self.latent_cost_group()
        if "potential" in roles:
            own = self.potential_parameters(self.bent.norm())
            found["potential"] = GroupBound(own.constant, self.L * own.on_V, self.high_max.sqrt() * own.on_Y)
        return found

    def _pullback_norm(
        self, p: Tensor, shape: tuple[int, ...], found: dict[ParameterRole, GroupBound], pullback: Tensor | None = None
    ) -> Tensor:
        """The norm of u -> (<p_g, (K u)_g>)_g, by norms alone where the operator's group is much larger."""
        by_norm = group_norm(p, shape) * self.L
        return by_norm if self._negligible(by_norm, found) else group_pullback_norm(self.instance, p, shape, pullback)

    def _negligible(self, norm: Tensor, found: dict[ParameterRole, GroupBound]) -> bool:
        operator = found.get("operator")
        if operator is None:
            return False
        return bool((norm <= _NEGLIGIBLE * 0.5 * math.sqrt(self.mu) * operator.on_energy).all())

    def _smoothing_group(self, pullback_norm: Tensor, shape: tuple[int, ...]) -> GroupBound:
        if bool(torch.isfinite(self.sensitivity).all()):
            return potential_bound(
                pullback_norm, self.responses.V, self.high, self.sensitivity, shape, self.energy_error, self.L
            )
        slope, factor = self.smoothing_slope(), self.sensitivity * self.high.sqrt()
        return split_bound(
            pullback_norm, self.responses.V, factor, slope, shape, self.energy_error, self.L * self.e, self.L
        )

    def _potential_group(self, pullback_norm: Tensor, shape: tuple[int, ...], excess: Tensor | float) -> GroupBound:
        """With a factor of 1; a convex potential has no excess."""
        beyond = None if self.fall is None else torch.as_tensor(excess, dtype=self.e.dtype, device=self.e.device)
        one, V = torch.ones_like(self.sensitivity), self.responses.V
        return potential_bound(pullback_norm, V, self.high, one, shape, self.energy_error, self.L, beyond, self.e)
