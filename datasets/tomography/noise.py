"""Noise of measurements: Gaussian relative to the sinogram, and photon counts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.datasets.tomography.transmission import PHOTON_FLOOR, line_integrals
from learnreg.errors import ConfigError, DataError
from learnreg.linear.arguments import real_number

__all__ = ["PhotonNoise", "RelativeNoise"]


@dataclass(frozen=True)
class RelativeNoise:
    """Gaussian noise whose standard deviation is ``fraction`` of the mean absolute value of each clean measurement.

    Raises
    ------
    ConfigError: ``fraction`` is not in [0, 1].

    Examples
    --------
    >>> lr.datasets.RelativeNoise(fraction=0.01).fraction
    0.01
    """

    fraction: float = 0.01

    def __post_init__(self) -> None:
        if real_number(self.fraction, "RelativeNoise(fraction)", least=0.0) > 1:
            raise ConfigError(f"fraction={self.fraction!r} is outside [0, 1]: 0.01 is one percent of the mean value.")

    def apply(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """``clean`` (one measurement, without a batch axis) plus noise drawn on the CPU in float32."""
        noise = torch.randn(clean.shape, generator=generator, dtype=torch.float32)
        return clean + self.fraction * clean.abs().mean() * noise.to(clean)


@dataclass(frozen=True)
class PhotonNoise:
    """Poisson counts of photons behind the object, turned back into line integrals.

    The clean measurement p = A x becomes N ~ Poisson(photons · exp(-attenuation · p)) and
    b = -log(max(N, 0.1) / photons) / attenuation, so that b has the units of A x.

    Parameters
    ----------
    photons: mean count of a ray that meets nothing.
    attenuation: line integral of attenuation per unit of A x, without dimension. For an operator with pixels of length
        1/n it is mu · L, where mu is the attenuation coefficient at pixel value 1 and L the side of the image: with
        water (0.2 per cm) at 0.45 and a side of 36 cm it is 16.
    electronic: standard deviation of Gaussian noise added to the counts, in photons.

    Source: Leuschner, Schmidt, Baguer, Maass, "LoDoPaB-CT, a benchmark dataset for low-dose computed tomography
    reconstruction", Sci Data 8 (2021): 4,096 photons, counts of zero replaced by 0.1, attenuation 81.35858/m · 0.26 m.

    Raises
    ------
    ConfigError: a value that is not positive (``electronic``: negative) or not finite.

    Examples
    --------
    >>> lr.datasets.PhotonNoise(photons=1e4, attenuation=16.0).photons
    10000.0
    """

    photons: float = 1e5
    attenuation: float = 16.0
    electronic: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("photons", self.photons), ("attenuation", self.attenuation)):
            real_number(value, f"PhotonNoise({name})", above=0.0)
        real_number(self.electronic, "PhotonNoise(electronic)", least=0.0)

    def counts(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """Counts for a clean measurement (float64, on the CPU); negative ones occur with electronic noise only.

        Raises
        ------
        DataError: more than 2^53 photons are expected at some ray, whose line integral is negative.
        """
        expected = self.photons * torch.exp(-self.attenuation * clean.detach().to("cpu", torch.float64))
        if not bool((expected <= 2.0**53).all()):
            raise DataError(
                f"a ray has the line integral {float(clean.min()):.6g}, for which no photons can be counted.",
                hint="Line integrals of attenuation are >= 0; check the image and the operator.",
            )
        counts = torch.poisson(expected, generator=generator)
        if self.electronic > 0:
            noise = torch.randn(counts.shape, generator=generator, dtype=torch.float64)
            counts = counts + self.electronic * noise
        return counts

    def apply(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """The measurement (without a batch axis) as it is seen through the counts."""
        counts = self.counts(clean, generator).clamp(min=0.0)
        return (line_integrals(counts, self.photons, floor=PHOTON_FLOOR).values / self.attenuation).to(clean)
