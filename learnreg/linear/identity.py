"""The identity: the forward operator of denoising, and the analysis operator of regularizers that say their value
alone."""

from __future__ import annotations

import torch
from torch import Tensor

from learnreg.linear.norms import NormBound
from learnreg.linear.operator import LinearOperator
from learnreg.linear.shapes import Shape

__all__ = ["Unchanged"]


class Unchanged(LinearOperator):
    """A x = x, in memory of its own."""

    def __init__(self, domain_shape: Shape) -> None:
        super().__init__(domain_shape, domain_shape)

    def forward(self, x: Tensor) -> Tensor:
        self.check_domain(x)
        return x.clone()

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_range(y)
        return y.clone()

    def _find_norm(self) -> NormBound:
        return NormBound(1.0)

    def gram_lower_bound(self) -> float:
        return 1.0

    def _find_nonnegative(self) -> bool:
        return True

    def diagonal(self) -> Tensor | None:
        return torch.ones((), dtype=torch.float64).expand(self.domain_shape)

    def row_norms(self, grouped: bool) -> Tensor | float:
        return 1.0
