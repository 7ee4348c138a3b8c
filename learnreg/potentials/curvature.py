"""f'' over every response that the exact solution may have.

For weakly convex potentials, f'' >= -rho, all of it is about f'' + rho, and the quadratic part of the energy has lost
K^T rho K: the same energy, split into two convex parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

__all__ = ["CurvatureFloor", "CurvatureInterval"]


@dataclass(frozen=True)
class CurvatureInterval:
    """Bounds over the interval of some radius around each response t (a ball, for groups), *rigorous* and rounded
    outwards; f'' stands for f'' + rho.

    low, high: smallest and largest f''. change: Delta >= |f'' - f''(t)|. ratio: tau >= |f'' - f''(t)| / √f'', infinite
    where f'' may vanish. third: kappa >= |f''(t') - f''(t)| / |t' - t|. smooth: (batch,), no kink lies in any interval.
    """

    low: Tensor
    high: Tensor
    change: Tensor
    ratio: Tensor
    third: Tensor
    smooth: Tensor

    @property
    def high_max(self) -> Tensor:
        """The largest f'' of each sample, (batch,)."""
        return self.high.flatten(1).amax(1)


@dataclass(frozen=True)
class CurvatureFloor:
    """What f'' is at least around each response, with a batch axis: numbers ``low``; or of groups, whose members are
    axis 1, the matrices low I - dip dip^T. Of f itself, nothing added."""

    low: Tensor
    dip: Tensor | None = None

    @property
    def least(self) -> Tensor:
        """The smallest eigenvalues."""
        return self.low if self.dip is None else self.low - self._depth

    @property
    def size(self) -> Tensor:
        """The largest eigenvalue in absolute value of each sample, (batch,)."""
        return torch.maximum(self.low.abs(), self.least.abs()).flatten(1).amax(1)

    @property
    def _depth(self) -> Tensor:
        assert self.dip is not None
        return (self.dip * self.dip).sum(1, keepdim=True)

    def times(self, t: Tensor) -> Tensor:
        """For responses t."""
        if self.dip is None:
            return self.low * t
        return self.low * t - self.dip * (self.dip * t).sum(1, keepdim=True)

    def select(self, index: Tensor) -> Self:
        """For some samples."""
        return type(self)(self.low[index], None if self.dip is None else self.dip[index])

    def weights(self, shape: tuple[int, ...]) -> Tensor:
        """Of one sample: numbers in the shape of the responses, or matrices (members, members, ...) of groups."""
        if self.dip is None:
            return self.low[0].expand(shape)
        dip = self.dip[0].expand(shape)
        unit = torch.eye(shape[0], dtype=dip.dtype, device=dip.device).reshape(*2 * shape[:1], *(1,) * (dip.dim() - 1))
        return self.low[0] * unit - dip[:, None] * dip
