"""Norms of the map from errors to the gradient of filters: C(u, p)_c = U_u^T p_c with the patch matrix U_u (pixels x
k²), so that Gram matrices of size k² and n k² give the norms themselves. *Rigorous bounds*, per sample, (batch,).
"""

from __future__ import annotations

import torch
from torch import Tensor

from learnreg.convolutions.filter_traces import FilterTraces
from learnreg.convolutions.padding import Boundary, pad
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
    filter_shape, boundary: of the bank. repeat: bound of the norm of its padding.
    zero_mean: means are projected out of the gradient, since the bank's parametrisation subtracts them.
    """

    def __init__(
        self, lipschitz: float, filter_shape: tuple[int, int], boundary: Boundary, repeat: float, zero_mean: bool
    ) -> None:
        super().__init__(lipschitz)
        self.filter_shape, self.boundary, self.repeat, self.zero_mean = filter_shape, boundary, repeat, zero_mean
        self._latest: tuple[Tensor, Tensor] | None = None

    def by_traces(self) -> FilterTraces:
        return FilterTraces(self.lipschitz, self.filter_shape, self.boundary, self.zero_mean, self.name)

    def patches(self, u: Tensor) -> Tensor:
        """U_u: (batch, k l, pixels), that of the latest image kept."""
        if self._latest is not None and self._latest[0] is u:
            return self._latest[1]
        self._latest = None
        k, l = self.filter_shape
        padded = pad(u, (k, l), self.boundary)[:, 0]
        windows = padded.unfold(-2, k, 1).unfold(-2, l, 1)  # (batch, rows, cols, k, l)
        patches = windows.flatten(1, 2).flatten(2).transpose(1, 2).contiguous()
        if self.zero_mean:
            patches = patches - patches.mean(1, keepdim=True)
        self._latest = (u, patches)
        return patches

    def dual_norm(self, p: Tensor) -> Tensor:
        """Through the Gram matrix of all shifts of all p_c, whose entries are correlations of p_c and p_d at lags; by
        norms where that matrix is large."""
        k, l = self.filter_shape
        p = p.flatten(1, -3)
        if p.shape[1] * k * l > _LARGEST_GRAM:
            return self.lipschitz * norm_samples(p)
        gram = torch.stack([self._shift_gram(sample, k, l) for sample in p])
        # the means are projected out of a rounded Gram matrix, of which little may remain
        lost = _CANCELLED * k * l * norm_samples(p) ** 2 if self.zero_mean else 0.0
        by_gram = self.repeat * (largest_eigenvalue(gram) + lost).sqrt()
        return torch.minimum(by_gram, self.lipschitz * norm_samples(p)) * _ROUND_UP

    def _shift_gram(self, p: Tensor, k: int, l: int) -> Tensor:
        """(n k l, n k l) for p (n, rows, cols): entry (c a, d b) = <p_c shifted by a, p_d shifted by b>."""
        n, rows, cols = p.shape
        flat = p.flatten(1)
        lags = p.new_empty(2 * k - 1, 2 * l - 1, n, n)
        circular = self.boundary == "circular"
        padded = p if circular else torch.nn.functional.pad(p, (l - 1, l - 1, k - 1, k - 1))
        for i in range(2 * k - 1):
            for j in range(2 * l - 1):
                dy, dx = i - (k - 1), j - (l - 1)
                shifted = torch.roll(p, (-dy, -dx), (1, 2)) if circular else padded[:, i : i + rows, j : j + cols]
                lags[i, j] = flat @ shifted.flatten(1).T  # sum_s p_c(s) p_d(s + lag)
        a, b = torch.arange(k, device=p.device), torch.arange(l, device=p.device)
        # <p_c(. - a), p_d(. - a')> = sum_s p_c(s) p_d(s + a - a')
        gram = lags[
            (a[:, None] - a[None, :] + k - 1)[:, None, :, None], (b[:, None] - b[None, :] + l - 1)[None, :, None]
        ]
        gram = gram.permute(4, 0, 1, 5, 2, 3).reshape(n, k * l, n, k * l)
        if self.zero_mean:
            gram = gram - gram.mean(1, keepdim=True)
            gram = gram - gram.mean(3, keepdim=True)
        return gram.reshape(n * k * l, n * k * l)

    def weighted_norm(self, u: Tensor, high: Tensor) -> Tensor:
        """The largest eigenvalue of U^T diag(high_c) U over the channels c; channels whose trace, which bounds it, is
        below one already found are left out. Large filters: of U^T diag(max_c high_c) U, not below the others."""
        U = self.patches(u)
        high = high.flatten(1, -3).flatten(2)
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
        # for groups, too: ‖sum_p U_kp q_p‖ <= sum_p |U_kp| |q_p| for the vectors q_p
        bent = bent.flatten(1, -3).flatten(2)
        by_sum = torch.einsum("bkp,bcp->bck", U.abs(), bent).flatten(1).norm(dim=1)
        by_norm = largest_eigenvalue(U @ U.transpose(1, 2)).sqrt() * norm_samples(bent)
        return torch.minimum(by_sum, by_norm) * _ROUND_UP
