"""Fourier symbols of operators that are nearly convolutions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["point_response_symbol"]

_POSITIONS = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), (0.25, 0.75, 0.25), (0.75, 0.25, 0.75), (0.75, 0.75, 0.75))


def point_response_symbol(
    gram: Callable[[Tensor], Tensor],
    image_shape: tuple[int, ...],
    sides: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """The symbol of a symmetric non-negative operator on images, as if it were a convolution on a torus, the same in
    each channel: the transform of its responses to five points, shifted onto each other and averaged. Exact for a
    convolution whose kernel fits.

    Parameters
    ----------
    gram: maps (batch, *image_shape) to itself.
    image_shape: (channels, *one to three sides).
    sides: of the torus, at least those of the image.

    Returns
    -------
    (*half spectrum,), >= 0.
    """
    channels, *lengths = image_shape
    axes = tuple(range(-len(sides), 0))
    points = torch.zeros(len(_POSITIONS), *image_shape, dtype=dtype, device=device)
    for point, position in zip(points, _POSITIONS, strict=True):
        point[(0, *(int(share * n) for share, n in zip(position, lengths, strict=False)))] = 1.0
    symbol: Tensor = torch.zeros((), dtype=dtype, device=device)
    for _ in range(channels):  # the points in one channel after the other
        response = torch.fft.rfftn(gram(points), s=sides, dim=axes)
        symbol = symbol + (response * torch.fft.rfftn(points, s=sides, dim=axes).conj()).real.mean(0).sum(0)
        points = points.roll(1, 1)
    return (symbol / channels).clamp_min_(0.0)
