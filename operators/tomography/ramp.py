"""The ramp filter of filtered back-projection, and what each view counts."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from learnreg.operators.tomography.geometry import FanGeometry, Geometry

__all__ = ["Window", "angle_weights", "detector_positions", "ramp_filtered"]

Window = Literal["ramp", "hann"]

_TYPICAL_GAPS, _SHARE_OF_TURN = 3.0, 0.05
"""Neighbouring angles further apart than both, in median gaps and in turns, are the ends of a limited scan."""


def detector_positions(geometry: Geometry, options: Any) -> Tensor:
    """Where rays cross the detector axis, moved to the axis of rotation."""
    numbers = torch.arange(geometry.detectors, **options) - 0.5 * (geometry.detectors - 1)
    scale = geometry.source_to_center / geometry.source_to_detector if isinstance(geometry, FanGeometry) else 1.0
    return (numbers * geometry.detector_pitch + geometry.detector_offset) * scale


def ramp_filtered(views: Tensor, pitch: float, window: Window) -> Tensor:
    """Convolution along the detectors with the band-limited ramp, by FFTs without wrap-around."""
    count = views.shape[-1]
    size = 2 ** math.ceil(math.log2(2 * count))
    lag = torch.fft.fftfreq(size, 1.0 / size, dtype=torch.float64)
    ramp = torch.where(lag % 2 == 1, -1.0 / (math.pi * lag) ** 2, torch.zeros_like(lag))
    ramp[0] = 0.25
    response = torch.fft.rfft(ramp).real / pitch
    if window == "hann":
        response = response * (0.5 + 0.5 * torch.cos(math.pi * torch.linspace(0, 1, response.numel()).double()))
    filtered: Tensor = torch.fft.irfft(torch.fft.rfft(views, size) * response.to(views), size)
    return filtered[..., :count]


def angle_weights(geometry: Geometry) -> tuple[list[float], float | None]:
    """Half the distance between each angle's neighbours, for a fan, which sees every ray of the full turn twice, half
    of it; and the widest gap of a limited scan in radians, None of a complete one. Such gaps count as typical ones."""
    turn, count = geometry.full_turn, len(geometry.angles)
    angles = torch.tensor(geometry.angles, dtype=torch.float64) % turn
    ascending, order = angles.sort()
    gaps = torch.cat([ascending[1:], ascending[:1] + turn]) - ascending
    typical = float(gaps[gaps > 1e-6 * gaps.max()].median())  # opposite parallel views are one, up to rounding
    limited = gaps > max(_TYPICAL_GAPS * typical, _SHARE_OF_TURN * turn)
    widest = float(gaps.max()) if bool(limited.any()) else None
    gaps = torch.where(limited, typical, gaps)
    weights = torch.empty(count, dtype=torch.float64)
    weights[order] = 0.5 * (gaps + gaps.roll(1))
    result: list[float] = (weights * (0.5 if isinstance(geometry, FanGeometry) else 1.0)).tolist()
    return result, widest
