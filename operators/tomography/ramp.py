"""The ramp filter of filtered back-projection."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Window", "ramp_filtered"]

Window = Literal["ramp", "hann"]


def ramp_filtered(views: Tensor, pitch: float, window: Window, equiangular: bool = False) -> Tensor:
    """Convolution along the detectors with the band-limited ramp, by FFTs without wrap-around. ``equiangular``: for
    detectors on an arc around the source, the pitch in radians."""
    count = views.shape[-1]
    size = 2 ** math.ceil(math.log2(2 * count))
    lag = torch.fft.fftfreq(size, 1.0 / size, dtype=torch.float64)
    ramp = torch.where(lag % 2 == 1, -1.0 / (math.pi * lag) ** 2, torch.zeros_like(lag))
    ramp[0] = 0.25
    if equiangular:  # lags beyond the detector meet nothing
        ramp = torch.where(lag.abs() < count, ramp / torch.sinc(lag * pitch / math.pi).square(), torch.zeros_like(ramp))
    response = torch.fft.rfft(ramp).real / pitch
    if window == "hann":
        response = response * (0.5 + 0.5 * torch.cos(math.pi * torch.linspace(0, 1, response.numel()).double()))
    filtered: Tensor = torch.fft.irfft(torch.fft.rfft(views, size) * response.to(views), size)
    return filtered[..., :count]
