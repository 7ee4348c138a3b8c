"""How little the energy curves at least: lower bounds of the smallest eigenvalue of M + K^T diag(s) K for numbers s of
either sign, per sample, (batch,).

The rigorous ways first: norms; the dense matrix of small images; a banded Cholesky decomposition where M and K couple
neighbours alone (identity, masks, small blurs). Everywhere else, as for scans, Lanczos' method from a random start,
with a stated probability of failure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from learnreg.linear.examination import foreign_operators
from learnreg.linear.smallest_eigenvalue import banded_lower_bound, dense_lower_bound, lanczos_lower_bound
from learnreg.lower_level.instance import Instance
from learnreg.potentials.base import weighted_square

__all__ = ["FAILURE_PROBABILITY", "LowestCurvature", "channel_weights"]

FAILURE_PROBABILITY = 1e-12
"""Of each bound by Lanczos' method."""

_DENSE_PIXELS, _FEW_PIXELS = 1024, 144
_BAND_NUMBERS, _BAND_WORK = 2**27, 2e11
"""Numbers in a band, and multiplications of its decomposition, that are still worth a rigorous bound."""

_RITZ_STEPS, _LANCZOS_STEPS, _LANCZOS_NUMBERS = 40, 400, 2**28
_BLOCK_BYTES = 2**26
_ENTRY_ROUNDING = 1e-13


