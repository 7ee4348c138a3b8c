"""Forward differences."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learnreg.linear.norms import NormBound
from learnreg.linear.operator import LinearOperator
from learnreg.linear.shapes import check_one_channel
from learnreg.linear.stencil import Stencil

__all__ = ["Gradient"]


class Gradient(LinearOperator):
    """Forward differences of (1, H, W): range (2, H, W), vertical then horizontal, zero at the last row and column."""

    def __init__(self, domain_shape: tuple[int, ...]) -> None:
        check_one_channel(domain_shape, "Gradient")
        super().__init__(domain_shape, (2, *domain_shape[1:]))

    def forward(self, x: Tensor) -> Tensor:
        image = x[:, 0]
        result = x.new_zeros(x.shape[0], *self.range_shape)
        result[:, 0, :-1] = image[:, 1:] - image[:, :-1]
        result[:, 1, :, :-1] = image[:, :, 1:] - image[:, :, :-1]
        return result

    def forward_into(self, x: Tensor, out: Tensor) -> Tensor:
        image = x[:, 0]
        torch.sub(image[:, 1:], image[:, :-1], out=out[:, 0, :-1])
        torch.sub(image[:, :, 1:], image[:, :, :-1], out=out[:, 1, :, :-1])
        out[:, 0, -1].zero_()
        out[:, 1, :, -1].zero_()
        return out

    def adjoint(self, y: Tensor) -> Tensor:
        vertical, horizontal = y[:, 0, :-1], y[:, 1, :, :-1]
        result = y.new_zeros(y.shape[0], *self.domain_shape)
        result[:, 0, 1:] += vertical
        result[:, 0, :-1] -= vertical
        result[:, 0, :, 1:] += horizontal
        result[:, 0, :, :-1] -= horizontal
        return result

    def _find_norm(self) -> NormBound:
        _, height, width = self.domain_shape
        square = sum(4.0 * math.cos(math.pi / (2 * n)) ** 2 for n in (height, width))
        return NormBound(math.sqrt(square) * (1.0 + 1e-12))

    def row_norms(self, grouped: bool) -> Tensor | float:
        return math.sqrt(3.0) * (1.0 + 1e-12) if grouped else math.sqrt(2.0) * (1.0 + 1e-12)

    def stencil(self) -> Stencil | None:
        filters = torch.tensor([[[-1.0, 0.0], [1.0, 0.0]], [[-1.0, 1.0], [0.0, 0.0]]], dtype=torch.float64)
        return Stencil(filters, False, self._gram_diagonal, inside=True)

    def _gram_diagonal(self, weights: Tensor) -> Tensor:
        vertical, horizontal = weights[:, 0, :-1], weights[:, 1, :, :-1]
        result = weights.new_zeros(weights.shape[0], *self.domain_shape)
        result[:, 0, 1:] += vertical
        result[:, 0, :-1] += vertical
        result[:, 0, :, 1:] += horizontal
        result[:, 0, :, :-1] += horizontal
        return result
