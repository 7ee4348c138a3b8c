"""Simulated k-space of complex images as pairs (k-space, ground truth)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from learnreg.datasets.measured_pairs import MeasuredPairs
from learnreg.datasets.noise import GaussianNoise
from learnreg.linear.arguments import check_type
from learnreg.operators.mri import CartesianMRI

__all__ = ["KSpacePairs"]


class KSpacePairs(MeasuredPairs):
    """Item i is (b, x_true): b = A x_true + noise where k-space is measured and 0 elsewhere, as
    :class:`learnreg.datasets.MeasuredPairs` says.

    Parameters
    ----------
    operator: a ``CartesianMRI``.
    images: complex images (2, H, W), such as ``with_smooth_phase(image)``.
    noise: the default is sigma = 0.01.
    seed, block: as there.

    Raises
    ------
    ShapeError, DataError, ConfigError: as there.

    Examples
    --------
    >>> A = lr.operators.CartesianMRI(lr.datasets.cartesian_mask(8), domain_shape=(2, 8, 8))
    >>> image = lr.datasets.with_smooth_phase(torch.ones(1, 8, 8), seed=0)
    >>> pairs = lr.datasets.KSpacePairs(A, [image], lr.datasets.GaussianNoise(0.01))
    >>> pairs[0][0].shape
    torch.Size([2, 8, 8])
    """

    operator: CartesianMRI

    def __init__(
        self,
        operator: CartesianMRI,
        images: Mapping[str, Tensor] | Sequence[Tensor] | Tensor,
        noise: GaussianNoise | None = None,
        seed: int = 0,
        block: int = 16,
    ) -> None:
        check_type(operator, CartesianMRI, "KSpacePairs(operator)", "a CartesianMRI")
        noise = GaussianNoise() if noise is None else noise
        check_type(noise, GaussianNoise, "KSpacePairs(noise)", "GaussianNoise(sigma)")
        super().__init__(operator, images, noise, seed, block)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        b, x_true = super().__getitem__(index)
        return torch.where(self.operator.mask.detach().cpu() != 0, b, 0.0), x_true
