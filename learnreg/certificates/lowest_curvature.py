"""How little the energy curves at least: lower bounds of the smallest eigenvalue of M + K^T diag(s) K for numbers s of
either sign, or matrices of groups, per sample, (batch,).

The rigorous ways first: norms; the dense matrix of small images; a Cholesky decomposition by nested dissection where M
and K couple near pixels alone (identity, masks, small blurs). Everywhere else, as for scans, Lanczos' method from a
random start, with a stated probability of failure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from learnreg.linear.examination import foreign_operators
from learnreg.linear.local_matrix import LocalMatrix, dissection_work
from learnreg.linear.smallest_eigenvalue import LanczosBound, dense_lower_bound, lanczos_lower_bound, local_lower_bound
from learnreg.lower_level.instance import Instance
from learnreg.potentials.base import weighted_square
from learnreg.potentials.curvature import CurvatureFloor

__all__ = ["FAILURE_PROBABILITY", "LowestCurvature", "channel_weights"]

FAILURE_PROBABILITY = 1e-12
"""Of each bound by Lanczos' method."""

_DENSE_PIXELS, _FEW_PIXELS = 1024, 144
_LOCAL_NUMBERS, _LOCAL_WORK, _DEAR_WORK = 2**27, 4e12, 2e10
"""Entries of a matrix, and multiplications of its decomposition, that are still worth a rigorous bound; and so many
that the estimate to begin with is worth more of Lanczos' steps."""

_RITZ_STEPS, _LANCZOS_STEPS, _LANCZOS_NUMBERS = 40, 400, 2**28
_SETTLED = 0.03
"""Ritz values that fall by less between looks are near enough for a decomposition."""

_BLOCK_BYTES = 2**26
_ENTRY_ROUNDING = 1e-13


