"""The norms of ``FilterPairing`` from traces in place of eigenvalues: Gram matrices of patches p_i have the trace
sum_i h_i |p_i|², which takes one box filter and one pass over the responses, and is at most k² times, in practice 2 to
3 times, the largest eigenvalue. *Rigorous bounds*, per sample, (batch,).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from learnreg.convolutions.padding import Boundary, pad
from learnreg.linear.parameter_groups import Pairing
from learnreg.linear.samples import norm_samples

__all__ = ["FilterTraces"]

_ROUND_UP = 1.0 + 1e-10
_CANCELLED = 1e-14
"""Rounding of a sum of k² squares, relative to it: what the mean leaves of it may be less."""


class FilterTraces(Pairing):
    """For the filters of a bank, as ``FilterPairing``."""

    def __init__(
        self, lipschitz: float, filter_shape: tuple[int, int], boundary: Boundary, zero_mean: bool, name: str
    ) -> None:
        super().__init__(lipschitz, name)
        self.filter_shape, self.boundary, self.zero_mean = filter_shape, boundary, zero_mean
        self._latest: tuple[Tensor, Tensor] | None = None

    def squares(self, u: Tensor) -> Tensor:
        """|p_i|² of the patches of u, without their means where these are projected out: (batch, pixels), that of the
        latest image kept."""
        if self._latest is not None and self._latest[0] is u:
            return self._latest[1]
        k, l = self.filter_shape
        padded = pad(u, (k, l), self.boundary)
        sums = (k * l) * F.avg_pool2d(padded * padded, (k, l), 1)
        if self.zero_mean:
            mean = F.avg_pool2d(padded, (k, l), 1)
            sums = (sums - (k * l) * mean * mean).clamp_min_(0.0).add_(sums, alpha=_CANCELLED * k * l)
        self._latest = (u, sums.flatten(1))
        return self._latest[1]

    def dual_norm(self, p: Tensor) -> Tensor:
        return self.lipschitz * norm_samples(p)

    def weighted_norm(self, u: Tensor, high: Tensor) -> Tensor:
        high = high.flatten(1, -3).flatten(2)
        traces = torch.einsum("bcp,bp->bc", high, self.squares(u).expand(high.shape[0], -1))
        return traces.nan_to_num(torch.inf, torch.inf).amax(1).sqrt() * _ROUND_UP

    def perturbation_norm(self, u: Tensor, bent: Tensor) -> Tensor:
        """|sum_i p_i q_ci| <= sum_i |p_i| |q_ci| for each channel, for vectors q_ci of groups, too."""
        bent = bent.flatten(1, -3).flatten(2)
        sums = torch.einsum("bcp,bp->bc", bent, self.squares(u).sqrt())
        result: Tensor = sums.norm(dim=1) * _ROUND_UP
        return result
