"""Slices of any size as square images of the size that an operator takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from learnreg.errors import ConfigError, DataError, ShapeError
from learnreg.linear.arguments import check_real, real_number, shown, whole_number

__all__ = ["resize_slice"]

_LARGEST = 2**15


def resize_slice(image: Tensor, size: int, spacing: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """The central square of an image (1, height, width), resized to (1, size, size), dtype and device kept.

    ``spacing``: the distances of rows and of columns, in any unit; where they differ, the square has as many rows and
    columns, rounded, as make it a square in that unit. Where both are multiples of ``size``, blocks of pixels are
    averaged, which keeps the mean exactly; otherwise scikit-image interpolates linearly behind an antialiasing filter.
    An odd rest is cut off below and on the right. Values stay within the range of the image.

    Parameters
    ----------
    image: (1, height, width).

    Raises
    ------
    ShapeError: not an image (1, height, width). ConfigError: ``size`` is not a positive integer, or ``spacing`` not
        positive.
    DataError: scikit-image is needed and missing.
    """
    whole_number(size, "resize_slice(size)", most=_LARGEST)
    check_real(image, "resize_slice(image)", "(1, height, width)")
    if image.dim() != 3 or image.shape[0] != 1 or min(image.shape) < 1 or not image.is_floating_point():
        raise ShapeError(
            f"resize_slice: got {tuple(image.shape)} of {image.dtype}, expected a float image (1, height, width)."
        )
    if not isinstance(spacing, (tuple, list)) or len(spacing) != 2:
        raise ConfigError(f"resize_slice(spacing={shown(spacing)}): expected two positive lengths.")
    spacing = (real_number(spacing[0], "spacing", above=0.0), real_number(spacing[1], "spacing", above=0.0))
    side = min(n * distance for n, distance in zip(image.shape[1:], spacing, strict=True))
    rows, columns = (max(1, round(side / distance)) for distance in spacing)
    top, left = (image.shape[1] - rows) // 2, (image.shape[2] - columns) // 2
    square = image[:, top : top + rows, left : left + columns]
    if rows == columns == size:
        return square.clone()
    if rows % size == 0 and columns % size == 0:
        return avg_pool2d(square, (rows // size, columns // size))
    return _interpolate(square, size)


def _interpolate(square: Tensor, size: int) -> Tensor:
    try:
        from skimage import transform
    except ImportError as error:
        raise DataError(
            f"resizing {tuple(square.shape[1:])} to {size} pixels, which does not divide it, needs the package "
            "scikit-image.",
            hint="Install it with: pip install 'learnreg[images]'",
        ) from error
    pixels = square[0].detach().cpu().numpy().astype(np.float64)
    resize: Callable[..., Any] = transform.resize
    resized = resize(pixels, (size, size), order=1, mode="edge", anti_aliasing=True, preserve_range=True)
    return torch.from_numpy(resized).unsqueeze(0).to(square)
