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

from learnreg.certificates.groups import GroupBound, group_norm, group_pullback_norm
from learnreg.certificates.interval import response_budget
from learnreg.certificates.point_bound import PointBound
from learnreg.certificates.resolvent import Perturbation, sharp_adjoint_bound, sharp_energy_bound
from learnreg.linear.parameter_groups import Density, OwnBound, Pairing
from learnreg.linear.samples import expand, norm_samples
from learnreg.potentials.curvature import CurvatureInterval

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
    factor: Tensor | float,
    shape: tuple[int, ...],
    e_energy: Tensor,
    operator_norm: float,
    excess: Tensor | None = None,
    e: Tensor | None = None,
) -> GroupBound:
    """For a density, gradient <s(t_g), V_g> per group g with |ds/dt| <= factor (f'' + rho) + excess.

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
        budget = response_budget(self.e, self.energy_error, self.L)
        self.bent = Perturbation.of(interval, size, budget, self.L, self.mu)
        self._dear: Tensor | None = None  # what the operator's groups, which come first, charge for the energy norm

    def adjoint_error(self) -> Tensor:
        none = torch.zeros_like(self.e)
        return sharp_adjoint_bound(none, self.bent) + self.boundary_error()

    def energy_adjoint_error(self) -> Tensor:
        """On active pixels, where X^ = 0, X_A acts through H_FA = M_FA + K_F^T D^ K_A and by itself."""
        inside = sharp_energy_bound(torch.zeros_like(self.e), self.bent)
        active = 0.5 * self.data_norm() / self.mu**0.5 + 2.0 * self.high_max.sqrt() * self.L
        result: Tensor = inside + active * self.active_norm
        return result

    def of_operator(self, group: Pairing) -> GroupBound:
        r, x, X = self.responses, self.x, self.X
        found = operator_bound(group, x, X, r.y, r.Y, self.root, self.fall, self.bent, self.e, self.energy_error)
        self._dear = found.on_energy if self._dear is None else torch.maximum(self._dear, found.on_energy)
        return found

    def of_density(self, group: Density) -> GroupBound:
        (t, y, V, radius, high), L = self.seen(group), self.L
        norm = self._pullback_norm(group, t, y)
        factor = torch.as_tensor(1.0 if group.factor is None else group.factor(t, radius)).to(self.e)
        if not bool(torch.isfinite(factor).all()):
            slope, low = self.largest_slope(group), self.of_group(group, self.low)
            rate = self.split.rate(slope, factor, low, high)
            return split_bound(norm, V, rate, slope, group.shape, self.energy_error, L * self.e, L)
        excess = self.split.excess(group, factor)
        excess = None if self.fall is None and not isinstance(excess, Tensor) else excess
        beyond = None if excess is None else torch.as_tensor(excess).to(self.e)
        return potential_bound(norm, V, high, factor, group.shape, self.energy_error, L, beyond, self.e)

    def of_own(self, group: OwnBound) -> GroupBound:
        own = self.own_parameters(group, self.bent.norm())
        return GroupBound(own.constant, self.L * own.on_V, self.high_max.sqrt() * own.on_Y)

    def _pullback_norm(self, group: Density, t: Tensor, y: Tensor) -> Tensor:
        """The norm of u -> (<s_g, (K u)_g>)_g at responses t with duals y, by norms alone where the operator's groups
        are much larger."""
        s = group.size(t, y)
        by_norm = group_norm(s, group.shape) * self.L
        if self._negligible(by_norm):
            return by_norm
        joint = group.joint_norm(t)
        if joint is None:
            pullback = self.pullback if s is self.responses.y else None
            return group_pullback_norm(self.instance, s, group.shape, pullback, group.share)
        return torch.minimum(by_norm, joint * self.L)

    def _negligible(self, norm: Tensor) -> bool:
        if self._dear is None:
            return False
        return bool((norm <= _NEGLIGIBLE * 0.5 * math.sqrt(self.mu) * self._dear).all())
