"""A preconditioner for Hessians of convolutional regularizers, M + W^T D W, by a few FFTs of an image.

Were the curvature D the same at every pixel and M a convolution, the Hessian would be one, m + T, which the FFT
inverts. M = A^T A + ridge is taken for the convolution that its point responses show (a mask, for its mean). D varies
by orders of magnitude between flat regions and edges, mostly by a common factor: with s(pixel) its local size over its
mean, the Hessian acts near a pixel like m + s T. The preconditioner interpolates between the inverses at a low and a
high level of s: sum_k sqrt(u_k) (m + s_k T)^-1 sqrt(u_k), with non-negative shares u_k(pixel) that sum to one, linear
in log s. It is symmetric and positive definite whatever the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from learnreg.linear.operator import LinearOperator
from learnreg.linear.samples import expand
from learnreg.linear.stencil import Stencil
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.instance import Instance
from learnreg.solvers.base import SolverState

__all__ = [
    "DiagonalPreconditioner",
    "Preconditioner",
    "SpectralPreconditioner",
    "UniformPreconditioner",
    "can_precondition",
    "filter_symbol",
    "padded_sides",
    "preconditioned",
    "preconditioner_of",
]

_LEVELS = (0.01, 0.99)
"""Quantiles of the local size that the two levels are."""

_SAMPLED_PIXELS = 2048
_DEAR_FILTERS = 16
"""Coefficients of a filter bank that is dearer than the FFTs. Differences (8) are not: conjugate gradients for the
total variation of denoised images take .6 to .9 of the steps with the preconditioner, and 1.2 to 2 times the time."""

_SMALLEST_SIZE, _SMALLEST_MASS = 1e-6, 1e-4
"""Floors of the local size and, relative to the mean symbol, of m, which may vanish."""


def can_precondition(instance: Instance) -> bool:
    """The preconditioner knows this Hessian, and costs less than the steps it saves: the analysis operator is a
    convolution whose filters fit the image, and either it or the forward operator is dearer than a few FFTs."""
    stencil = instance.analysis.stencil()
    if stencil is None or (instance.quadratic.is_diagonal and stencil.filters.numel() < _DEAR_FILTERS):
        return False
    return _fits(stencil, instance.analysis)


def _fits(stencil: Stencil, analysis: LinearOperator) -> bool:
    """Whether the filters' autocorrelations fit the image."""
    sides, filter_shape = analysis.domain_shape[1:], stencil.filters.shape[1:]
    return all(n >= 2 * k - 1 for n, k in zip(sides, filter_shape, strict=True))


@dataclass(frozen=True)
class DiagonalPreconditioner(SolverState):
    """1 over the Hessian's diagonal: for operators that tell it and are no convolution of one image, such as those of
    latent variables, whose scale bounds want, not solvers."""

    inverse: Tensor

    @classmethod
    def of(cls, instance: Instance, curvature: Tensor) -> DiagonalPreconditioner | None:
        """From the diagonal of f''(Kx); None where the operator does not tell the diagonal of K^T f'' K. Counts one
        application."""
        bend = instance.analysis.gram_diagonal(curvature)
        if bend is None:
            return None
        instance.counter.applications += 1
        return cls(1.0 / (bend + instance.quadratic.majorant()))

    def where(self, chosen: Tensor, old: Preconditioner) -> DiagonalPreconditioner:
        """This one for the samples chosen, (batch,), ``old`` for the others."""
        assert isinstance(old, DiagonalPreconditioner)
        return DiagonalPreconditioner(torch.where(expand(chosen, self.inverse), self.inverse, old.inverse))

    def __call__(self, r: Tensor) -> Tensor:
        """The approximate H^-1 r; no operator application."""
        return self.inverse * r


@dataclass(frozen=True)
class SpectralPreconditioner(SolverState):
    """An approximate inverse Hessian, per sample. shares: sqrt(u_k), (batch, 2, H, W); inverses: 1/(m + s_k T) on the
    half spectrum of the padded image, (batch, 2, rows, columns // 2 + 1)."""

    shares: Tensor
    inverses: Tensor
    sides: tuple[int, int]

    @classmethod
    def of(cls, instance: Instance, curvature: Tensor) -> SpectralPreconditioner | None:
        """From the diagonal of f''(Kx), in the shape of Kx; None where the Hessian is of another kind. Counts one
        application."""
        if not can_precondition(instance):
            return None
        stencil = instance.analysis.stencil()
        assert stencil is not None
        sides = padded_sides(stencil, instance.analysis.domain_shape)
        m = instance.quadratic.symbol(sides, instance.q)
        if m is None:
            return None
        curvature = curvature.flatten(1, -3)
        if not instance.potential.convex:
            curvature = curvature.clamp_min(0.0)  # negative curvature is small, and would spoil definiteness
        filters = stencil.filters.to(curvature)
        instance.counter.applications += 1
        local = stencil.gram_diagonal(curvature)
        mean = curvature.mean((2, 3))
        total = (mean @ filters.square().flatten(1).sum(1))[:, None, None, None]
        size = (local / total.clamp_min(torch.finfo(total.dtype).tiny)).clamp_min(_SMALLEST_SIZE).log()
        low, high = _quantiles(size)
        share = ((size - low) / (high - low).clamp_min(1e-3)).clamp(0.0, 1.0)
        symbol = filter_symbol(filters, mean, sides)
        mass = torch.maximum(m, _SMALLEST_MASS * total)
        levels = torch.cat([low, high], 1).exp()
        shares = torch.cat([1.0 - share, share], 1).sqrt()
        return cls(shares, 1.0 / (mass + levels * symbol), sides)

    def where(self, chosen: Tensor, old: Preconditioner) -> SpectralPreconditioner:
        """This one for the samples chosen, (batch,), ``old`` for the others."""
        assert isinstance(old, SpectralPreconditioner)
        pick = expand(chosen, self.shares)
        shares = torch.where(pick, self.shares, old.shares)
        return SpectralPreconditioner(shares, torch.where(pick, self.inverses, old.inverses), self.sides)

    def __call__(self, r: Tensor) -> Tensor:
        """The approximate H^-1 r; no operator application."""
        spectrum = torch.fft.rfft2(self.shares * r, s=self.sides)
        image = torch.fft.irfft2(spectrum.mul_(self.inverses), s=self.sides)
        rows, columns = r.shape[-2:]
        levels: Tensor = self.shares * image[..., :rows, :columns]
        return levels.sum(1, keepdim=True)


