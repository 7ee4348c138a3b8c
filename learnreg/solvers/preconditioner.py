"""A preconditioner for Hessians of convolutional regularizers, M + W^T D W, by a few FFTs of an image.

Were the curvature D the same at every pixel and M a convolution, the Hessian would be one, m + T, which the FFT
inverts. M = A^T A + ridge is taken for the convolution that its point responses show (a mask, for its mean). D varies
by orders of magnitude between flat regions and edges, mostly by a common factor: with s(pixel) its local size over its
mean, the Hessian acts near a pixel like m + s T. The preconditioner interpolates between the inverses at a low and a
high level of s: sum_k sqrt(u_k) (m + s_k T)^-1 sqrt(u_k), with non-negative shares u_k(pixel) that sum to one, linear
in log s. It is symmetric and positive definite whatever the data. Channels that filters see together make T a matrix
for each frequency.
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
    "spectral_product",
]

_LEVELS = (0.01, 0.99)
"""Quantiles of the local size that the two levels are."""

_SAMPLED_PIXELS = 2048
_DEAR_FILTERS = 16
"""Coefficients of a filter bank that is dearer than the FFTs. Differences are not: conjugate gradients for the
total variation of denoised images take .6 to .9 of the steps with the preconditioner, and 1.2 to 2 times the time."""

_SMALLEST_SIZE, _SMALLEST_MASS = 1e-6, 1e-4
"""Floors of the local size and, relative to the mean symbol, of m, which may vanish."""


def can_precondition(instance: Instance) -> bool:
    """The preconditioner knows this Hessian, and costs less than the steps it saves: the analysis operator is a
    convolution whose filters fit the image, and either it or the forward operator is dearer than a few FFTs."""
    stencil = instance.analysis.stencil()
    if stencil is None or (instance.quadratic.is_diagonal and stencil.coefficients < _DEAR_FILTERS):
        return False
    return _fits(stencil, instance.analysis)


def _fits(stencil: Stencil, analysis: LinearOperator) -> bool:
    """Whether the filters' autocorrelations fit the image."""
    sides, filter_shape = analysis.domain_shape[1:], stencil.filters.shape[2:]
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
    """An approximate inverse Hessian, per sample. shares: sqrt(u_k), (batch, 2, channels, *sides); inverses: 1/(m + s_k
    T) on the half spectrum of the padded image, (batch, 2, channels, *frequencies), or matrices (batch, 2,
    *frequencies, channels, channels) where filters see several channels."""

    shares: Tensor
    inverses: Tensor
    sides: tuple[int, ...]

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
        if not instance.potential.convex:
            curvature = curvature.clamp_min(0.0)  # negative curvature is small, and would spoil definiteness
        instance.counter.applications += 1
        local, mean = stencil.gram_diagonal(curvature), stencil.means(curvature)
        total = _mean_size(stencil, mean, local)
        size = (local / total.clamp_min(torch.finfo(total.dtype).tiny)).clamp_min(_SMALLEST_SIZE).log()
        low, high = _quantiles(size)
        share = ((size - low) / (high - low).clamp_min(1e-3)).clamp(0.0, 1.0)
        symbol = filter_symbol(stencil.filters.to(curvature), mean, sides)
        mass = torch.maximum(m, _SMALLEST_MASS * total)
        levels = [_inverse(symbol, mass, level) for level in (low.exp(), high.exp())]
        return cls(torch.stack([1.0 - share, share], 1).sqrt(), torch.stack(levels, 1), sides)

    def where(self, chosen: Tensor, old: Preconditioner) -> SpectralPreconditioner:
        """This one for the samples chosen, (batch,), ``old`` for the others."""
        assert isinstance(old, SpectralPreconditioner)
        shares = torch.where(expand(chosen, self.shares), self.shares, old.shares)
        inverses = torch.where(expand(chosen, self.inverses), self.inverses, old.inverses)
        return SpectralPreconditioner(shares, inverses, self.sides)

    def __call__(self, r: Tensor) -> Tensor:
        """The approximate H^-1 r; no operator application."""
        levels: Tensor = self.shares * spectral_product(self.inverses, self.shares * r[:, None], self.sides)
        return levels.sum(1)


