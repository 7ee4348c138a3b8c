"""The smooth input-convex network behind its skip convolutions: a convex function of all responses together.

R(x) = f(W x), where W stacks the convolutions of the image and f(a_1, ..., a_L) is what the network makes of their
responses. With u_1 = a_1 + b_1, z_l = s(u_l), u_{l+1} = U_l z_l + a_{l+1} + b_{l+1} and f = sum of <c, z_L>,

    y_l = ∂f/∂a_l = q_l s'(u_l),   q_L = c,   q_l = U_l^T y_{l+1},
    <f''(a) v, w> = sum_l <q_l s''(u_l) J_l v, J_l w>,   J_1 v = v_1,   J_{l+1} v = U_l (s'(u_l) J_l v) + v_{l+1},

which is not negative, since U, c, s', s'' are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from learnreg.convolutions.network_layers import mix, mix_adjoint
from learnreg.kernels.numbers import number_like
from learnreg.linear.parameter_groups import Density, OwnBound, ParameterBound, ParameterGroup, ResponseErrors
from learnreg.linear.samples import sum_samples
from learnreg.potentials.base import OUTWARD, Smoothed
from learnreg.potentials.curvature import CurvatureInterval
from learnreg.potentials.network_bounds import NetworkConstants, Passes, combine, parameter_bounds
from learnreg.potentials.network_passes import Layers, bend_into, gradient_into, linearise_into

__all__ = ["NetworkPotential"]


@dataclass(frozen=True)
class _Linearised:
    """At a point: the gradient y, the slopes s'(u) and the bends q s''(u), all of its shape."""

    y: Tensor
    slopes: Tensor
    bends: Tensor


