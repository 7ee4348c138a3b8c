"""Estimates of the noise of images: on photographs, within what docs/denoising.md says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import learnreg as lr
from learnreg.datasets import add_noise, estimate_noise

data = pytest.importorskip("skimage.data")


def photograph(name: str) -> Tensor:
    image = torch.from_numpy(getattr(data, name)()).float() / 255
    return image[None] if image.dim() == 2 else image.movedim(2, 0)


def stored(image: Tensor) -> Tensor:
    """As a file of 8 bits holds it: rounded and cut off."""
    return (image.clamp(0, 1) * 255).round() / 255


@pytest.mark.parametrize("sigma", [5, 15, 25, 50])
@pytest.mark.parametrize("name", ["camera", "coins", "moon", "page", "text", "astronaut"])
def test_photographs(name: str, sigma: float) -> None:
    noisy = add_noise(photograph(name), sigma / 255, 0)
    for image, least in ((noisy, 0.98), (stored(noisy), 0.85)):
        found = estimate_noise(image)
        assert found is not None
        assert least * sigma - 0.1 < 255 * found < 1.02 * sigma + 1.9


def test_white_noise_is_measured() -> None:
    noise = 3.0 * torch.randn(1, 400, 400, generator=torch.Generator().manual_seed(0))
    assert estimate_noise(noise) == pytest.approx(3.0, rel=0.02)
    assert estimate_noise(noise[:, :20, :20]) is None  # too few pixels
    assert estimate_noise(torch.zeros(1, 100, 100)) is None  # all cut off
    assert estimate_noise(torch.full((1, 100, 100), 0.5)) == 0.0


@pytest.mark.parametrize("name", ["camera", "coins"])
def test_scikit_image_agrees(name: str) -> None:
    pytest.importorskip("pywt")
    from skimage.restoration import estimate_sigma

    for sigma in (5, 25, 50):
        noisy = add_noise(photograph(name), sigma / 255, 0)
        assert estimate_noise(noisy) == pytest.approx(
            estimate_sigma(noisy[0].double().numpy()), rel=0.04 if sigma > 5 else 0.11
        )


@pytest.mark.parametrize("image", [torch.zeros(8, 8), torch.zeros(1, 1, 8, 8), np.zeros((1, 8, 8)), None])
def test_other_shapes_are_refused(image: object) -> None:
    with pytest.raises(lr.ShapeError, match=r"\(channels, height, width\)"):
        estimate_noise(image)  # type: ignore[arg-type]


def test_other_numbers_are_refused() -> None:
    """Photographs as they come, in 0..255, as bytes."""
    with pytest.raises(lr.ShapeError, match="float32 or float64"):
        estimate_noise(torch.zeros(1, 64, 64, dtype=torch.uint8))
    with pytest.raises(lr.DataError, match="NaN"):
        estimate_noise(torch.full((1, 64, 64), torch.nan))
