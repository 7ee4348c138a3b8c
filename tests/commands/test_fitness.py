"""Warnings about inputs that are not what a model was learned for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from learnreg.commands.fitness import unfit_image, unfit_scan
from learnreg.datasets import add_noise, ellipse_phantom
from learnreg.operators import FanBeam2D, ParallelBeam2D

data = pytest.importorskip("skimage.data")

SIGMA = 25 / 255


def photograph(name: str = "camera") -> Tensor:
    return torch.from_numpy(getattr(data, name)()).float()[None, 100:300, 100:310] / 255


def stored(image: Tensor, bits: int = 8) -> Tensor:
    """As an image file holds it: rounded and cut off."""
    return (image.clamp(0, 1) * (2**bits - 1)).round() / (2**bits - 1)


FIT = {
    "noise that leaves [0, 1]": lambda x: add_noise(x, SIGMA, 0),
    "an 8-bit file": lambda x: stored(add_noise(x, SIGMA, 0)),
    "a 16-bit file": lambda x: stored(add_noise(x, SIGMA, 0), 16),
    "a dark image": lambda x: stored(add_noise(0.2 * x, SIGMA, 0)),
    "a little less noise": lambda x: add_noise(x, 0.75 * SIGMA, 0),
    "a little more noise": lambda x: add_noise(x, 1.3 * SIGMA, 0),
    "a flat image": lambda x: add_noise(torch.full_like(x, 0.5), SIGMA, 0),
    "a small image": lambda x: add_noise(x[:, :8, :8], SIGMA, 0),
    "a pixel": lambda x: x[:, :1, :1],
}
UNFIT = {
    "0..255": (lambda x: 255 * add_noise(x, SIGMA, 0), "Divide them by 255"),
    "12 bits": (lambda x: 4095 * add_noise(x, SIGMA, 0).clamp(0, 1), "Divide them by 4095"),
    "16 bits": (lambda x: 65535 * add_noise(x, SIGMA, 0).clamp(0, 1), "Divide them by 65535"),
    "Hounsfield units": (lambda x: 2000 * add_noise(x, SIGMA, 0) - 1000, "Hounsfield"),
    "an offset": (lambda x: 1e7 + add_noise(x, SIGMA, 0), "white is 1"),
    "negative 0..255": (lambda x: -255 * add_noise(x, SIGMA, 0).clamp(0, 1), "white is 1"),
    "divided twice": (lambda x: add_noise(x, SIGMA, 0) / 255, "more than they differ by"),
    "12 bits in a 16-bit file": (lambda x: add_noise(x, SIGMA, 0) / 16, "more than they differ by"),
    "a dead pixel": (lambda x: add_noise(x, SIGMA, 0).where(torch.arange(x.numel()).view_as(x) != 99, 1e4), "dead"),
    "less noise": (lambda x: add_noise(x, 10 / 255, 0), "smooth too much"),
    "less noise, 8 bits": (lambda x: stored(add_noise(x, 10 / 255, 0)), "--sigma 1"),
    "clean": (lambda x: x, "any noise to remove"),
    "more noise": (lambda x: add_noise(x, 50 / 255, 0), "noise will remain"),
    "more noise, 8 bits": (lambda x: stored(add_noise(x, 60 / 255, 0)), "noise will remain"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FIT)
def test_fitting_images_are_not_warned_of(kind: str) -> None:
    assert unfit_image(FIT[kind](photograph()), SIGMA, False) == []


@pytest.mark.parametrize("kind", UNFIT)
def test_unfit_images_are(kind: str) -> None:
    make, words = UNFIT[kind]
    (warning,) = unfit_image(make(photograph()), SIGMA, False)
    assert words in warning


def test_the_advice_fits_the_model() -> None:
    image = add_noise(photograph(), 10 / 255, 0)
    assert "train one with" in unfit_image(image, SIGMA, False)[0]
    assert "--sigma auto" in unfit_image(image, SIGMA, True)[0]
    assert unfit_image(image, None, False) == []


@pytest.mark.parametrize("operator", [ParallelBeam2D(32, 20), FanBeam2D(32, 20)], ids=["parallel", "fan"])
def test_scans(operator: ParallelBeam2D) -> None:
    pytest.importorskip("astra")
    b = operator(ellipse_phantom(0, 32, 1)[None])
    noise = 0.02 * float(b.mean()) * torch.from_numpy(np.random.default_rng(0).normal(size=b.shape)).float()
    assert unfit_scan(b, operator) == []
    assert unfit_scan(b + noise, operator) == []
    assert unfit_scan(torch.zeros_like(b), operator) == []
    for wrong, words in (
        (-b, "negative of a scan"),
        (10 * b, "--attenuation"),
        (2000 * b - 1000, "negative of a scan"),
        (1e4 * torch.exp(-b), "--attenuation"),
        (b / 360, "hardly any attenuation"),
        (math.pi * 1e5 * b, "--attenuation"),
    ):
        (warning,) = unfit_scan(wrong, operator)
        assert words in warning
