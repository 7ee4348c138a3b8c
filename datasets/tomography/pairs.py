"""Simulated scans of images as pairs (sinogram, ground truth)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from learnreg.datasets.measured_pairs import MeasuredPairs
from learnreg.datasets.tomography.noise import PhotonNoise, RelativeNoise
from learnreg.errors import ConfigError
from learnreg.linear.operator import LinearOperator

__all__ = ["TomographyPairs"]


class TomographyPairs(MeasuredPairs):
    """Item i is (b, x_true): b = A x_true + noise, as :class:`learnreg.datasets.MeasuredPairs` says.

    Parameters
    ----------
    operator, images, seed, block: as there.
    noise: ``RelativeNoise(0.01)`` (1 % of the mean value of each measurement, the default) or ``PhotonNoise(photons)``.

    Raises
    ------
    ShapeError, DataError: as there. ConfigError: ``block`` is not positive, or ``noise`` is no noise model.

    Examples
    --------
    >>> A = lr.operators.ParallelBeam2D(16, 10, backend="matrix-free")
    >>> pairs = lr.datasets.TomographyPairs(A, lr.datasets.ellipse_phantoms(1, 16), lr.datasets.RelativeNoise(0.01))
    >>> sinogram, image = pairs[0]
    >>> sinogram.shape
    torch.Size([1, 10, 23])
    """

    def __init__(
        self,
        operator: LinearOperator,
        images: Mapping[str, Tensor] | Sequence[Tensor] | Tensor,
        noise: RelativeNoise | PhotonNoise | None = None,
        seed: int = 0,
        block: int = 16,
    ) -> None:
        noise = RelativeNoise() if noise is None else noise
        if not isinstance(noise, (RelativeNoise, PhotonNoise)):
            raise ConfigError(f"noise={noise!r}: expected RelativeNoise(fraction) or PhotonNoise(photons).")
        super().__init__(operator, images, noise, seed, block)
