"""Norms of the map from errors to the gradient of filters: C(u, p)_c = U_u^T p_c with the patch matrix U_u (pixels x
k²), so that Gram matrices of size k² and n k² give the norms themselves. *Rigorous bounds*, per sample, (batch,).
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from learnreg.convolutions.channel_layout import PatchSource
from learnreg.convolutions.filter_traces import FilterTraces
from learnreg.linear.norms import largest_eigenvalue
from learnreg.linear.parameter_groups import Pairing
from learnreg.linear.samples import norm_samples

__all__ = ["FilterPairing"]

_ROUND_UP = 1.0 + 1e-10
_LARGEST_GRAM = 640
_LARGE_FILTER = 64
"""Coefficients of a filter beyond which a Gram matrix for each channel is too dear."""

_CANCELLED = 1e-14
"""Rounding of inner products of vectors, relative to the product of their norms."""


class FilterPairing(Pairing):
    """For the filters of a bank.

    Parameters
    ----------
    source: of the patches that the filters see. repeat: bound of the norm of the bank's padding.

    With zero means those are projected out of the gradient, since the bank's parametrisation subtracts them. Filters
    across channels have the patches of all of them; filters that see several channels one at a time have all their
    patches.
    """

    def __init__(self, lipschitz: float, source: PatchSource, repeat: float) -> None:
        super().__init__(lipschitz)
        self.source, self.layout, self.repeat = source, source.layout, repeat
        self._latest: tuple[Tensor, Tensor] | None = None

    def by_traces(self) -> FilterTraces:
        return FilterTraces(self.lipschitz, self.source, self.name)

    def patches(self, u: Tensor) -> Tensor:
        """U_u: (batch, coefficients, patches), those of the latest image kept."""
        if self._latest is not None and self._latest[0] is u:
            return self._latest[1]
        self._latest = None
        self._latest = (u, self.source.patches(u))
        return self._latest[1]

    def dual_norm(self, p: Tensor) -> Tensor:
        """Through the Gram matrix of all shifts of all p_c, whose entries are correlations of p_c and p_d at lags; by
        norms where that matrix is large. Each channel that a filter sees has the same matrix for itself; those of the
        copies add up."""
        size = self.source.coefficients
        if self.layout.filters * size > _LARGEST_GRAM:
            return self.lipschitz * norm_samples(p)
        apart = self.layout.apart(p)
        apart = apart.reshape(*apart.shape[:3], *self.source.response_sides)
        gram = torch.stack([self._gram(sum(map(self._lags, sample))) for sample in apart])  # type: ignore[arg-type]
        # the means are projected out of a rounded Gram matrix, of which little may remain
        lost = _CANCELLED * size * norm_samples(p) ** 2 if self.source.zero_mean else 0.0
        by_gram = self.repeat * (largest_eigenvalue(gram) + lost).sqrt()
        return torch.minimum(by_gram, self.lipschitz * norm_samples(p)) * _ROUND_UP

    def _lags(self, p: Tensor) -> Tensor:
        """sum_s p_c(s) p_d(s + lag), (n, n, *(2 k - 1)), for p (n, *sides)."""
        reaches, axes = [k - 1 for k in self.source.filter_shape], tuple(range(1, p.dim()))
        n, circular, flat = p.shape[0], self.source.boundary == "circular", p.flatten(1)
        around = [reach for reach in reversed(reaches) for _ in range(2)]
        padded = p if circular else torch.nn.functional.pad(p, around)
        lags = []
        for lag in product(*(range(-reach, reach + 1) for reach in reaches)):
            if circular:
                shifted = torch.roll(p, [-d for d in lag], axes)
            else:
                steps = zip(lag, reaches, p.shape[1:], strict=True)
                shifted = padded[(slice(None), *(slice(d + reach, d + reach + m) for d, reach, m in steps))]
            lags.append(flat @ shifted.flatten(1).T)
        return torch.stack(lags, -1).view(n, n, *(2 * reach + 1 for reach in reaches))

    def _gram(self, lags: Tensor) -> Tensor:
        """(n K, n K) for K coefficients: entry (c a, d b) = <p_c(. - a), p_d(. - b)> = sum_s p_c(s) p_d(s + a - b)."""
        n, shape = lags.shape[0], self.source.filter_shape
        index = torch.zeros((), dtype=torch.int64, device=lags.device)
        places = torch.meshgrid(*(torch.arange(k, device=lags.device) for k in shape), indexing="ij")
        for place, k in zip(places, shape, strict=True):
            a = place.flatten()
            index = index * (2 * k - 1) + a[:, None] - a[None, :] + k - 1
        gram = lags.flatten(2)[:, :, index].permute(0, 2, 1, 3)  # (n, K, n, K)
        if self.source.zero_mean:
            gram = gram - gram.mean(1, keepdim=True)
            gram = gram - gram.mean(3, keepdim=True)
        return gram.reshape(n * index.shape[0], -1)

    def weighted_norm(self, u: Tensor, high: Tensor) -> Tensor:
        """The largest eigenvalue of U^T diag(high_c) U over the channels c; channels whose trace, which bounds it, is
        below one already found are left out. Large filters: of U^T diag(max_c high_c) U, not below the others."""
        U = self.patches(u)
        high = self.layout.places(high)
        if U.shape[1] > _LARGE_FILTER:
            high = high.amax(1, keepdim=True)
        traces = torch.einsum("bcp,bp->bc", high, (U * U).sum(1)).nan_to_num(torch.inf, torch.inf)
        largest = torch.stack([self._largest(*sample) for sample in zip(U, high, traces, strict=True)])
        return largest.clamp_min(0.0).sqrt() * _ROUND_UP

    @staticmethod
    def _largest(U: Tensor, high: Tensor, traces: Tensor) -> Tensor:
        best = torch.zeros_like(traces[0])
        for c in traces.argsort(descending=True).tolist():
            if not float(traces[c]) > float(best):
                break
            best = torch.maximum(best, largest_eigenvalue((U * high[c]) @ U.T))
        return best

    def perturbation_norm(self, u: Tensor, bent: Tensor) -> Tensor:
        """min(‖ |U|^T bent ‖, ‖U‖ ‖bent‖)."""
        U = self.patches(u)
        sizes, flat = U.abs(), self.layout.places(bent)
        if self.layout.grouped(bent):  # of the copies together: |sum_j U_kjp q_jp| <= |U_k.p| |q_.p|
            sizes = U.reshape(*U.shape[:2], self.layout.copies, -1).norm(dim=2)
            flat = bent.flatten(1, -3).flatten(2)
        # for groups, too: ‖sum_p U_kp q_p‖ <= sum_p |U_kp| |q_p| for the vectors q_p
        by_sum = torch.einsum("bkp,bcp->bck", sizes, flat).flatten(1).norm(dim=1)
        by_norm = largest_eigenvalue(U @ U.transpose(1, 2)).sqrt() * norm_samples(bent)
        return torch.minimum(by_sum, by_norm) * _ROUND_UP
