"""Complex images and measurements as two channels of real numbers, real and imaginary part."""

from __future__ import annotations

import torch
from torch import Tensor

from learnreg.errors import ShapeError
from learnreg.linear.arguments import check_dense, shown

__all__ = ["as_channels", "as_complex"]


def as_channels(z: Tensor) -> Tensor:
    """Complex numbers (batch, ...) as real ones (batch, 2, ...): real part, imaginary part.

    Parameters
    ----------
    z: a complex tensor (batch, ...).

    Raises
    ------
    ShapeError: no complex tensor with a batch axis.
    """
    check_dense(z, "as_channels(z)", "of complex numbers")
    if not z.is_complex() or not z.dim():
        raise ShapeError(f"as_channels(z): got {shown(z)}, expected complex numbers (batch, ...).")
    return torch.stack([z.real, z.imag], dim=1)


def as_complex(x: Tensor) -> Tensor:
    """Real numbers (batch, 2, ...) as complex ones (batch, ...): the reverse of :func:`as_channels`.

    Parameters
    ----------
    x: a real tensor (batch, 2, ...).

    Raises
    ------
    ShapeError: no real tensor, or its second axis is not 2.
    """
    check_dense(x, "as_complex(x)", "(batch, 2, ...)")
    if x.dim() < 2 or x.shape[1] != 2 or not x.is_floating_point():
        raise ShapeError(
            f"as_complex(x): got {shown(x)}, expected real numbers (batch, 2, ...): real and imaginary part."
        )
    return torch.complex(x[:, 0], x[:, 1])
