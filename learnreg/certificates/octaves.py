"""Bounds of a vector g of which two things are known: |g_i| <= a_i for each entry, and ‖g_S‖ <= max_S b_i for every set
S of entries (a shared budget). For any threshold,

    ‖g‖² <= sum of a_i² over b_i above the threshold + the largest b_i² not above it,

so that sums of a_i² and largest b_i by the octave of b_i give the best threshold among powers of two in one pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.kernels.loader import as_array, kernels_for
from learnreg.linear.samples import expand
from learnreg.potentials.curvature import CurvatureInterval

__all__ = ["Octaves"]

_LOWEST, _COUNT = -96, 160
"""The first octave takes everything below 2^-95, the last everything from 2^63, infinity included."""


@dataclass(frozen=True)
class Octaves:
    """squares, peaks: (batch, 2, classes, octaves), sums of a_i² and largest b_i of the plain vector Gamma V and of the
    scaled one D^-½ Gamma V, by the class of f'' and the octave of b_i. margin: for the rounding of the sums."""

    squares: Tensor
    peaks: Tensor
    margin: float

    @classmethod
    def spread(
        cls, interval: CurvatureInterval, size: Tensor, on_low: Tensor, on_all: Tensor, limits: tuple[float, ...]
    ) -> Octaves:
        """For |V| = size and the budget omega = on_low f''_low + on_all, (batch,) each, classes of f''_low by the
        limits. Overwrites the interval: ``change`` becomes a_i, ``third`` b_i of the plain vector."""
        batch, shape = size.shape[0], (size.shape[0], 2, len(limits) + 1, _COUNT)
        squares, peaks = size.new_zeros(shape), size.new_zeros(shape)
        margin = 1.0 + 1e-12 + 2.0 * torch.finfo(size.dtype).eps * size[0].numel()
        found = cls(squares, peaks, margin)
        tensors = (interval.change, interval.third, interval.ratio, interval.low, size, on_low, on_all)
        alike = size.dtype == torch.float64 and all(t.shape == size.shape for t in tensors[:4])
        kernels = kernels_for("perturbation", *tensors, squares, peaks) if alike else None
        if kernels is None:
            found._fill(interval, size, on_low, on_all, limits)
            return found
        flat = (as_array(t.view(batch, -1)) for t in tensors[:5])
        numbers = torch.tensor(limits, dtype=torch.float64, device=size.device)
        lowest = (*map(as_array, (on_low, on_all, numbers)), _LOWEST)
        kernels.spread(*flat, *lowest, as_array(squares), as_array(peaks))
        return found

    def _fill(
        self, interval: CurvatureInterval, size: Tensor, on_low: Tensor, on_all: Tensor, limits: tuple[float, ...]
    ) -> None:
        """The same in torch."""
        still = size == 0
        low = interval.low.clamp_min_(0.0)
        budget = expand(on_low, low) * low + expand(on_all, low)
        slope = interval.third.mul_(size).masked_fill_(still, 0.0)
        slope.div_(budget.sqrt_().masked_fill_(slope == 0, 1.0))
        scaled = (slope / low.sqrt()).masked_fill_(slope == 0, 0.0)
        own = interval.ratio.mul_(size).masked_fill_(still, 0.0)
        change = interval.change.mul_(size).masked_fill_(still, 0.0)
        kind = sum((low >= limit).long() for limit in limits)
        for k, (a, b) in enumerate(((change, slope), (own, scaled))):
            octave = torch.frexp(b).exponent.long() - 1 - _LOWEST
            octave = torch.where(torch.isfinite(b), octave.clamp(0, _COUNT - 1), _COUNT - 1)
            place = (kind * _COUNT + octave).flatten(1)
            self.squares[:, k].flatten(1).scatter_add_(1, place, (a * a).flatten(1))
            self.peaks[:, k].flatten(1).scatter_reduce_(1, place, b.flatten(1), "amax")

    def joint(self, scaled: bool, classes: slice = slice(None)) -> Tensor:
        """The bound of the vector on these classes, (batch,)."""
        squares = self.squares[:, int(scaled), classes].sum(1)
        below = self.peaks[:, int(scaled), classes].amax(1).cummax(1).values
        above = squares.flip(1).cumsum(1).flip(1)  # of this octave and those above
        bounds = torch.cat([above[:, :1], above[:, 1:] + below[:, :-1] ** 2, below[:, -1:] ** 2], 1)
        return bounds.amin(1).sqrt() * self.margin