@dataclass(frozen=True)
class LowestCurvature:
    """Of one energy; nothing is known of s but that it broadcasts against responses with a batch axis."""

    instance: Instance

    def by_norms(self, s: Tensor) -> float:
        """lambda_min(M) - ‖√s₋ K‖², for all samples. *Rigorous bound.*"""
        own, drop = self.instance.quadratic.modulus(), self.drop(s)
        return own - drop - 1e-14 * (own + drop)

    def drop(self, s: Tensor) -> float:
        """‖√s₋ K‖² for the negative parts of s, those of all samples. *Rigorous bound.*"""
        negative = channel_weights((-s).clamp_min(0.0))
        return weighted_square(self.instance.analysis, negative) if bool((negative > 0).any()) else 0.0

    def estimate(self, s: Tensor) -> Tensor:
        """The smallest eigenvalue, or for large images a Ritz value: above it, and so a curvature of some direction,
        (batch,)."""
        if self._pixels <= _FEW_PIXELS:
            lowest: Tensor = torch.linalg.eigvalsh(self._matrices(s))[:, 0]
            return lowest
        start = torch.randn(self.instance.q.shape, dtype=torch.float64, generator=_fresh_generator())
        return lanczos_lower_bound(self._hessian(s), start.to(s), FAILURE_PROBABILITY, _RITZ_STEPS).ritz

    def bound(self, s: Tensor, estimate: Tensor) -> tuple[Tensor, float]:
        """The best lower bound, -inf where it is not positive for ways that find no others, (batch,), and the
        probability that any of them fails, 0 for a *rigorous bound*. estimate: see above."""
        instance, size = self.instance, self._size(s)
        if self._pixels <= _DENSE_PIXELS:
            return dense_lower_bound(self._matrices(s), size), 0.0
        if self._is_banded:
            return size.new_tensor(self._banded(s, estimate.tolist(), size.tolist())), 0.0
        start = torch.randn(instance.q.shape, dtype=torch.float64, generator=_fresh_generator()).to(s)
        steps = min(_LANCZOS_STEPS, max(2, _LANCZOS_NUMBERS // start.numel()))
        found = lanczos_lower_bound(self._hessian(s), start, FAILURE_PROBABILITY, steps, size)
        return found.lower, FAILURE_PROBABILITY * instance.batch

    @property
    def is_rigorous(self) -> bool:
        """Whether ``bound`` never fails."""
        return self._pixels <= _DENSE_PIXELS or self._is_banded

    # ---- the matrix --------------------------------------------------------------------------------------------------

    @property
    def _pixels(self) -> int:
        return math.prod(self.instance.domain)

    @cached_property
    def _window(self) -> tuple[int, int] | None:
        """How far apart pixels are that M or K^T diag(s) K couple, and one; what other classes than this package's say
        of themselves is not examined, and not believed."""
        both = self.instance.analysis, self.instance.forward
        if any(next(foreign_operators(operator), None) is not None for operator in both):
            return None
        own, data = self.instance.analysis.window(), self.instance.quadratic.window()
        return None if own is None or data is None else (max(own[0], data[0]), max(own[1], data[1]))

    def _hessian(self, s: Tensor) -> Callable[[Tensor], Tensor]:
        instance = self.instance
        return lambda v: instance.quadratic(v) + instance.adjoint(s * instance.apply(v))

    def _size(self, s: Tensor) -> Tensor:
        """‖M‖ + max |s| ‖K‖², (batch,)."""
        norm = self.instance.analysis.norm_bound()
        return self.instance.quadratic.norm() + norm**2 * s.abs().flatten(1).amax(1)

    def _images(self, units: Tensor, s: Tensor) -> Tensor:
        """What M + K^T diag(s) K of each sample makes of several images, (batch, images, *domain)."""
        batch = self.instance.batch
        parts = [self.instance.select(torch.tensor([k], device=s.device)) for k in range(batch)]
        rows, found = max(1, _BLOCK_BYTES // (8 * math.prod(self.instance.analysis.range_shape))), []
        for v in torch.split(units, rows):
            response = self.instance.apply(v)
            images = [part.quadratic(v) + part.adjoint(s[k : k + 1] * response) for k, part in enumerate(parts)]
            found.append(torch.stack(images))
        return torch.cat(found, 1)

    def _matrices(self, s: Tensor) -> Tensor:
        """Dense, (batch, n, n)."""
        units = torch.eye(self._pixels, dtype=s.dtype, device=s.device).reshape(-1, *self.instance.domain)
        return self._images(units, s).flatten(2)

    @property
    def _is_banded(self) -> bool:
        return self._window is not None and self._band_fits(self._window)

    def _band_fits(self, window: tuple[int, int]) -> bool:
        (k, l), (height, width) = window, self.instance.domain[1:]
        band = min((k - 1) * width + l, (l - 1) * height + k)
        return band * self._pixels <= _BAND_NUMBERS and band**2 * self._pixels <= _BAND_WORK

    def _banded(self, s: Tensor, estimates: list[float], sizes: list[float]) -> list[float]:
        """One application serves all pixels of a grid so wide that what they are coupled to does not meet."""
        assert self._window is not None
        (k, l), (_, height, width) = self._window, self.instance.domain
        steps = min(height, 2 * k - 1), min(width, 2 * l - 1)
        rows, columns = torch.arange(height, device=s.device), torch.arange(width, device=s.device)
        grid = rows[:, None] % steps[0] * steps[1] + columns % steps[1]
        units = torch.zeros(steps[0] * steps[1], 1, height, width, dtype=s.dtype, device=s.device)
        units[grid, 0, rows[:, None], columns] = 1.0
        places, margin = grid.cpu().numpy(), _ENTRY_ROUNDING * (2 * k - 1) * (2 * l - 1)
        return [
            banded_lower_bound(_lower_band(images, places, (k, l)), estimate) - margin * size
            for images, estimate, size in zip(
                self._images(units, s)[:, :, 0].cpu().numpy(), estimates, sizes, strict=True
            )
        ]


def _lower_band(images: np.ndarray, grid: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """A symmetric matrix by its diagonals, (bandwidth + 1, n), from its images of grids of pixels; ``grid`` says which
    one a pixel is part of. Pixels count along the shorter side."""
    if images.shape[2] > images.shape[1]:
        images, grid, window = images.transpose(0, 2, 1), grid.T, window[::-1]
    (k, l), (height, width) = window, grid.shape
    band = np.zeros(((k - 1) * width + l, height * width))
    for down in range(min(k, height)):
        for right in range(0 if down == 0 else 1 - min(l, width), min(l, width)):
            rows, columns = np.arange(height - down), np.arange(max(0, -right), width - max(0, right))
            entries = images[grid[rows[:, None], columns], rows[:, None] + down, columns + right]
            band[down * width + right, (rows[:, None] * width + columns).ravel()] = entries.ravel()
    return band


def channel_weights(weights: Tensor) -> Tensor:
    """The largest of each channel over samples and places, as ``weighted_square`` takes them, of groups of responses of
    each group; of responses without channels the largest of all."""
    if weights.dim() < 3:
        return weights.amax()
    if weights.dim() == 5:  # (batch, 1, groups, rows, columns)
        weights = weights.amax(1)
    return weights.amax((0, *range(2, weights.dim())), keepdim=True)[0]


def _fresh_generator() -> torch.Generator:
    """Seeded by the machine: parameters that were trained with the same numbers would not be independent of a start."""
    generator = torch.Generator()
    generator.seed()
    return generator
