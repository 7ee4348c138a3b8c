"""Sensitivities of receiver coils: simulated, or found from the measured middle of k-space."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learnreg.errors import ConfigError, DataError, ShapeError
from learnreg.linear.arguments import check_dense, real_number, whole_number
from learnreg.operators.mri import from_kspace

__all__ = ["estimate_coil_maps", "simulate_coil_maps"]

_FAINT = 1e-3
"""Of the brightest pixel: where an image is fainter, sensitivities of its noise would be meaningless."""


def simulate_coil_maps(coils: int, height: int, width: int, distance: float = 1.5) -> Tensor:
    """Small loops evenly around the image, complex64 (coils, height, width) with sum_c |s_c|² = 1 at every pixel.

    Each falls off with the square of the distance from its centre and turns its phase with the direction to it.

    Parameters
    ----------
    coils, height, width: how many, and the sides of the image.
    distance: of the loops from the middle, in halves of the image's sides; above 1 they are outside an image's
        inscribed circle.

    Raises
    ------
    ConfigError: sizes that are not positive whole numbers, a distance that is not positive.
    """
    coils = whole_number(coils, "simulate_coil_maps(coils)")
    sides = [whole_number(n, "simulate_coil_maps(height, width)") for n in (height, width)]
    distance = real_number(distance, "simulate_coil_maps(distance)", above=0.0)
    y, x = torch.meshgrid(*((2.0 * torch.arange(n).double() + 1.0 - n) / n for n in sides), indexing="ij")
    angle = 2.0 * math.pi * torch.arange(coils).double()[:, None, None] / coils
    across, down = x - distance * torch.cos(angle), y - distance * torch.sin(angle)
    strength = 1.0 / (across.square() + down.square()).clamp_min(1e-6)
    maps = torch.polar(strength, torch.atan2(down, across))
    return (maps / maps.abs().square().sum(0).sqrt()).to(torch.complex64)


def estimate_coil_maps(kspace: Tensor, calibration: int = 24) -> Tensor:
    """Sensitivities from the fully sampled middle of k-space: images of low resolution, over the root of their sum of
    squares. An *estimate*: nothing in it is certified, and smooth phase of the image becomes that of the maps.

    Parameters
    ----------
    kspace: complex (coils, H, W), frequency zero at (H // 2, W // 2).
    calibration: lines in the middle that are all measured; along the first axis as many points are used.

    Returns
    -------
    Complex (coils, H, W) with sum_c |s_c|² = 1 where the image is brighter than a thousandth of its maximum, and
    smoothly 0 below that.

    Source: McKenzie, Yeh, Ohliger, Price and Sodickson, Self-calibrating parallel imaging with automatic coil
    sensitivity extraction (2002).

    Raises
    ------
    ShapeError: not complex (coils, H, W). ConfigError: more calibration lines than lines, or none.
    DataError: a line of the middle was not measured, or everything is 0.
    """
    check_dense(kspace, "estimate_coil_maps(kspace)", "of complex numbers (coils, H, W)")
    if kspace.dim() != 3 or not kspace.is_complex():
        raise ShapeError(
            f"estimate_coil_maps(kspace): got {tuple(kspace.shape)} of {kspace.dtype}, expected complex (coils, H, W)."
        )
    height, width = kspace.shape[1:]
    calibration = whole_number(calibration, "estimate_coil_maps(calibration)")
    if calibration > width:
        raise ConfigError(f"estimate_coil_maps(calibration={calibration}): k-space has {width} lines.")
    windows = [_window(n, min(n, calibration)).to(kspace.real) for n in (height, width)]
    middle = windows[1] > 0
    unmeasured = int((kspace.abs().sum((0, 1)) == 0)[middle].sum())
    if unmeasured:
        raise DataError(
            f"{unmeasured} of {calibration} lines in the middle of k-space were not measured.",
            hint="Pass a smaller calibration=, or measured sensitivities.",
        )
    scaled = kspace / float(kspace.abs().max())  # squares of tiny and huge ones would not be numbers
    images = from_kspace(scaled * windows[0][:, None] * windows[1])
    size = images.abs().square().sum(0).sqrt()
    return images * size / (size.square() + (_FAINT * size.max()).square())


def _window(sides: int, count: int) -> Tensor:
    """A Hann window on so many places in the middle, without its zeros."""
    window = torch.zeros(sides, dtype=torch.float64)
    first = (sides - count + 1) // 2
    window[first : first + count] = torch.hann_window(count + 2, periodic=False, dtype=torch.float64)[1:-1]
    return window