@dataclass(frozen=True)
class UniformPreconditioner(SolverState):
    """(m + T)^-1 for the mean curvature of each filter's responses: one level, in the memory of two images while it
    works. inverse: on the half spectrum of the padded image, (batch, 1, rows, columns // 2 + 1)."""

    inverse: Tensor
    sides: tuple[int, int]

    @classmethod
    def of(cls, instance: Instance, analysis: LinearOperator, mean: Tensor) -> UniformPreconditioner | None:
        """For W ``analysis`` and the mean of f'' over the responses to each filter, (batch, n); None where the Hessian
        is of another kind."""
        stencil = analysis.stencil()
        if stencil is None or not _fits(stencil, analysis):
            return None
        sides = padded_sides(stencil, analysis.domain_shape)
        m = instance.quadratic.symbol(sides, instance.q)
        if m is None:
            return None
        filters = stencil.filters.to(mean)
        total = (mean @ filters.square().flatten(1).sum(1))[:, None, None, None]
        symbol = filter_symbol(filters, mean, sides).add_(torch.maximum(m, _SMALLEST_MASS * total))
        return cls(symbol.reciprocal_(), sides)

    def __call__(self, r: Tensor) -> Tensor:
        """The approximate H^-1 r; no operator application."""
        rows, columns = r.shape[-2:]
        image: Tensor = torch.fft.irfft2(torch.fft.rfft2(r, s=self.sides).mul_(self.inverse), s=self.sides)
        return image[..., :rows, :columns]


Preconditioner = SpectralPreconditioner | DiagonalPreconditioner


def preconditioner_of(instance: Instance, curvature: Callable[[], Tensor]) -> Preconditioner | None:
    """The one that fits, from the diagonal of f''(Kx) if there is one."""
    if type(instance.analysis).gram_diagonal is not LinearOperator.gram_diagonal:
        return DiagonalPreconditioner.of(instance, curvature())
    return SpectralPreconditioner.of(instance, curvature()) if can_precondition(instance) else None


def preconditioned(equation: AdjointEquation, preconditioner: Callable[[Tensor], Tensor] | None, r: Tensor) -> Tensor:
    """P r on the free pixels: restricted to them, P stays symmetric and positive definite."""
    return r if preconditioner is None else equation.project(preconditioner(r))


def _quantiles(size: Tensor) -> list[Tensor]:
    """The levels, (batch, 1, 1, 1) each, from a part of the pixels."""
    values = size.flatten(1)
    values = values[:, :: max(1, values.shape[1] // _SAMPLED_PIXELS)].sort(dim=1).values
    return [values[:, round(q * (values.shape[1] - 1)), None, None, None] for q in _LEVELS]


def filter_symbol(filters: Tensor, channel_weights: Tensor, sides: tuple[int, int]) -> Tensor:
    """sum_c weight_c |w^_c|² >= 0, (batch, 1, rows, columns // 2 + 1): the transform of the filters' autocorrelation,
    which is so small that it costs next to nothing."""
    n, k, l = filters.shape
    pairs = F.conv2d(F.pad(filters[None], (l - 1, l - 1, k - 1, k - 1)), filters[:, None], groups=n)[0]
    kernel = torch.einsum("bn,nkl->bkl", channel_weights, pairs)[:, None]
    kernel = F.pad(kernel, (0, sides[1] - kernel.shape[-1], 0, sides[0] - kernel.shape[-2]))
    spectrum: Tensor = torch.fft.rfft2(kernel.roll((1 - k, 1 - l), (-2, -1)))
    return spectrum.real.clamp_min(0.0)


def padded_sides(stencil: Stencil, image_shape: tuple[int, ...]) -> tuple[int, int]:
    """The torus: the image itself for circular boundaries, else with a margin that keeps opposite borders apart, of
    sides that the FFT likes."""
    rows, columns = image_shape[1:]
    if stencil.circular:
        return rows, columns
    k, l = stencil.filters.shape[1:]
    return _smooth_at_least(rows + k - 1), _smooth_at_least(columns + l - 1)


def _smooth_at_least(n: int) -> int:
    """The smallest product of 2, 3 and 5 that is at least n."""
    odd = [int(3**i * 5**j) for i in range(9) for j in range(6)]
    return min(int(factor * 2 ** max(0, math.ceil(math.log2(n / factor)))) for factor in odd)
