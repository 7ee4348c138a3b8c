"""Filtered back-projection: a fast first image from a sinogram, and the baseline of every other method."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from learnreg.errors import ConfigError
from learnreg.operators.tomography.geometry import FanGeometry
from learnreg.operators.tomography.projectors import FanBeam2D, ParallelBeam2D
from learnreg.operators.tomography.ramp import Window, angle_weights, detector_positions, ramp_filtered
from learnreg.operators.tomography.system_matrix import take

__all__ = ["filtered_back_projection"]


def filtered_back_projection(
    operator: ParallelBeam2D | FanBeam2D,
    sinogram: Tensor,
    filter: Window = "ramp",  # noqa: A002
) -> Tensor:
    """Images (batch, 1, n, n) from sinograms (batch, 1, angles, detectors): the inverse of the projector up to
    discretisation, for projections that are complete and not truncated. Differentiable, linear in the sinogram.

    filter: "ramp" (band-limited at the detector's Nyquist frequency), or "hann": times a Hann window, for noisy data.
    A fan beam must cover the full turn; parallel angles may lie anywhere, gaps of limited scans count nothing.

    Raises
    ------
    ConfigError: an unknown filter, or a fan beam over less than the full turn. ShapeError: a sinogram that
        does not fit.
    Source: Kak and Slaney, Principles of Computerized Tomographic Imaging (1988), (61) of chapter 3 for the ramp and
        (137) to (139) for equally spaced collinear detectors.
    """
    if filter not in ("ramp", "hann"):
        raise ConfigError(f"filtered_back_projection(filter={filter!r}): expected 'ramp' or 'hann'.")
    operator.check_range(sinogram, "sinogram")
    geometry, n = operator.geometry, operator.geometry.image_size
    if not len(sinogram):
        return sinogram.new_zeros(0, 1, n, n)
    dtype = torch.float64 if sinogram.dtype == torch.float64 else torch.float32
    options: Any = {"dtype": dtype, "device": sinogram.device}
    positions = detector_positions(geometry, options)
    views = sinogram[:, 0].to(dtype)
    distance = geometry.source_to_center if isinstance(geometry, FanGeometry) else math.inf
    if isinstance(geometry, FanGeometry):
        views = views * distance / (distance**2 + positions**2).sqrt()
    pitch = float(positions[1] - positions[0]) if positions.numel() > 1 else geometry.detector_pitch
    views = ramp_filtered(views, pitch, filter)
    weights, widest = angle_weights(geometry)
    if isinstance(geometry, FanGeometry) and widest is not None:
        raise ConfigError(
            f"filtered_back_projection: the fan's angles leave a gap of {widest:.3g} radians; expected the "
            "full turn. Solve a lower-level problem instead."
        )
    side = (torch.arange(n, **options) - 0.5 * (n - 1)) * geometry.pixel_size
    x, y = side[None, :], -side[:, None]
    image = views.new_zeros(n * n, views.shape[0])
    for k, angle in enumerate(geometry.angles):
        along, towards = x * math.cos(angle) + y * math.sin(angle), x * math.sin(angle) - y * math.cos(angle)
        closeness = 1.0 / (1.0 - towards / distance)
        index = (along * closeness - positions[0]) / pitch
        weight = weights[k] * closeness**2
        image = image + weight.expand(n, n).reshape(-1, 1) * _interpolate(views[:, k].T, index.flatten())
    return image.T.reshape(-1, 1, n, n).to(sinogram.dtype)


def _interpolate(view: Tensor, index: Tensor) -> Tensor:
    """(pixels, batch): linear interpolation of (detectors, batch) at fractional places; 0 beyond the detector."""
    padded = torch.nn.functional.pad(view, (0, 0, 1, 2))
    place = (index + 1.0).clamp(0.0, view.shape[0] + 1.0)
    lower = place.floor()
    share, first = (place - lower)[:, None], lower.int()
    return take(padded, first) + share * take(padded.diff(dim=0), first)
