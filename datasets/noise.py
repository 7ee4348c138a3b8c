"""White Gaussian noise of measurements."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.linear.arguments import real_number

__all__ = ["GaussianNoise"]


@dataclass(frozen=True)
class GaussianNoise:
    """Noise of standard deviation ``sigma`` in units of the measurement; for complex ones of the real and of the
    imaginary part.

    Raises
    ------
    ConfigError: a negative sigma.

    Examples
    --------
    >>> lr.datasets.GaussianNoise(sigma=0.05).sigma
    0.05
    """

    sigma: float = 0.01

    def __post_init__(self) -> None:
        real_number(self.sigma, "GaussianNoise(sigma)", least=0.0)

    def apply(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """``clean`` (one measurement, without a batch axis) plus noise drawn on the CPU in float32."""
        return clean + self.sigma * torch.randn(clean.shape, generator=generator).to(clean)
