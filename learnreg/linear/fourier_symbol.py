"""Fourier symbols of operators that are nearly convolutions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["point_response_symbol"]

_POSITIONS = ((0.5, 0.5), (0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75))


def point_response_symbol(
    gram: Callable[[Tensor], Tensor],
    image_shape: tuple[int, ...],
    sides: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """The symbol of a symmetric non-negative operator on images, as if it were a convolution on a torus: the transform
    of its responses to five points, shifted onto each other and averaged. Exact for a convolution whose kernel fits.

    Parameters
    ----------
    gram: maps (batch, *image_shape) to itself.
    image_shape: (1, H, W).
    sides: of the torus, at least those of the image.

    Returns
    -------
    (rows, columns // 2 + 1), >= 0.
    """
    _, rows, columns = image_shape
    points = torch.zeros(len(_POSITIONS), *image_shape, dtype=dtype, device=device)
    for point, (down, right) in zip(points, _POSITIONS, strict=True):
        point[0, int(down * rows), int(right * columns)] = 1.0
    response, shift = torch.fft.rfft2(gram(points), s=sides), torch.fft.rfft2(points, s=sides)
    symbol: Tensor = (response * shift.conj()).real.mean((0, 1))
    return symbol.clamp_min_(0.0)
