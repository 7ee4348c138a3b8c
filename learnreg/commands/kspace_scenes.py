"""Clean complex images with simulated k-space: what reconstructions are compared and evaluated on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from learnreg.datasets import GaussianNoise
from learnreg.operators import CartesianMRI
from learnreg.report.comparison import Scene, magnitude

__all__ = ["kspace_scenes", "magnitude_psnr"]


@torch.no_grad()
def kspace_scenes(
    operator: CartesianMRI, images: Iterable[tuple[str, Tensor]], noise: GaussianNoise, seed: int = 0
) -> Iterator[Scene]:
    """Complex images (2, H, W) by name, with noisy k-space; that of image i has the seed ``seed + i``. The input image
    is the zero-filled inverse transform, its coils combined."""
    for i, (name, clean) in enumerate(images):
        noisy = noise.apply(operator(clean[None])[0], torch.Generator().manual_seed(seed + i))
        b = torch.where(operator.mask != 0, noisy, 0.0)
        yield Scene(name, clean, b, operator.approximate_inverse(b[None])[0], magnitude)


def magnitude_psnr(x: Tensor, clean: Tensor) -> float:
    """Mean over a batch of complex images of the PSNR of their magnitudes, data range 1."""
    difference = x.double().square().sum(1).sqrt() - clean.double().square().sum(1).sqrt()
    return float((-10.0 * torch.log10(difference.square().flatten(1).mean(1))).mean())
