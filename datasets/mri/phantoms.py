"""Complex images: magnitudes with a smooth, seeded phase."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learnreg.datasets.seeding import item_generator
from learnreg.errors import ShapeError
from learnreg.linear.arguments import check_real, real_number

__all__ = ["with_smooth_phase"]

_WAVES = 6


def with_smooth_phase(image: Tensor, seed: int = 0, strength: float = 1.0) -> Tensor:
    """An image (1, H, W) of magnitudes as a complex one, (2, H, W): real and imaginary part. The phase is *synthetic*:
    a sum of slow waves, drawn by ``seed``.

    Parameters
    ----------
    image: (1, height, width), real.
    strength: standard deviation of the phase over images, in radians.

    Raises
    ------
    ShapeError: not (1, H, W). ConfigError: a negative strength.
    """
    check_real(image, "with_smooth_phase(image)", "(1, H, W)")
    if image.dim() != 3 or image.shape[0] != 1:
        raise ShapeError(f"with_smooth_phase(image): got {tuple(image.shape)}, expected (1, H, W).")
    strength = real_number(strength, "with_smooth_phase(strength)", least=0.0)
    generator = item_generator("phase", seed)
    y, x = torch.meshgrid(*(torch.linspace(-1.0, 1.0, n) for n in image.shape[1:]), indexing="ij")
    frequencies = 1.5 * torch.randn(_WAVES, 2, generator=generator)
    shifts = 2.0 * math.pi * torch.rand(_WAVES, generator=generator)
    waves = torch.cos(frequencies[:, :1, None] * x + frequencies[:, 1:, None] * y + shifts[:, None, None])
    phase = (strength * math.sqrt(2.0 / _WAVES) * waves.sum(0)).to(image)
    return torch.cat([image * phase.cos(), image * phase.sin()])
