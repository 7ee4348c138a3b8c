"""Filter banks whose responses form groups: the operator of isotropic regularizers."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from learnreg.convolutions.filter_bank import FilterBank, padding_norm
from learnreg.convolutions.padding import Boundary
from learnreg.errors import ShapeError
from learnreg.linear.bands import Bands

__all__ = ["GroupedFilterBank"]


class GroupedFilterBank(FilterBank):
    """Correlation with G groups of s filters: range (s, G, rows, columns), so that the first axis holds the members of
    a group, over which grouped potentials take lengths.

    Parameters
    ----------
    filters: (s, G, k, l). The others are those of :class:`FilterBank`.
    """

    def __init__(
        self,
        filters: Tensor,
        domain_shape: tuple[int, int, int],
        boundary: Boundary = "valid",
        zero_mean: bool = False,
    ) -> None:
        if filters.dim() != 4:
            raise ShapeError(f"filters: got shape {tuple(filters.shape)}, expected (members, groups, k, k).")
        super().__init__(filters.flatten(0, 1), domain_shape, boundary, zero_mean)
        self.members, self.groups = int(filters.shape[0]), int(filters.shape[1])
        self.range_shape = (self.members, self.groups, *self.range_shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        return self._in_groups(super().forward(x))

    def forward_into(self, x: Tensor, out: Tensor) -> Tensor:
        super().forward_into(x, out.flatten(1, 2))
        return out

    def adjoint(self, y: Tensor) -> Tensor:
        return super().adjoint(y.flatten(1, 2))

    def bands(self) -> Bands | None:
        flat = super().bands()
        assert flat is not None
        return replace(
            flat,
            respond=lambda z: self._in_groups(flat.respond(z)),
            pull=lambda y: flat.pull(y.flatten(1, 2)),
            pull_diagonal=lambda w: flat.pull_diagonal(w.flatten(1, 2)),
        )

    def _in_groups(self, responses: Tensor) -> Tensor:
        return responses.reshape(-1, self.members, self.groups, *responses.shape[-2:])

    def per_filter(self, values: Tensor) -> Tensor:
        """Numbers of groups, G of them, as numbers of filters, (s G,)."""
        return values.flatten().repeat(self.members)

    def row_norms(self, grouped: bool) -> Tensor | float:
        if not grouped:
            return torch.as_tensor(super().row_norms(False)).reshape(self.members, self.groups, 1, 1)
        windows = self.filters.detach().to(torch.float64).reshape(self.members, self.groups, -1)
        norms: Tensor = torch.linalg.matrix_norm(windows.transpose(0, 1), 2) * padding_norm(self)
        if self.boundary == "circular":  # entries that fall on the same pixel add up
            folds = zip(self.filter_shape, self.domain_shape[1:], strict=True)
            norms = norms * math.sqrt(math.prod(math.ceil(k / n) for k, n in folds))
        return (norms * (1.0 + 1e-12))[:, None, None]
