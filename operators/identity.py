"""The identity and pointwise masks."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from learnreg.errors import ConfigError, OperatorError
from learnreg.linear.arguments import given_tensor
from learnreg.linear.identity import Unchanged
from learnreg.linear.norms import NormBound
from learnreg.linear.operator import LinearOperator

__all__ = ["Identity", "Inpainting"]


class Identity(Unchanged):
    """A = I on images of the given shape (without the batch axis): denoising.

    Parameters
    ----------
    domain_shape: of images, without the batch.

    Examples
    --------
    >>> A = lr.operators.Identity((1, 8, 8))
    >>> A(torch.ones(2, 1, 8, 8)).shape, float(A.norm_bound())
    (torch.Size([2, 1, 8, 8]), 1.0)
    """

    def stored(self) -> dict[str, Any]:
        return {"config": {}}  # images of any size

    @classmethod
    def from_stored(cls, stored: dict[str, Any], image_shape: tuple[int, ...] | None) -> Self:
        if image_shape is None:
            raise ConfigError("this model denoises images of any size: say which, image_shape=(1, height, width).")
        return cls(image_shape)

    def on(self, domain_shape: tuple[int, ...]) -> Identity:
        return Identity(domain_shape)


class Inpainting(LinearOperator):
    """A x = mask · x, the range being the domain.

    Parameters
    ----------
    mask: tensor or NumPy array of ``domain_shape``: 1 (or True) where a pixel is seen, 0 where it is missing; any
        finite weights do. Images have a channel axis: mask[None] for a mask (height, width).

    Raises
    ------
    OperatorError: a mask with NaN or infinite entries.

    Examples
    --------
    >>> mask = (torch.arange(16).reshape(1, 4, 4) % 2).float()
    >>> float(lr.operators.Inpainting(mask)(torch.ones(1, 1, 4, 4)).sum())
    8.0
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        mask = given_tensor(mask, "Inpainting(mask)")
        mask = mask if mask.is_floating_point() else mask.to(torch.get_default_dtype())
        if not bool(torch.isfinite(mask).all()):
            raise OperatorError("Inpainting(mask): NaN or infinite entries.", "finite")
        super().__init__(tuple(mask.shape), tuple(mask.shape))
        self.register_buffer("mask", mask)

    def stored(self) -> dict[str, Any]:
        return {"config": {"mask": self.mask}}

    @classmethod
    def from_stored(cls, stored: dict[str, Any], image_shape: tuple[int, ...] | None) -> Self:
        return cls(stored["config"]["mask"])

    def forward(self, x: Tensor) -> Tensor:
        self.check_domain(x)
        return self.mask.to(x) * x

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_range(y)
        return self.mask.to(y) * y

    def _find_norm(self) -> NormBound:
        return NormBound(float(self.mask.abs().max()))

    def gram_lower_bound(self) -> float:
        return float(self.mask.abs().min()) ** 2 * (1.0 - 1e-15)

    def _find_nonnegative(self) -> bool:
        return bool((self.mask >= 0).all())

    def diagonal(self) -> Tensor | None:
        return self.mask

    def row_norms(self, grouped: bool) -> Tensor | float:
        return self.mask.abs()
