"""Forward differences."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learnreg.errors import ShapeError
from learnreg.linear.norms import NormBound
from learnreg.linear.operator import LinearOperator
from learnreg.linear.shapes import checked_shape
from learnreg.linear.stencil import Stencil

__all__ = ["Gradient"]


class Gradient(LinearOperator):
    """Forward differences of (channels, *sides) along each of one to three sides, zero at the last places.

    Range (2, H, W) for an image of one channel, vertical then horizontal, and likewise (1, N) and (3, D, H, W). The
    first axis holds what belongs to a place: with several channels the differences of one of them, range (sides,
    channels, *sides), or with ``over_channels`` those of all, range (sides · channels, *sides).
    """

    def __init__(self, domain_shape: tuple[int, ...], over_channels: bool = False) -> None:
        channels, *sides = domain_shape = checked_shape(domain_shape, "domain_shape")
        if not 1 <= len(sides) <= 3:
            raise ShapeError(f"Gradient: got images of shape {domain_shape}, expected (channels, *one to three sides).")
        count = len(sides)
        apart = channels > 1 and not over_channels
        super().__init__(domain_shape, (count, *domain_shape) if apart else (count * channels, *sides))

    def forward(self, x: Tensor) -> Tensor:
        result = x.new_zeros(x.shape[0], *self.range_shape)
        by_axis = self._by_axis(result)
        for axis in range(2, x.dim()):
            n = x.shape[axis] - 1
            by_axis[:, axis - 2].narrow(axis, 0, n).copy_(x.narrow(axis, 1, n)).sub_(x.narrow(axis, 0, n))
        return result

    def forward_into(self, x: Tensor, out: Tensor) -> Tensor:
        by_axis = self._by_axis(out)
        for axis in range(2, x.dim()):
            place, n = by_axis[:, axis - 2], x.shape[axis] - 1
            torch.sub(x.narrow(axis, 1, n), x.narrow(axis, 0, n), out=place.narrow(axis, 0, n))
            place.select(axis, n).zero_()
        return out

    def adjoint(self, y: Tensor) -> Tensor:
        return self._pulled(y, -1)

    def _pulled(self, y: Tensor, sign: int) -> Tensor:
        result = y.new_zeros(y.shape[0], *self.domain_shape)
        by_axis = self._by_axis(y)
        for axis in range(2, result.dim()):
            n = result.shape[axis] - 1
            difference = by_axis[:, axis - 2].narrow(axis, 0, n)
            result.narrow(axis, 1, n).add_(difference)
            result.narrow(axis, 0, n).add_(difference, alpha=sign)
        return result

    def _by_axis(self, y: Tensor) -> Tensor:
        """(batch, sides, channels, *sides)."""
        return y.reshape(y.shape[0], len(self.domain_shape) - 1, *self.domain_shape)

    def _find_norm(self) -> NormBound:
        square = sum(4.0 * math.cos(math.pi / (2 * n)) ** 2 for n in self.domain_shape[1:])
        return NormBound(math.sqrt(square) * (1.0 + 1e-12))

    def row_norms(self, grouped: bool) -> Tensor | float:
        sides = len(self.domain_shape) - 1
        return math.sqrt(sides + 1.0 if grouped else 2.0) * (1.0 + 1e-12)

    def stencil(self) -> Stencil | None:
        sides = len(self.domain_shape) - 1
        filters = torch.zeros(sides, 1, *(2,) * sides, dtype=torch.float64)
        for axis in range(sides):
            filters[(axis, 0, *(0,) * sides)] = -1.0
            filters[(axis, 0, *(int(other == axis) for other in range(sides)))] = 1.0
        means = lambda w: self._by_axis(w).flatten(3).mean(3).transpose(1, 2)  # noqa: E731
        return Stencil(filters, False, lambda w: self._pulled(w, 1), means, inside=True, taps=2 * sides)
