"""Filtered back-projection: a fast first image from a sinogram, and the baseline of every other method."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from learnreg.errors import ConfigError
from learnreg.operators.geometry import FanGeometry, Geometry
from learnreg.operators.system_matrix import take
from learnreg.operators.tomography import FanBeam2D, ParallelBeam2D

__all__ = ["filtered_back_projection"]

Filter = Literal["ramp", "hann"]

_TYPICAL_GAPS, _SHARE_OF_TURN = 3.0, 0.05
"""Neighbouring angles further apart than both, in median gaps and in turns, are the ends of a limited scan."""


def filtered_back_projection(
    operator: ParallelBeam2D | FanBeam2D,
    sinogram: Tensor,
    filter: Filter = "ramp",  # noqa: A002
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
    dtype = torch.float64 if sinogram.dtype == torch.float64 else torch.float32
    options: Any = {"dtype": dtype, "device": sinogram.device}
    positions = _positions(geometry, options)
    views = sinogram[:, 0].to(dtype)
    distance = geometry.source_to_center if isinstance(geometry, FanGeometry) else math.inf
    if isinstance(geometry, FanGeometry):
        views = views * distance / (distance**2 + positions**2).sqrt()
    pitch = float(positions[1] - positions[0]) if positions.numel() > 1 else geometry.detector_pitch
    views = _filtered(views, pitch, filter)
    weights = _angle_weights(geometry)
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


def _positions(geometry: Geometry, options: Any) -> Tensor:
    """Where rays cross the detector axis, moved to the axis of rotation."""
    numbers = torch.arange(geometry.detectors, **options) - 0.5 * (geometry.detectors - 1)
    scale = geometry.source_to_center / geometry.source_to_detector if isinstance(geometry, FanGeometry) else 1.0
    return (numbers * geometry.detector_pitch + geometry.detector_offset) * scale


def _filtered(views: Tensor, pitch: float, name: Filter) -> Tensor:
    """Convolution along the detectors with the band-limited ramp, by FFTs without wrap-around."""
    count = views.shape[-1]
    size = 2 ** math.ceil(math.log2(2 * count))
    lag = torch.fft.fftfreq(size, 1.0 / size, dtype=torch.float64)
    ramp = torch.where(lag % 2 == 1, -1.0 / (math.pi * lag) ** 2, torch.zeros_like(lag))
    ramp[0] = 0.25
    response = torch.fft.rfft(ramp).real / pitch
    if name == "hann":
        response = response * (0.5 + 0.5 * torch.cos(math.pi * torch.linspace(0, 1, response.numel()).double()))
    filtered: Tensor = torch.fft.irfft(torch.fft.rfft(views, size) * response.to(views), size)
    return filtered[..., :count]


def _angle_weights(geometry: Geometry) -> list[float]:
    """Half the distance between each angle's neighbours; a fan sees every ray of the full turn twice."""
    turn, count = geometry.full_turn, len(geometry.angles)
    angles = torch.tensor(geometry.angles, dtype=torch.float64) % turn
    ascending, order = angles.sort()
    gaps = torch.cat([ascending[1:], ascending[:1] + turn]) - ascending
    typical = float(gaps[gaps > 1e-6 * gaps.max()].median())  # opposite parallel views are one, up to rounding
    limited = gaps > max(_TYPICAL_GAPS * typical, _SHARE_OF_TURN * turn)
    if isinstance(geometry, FanGeometry) and bool(limited.any()):
        raise ConfigError(
            f"filtered_back_projection: the fan's angles leave a gap of {float(gaps.max()):.3g} radians; expected the "
            "full turn. Start an iterative reconstruction from zero instead."
        )
    gaps = torch.where(limited, typical, gaps)
    weights = torch.empty(count, dtype=torch.float64)
    weights[order] = 0.5 * (gaps + gaps.roll(1))
    result: list[float] = (weights * (0.5 if isinstance(geometry, FanGeometry) else 1.0)).tolist()
    return result


def _interpolate(view: Tensor, index: Tensor) -> Tensor:
    """(pixels, batch): linear interpolation of (detectors, batch) at fractional places; 0 beyond the detector."""
    padded = torch.nn.functional.pad(view, (0, 0, 1, 2))
    place = (index + 1.0).clamp(0.0, view.shape[0] + 1.0)
    lower = place.floor()
    share, first = (place - lower)[:, None], lower.int()
    return take(padded, first) + share * take(padded.diff(dim=0), first)
