"""The norms of ``FilterPairing`` from traces in place of eigenvalues: Gram matrices of patches p_i have the trace
sum_i h_i |p_i|², which takes one box filter and one pass over the responses, and is at most k² times, in practice 2 to
3 times, the largest eigenvalue. *Rigorous bounds*, per sample, (batch,).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from learnreg.convolutions.channel_layout import PatchSource
from learnreg.linear.parameter_groups import Pairing
from learnreg.linear.samples import norm_samples

__all__ = ["FilterTraces"]

_ROUND_UP = 1.0 + 1e-10
_CANCELLED = 1e-14
"""Rounding of a sum of k² squares, relative to it: what the mean leaves of it may be less."""

_BOX_MEANS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class FilterTraces(Pairing):
    """For the filters of a bank, as ``FilterPairing``."""

    def __init__(self, lipschitz: float, source: PatchSource, name: str) -> None:
        super().__init__(lipschitz, name)
        self.source, self.layout = source, source.layout
        self._latest: tuple[Tensor, Tensor] | None = None

    def squares(self, u: Tensor) -> Tensor:
        """|p_i|² of the patches of u, without their means where these are projected out: (batch, copies, pixels), that
        of the latest image kept."""
        if self._latest is not None and self._latest[0] is u:
            return self._latest[1]
        padded, size = self.source.padded(u), self.source.coefficients
        sums = size * self._box_mean(padded * padded)
        if self.source.zero_mean:
            mean = self._box_mean(padded)
            sums = (sums - size * mean * mean).clamp_min_(0.0).add_(sums, alpha=_CANCELLED * size)
        self._latest = (u, sums.sum(1).reshape(-1, self.layout.copies, sums[0, 0].numel()))
        return self._latest[1]

    def _box_mean(self, images: Tensor) -> Tensor:
        shape = self.source.filter_shape
        return _BOX_MEANS[len(shape)](images, shape, 1)

    def dual_norm(self, p: Tensor) -> Tensor:
        return self.lipschitz * norm_samples(p)

    def weighted_norm(self, u: Tensor, high: Tensor) -> Tensor:
        squares = self._squares_for(u, high)
        high = self._places(high)
        traces = torch.einsum("bcp,bp->bc", high, squares.expand(high.shape[0], -1))
        return traces.nan_to_num(torch.inf, torch.inf).amax(1).sqrt() * _ROUND_UP

    def perturbation_norm(self, u: Tensor, bent: Tensor) -> Tensor:
        """|sum_i p_i q_ci| <= sum_i |p_i| |q_ci| for each channel, for vectors q_ci of groups, too."""
        sums = torch.einsum("bcp,bp->bc", self._places(bent), self._squares_for(u, bent).sqrt())
        result: Tensor = sums.norm(dim=1) * _ROUND_UP
        return result

    def _squares_for(self, u: Tensor, bounds: Tensor) -> Tensor:
        """(batch, patches): of all copies together, where a number serves them all."""
        squares = self.squares(u)
        return squares.sum(1) if self.layout.grouped(bounds) else squares.flatten(1)

    def _places(self, bounds: Tensor) -> Tensor:
        return bounds.flatten(1, -3).flatten(2) if self.layout.grouped(bounds) else self.layout.places(bounds)
