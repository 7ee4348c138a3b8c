"""How much white noise an image has."""

from __future__ import annotations

import torch
from torch import Tensor

from learnreg.errors import DataError, ShapeError
from learnreg.linear.arguments import check_precision, check_real

__all__ = ["estimate_noise"]

_FEWEST_BLOCKS = 256
_NORMAL_MEDIAN = 0.6744897501960817  # of |z|, z normal


def estimate_noise(image: Tensor) -> float | None:
    """*Estimate* of the standard deviation of white noise in an image; None where too few pixels tell it. Blocks with
    pixels at 0 or 1 are left out: noise is cut off there. Fine texture counts as noise; docs/denoising.md says how far
    estimates are off on photographs. It says nothing of sinograms and k-space.

    Parameters
    ----------
    image: (channels, height, width); of several channels, their noise together.

    Raises
    ------
    ShapeError: another shape or dtype. DataError: NaN or infinite values.

    Source: Donoho and Johnstone, Biometrika 81 (1994): the median absolute diagonal wavelet coefficient, here Haar's,
    over that of a normal variable.
    """
    check_real(image, "estimate_noise(image)", "(channels, height, width)")
    check_precision(image, "estimate_noise(image)")
    if image.dim() != 3:
        raise ShapeError(
            f"estimate_noise(image): got shape {tuple(image.shape)}, expected a tensor (channels, height, width)."
        )
    if not bool(torch.isfinite(image).all()):
        raise DataError("estimate_noise(image): it has NaN or infinite values.", hint="Replace them.")
    image = image.detach()
    height, width = (n - n % 2 for n in image.shape[-2:])
    blocks = image[:, :height, :width].reshape(len(image), height // 2, 2, width // 2, 2).movedim(3, 2).flatten(3)
    inside = ((blocks > 0.0) & (blocks < 1.0)).all(3) | (blocks < -1e-6).any(3) | (blocks > 1.0 + 1e-6).any(3)
    detail = 0.5 * (blocks[..., 0] - blocks[..., 1] - blocks[..., 2] + blocks[..., 3])[inside]
    if detail.numel() < _FEWEST_BLOCKS:
        return None
    return float(detail.abs().median()) / _NORMAL_MEDIAN
