"""Constants of input-convex networks: norms of the layers, and bounds of the derivatives that certificates need.

Notation of ``network_potential.py``. The activation s(t) = (t + sqrt(t² + v²) - v)/2 has 0 <= s' <= 1, 0 <= s'' <=
1/(2v) and |s'''| <= 0.4294/v². All numbers are *rigorous bounds*, everywhere and rounded outwards; proofs are in
docs/certificate.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from learnreg.network import mix_adjoint, mixing_matrix
from learnreg.parameter_bound import ParameterBound, ResponseErrors

__all__ = ["NetworkConstants", "Passes", "parameter_bound"]

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


class _Parts:
    """Bounds of one kind of parameter each, which add up as the root of the sum of squares."""

    def __init__(self, like: Tensor) -> None:
        self.squares = [torch.zeros_like(like) for _ in range(4)]

    def add(self, constant: Tensor, on_V: Tensor, on_Y: Tensor, magnitude: Tensor) -> None:
        terms = (constant, on_V, on_Y, magnitude)
        self.squares = [square + term**2 for square, term in zip(self.squares, terms, strict=True)]

    def total(self) -> ParameterBound:
        return ParameterBound(*(square.sqrt() * _ROUND_UP for square in self.squares))


@torch.no_grad()
def parameter_bound(
    constants: NetworkConstants,
    mixing: Tensor,
    weights: Tensor,
    smoothing: Tensor,
    at: Passes,
    errors: ResponseErrors,
) -> ParameterBound:
    """For the biases and the logarithms of U, c and v, whose gradients are the sums over pixels

        b_l: Y_l,   log U_l: U_l (Y_{l+1} z_l + y_{l+1} dz_l),   log c: c dz_L,
        log v_l: (U_l^T Y_{l+1}) s_v(u_l) + q_l s_v'(u_l) du_l,   s_v = v ∂s/∂v.

    |s_v| <= v/2 and |s_v'| <= 1/(3√3), and they change by at most 1/(3√3) and 1/(2v) times the change of u. ``errors``
    are those of all layers together.
    """
    c, L = constants, len(at.z)
    dt, dy, dY = errors.t, errors.y, errors.Y
    side = float(at.z[0][0, 0].numel()) ** 0.5
    parts, norm_Y = _Parts(dt), sum((_channels(Y).sum(1) for Y in at.Y), torch.zeros_like(dt)).sqrt()
    parts.add(side * dY, torch.zeros_like(dt), torch.full_like(dt, side), side * norm_Y)
    du_error = torch.zeros_like(dt)
    for l in range(L):
        bend, j = (0.5 / smoothing[l])[:, None, None], c.reach[l]
        du, q = at.du[l], c.weights[l]
        du_size = _channels(du).sum(1).sqrt()
        u_error = j * dt
        above = c.norms[l] if l + 1 < L else 0.0
        q_error = above * dy
        # dq s_v changes with dq and with u; q s_v' du with each of its factors
        below = 0.5 * float(smoothing[l].max()) * above
        slope_q = _SLOPE * float(q.max())
        dq = mix_adjoint(at.Y[l + 1], mixing[l]) if l + 1 < L else torch.zeros_like(du)
        constant = below * dY + _SLOPE * _largest(dq) * u_error + slope_q * du_error
        constant = constant + _largest(q[:, None, None] * bend * du) * u_error + _SLOPE * _largest(du) * q_error
        Y_size = _channels(at.Y[l + 1]).sum(1).sqrt() if l + 1 < L else torch.zeros_like(dt)
        reach = torch.full_like(dt, j)
        parts.add(
            side * constant,
            side * slope_q * reach,
            side * below * torch.ones_like(dt),
            side * (below * Y_size + slope_q * du_size),
        )
        dz_error = _largest(bend * du) * u_error + du_error
        if l + 1 == L:
            largest = float(weights.max()) * side
            dz_size = _channels(at.dz[l]).sum(1).sqrt()
            parts.add(largest * dz_error, largest * reach, torch.zeros_like(dt), largest * dz_size)
            break
        R = mixing[l].square().sum((-2, -1))  # (n, n): its row o and column i weigh channels of z and of y
        z, dz, y, Y = (_channels(p) for p in (at.z[l], at.dz[l], at.y[l + 1], at.Y[l + 1]))
        by_z, by_dz = ((p @ R.T).amax(1).sqrt() for p in (z, dz))
        by_y, by_Y = ((p @ R).amax(1).sqrt() for p in (y, Y))
        most = float(R.max()) ** 0.5
        constant = (by_z + most * u_error) * dY + by_Y * u_error + (by_dz + most * dz_error) * dy + by_y * dz_error
        on_V, on_Y = (by_y + most * dy) * j, by_z + most * u_error
        parts.add(constant, on_V, on_Y, by_z * norm_Y + by_y * dz.sum(1).sqrt())
        du_error = c.norms[l] * dz_error
    return parts.total()


def _channels(p: Tensor) -> Tensor:
    """The squared norm of each channel, (batch, n)."""
    return p.square().sum((2, 3))


def _largest(p: Tensor) -> Tensor:
    return p.abs().flatten(1).amax(1)
