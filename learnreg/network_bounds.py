"""Constants of input-convex networks: norms of the layers, and bounds of the derivatives that certificates need.

Notation of ``network_potential.py``. The activation s(t) = (t + sqrt(t² + v²) - v)/2 has 0 <= s' <= 1, 0 <= s'' <=
1/(2v) and |s'''| <= 0.4294/v². All numbers are *rigorous bounds*, everywhere and rounded outwards; proofs are in
docs/certificate.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from learnreg.network import mix_adjoint, mixing_matrix
from learnreg.parameter_bound import ParameterBound, ResponseErrors

__all__ = ["NetworkConstants", "Passes", "combine", "parameter_bounds"]

_ROUND_UP = 1.0 + 1e-9
_THIRD = 0.42933  # |s'''| v² at t = v/2: 24/(25 √5)
_SLOPE = 0.19246  # |s_v'| at t = v/√2: 1/(3 √3)


@dataclass(frozen=True)
class NetworkConstants:
    """Lists have an entry for each layer, those of norms one for each U_l.

    norms, row_sums, column_sums: of U_l, in the 2-norm, the maximum norm and the 1-norm. reach: j_l, ‖J_l‖. weights:
    entrywise bound of q_l, (n,). bend, weighted_bend: the largest s'' and q s'' of a feature. weighted_twist: the
    largest q |s'''|.
    """

    norms: list[float]
    row_sums: list[float]
    column_sums: list[float]
    reach: list[float]
    weights: list[Tensor]
    bend: list[float]
    weighted_bend: list[float]
    weighted_twist: list[float]

    @classmethod
    @torch.no_grad()
    def of(cls, mixing: Tensor, weights: Tensor, smoothing: Tensor) -> NetworkConstants:
        """For U (L - 1, n, n, m, m), c (n,) and v (L, n)."""
        sums = [mixing_matrix(U.detach().double()) for U in mixing]
        norms = [float(torch.linalg.matrix_norm(S, 2)) * _ROUND_UP for S in sums]
        row_sums = [float(S.sum(1).max()) * _ROUND_UP for S in sums]
        column_sums = [float(S.sum(0).max()) * _ROUND_UP for S in sums]
        reach, above = [1.0], [weights * _ROUND_UP]
        for norm in norms:
            reach.append((1.0 + (norm * reach[-1]) ** 2) ** 0.5 * _ROUND_UP)
        for S in reversed(sums):
            above.insert(0, above[0] @ S * _ROUND_UP)
        bends = [0.5 / v * _ROUND_UP for v in smoothing]
        weighted_bend = [float((q * s).max()) for q, s in zip(above, bends, strict=True)]
        twists = [float((_THIRD * q / v**2).max()) * _ROUND_UP for q, v in zip(above, smoothing, strict=True)]
        return cls(
            norms=norms,
            row_sums=row_sums,
            column_sums=column_sums,
            reach=reach,
            weights=above,
            bend=[float(s.max()) for s in bends],
            weighted_bend=weighted_bend,
            weighted_twist=twists,
        )

    @property
    def curvature(self) -> float:
        """A bound of ‖f''‖."""
        return sum(b * j * j for b, j in zip(self.weighted_bend, self.reach, strict=True)) * _ROUND_UP

    @cached_property
    def third(self) -> float:
        """A bound of ‖f''(t') - f''(t)‖ / ‖t' - t‖: sum_l C_l j_l³ + 3 B_l N_l j_l, where N_l bounds ‖D J_l‖."""
        total, turned = 0.0, 0.0
        for l, j in enumerate(self.reach):
            total += self.weighted_twist[l] * j**3 + 3.0 * self.weighted_bend[l] * turned * j
            if l < len(self.norms):
                turned = self.norms[l] * (self.bend[l] * j * j + turned)
        return total * _ROUND_UP

    def third_along(self, largest: Tensor) -> Tensor:
        """A bound of ‖(f''(t') - f''(t)) v‖ / ‖t' - t‖ from the largest |v| in each layer, (batch, L): (batch,)."""
        total = turned = torch.zeros_like(largest[:, 0])
        moved, summed = largest[:, 0], 0.0
        for l, j in enumerate(self.reach):
            B = self.weighted_bend[l]
            total = total + self.weighted_twist[l] * j * j * moved + 2.0 * B * j * turned + B * summed * moved
            if l < len(self.norms):
                turned = self.norms[l] * (self.bend[l] * j * moved + turned)
                summed = self.column_sums[l] * (self.bend[l] * j * j + summed)
                moved = largest[:, l + 1] + self.row_sums[l] * moved
        return total * _ROUND_UP


@dataclass(frozen=True)
class Passes:
    """What a network computes at responses t and their tangent V, a tensor (batch, n, h, w) for each layer: z, the
    tangents J V of u and s' J V of z, y = f'(t) and Y = f''(t) V."""

    z: list[Tensor]
    du: list[Tensor]
    dz: list[Tensor]
    y: list[Tensor]
    Y: list[Tensor]


@torch.no_grad()
def parameter_bounds(
    constants: NetworkConstants, mixing: Tensor, weights: Tensor, smoothing: Tensor, at: Passes, errors: ResponseErrors
) -> dict[str, ParameterBound]:
    """For biases ("biases") and the logarithms of U ("mixing"), c ("weights") and v ("smoothing"), whose gradients are
    sums over pixels of

        b_l: Y_l,   log U_l: U_l (Y_{l+1} z_l + y_{l+1} dz_l),   log c: c dz_L,
        log v_l: (U_l^T Y_{l+1}) s_v(u_l) + q_l s_v'(u_l) du_l,   s_v = v ∂s/∂v.

    |s_v| <= v/2 and |s_v'| <= 1/(3√3), and they change by at most 1/(3√3) and 1/(2v) times the change of u.
    """
    network = _Network(constants, mixing, weights, smoothing, at, errors)
    return {
        "biases": network.for_biases(),
        "mixing": network.for_mixing(),
        "weights": network.for_weights(),
        "smoothing": network.for_smoothing(),
    }


class _Network:
    """What the bounds share. All errors are those of 2-norms per sample, (batch,), whatever the layer: u, z, du and dz
    of each layer, y and Y of all layers together."""

    def __init__(
        self,
        constants: NetworkConstants,
        mixing: Tensor,
        weights: Tensor,
        smoothing: Tensor,
        at: Passes,
        errors: ResponseErrors,
    ) -> None:
        self.constants, self.mixing, self.weights, self.smoothing = constants, mixing, weights, smoothing
        self.at, self.y, self.Y, self.layers = at, errors.y, errors.Y, len(at.z)
        self.none, self.one = torch.zeros_like(errors.t), torch.ones_like(errors.t)
        self.side = float(at.z[0][0, 0].numel()) ** 0.5  # sums over pixels grow norms so much
        self.bend = [(0.5 / v)[:, None, None] for v in smoothing]
        self.u = [j * errors.t for j in constants.reach]  # |s'| <= 1, so that z moves no more than u
        self.du, self.dz = [self.none], []
        for l in range(self.layers):
            self.dz.append(_largest(self.bend[l] * at.du[l]) * self.u[l] + self.du[l])
            if l + 1 < self.layers:
                self.du.append(constants.norms[l] * self.dz[l])

    def for_biases(self) -> ParameterBound:
        size = sum((_norm(Y) ** 2 for Y in self.at.Y), self.none).sqrt()
        return _rounded(self.side * self.Y, self.none, self.side * self.one, self.side * size)

    def for_weights(self) -> ParameterBound:
        factor = self.side * float(self.weights.max())
        on_V = factor * self.constants.reach[-1] * self.one
        return _rounded(factor * self.dz[-1], on_V, self.none, factor * _norm(self.at.dz[-1]))

    def for_mixing(self) -> ParameterBound:
        """‖U (p q)‖ over all entries is at most sqrt(max_o sum_i R_oi ‖q_i‖²) ‖p‖ with R the sums of U² over taps."""
        found = []
        for l in range(self.layers - 1):
            R, j = self.mixing[l].square().sum((-2, -1)), self.constants.reach[l]
            most = float(R.max()) ** 0.5
            by_z, by_dz = ((_channels(p[l]) @ R.T).amax(1).sqrt() for p in (self.at.z, self.at.dz))
            by_y, by_Y = ((_channels(p[l + 1]) @ R).amax(1).sqrt() for p in (self.at.y, self.at.Y))
            constant = (by_z + most * self.u[l]) * self.Y + by_Y * self.u[l]
            constant = constant + (by_dz + most * self.dz[l]) * self.y + by_y * self.dz[l]
            size = by_z * _norm(self.at.Y[l + 1]) + by_y * _norm(self.at.dz[l])
            found.append((constant, (by_y + most * self.y) * j, by_z + most * self.u[l], size))
        return _together(found) if found else _rounded(self.none, self.none, self.none, self.none)

    def for_smoothing(self) -> ParameterBound:
        found = []
        for l in range(self.layers):
            last, du, q = l + 1 == self.layers, self.at.du[l], self.constants.weights[l]
            norm = 0.0 if last else self.constants.norms[l]  # of the map from y and Y above to q and its change
            dq = self.none if last else mix_adjoint(self.at.Y[l + 1], self.mixing[l])
            size_dq, largest_dq = (self.none, self.none) if last else (_norm(dq), _largest(dq))
            half, slope = 0.5 * float(self.smoothing[l].max()), _SLOPE * float(q.max())
            constant = half * norm * self.Y + _SLOPE * largest_dq * self.u[l]
            constant = constant + slope * self.du[l] + _largest(q[:, None, None] * self.bend[l] * du) * self.u[l]
            constant = constant + _SLOPE * _largest(du) * norm * self.y
            on_V, on_Y = slope * self.constants.reach[l] * self.one, half * norm * self.one
            found.append(tuple(self.side * p for p in (constant, on_V, on_Y, half * size_dq + slope * _norm(du))))
        return _together(found)


def combine(bounds: Iterable[ParameterBound]) -> ParameterBound:
    """The bound of all kinds of parameters together: the root of the sum of squares."""
    return _together([(b.constant, b.on_V, b.on_Y, b.magnitude) for b in bounds])


def _together(parts: Sequence[tuple[Tensor, ...]]) -> ParameterBound:
    return _rounded(*(torch.stack(column).norm(dim=0) for column in zip(*parts, strict=True)))


def _rounded(constant: Tensor, on_V: Tensor, on_Y: Tensor, magnitude: Tensor) -> ParameterBound:
    return ParameterBound(constant * _ROUND_UP, on_V * _ROUND_UP, on_Y * _ROUND_UP, magnitude)


def _channels(p: Tensor) -> Tensor:
    """The squared norm of each channel, (batch, n)."""
    return p.square().sum((2, 3))


def _norm(p: Tensor) -> Tensor:
    return p.square().sum((1, 2, 3)).sqrt()


def _largest(p: Tensor) -> Tensor:
    return p.abs().flatten(1).amax(1)