@dataclass(frozen=True)
class UniformPreconditioner(SolverState):
    """(m + T)^-1 for the mean curvature of each filter's responses: one level, in the memory of two images while it
    works. inverse: on the half spectrum of the padded image, as in ``SpectralPreconditioner`` for each level."""

    inverse: Tensor
    sides: tuple[int, ...]

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
        mean = mean[:, None]
        mass = torch.maximum(m, _SMALLEST_MASS * _mean_size(stencil, mean, instance.q))
        symbol = filter_symbol(stencil.filters.to(mean), mean, sides)
        return cls(_inverse(symbol, mass, expand(torch.ones_like(mean[:, 0, 0]), instance.q)), sides)

    def __call__(self, r: Tensor) -> Tensor:
        """The approximate H^-1 r; no operator application."""
        return spectral_product(self.inverse, r, self.sides)


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
    """The levels, (batch, 1, ...) each, from a part of the pixels."""
    values = size.flatten(1)
    values = values[:, :: max(1, values.shape[1] // _SAMPLED_PIXELS)].sort(dim=1).values
    return [expand(values[:, round(q * (values.shape[1] - 1))], size) for q in _LEVELS]


def _mean_size(stencil: Stencil, mean: Tensor, image: Tensor) -> Tensor:
    """The diagonal of T in each channel, (batch, channels, 1, ...), for the mean curvatures (batch, copies, n)."""
    squares = stencil.filters.to(mean).square().flatten(2).sum(2)
    found = (mean @ squares).flatten(1)
    return found.reshape(*found.shape, *(1,) * (image.dim() - 2))


def _inverse(symbol: Tensor, mass: Tensor, level: Tensor) -> Tensor:
    """1/(m + s T) for the symbol of T, m that broadcasts against images, and a level (batch, 1, ...)."""
    if not symbol.is_complex():
        return 1.0 / (mass + level * symbol)
    mass = mass.expand(-1, -1, *symbol.shape[1:-2])
    inverse: Tensor = torch.linalg.inv(torch.diag_embed(mass.movedim(1, -1)) + level[..., None] * symbol)
    return inverse


def spectral_product(factors: Tensor, images: Tensor, sides: tuple[int, ...]) -> Tensor:
    """Images (..., channels, *their sides), padded by zeros to a torus of these sides, times numbers or matrices for
    each frequency, and cut again."""
    axes = tuple(range(-len(sides), 0))
    spectrum = torch.fft.rfftn(images, s=sides, dim=axes)
    if factors.is_complex():
        columns = spectrum.movedim(-len(sides) - 1, -1)[..., None]
        spectrum = (factors @ columns)[..., 0].movedim(-1, -len(sides) - 1)
    else:
        spectrum = spectrum.mul_(factors)
    whole: Tensor = torch.fft.irfftn(spectrum, s=sides, dim=axes)
    for axis in axes:
        whole = whole.narrow(axis, 0, images.shape[axis])
    return whole


def filter_symbol(filters: Tensor, weights: Tensor, sides: tuple[int, ...]) -> Tensor:
    """sum_c weight_c |w^_c|² >= 0 for filters (n, channels, *filter sides) and weights (batch, copies, n) that are not
    negative, (batch, copies, *frequencies); Hermitian matrices sum_c weight_c w^_c w^_c^*, (batch, *frequencies,
    channels, channels), where filters see several channels, in one copy."""
    _, channels, *shape = filters.shape
    axes = tuple(range(-len(sides), 0))
    if channels == 1:
        kernel = torch.einsum("bcn,n...->bc...", weights, _autocorrelations(filters[:, 0]))
        around = [pair for m, k in zip(reversed(sides), reversed(shape), strict=True) for pair in (0, m - 2 * k + 1)]
        kernel = F.pad(kernel, around).roll([1 - k for k in shape], axes)
        found: Tensor = torch.fft.rfftn(kernel, dim=axes).real.clamp_min(0.0)
        return found
    spectrum = torch.fft.rfftn(filters, s=sides, dim=axes).conj()  # of a correlation
    return torch.einsum("bn,nc...,nd...->b...cd", weights[:, 0].to(spectrum), spectrum.conj(), spectrum)


def _autocorrelations(filters: Tensor) -> Tensor:
    """Of each filter (n, *sides) at all lags, (n, *(2 sides - 1)): so small that they cost next to nothing."""
    sides = filters.shape[1:]
    axes, doubled = tuple(range(1, filters.dim())), [2 * k - 1 for k in sides]
    spectrum = torch.fft.rfftn(filters, s=doubled, dim=axes)
    lags: Tensor = torch.fft.irfftn(spectrum.abs().square(), s=doubled, dim=axes)
    return lags.roll([k - 1 for k in sides], axes)


def padded_sides(stencil: Stencil, image_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The torus: the image itself for circular boundaries, else with a margin that keeps opposite borders apart, of
    sides that the FFT likes."""
    sides = tuple(image_shape[1:])
    if stencil.circular:
        return sides
    return tuple(_smooth_at_least(n + k - 1) for n, k in zip(sides, stencil.filters.shape[2:], strict=True))


def _smooth_at_least(n: int) -> int:
    """The smallest product of 2, 3 and 5 that is at least n."""
    odd = [int(3**i * 5**j) for i in range(9) for j in range(6)]
    return min(int(factor * 2 ** max(0, math.ceil(math.log2(n / factor)))) for factor in odd)
