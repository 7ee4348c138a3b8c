"""Convolutions that follow each other without activations between them, each zero beyond the image, as one operator."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from learnreg.convolutions.chain_norm import chain_norm_bound, smallest_side
from learnreg.convolutions.composition import compose
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.convolutions.local_gram import local_gram
from learnreg.errors import ShapeError
from learnreg.linear.norms import GRAM_LIMIT, NormBound, gram_norm_bound
from learnreg.linear.operator import LinearOperator
from learnreg.linear.shapes import check_one_channel
from learnreg.linear.stencil import Stencil

__all__ = ["ConvolutionChain"]

_DENSE_PIXELS = 1024
_LARGEST_SPREAD = 0.5


class ConvolutionChain(LinearOperator):
    """Correlations with kernels (c_1, 1, k, l), then (c_2, c_1, k, l), and so on, all zero-padded to the image's size.

    Near the border this is no bank of filters: a response of one convolution outside of the image does not reach the
    next one. Norms of large images are bounded by windows (``chain_norm``), without a matrix of the size of the image.

    Parameters
    ----------
    kernels: fixed tensors with odd sides; they are not learned.
    domain_shape: (1, H, W).
    """

    def __init__(self, kernels: Sequence[Tensor], domain_shape: tuple[int, ...]) -> None:
        check_one_channel(domain_shape, "ConvolutionChain")
        before = 1
        for i, kernel in enumerate(kernels):
            shape = tuple(kernel.shape)
            if len(shape) != 4 or shape[1] != before or not (shape[2] % 2 and shape[3] % 2):
                raise ShapeError(f"kernels[{i}]: got shape {shape}, expected (c, {before}, k, l) with odd k and l.")
            before = shape[0]
        super().__init__(domain_shape, (before, *domain_shape[1:]))
        for i, kernel in enumerate(kernels):
            self.register_buffer(f"kernel_{i}", kernel.detach())
        self._count = len(kernels)

    @property
    def kernels(self) -> list[Tensor]:
        return [self.get_buffer(f"kernel_{i}") for i in range(self._count)]

    def forward(self, x: Tensor) -> Tensor:
        for kernel in self.kernels:
            x = F.conv2d(x, kernel.to(x), padding=(kernel.shape[-2] // 2, kernel.shape[-1] // 2))
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        for kernel in reversed(self.kernels):
            y = F.conv_transpose2d(y, kernel.to(y), padding=(kernel.shape[-2] // 2, kernel.shape[-1] // 2))
        return y

    def _find_norm(self) -> NormBound:
        """By windows, but for small and for narrow images."""
        sides, bound = (self.domain_shape[1], self.domain_shape[2]), math.inf
        if math.prod(sides) > _DENSE_PIXELS and min(sides) >= smallest_side(self.kernels):
            bound, spread = chain_norm_bound(self.kernels, sides)
            if spread <= _LARGEST_SPREAD:
                return NormBound(bound)
        if math.prod(sides) <= GRAM_LIMIT:
            shape = (1 + sum(k.shape[-2] - 1 for k in self.kernels), 1 + sum(k.shape[-1] - 1 for k in self.kernels))
            return NormBound(min(bound, gram_norm_bound(local_gram(self, shape, self._device()))))
        return super()._find_norm().at_most(bound)

    def stencil(self) -> Stencil | None:
        filters = compose(self.kernels)[:, 0]
        squares = FilterBank(filters.square(), (1, self.domain_shape[1], self.domain_shape[2]), "zero")
        means = lambda w: w.mean((-2, -1))[:, None]  # noqa: E731
        return Stencil(filters[:, None], False, squares.adjoint, means)
