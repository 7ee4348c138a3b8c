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
from learnreg.linear.local_matrix import LocalMatrix

__all__ = ["GroupedFilterBank"]


class GroupedFilterBank(FilterBank):
    """Correlation with G groups of s filters: range (s, G, rows, columns), so that the first axis holds the members of
    a group, over which grouped potentials take lengths.

    Parameters
    ----------
    filters: (s, G, *filter sides), or (s, G, channels, *filter sides) across channels. The others are those of
        :class:`FilterBank`.
    over_channels: the responses of all channels that a filter sees one at a time are members of its group, range
        (channels · s, G, rows, columns): potentials see their modulus.
    """

    def __init__(
        self,
        filters: Tensor,
        domain_shape: tuple[int, ...],
        boundary: Boundary = "valid",
        zero_mean: bool = False,
        over_channels: bool = False,
    ) -> None:
        if filters.dim() < 3:
            raise ShapeError(f"filters: got shape {tuple(filters.shape)}, expected (members, groups, k, k).")
        super().__init__(filters.flatten(0, 1), domain_shape, boundary, zero_mean)
        members, self.groups = int(filters.shape[0]), int(filters.shape[1])
        self.layout = replace(self.layout, as_members=over_channels)
        copies = self.layout.copies
        self.members = members * copies if over_channels else members
        rows, columns = self.range_shape[1:]
        self.range_shape = (self.members, self.groups, rows // copies if over_channels else rows, columns)

    def gram_entries(self, weights: Tensor) -> LocalMatrix | None:
        if weights.dim() == len(self.range_shape):
            return super().gram_entries(weights)
        one, other = torch.triu_indices(self.members, self.members, device=weights.device)
        groups, largest = torch.arange(self.groups, device=weights.device), weights.abs().sum(1).amax()
        pairs = tuple((member[:, None] * self.groups + groups).flatten() for member in (one, other))
        return self._gram_entries(weights[one, other].flatten(0, 1), (pairs[0], pairs[1]), largest)

    def bands(self) -> Bands | None:
        flat = super().bands()
        if flat is None:
            return None
        return replace(
            flat,
            respond=lambda z: self._in_groups(flat.respond(z)),
            pull=lambda y: flat.pull(y.flatten(1, 2)),
            pull_diagonal=lambda w: flat.pull_diagonal(w.flatten(1, 2)),
        )

    def _in_groups(self, responses: Tensor) -> Tensor:
        return responses.reshape(len(responses), self.members, self.groups, *responses.shape[-2:])

    def per_filter(self, values: Tensor) -> Tensor:
        """Numbers of groups, G of them, as numbers of filters, (s G,)."""
        return values.flatten().repeat(self.layout.filters // self.groups)

    def row_norms(self, grouped: bool) -> Tensor | float:
        members = self.layout.filters // self.groups
        if not grouped:
            each = torch.as_tensor(super().row_norms(False)).reshape(members, self.groups, 1, 1)
            return each.repeat(self.members // members, 1, 1, 1)
        # the rows of different channels see different pixels
        windows = self.filters.detach().to(torch.float64).reshape(members, self.groups, -1)
        norms: Tensor = torch.linalg.matrix_norm(windows.transpose(0, 1), 2) * padding_norm(self)
        if self.boundary == "circular":  # entries that fall on the same pixel add up
            folds = zip(self.filter_shape, self.domain_shape[1:], strict=True)
            norms = norms * math.sqrt(math.prod(math.ceil(k / n) for k, n in folds))
        return (norms * (1.0 + 1e-12))[:, None, None]
