"""Whether a measurement is of the kind that a model was learned for: what to warn of, with advice."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from learnreg.datasets import estimate_noise
from learnreg.linear.operator import LinearOperator

__all__ = ["in_grey_levels", "unfit_image", "unfit_scan"]

_MISMATCH = 1.6
"""Factor between two noise levels from which one tells the difference: photographs add up to a third to estimates."""

_FEWEST_PIXELS = 100
_CLEAN = 2.0 / 255.0
_LOOKED_AT = 100_000
_STRAY = 1e-3
"""Share of values that may be anything: hot pixels, dead detectors."""


def in_grey_levels(sigma: float) -> str:
    """A noise level as people write it."""
    return f"{255.0 * sigma:.3g}/255"


def unfit_image(image: Tensor, sigma: float | None, conditioned: bool) -> list[str]:
    """What speaks against denoising an image (channels, height, width) with a model for noise of level sigma, None if
    that is not known. conditioned: the model adapts to others."""
    if problem := _unfit_range(image, sigma or 0.0):
        return [problem]
    found = estimate_noise(image)
    if sigma is None or found is None or sigma / _MISMATCH <= found <= _MISMATCH * sigma:
        return []
    effect = "it will smooth too much" if found < sigma else "noise will remain"
    advice = "pass --sigma auto" if conditioned else f"train one with --sigma {in_grey_levels(found)}"
    if found < _CLEAN:
        advice = "is there any noise to remove?"
    return [
        f"its noise is estimated as {in_grey_levels(found)}, but the model removes {in_grey_levels(sigma)}: {effect}; "
        f"{advice}"
    ]


def _unfit_range(image: Tensor, sigma: float) -> str:
    """A sentence on values that no image in [0, 1] with such noise has; "" without any."""
    margin = max(1.0, 6.0 * sigma)
    low, high = float(image.min()), float(image.max())
    span = f"its values span [{low:.4g}, {high:.4g}], but the model is for images in [0, 1] with noise"
    if low < -margin or high > 1.0 + margin:
        stray = float(((image < -margin) | (image > 1.0 + margin)).double().mean())
        if stray <= _STRAY:
            return f"{span}: {stray:.2g} of them are far outside. Are these dead pixels? Replace them."
        return f"{span}. {_rescaling(low, high)}"
    if image.numel() < _FEWEST_PIXELS:
        return ""
    values = image.flatten()[:: max(1, image.numel() // _LOOKED_AT)].sort().values
    rest = len(values) // 100  # on either side
    contrast = float(values[-1 - rest] - values[rest])
    if contrast < 2.0 * sigma:  # white noise alone makes it 4.6 sigma
        return f"{span} of {in_grey_levels(sigma)}, which is more than they differ by. Scale them so that white is 1."
    return ""


def _rescaling(low: float, high: float) -> str:
    if low < -500.0:
        return "Are these Hounsfield units? Map the window of interest to [0, 1]."
    white = next((w for w in (255, 1023, 4095, 65535) if high <= 1.6 * w), None)
    return "Scale them so that white is 1." if white is None else f"Divide them by {white}, so that white is 1."


def unfit_scan(scans: Iterable[Tensor], operator: LinearOperator) -> list[str]:
    """What speaks against reconstructing sinograms (..., angles, detectors), one after the other, in the units of a
    model: line integrals of images in [0, 1] lie between 0 and those of an image of ones."""
    with torch.no_grad():
        largest = float(operator(torch.ones(1, *operator.domain_shape)).max())
    low, high, total, below, above, count = math.inf, -math.inf, 0.0, 0, 0, 0
    for b in scans:
        low, high = min(low, float(b.min())), max(high, float(b.max()))
        total += float(b.double().sum())
        below += int((b < -0.1 * largest).sum())
        above += int((b > 1.2 * largest).sum())
        count += b.numel()
    span = f"its line integrals span [{low:.3g}, {high:.3g}] in the model's units, where [0, {largest:.3g}] is possible"
    if total < 0.0 or below > 0.05 * count:
        return [f"{span}. Is it the negative of a scan, or counts? Pass -log(counts / flat), or --counts and --flat."]
    if above > _STRAY * count:
        return [f"{span}. Check their unit: --attenuation is what the model's 1 stands for per unit of length."]
    if 0.0 < high < 0.01 * largest:
        return [f"{span}: hardly any attenuation. Check their unit: --attenuation, or lengths in the geometry."]
    return []