@dataclass(frozen=True)
class LowestCurvature:
    """Of one energy and any s that broadcasts against responses with a batch axis."""

    instance: Instance

    def by_norms(self, s: CurvatureFloor) -> float:
        """lambda_min(M) - ‖√s₋ K‖², for all samples. *Rigorous bound.*"""
        own, drop = self.instance.quadratic.modulus(), self.drop(s)
        return own - drop - 1e-14 * (own + drop)

    def drop(self, s: CurvatureFloor) -> float:
        """‖√s₋ K‖² for the negative parts of s, those of all samples. *Rigorous bound.*"""
        if not bool(torch.isfinite(s.least).all()):
            return math.inf
        negative = channel_weights((-s.least).clamp_min(0.0))
        return weighted_square(self.instance.analysis, negative) if bool((negative > 0).any()) else 0.0

    def estimate(self, s: CurvatureFloor) -> Tensor:
        """The smallest eigenvalue, or for large images a Ritz value: above it, and so a curvature of some direction,
        (batch,)."""
        if self._pixels <= _FEW_PIXELS:
            lowest: Tensor = torch.linalg.eigvalsh(self._matrices(s))[:, 0]
            return lowest
        return self._lanczos(s, _RITZ_STEPS).ritz

    def bound(self, s: CurvatureFloor, estimate: Tensor) -> tuple[Tensor, float]:
        """The best lower bound, -inf where it is not positive for ways that find no others, (batch,), and the
        probability that any of them fails, 0 for a *rigorous bound*. estimate: see above, of these or larger s."""
        size = self._size(s)
        if self._pixels <= _DENSE_PIXELS:
            return dense_lower_bound(self._matrices(s), size), 0.0
        if self._is_local:
            if self.is_dear:
                estimate = torch.minimum(estimate, self._lanczos(s, self._most_steps, settled=_SETTLED).ritz)
            return size.new_tensor(self._local_bounds(s, estimate.tolist(), size.tolist())), 0.0
        return self._lanczos(s, self._most_steps, size).lower, FAILURE_PROBABILITY * self.instance.batch

    def _lanczos(self, s: CurvatureFloor, steps: int, size: Tensor | float = 0.0, settled: float = 0.0) -> LanczosBound:
        start = torch.randn(self.instance.q.shape, dtype=torch.float64, generator=_fresh_generator()).to(s.low)
        return lanczos_lower_bound(self._hessian(s), start, FAILURE_PROBABILITY, steps, size, settled=settled)

    @property
    def _most_steps(self) -> int:
        return min(_LANCZOS_STEPS, max(2, _LANCZOS_NUMBERS // self.instance.q.numel()))

    @property
    def is_rigorous(self) -> bool:
        """Whether ``bound`` never fails."""
        return self._pixels <= _DENSE_PIXELS or self._is_local

    @cached_property
    def is_dear(self) -> bool:
        """Whether ``bound`` takes much longer than applications do."""
        window = self._window
        return window is not None and self._is_local and dissection_work(self._sides, window) > _DEAR_WORK

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

    def _hessian(self, s: CurvatureFloor) -> Callable[[Tensor], Tensor]:
        instance = self.instance
        return lambda v: instance.quadratic(v) + instance.adjoint(s.times(instance.apply(v)))

    def _size(self, s: CurvatureFloor) -> Tensor:
        """‖M‖ + max |s| ‖K‖², (batch,)."""
        norm = self.instance.analysis.norm_bound()
        return self.instance.quadratic.norm() + norm**2 * s.size

    def _images(self, units: Tensor, s: CurvatureFloor) -> Tensor:
        """What M + K^T diag(s) K of each sample makes of several images, (batch, images, *domain)."""
        batch = self.instance.batch
        samples = [torch.tensor([k], device=s.low.device) for k in range(batch)]
        parts = [(self.instance.select(k), s.select(k)) for k in samples]
        rows, found = max(1, _BLOCK_BYTES // (8 * math.prod(self.instance.analysis.range_shape))), []
        for v in torch.split(units, rows):
            response = self.instance.apply(v)
            images = [part.quadratic(v) + part.adjoint(own.times(response)) for part, own in parts]
            found.append(torch.stack(images))
        return torch.cat(found, 1)

    def _matrices(self, s: CurvatureFloor) -> Tensor:
        """Dense, (batch, n, n)."""
        units = torch.eye(self._pixels, dtype=s.low.dtype, device=s.low.device).reshape(-1, *self.instance.domain)
        return self._images(units, s).flatten(2)

    @property
    def _sides(self) -> tuple[int, int]:
        """Of images, which a window is for."""
        return self.instance.domain[1], self.instance.domain[2]

    @property
    def _is_local(self) -> bool:
        return self._window is not None and self._fits(self._window)

    def _fits(self, window: tuple[int, int]) -> bool:
        work = dissection_work(self._sides, window)
        return 2 * math.prod(window) * self._pixels <= _LOCAL_NUMBERS and work <= _LOCAL_WORK

    def _local_bounds(self, s: CurvatureFloor, estimates: list[float], sizes: list[float]) -> list[float]:
        found = [-math.inf] * len(sizes)
        for i, (estimate, size) in enumerate(zip(estimates, sizes, strict=True)):
            if estimate > 0:
                k = torch.tensor([i], device=s.low.device)
                found[i] = local_lower_bound(self._local_matrix(k, s.select(k), size), estimate, self.is_dear)
        return found

    def _local_matrix(self, k: Tensor, s: CurvatureFloor, size: float) -> LocalMatrix:
        """Of one sample, whose s is given."""
        part, sides = self.instance.select(k), self._sides
        own, data = part.analysis.window(), part.quadratic.window()
        assert own is not None
        assert data is not None
        off = _ENTRY_ROUNDING * size
        of_data = LocalMatrix.probed(part.quadratic, sides, data, s.low, off)
        of_own = part.analysis.gram_entries(s.weights(part.analysis.range_shape))
        if of_own is None:
            of_own = LocalMatrix.probed(lambda v: part.adjoint(s.times(part.apply(v))), sides, own, s.low, off)
        return of_data + of_own


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