class NetworkPotential(Smoothed):
    """f(a) = sum over pixels of <c, z_L> for responses (batch, L n, h, w), layer after layer, with the activation
    s(t) = (t + sqrt(t² + v²) - v)/2. A sample is one group; f has no proximal map.

    Parameters
    ----------
    smoothing: v > 0 of each feature of each layer, (L n, 1, 1), or a number.
    weight: c > 0, (n, 1, 1), or a number.
    mixing: U_l > 0, (L - 1, n, n, m, m) with m odd.
    biases: b_l, (L, n).
    """

    def __init__(self, smoothing: float | Tensor, weight: float | Tensor, mixing: Tensor, biases: Tensor) -> None:
        super().__init__(smoothing, weight)
        self.mixing, self.biases = mixing, biases
        self._constants: NetworkConstants | None = None
        self._latest: tuple[Tensor, int, _Linearised] | None = None
        self._nearby: tuple[Tensor, Tensor | float, int, NetworkConstants] | None = None

    def with_parameters(self, weight: float | Tensor, smoothing: float | Tensor) -> Self:
        return type(self)(smoothing, weight, self.mixing, self.biases)

    def detached(self) -> Self:
        frozen = super().detached()
        return type(self)(frozen.smoothing, frozen.weight, self.mixing.detach(), self.biases.detach())

    def to(self, dtype: torch.dtype) -> Self:
        if all(isinstance(p, Tensor) and p.dtype == dtype for p in (self.weight, self.smoothing, self.biases)):
            return self
        cast = super().to(dtype)
        return type(self)(cast.smoothing, cast.weight, self.mixing.to(dtype), self.biases.to(dtype))

    @property
    def layers(self) -> int:
        return int(self.biases.shape[0])

    @property
    def features(self) -> int:
        return int(self.biases.shape[1])

    @property
    def constants(self) -> NetworkConstants:
        """Norms and largest derivatives, for bounds."""
        if self._constants is None:
            self._constants = NetworkConstants.of(self.mixing, self.feature_weights(), self.feature_smoothing())
        return self._constants

    def feature_weights(self) -> Tensor:
        """c, (n,), detached, in float64."""
        return _spread(self.weight, self.features)

    def feature_smoothing(self) -> Tensor:
        """v, (L, n), detached, in float64."""
        return _spread(self.smoothing, self.layers * self.features).view(self.layers, self.features)

    # ---- values ------------------------------------------------------------------------------------------------------

    def value(self, t: Tensor) -> Tensor:
        return sum_samples(self.density(t))

    def density(self, t: Tensor) -> Tensor:
        """f itself, (batch, 1, 1, 1)."""
        z = self.activations(t)[-1]
        return (self.weight * z).sum((1, 2, 3), keepdim=True)

    def activations(self, t: Tensor) -> list[Tensor]:
        """z_1 ... z_L."""
        return self._states(t)[1]

    def inputs(self, t: Tensor) -> list[Tensor]:
        """u_1 ... u_L."""
        return self._states(t)[0]

    def _states(self, t: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        us: list[Tensor] = []
        zs: list[Tensor] = []
        for a, b, v, U in self._layers(t):
            us.append(a + b if U is None else a + b + mix(zs[-1], U))
            u = us[-1]
            zs.append(0.5 * (u + u * u / (torch.sqrt(u * u + v * v) + v)))
        return us, zs

    def grad(self, t: Tensor) -> Tensor:
        return self._linearise(t).y if torch.is_grad_enabled() else self.grad_into(t, torch.empty_like(t))

    def grad_into(self, t: Tensor, out: Tensor) -> Tensor:
        gradient_into(self._numbers(t), t.contiguous(), out)
        return out

    def hess_vec(self, t: Tensor, v: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self._bend(self._linearise(t), v)
        at, out = self._at(t), torch.empty_like(v, memory_format=torch.contiguous_format)
        bend_into(self._numbers(v), at.slopes, at.bends, v.contiguous(), out)
        return out

    def _layers(self, t: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        """Responses, bias, smoothing and incoming mixing of each layer."""
        n = self.features
        smoothing = number_like(self.smoothing, t).expand(self.layers * n, 1, 1)
        for l in range(self.layers):
            own = slice(l * n, (l + 1) * n)
            yield t[:, own], self.biases[l, :, None, None], smoothing[own], self.mixing[l - 1] if l else None

    def _linearise(self, t: Tensor) -> _Linearised:
        slopes, bends, z = [], [], None
        for a, b, v, U in self._layers(t):
            u = a + b if U is None or z is None else a + b + mix(z, U)
            root = torch.sqrt(u * u + v * v)
            inverse = 1.0 / root
            z = 0.5 * (u + u * u / (root + v))
            half = 0.5 * v * v * inverse  # s'(-|u|) = half/(root + |u|), which does not cancel
            slopes.append(torch.where(u > 0, 1.0 - half / (root + u.clamp_min(0.0)), half / (root - u.clamp_max(0.0))))
            bends.append(0.5 * v * v * (inverse * inverse * inverse))
        ys: list[Tensor] = []
        q = number_like(self.weight, t).expand_as(slopes[-1])
        for l in range(self.layers - 1, -1, -1):
            bends[l] = bends[l] * q
            ys.append(q * slopes[l])
            if l:
                q = mix_adjoint(ys[-1], self.mixing[l - 1])
        return _Linearised(torch.cat(ys[::-1], 1), torch.cat(slopes, 1), torch.cat(bends, 1))

    def _at(self, t: Tensor) -> _Linearised:
        """The linearisation without autograd, that of the latest point kept: iterations ask for it again and again."""
        kept = self._latest
        if kept is not None and kept[0] is t and not t.is_inference() and kept[1] == t._version:
            return kept[2]
        found = _Linearised(*(torch.empty_like(t, memory_format=torch.contiguous_format) for _ in range(3)))
        linearise_into(self._numbers(t), t.contiguous(), found.y, found.slopes, found.bends)
        self._latest = None if t.is_inference() else (t, t._version, found)
        return found

    def _numbers(self, like: Tensor) -> Layers:
        n = self.features
        smoothing = number_like(self.smoothing, like).expand(self.layers * n, 1, 1)
        weights = number_like(self.weight, like).expand(n, 1, 1)
        return Layers(smoothing.view(-1, n, 1, 1), self.biases[..., None, None], weights, self.mixing)

    def _bend(self, at: _Linearised, v: Tensor) -> Tensor:
        n = self.features
        parts = [slice(l * n, (l + 1) * n) for l in range(self.layers)]
        tangent = v[:, parts[0]]
        bent = [at.bends[:, parts[0]] * tangent]
        for l in range(1, self.layers):
            tangent = mix(at.slopes[:, parts[l - 1]] * tangent, self.mixing[l - 1]) + v[:, parts[l]]
            bent.append(at.bends[:, parts[l]] * tangent)
        for l in range(self.layers - 1, 0, -1):
            bent[l - 1] = bent[l - 1] + at.slopes[:, parts[l - 1]] * mix_adjoint(bent[l], self.mixing[l - 1])
        return torch.cat(bent, 1)

    # ---- what solvers ask --------------------------------------------------------------------------------------------

    def second(self, t: Tensor) -> Tensor:
        """A bound of the largest eigenvalue, per sample."""
        return self.curvature_bounds(t, 0.0)[1]

    def second_diagonal(self, t: Tensor) -> Tensor:
        """The diagonal of the Hessian, exact for up to two layers; beyond, without what paths have in common."""
        at, n = self._at(t), self.features
        slopes, bends = torch.split(at.slopes, n, 1), list(torch.split(at.bends, n, 1))
        for l in range(self.layers - 1, 0, -1):
            bends[l - 1] = bends[l - 1] + slopes[l - 1].square() * mix_adjoint(bends[l], self.mixing[l - 1].square())
        return torch.cat(bends, 1)

    def majorant(self, t: Tensor) -> Tensor:
        return self.second_diagonal(t)

    # ---- bounds ------------------------------------------------------------------------------------------------------

    @property
    def curvature_limit(self) -> Tensor | float:
        """A bound of ‖f''‖, everywhere."""
        return self.constants.curvature

    @property
    def gradient_limit(self) -> float:  # type: ignore[override]
        return float(torch.stack(self.constants.weights).norm())

    def curvature_bounds(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        high = self._near(t, radius).curvature.to(t)[:, None, None, None]
        return torch.zeros_like(high), high * (1.0 + OUTWARD)

    def curvature_interval(self, t: Tensor, radius: Tensor | float) -> CurvatureInterval:
        low, high = self.curvature_bounds(t, radius)
        change, third = self.curvature_change(t, radius), self.third_bound(t, radius)
        ratio = self.curvature_ratio(high, low, high, change)
        return CurvatureInterval(low, high, change, ratio, third, self.kink_excluded(t, radius))

    def curvature_change(self, t: Tensor, radius: Tensor | float) -> Tensor:
        return self.third_bound(t, radius) * radius

    def third_bound(self, t: Tensor, radius: Tensor | float) -> Tensor:
        return self._near(t, radius).third.to(t)[:, None, None, None] * (1.0 + OUTWARD)

    def bending_size(self, v: Tensor, t: Tensor, radius: Tensor | float) -> Tensor:
        """min(‖v‖, kappa(v)/kappa), where kappa(v) bounds ‖(f''(t') - f''(t)) v‖/‖t' - t‖ by the largest entries of
        v."""
        near = self._near(t, radius)
        largest = v.abs().flatten(2).amax(2).view(v.shape[0], self.layers, self.features).amax(2)
        by_size = near.third_along(largest.double()) / near.third.clamp_min(torch.finfo(torch.float64).tiny)
        return torch.minimum(self.size(v), by_size.to(v)[:, None, None, None])

    @torch.no_grad()
    def _near(self, t: Tensor, radius: Tensor | float) -> NetworkConstants:
        """Constants on the ball around t, the latest kept: bounds ask for several of them."""
        kept = self._nearby
        if kept is not None and kept[0] is t and kept[1] is radius and not t.is_inference() and kept[2] == t._version:
            return kept[3]
        size = torch.as_tensor(radius, dtype=torch.float64, device=t.device).expand(t.shape[0], 1, 1, 1).flatten()
        exact = self.to(torch.float64)
        found = self.constants.near(
            exact.mixing, self.feature_weights(), self.feature_smoothing(), exact.inputs(t.double()), size
        )
        self._nearby = None if t.is_inference() else (t, radius, t._version, found)
        return found

    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """A factor of f, and all of the network's own parameters as the group "potential"."""
        return Density("log_factor", ()), OwnBound("potential", self.parameter_bound)

    def parameter_bound(self, t: Tensor, V: Tensor, y: Tensor, Y: Tensor, errors: ResponseErrors) -> ParameterBound:
        """For the biases and the logarithms of U, c and v."""
        return combine(self.parameter_bounds(t, V, y, Y, errors).values())

    def parameter_bounds(
        self, t: Tensor, V: Tensor, y: Tensor, Y: Tensor, errors: ResponseErrors
    ) -> dict[str, ParameterBound]:
        """The same for each kind of parameter."""
        n, at = self.features, self._at(t)
        du: list[Tensor] = []
        dz: list[Tensor] = []
        for l, (slope, own) in enumerate(zip(torch.split(at.slopes, n, 1), torch.split(V, n, 1), strict=True)):
            du.append(own if l == 0 else mix(dz[-1], self.mixing[l - 1]) + own)
            dz.append(slope * du[-1])
        passes = Passes(self.activations(t), du, dz, list(torch.split(y, n, 1)), list(torch.split(Y, n, 1)))
        weights, smoothing = self.feature_weights(), self.feature_smoothing()
        return parameter_bounds(self.constants, self.mixing, weights, smoothing, passes, errors)


def _spread(value: float | Tensor, count: int) -> Tensor:
    """One number for each of ``count`` features."""
    return torch.as_tensor(value).detach().double().reshape(-1).expand(count)
