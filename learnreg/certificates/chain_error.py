"""How far the solution of a weighted problem moves with its weights: the error that a chain carries along.

E_w(x) = g(x) + sum_i w_i f_i(K x), g mu-strongly convex on the constraint and f convex, at first; x = argmin E_w, x^ =
argmin E_w^ over it, d = x - x^, and Dbar the mean of w^ f'' between them. The variational inequalities of both, added,
give

    <d, (M + K^T Dbar K) d> <= <(w^ - w) f'(K x), K d>,    |w^ - w|_i <= delta_i.

For entries in S take ‖K d‖ <= ‖K‖ ‖d‖, for the others |K d|_i = (√low_i |K d|_i)/√low_i, low <= Dbar: with rho = ‖K‖
‖(delta f')_S‖ and s = ‖(delta f'/√low)_S^c‖

    mu ‖d‖² + E² <= rho ‖d‖ + s E,   so that   ‖d‖ <= (rho + sqrt(rho² + mu s²)) / (2 mu).

Where f'' >= -c, so is w f'' for weights in [0, 1], and all this holds with M - K^T c K for M and Dbar + c for Dbar, the
same sum: mu is the modulus of the whole energy, and low has c added.

All norms are of samples, (batch,). *Rigorous bounds.*
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learnreg.linear.samples import expand
from learnreg.lower_level.chain import WeightChange
from learnreg.lower_level.saddle_terms import SaddleTerms

__all__ = ["moved_by_weights"]

_ROUNDS = 3
_UP = 1.0 + 1e-9


def moved_by_weights(
    terms: SaddleTerms, t: Tensor, known: Tensor, places: Tensor, change: WeightChange, mu: float
) -> Tensor:
    """Bound of ‖argmin E_w - argmin E_w^‖ for weights w^ within ``change`` of w = ``places``.

    Parameters
    ----------
    terms: K and f, without weights. t: K x~ of a point with ‖x~ - argmin E_w‖ <= ``known``. mu: the modulus of the
        energy at all weights.
    """
    f, K = terms.potential, terms.operator
    if mu <= 0:
        return torch.full_like(known, math.inf)
    reach, norm = f.reach(K), K.norm_bound() * _UP
    radius = reach * expand(known, t) * _UP
    slope = (f.size(f.grad(t)) + f.curvature_size(t, radius) * radius) * _UP
    moved = norm * change.norm(slope) / mu
    lightest, heaviest = (places - change.alone).clamp_min(0.0), (places + change.alone).clamp_max(1.0)
    for _ in range(_ROUNDS):
        radius = reach * expand(known + moved, t) * _UP
        low = f.curvature_bounds(t, radius)[0]
        low = (torch.minimum(lightest * low, heaviest * low) + f.concavity).clamp_min(0.0)
        steep = low.sqrt() * norm > 2.0 * math.sqrt(mu)
        root = torch.where(steep, low, 1.0).sqrt()
        rho = norm * change.norm(torch.where(steep, 0.0, slope))
        s = change.norm(torch.where(steep, slope / root, 0.0))
        found = (rho + (rho * rho + mu * s * s).sqrt()) / (2.0 * mu) * _UP
        moved = torch.minimum(moved, torch.nan_to_num(found, nan=math.inf))
    return moved
