"""Weights and smoothings that follow the noise level, by learned powers of it."""

from __future__ import annotations

import copy
import math
from typing import Self

import torch
from torch import Tensor, nn

from learnreg.linear.arguments import check_flag
from learnreg.lower_level.saddle_terms import ParameterRole

__all__ = ["REFERENCE_NOISE", "NoiseConditioned"]

REFERENCE_NOISE = 25.0 / 255.0


class NoiseConditioned(nn.Module):
    """A regularizer with the raw parameters ``log_weights`` (n,) and ``log_smoothing`` (n,) or None. Conditioned on the
    noise, the exponentials of both are multiplied by (sigma/sigma_0)^a_c and (sigma/sigma_0)^b_c in ``at(sigma)``, with
    learned exponents ``weight_exponents`` and ``smoothing_exponents`` (n,) that start at 1, where denoising does not
    depend on the units of images."""

    log_weights: nn.Parameter
    log_smoothing: nn.Parameter | None
    noise_conditioned: bool = False
    _sigma_0: float = REFERENCE_NOISE
    _sigma: float | None = None

    def _condition_on_noise(self, wanted: bool) -> None:
        """Add the exponents, if they are wanted."""
        check_flag(wanted, f"{type(self).__name__}(noise_conditioned)")
        self.noise_conditioned = bool(wanted)
        if wanted:
            self.weight_exponents = nn.Parameter(torch.ones_like(self.log_weights))
            if self.log_smoothing is not None:
                self.smoothing_exponents = nn.Parameter(torch.ones_like(self.log_smoothing))

    def conditioned(self, sigma: float) -> Self:
        if not self.noise_conditioned:
            return self
        result = copy.copy(self)
        result._sigma = float(sigma)
        return result

    def _log_noise(self) -> float:
        return 0.0 if self._sigma is None else math.log(self._sigma / self._sigma_0)

    def _at_noise(self, stored: Tensor, exponents: str) -> Tensor:
        """The logarithms at the noise level in use, in the dtype of those that are stored."""
        if not self.noise_conditioned:
            return stored
        powers: Tensor = getattr(self, exponents)
        return stored + self._log_noise() * powers.to(stored)

    def _noise_roles(self) -> dict[str, ParameterRole]:
        """Roles of the exponents."""
        smoothing: dict[str, ParameterRole] = {"smoothing_exponents": "log_smoothing"}
        if not self.noise_conditioned:
            return {}
        return {"weight_exponents": "log_weight"} | (smoothing if self.log_smoothing is not None else {})

    def _noise_jacobian_bounds(self) -> dict[ParameterRole, float]:
        """From weights and exponents at a noise level to the logarithms of l_c, and likewise of smoothings."""
        spread = math.hypot(1.0, self._log_noise()) * (1.0 + 1e-12)
        return {"log_weight": spread, "log_smoothing": spread} if self.noise_conditioned else {}
