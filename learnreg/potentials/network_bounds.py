"""Constants of input-convex networks: norms of the layers, and bounds of the derivatives that certificates need.

Notation of ``network.py``. The activation s(t) = (t + sqrt(t² + v²) - v)/2 has 0 <= s' <= 1, 0 <= s'' <=
1/(2v) and |s'''| <= 0.4294/v². All numbers are *rigorous bounds*, rounded outwards; proofs are in
docs/certificate.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from learnreg.convolutions.network_layers import mix_adjoint, mixing_matrix
from learnreg.linear.parameter_groups import ParameterBound, ResponseErrors

__all__ = ["NetworkConstants", "Passes", "combine", "parameter_bounds"]

_ROUND_UP = 1.0 + 1e-9
_THIRD = 0.42933  # |s'''| v² at t = v/2: 24/(25 √5)
_ROUNDED = 1e-13  # relative rounding of u, with a margin
_SLOPE = 0.19246  # |s_v'| at t = v/√2: 1/(3 √3)


@dataclass(frozen=True)
class NetworkConstants:
    """Bounds everywhere, or on a ball of responses: then for each sample. Every entry of these lists, one for each
    layer or for each U_l, is a tensor () or (batch,).

    norms, column_sums: of U_l, in the 2-norm and in the 1-norm. slope_norms, slope_row_sums, slope_column_sums: of U_l
    s'(u_l), in the 2-norm, the maximum norm and the 1-norm. reach: j_l, ‖J_l‖. bend, weighted_bend: the largest s'' and
    q s'' of a feature. weighted_twist: the largest q |s'''|. weights: everywhere, an entrywise bound of q_l, (n,).
    """

    norms: list[Tensor]
    column_sums: list[Tensor]
    slope_norms: list[Tensor]
    slope_row_sums: list[Tensor]
    slope_column_sums: list[Tensor]
    reach: list[Tensor]
    bend: list[Tensor]
    weighted_bend: list[Tensor]
    weighted_twist: list[Tensor]
    weights: list[Tensor]

    @classmethod
    @torch.no_grad()
    def of(cls, mixing: Tensor, weights: Tensor, smoothing: Tensor) -> NetworkConstants:
        """Everywhere, for U (L - 1, n, n, m, m), c (n,) and v (L, n): s' <= 1."""
        sums = [mixing_matrix(U.detach().double()) for U in mixing]
        norms, rows, columns = _matrix_norms(sums)
        above = [weights * _ROUND_UP]
        for S in reversed(sums):
            above.insert(0, above[0] @ S * _ROUND_UP)
        bends, twists = ([factor / v**power for v in smoothing] for factor, power in ((0.5, 1), (_THIRD, 2)))
        return cls(
            norms=norms,
            column_sums=columns,
            slope_norms=norms,
            slope_row_sums=rows,
            slope_column_sums=columns,
            reach=_reach(norms, weights.new_ones(())),
            bend=[s.max() * _ROUND_UP for s in bends],
            weighted_bend=[(q * s).max() * _ROUND_UP for q, s in zip(above, bends, strict=True)],
            weighted_twist=[(q * s).max() * _ROUND_UP for q, s in zip(above, twists, strict=True)],
            weights=above,
        )

    @torch.no_grad()
    def near(
        self, mixing: Tensor, weights: Tensor, smoothing: Tensor, u: list[Tensor], radius: Tensor
    ) -> NetworkConstants:
        """On the ball of this radius, (batch,), around responses that lead to u_1 ... u_L, (batch, n, h, w).

        No entry of u_l moves by more than j_l times the radius. s' rises; so U^T (q s') with the largest q and s'
        bounds the next q entry by entry.
        """
        slopes, bends, twists, matrices = [], [], [], []
        reach = [torch.ones_like(radius)]
        for l, (u_l, v) in enumerate(zip(u, smoothing[:, :, None, None], strict=True)):
            margin = (reach[l] * radius + _ROUNDED * _largest(u_l))[:, None, None, None]
            size, far = u_l.abs(), u_l + margin
            low, high = (size - margin).clamp_min(0.0), size + margin
            slopes.append(0.5 * (1.0 + far / torch.hypot(far, v)) * _ROUND_UP)
            bends.append(0.5 * v * v * (low * low + v * v) ** -1.5 * _ROUND_UP)
            peak = torch.minimum(torch.maximum(low, 0.5 * v), high)
            twists.append(1.5 * v * v * peak * (peak * peak + v * v) ** -2.5 * _ROUND_UP)
            if l < len(mixing):
                largest = slopes[l].flatten(2).amax(2)
                matrices.append(mixing_matrix(mixing[l].detach().double()) * largest[:, None, :])
                reach = _reach(_matrix_norms(matrices)[0], reach[0])
        norms, rows, columns = _matrix_norms(matrices)
        q = weights[:, None, None].expand_as(u[-1])
        weighted_bend: list[Tensor] = []
        weighted_twist: list[Tensor] = []
        for l in range(len(u) - 1, -1, -1):
            weighted_bend.insert(0, _largest(q * bends[l]))
            weighted_twist.insert(0, _largest(q * twists[l]))
            if l:
                q = mix_adjoint(q * slopes[l], mixing[l - 1]) * _ROUND_UP
        return replace(
            self,
            slope_norms=norms,
            slope_row_sums=rows,
            slope_column_sums=columns,
            reach=reach,
            bend=[_largest(s) for s in bends],
            weighted_bend=weighted_bend,
            weighted_twist=weighted_twist,
        )

    @property
    def curvature(self) -> Tensor:
        """A bound of ‖f''‖."""
        parts = [b * j * j for b, j in zip(self.weighted_bend, self.reach, strict=True)]
        return torch.stack(parts).sum(0) * _ROUND_UP

    @property
    def third(self) -> Tensor:
        """A bound of ‖f''(t') - f''(t)‖ / ‖t' - t‖: sum_l C_l j_l³ + 3 B_l N_l j_l, where N_l bounds ‖D J_l‖."""
        total = turned = torch.zeros_like(self.reach[0])
        for l, j in enumerate(self.reach):
            total = total + self.weighted_twist[l] * j**3 + 3.0 * self.weighted_bend[l] * turned * j
            if l < len(self.norms):
                turned = self.norms[l] * self.bend[l] * j * j + self.slope_norms[l] * turned
        return total * _ROUND_UP

    def third_along(self, largest: Tensor) -> Tensor:
        """A bound of ‖(f''(t') - f''(t)) v‖ / ‖t' - t‖ from the largest |v| in each layer, (batch, L): (batch,)."""
        total = turned = summed = torch.zeros_like(largest[:, 0])
        moved = largest[:, 0]
        for l, j in enumerate(self.reach):
            B = self.weighted_bend[l]
            total = total + self.weighted_twist[l] * j * j * moved + 2.0 * B * j * turned + B * summed * moved
            if l < len(self.norms):
                turned = self.norms[l] * self.bend[l] * j * moved + self.slope_norms[l] * turned
                summed = self.column_sums[l] * self.bend[l] * j * j + self.slope_column_sums[l] * summed
                moved = largest[:, l + 1] + self.slope_row_sums[l] * moved
        return total * _ROUND_UP


def _matrix_norms(matrices: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Of non-negative matrices (..., n, n): 2-norms, largest row sums, largest column sums."""
    return (
        [torch.linalg.matrix_norm(S, 2) * _ROUND_UP for S in matrices],
        [S.sum(-1).amax(-1) * _ROUND_UP for S in matrices],
        [S.sum(-2).amax(-1) * _ROUND_UP for S in matrices],
    )


def _reach(norms: list[Tensor], one: Tensor) -> list[Tensor]:
    """j_1 = 1, j_{l+1} = sqrt(1 + ‖U_l s'‖² j_l²)."""
    reach = [one]
    for norm in norms:
        reach.append((1.0 + (norm * reach[-1]) ** 2).sqrt() * _ROUND_UP)
    return reach


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
            norm = (
                torch.zeros_like(self.one[0]) if last else self.constants.norms[l]
            )  # of the map from y and Y above to q and its change
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
