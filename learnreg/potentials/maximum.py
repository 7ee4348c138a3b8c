"""The envelope of the largest response of each group: a convex potential that bends along the axes of groups."""

from __future__ import annotations

import torch
from torch import Tensor

from learnreg.potentials.base import OUTWARD, Smoothed
from learnreg.potentials.proximal import Grouped

__all__ = ["MaximumEnvelope"]


class MaximumEnvelope(Smoothed, Grouped):
    """l times the Moreau envelope of the maximum norm max_c |t_c| of each group of channels (axis 1),

        f(t) = l min_z (max_c |z_c| + |t - z|²/(2v)) = l max_{|p|_1 <= 1} (<p, t> - v |p|²/2),

    with f'(t) = l p, p the point of the l1 ball that is nearest to t/v. Of groups of one it is Huber's function.

    The Hessian is l/v times a projection: the identity inside the ball; beyond it, onto the directions in which the
    entries that are not cut to zero keep their sum. It jumps where an entry is cut, or the ball is left.

    Source: Moreau envelopes of maximum norms as potentials of learned fields of experts, Ducotterd and Unser,
    "Multivariate fields of experts" (2025). The projection is that of Duchi, Shalev-Shwartz, Singer and Chandra (ICML
    2008).
    """

    def density(self, t: Tensor) -> Tensor:
        p = self._nearest(t, self.smoothing)
        return self.weight * (p * (t - 0.5 * self.smoothing * p)).sum(1, keepdim=True)

    def grad(self, t: Tensor) -> Tensor:
        return self.weight * self._nearest(t, self.smoothing)

    def second(self, t: Tensor) -> Tensor:
        """The larger eigenvalue, per group: l/v, or 0 where one entry alone is not cut."""
        kept, inside = self._kept(t)
        bends = inside | (kept.sum(1, keepdim=True) > 1)
        return torch.where(bends, self.curvature_limit, torch.zeros_like(t[:, :1]))

    def second_diagonal(self, t: Tensor) -> Tensor:
        kept, inside = self._kept(t)
        share = torch.where(inside, 0.0, 1.0 / kept.sum(1, keepdim=True).clamp_min(1))
        return self.curvature_limit * kept * (1.0 - share)

    def hess_vec(self, t: Tensor, v: Tensor) -> Tensor:
        return self.curvature_limit * self._projected(t, v)

    def divergence(self, r: Tensor, t: Tensor) -> Tensor:
        """l (<p_r - p_t, r - v p_r> + v/2 |p_r - p_t|²), both at least 0, as p_r is the nearest point to r/v."""
        f, dtype, r, t = self.to(torch.float64), t.dtype, r.double(), t.double()
        p_r, p_t = (f._nearest(u, f.smoothing) for u in (r, t))
        apart, rest = p_r - p_t, r - f.smoothing * p_r
        found = (apart * rest).sum(1, keepdim=True) + 0.5 * f.smoothing * (apart * apart).sum(1, keepdim=True)
        rounding = 4.0 * torch.finfo(torch.float64).eps * (apart.abs() * rest.abs()).sum(1, keepdim=True)
        return (f.weight * (found + rounding)).to(dtype)

    def prox(self, v: Tensor, step: Tensor | float, start: Tensor | None = None) -> Tensor:
        """In closed form, as the envelope of an envelope is one."""
        pull = step * self.weight
        below, top, depth = self._below(v, self.smoothing + pull)
        kept = v * (self.smoothing / (self.smoothing + pull)) + v.sign() * (pull * (top - depth))
        return torch.where(below < depth, kept, v)

    def prox_jvp(self, t: Tensor, step: Tensor | float, v: Tensor) -> Tensor:
        pull = step * self.curvature_limit
        return v - pull / (1.0 + pull) * self._projected(t, v)

    def dual_prox_jvp(self, t: Tensor, sigma: Tensor | float, v: Tensor) -> Tensor:
        return self.curvature_limit / (sigma + self.curvature_limit) * self._projected(t, v)

    # ---- curvature ---------------------------------------------------------------------------------------------------

    def smoothing_sensitivity(self, t: Tensor, radius: Tensor | float) -> Tensor | float:
        """-f'' t has the slope f'' between jumps."""
        return 1.0

    def curvature_bounds(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        same, limit = self._same_piece(t, radius), self.curvature_limit + torch.zeros_like(t[:, :1])
        inside = self._kept(t)[1]
        low = torch.where(same & inside, limit, 0.0)
        high = torch.where(same & (self.second(t) == 0), 0.0, limit)
        return low * (1.0 - OUTWARD), high * (1.0 + OUTWARD)

    def curvature_change(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """Nothing on one piece; between two projections at most 1, times l/v."""
        limit = self.curvature_limit + torch.zeros_like(t[:, :1])
        return torch.where(self._same_piece(t, radius), OUTWARD * limit, limit * (1.0 + OUTWARD))

    def third_bound(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """0 on one piece, and nothing across a jump."""
        return torch.where(self._same_piece(t, radius), 0.0, torch.full_like(t[:, :1], torch.inf))

    def kink_excluded(self, t: Tensor, radius: Tensor | float) -> Tensor:
        return self._same_piece(t, radius).flatten(1).all(1)

    def _same_piece(self, t: Tensor, radius: Tensor | float) -> Tensor:
        """Whether f'' is constant on the ball of that radius around each group. Entries move by at most the radius, the
        sum of their sizes by sqrt(n) times it, and what they are cut by, 1-Lipschitz in all of them, by it, too."""
        below, top, depth = self._below(t, self.smoothing)
        total, root = (top - below).sum(1, keepdim=True), float(t.shape[1]) ** 0.5
        reach = radius / self.smoothing + OUTWARD * (top + 1.0)
        outside = total - root * reach > 1.0 + OUTWARD * total
        apart = ((below - depth).abs() > 2.0 * reach).all(1, keepdim=True)
        inside = total + root * reach < 1.0 - OUTWARD * total
        found: Tensor = inside | (outside & apart)
        return found

    # ---- the nearest point of the l1 ball ----------------------------------------------------------------------------

    def _below(self, t: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """How far entries of |t|/scale are below the largest one of their group, that one, and how far below it they
        are cut, at theta >= 0: sum_c max(|t_c|/scale - theta, 0) = 1, or 0 inside the ball. Differences come first, as
        large entries may be close to each other."""
        size = t.abs()
        largest = size.amax(1, keepdim=True)
        below, top = (largest - size) / scale, largest / scale
        counts = torch.arange(1, t.shape[1] + 1, dtype=t.dtype, device=t.device).reshape(-1, *(1,) * (t.dim() - 2))
        depth = ((below.sort(1).values.cumsum(1) + 1.0) / counts).amin(1, keepdim=True)  # of the cut below the largest
        return below, top, torch.minimum(depth, top)

    def _nearest(self, t: Tensor, scale: Tensor | float) -> Tensor:
        below, top, depth = self._below(t, scale)
        return torch.where(depth < top, t.sign() * (depth - below).clamp_min(0.0), t / scale)

    def _kept(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Which entries are not cut to zero, and whether the group is inside the ball."""
        below, top, depth = self._below(t, self.smoothing)
        inside = depth >= top
        return inside | (below < depth), inside

    def _projected(self, t: Tensor, v: Tensor) -> Tensor:
        kept, inside = self._kept(t)
        signs = t.sign() * kept
        mean = (signs * v).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp_min(1)
        return torch.where(inside, v, kept * v - signs * mean)
