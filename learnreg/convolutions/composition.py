"""Filter banks that are compositions of small convolutions, and how sensitive they are to their factors.

Correlating with kernels V after kernels U is correlating with one bank, the convolution of the kernels, away from the
boundary of the image. Here that bank is the definition, everywhere: exact norms and certificates of filter banks hold
at once, and one product with 13 x 13 filters costs less than three with 5 x 5 ones between many channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["compose", "fine_grid", "jacobian_bound", "normalised", "zero_mean"]

_ROUND_UP = 1.0 + 1e-9
_OVERSHOOT = 1.1
_CORRELATIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def zero_mean(kernels: Tensor) -> Tensor:
    """Each kernel (n, c, *sides) minus its mean."""
    return kernels - kernels.mean(_sides(kernels), keepdim=True)


def compose(factors: Sequence[Tensor]) -> Tensor:
    """The kernels (n, c, *sides) of correlations with (c_1, c, *sides), then (c_2, c_1, *sides), and so on, without
    boundary; of one to three sides. Differentiable."""
    result = factors[0]
    for factor in factors[1:]:
        margins = tuple(k - 1 for k in factor.shape[2:])
        correlate = _CORRELATIONS[len(margins)]
        full = correlate(result.transpose(0, 1), factor.flip(_sides(factor)), padding=margins)
        result = full.transpose(0, 1)
    return result


def spectral_norm(filters: Tensor, grid: int | None = None) -> Tensor:
    """The largest sqrt(sum |w^|²), over all filters (n, c, *sides) and their channels, on a grid of frequencies, of so
    many per axis: for one channel close to the norm of the bank on large images, for several not below it.
    Differentiable almost everywhere."""
    side = grid or _grid(filters.shape[-1])
    spectrum = _transform(filters, side)
    power = (spectrum.real.square() + spectrum.imag.square()).sum((0, 1))
    result: Tensor = power.amax().clamp_min(1e-300).sqrt()
    return result


def normalised(factors: Sequence[Tensor], grid: int | None = None) -> Tensor:
    """The filters (n, c, *sides) of the composition over their spectral norm on a grid; means are taken out of the
    first factor, hence of all filters. Differentiable."""
    filters = compose([zero_mean(factors[0]), *factors[1:]])
    return filters / spectral_norm(filters, grid)


def fine_grid(side: int, dimensions: int = 2) -> tuple[int, float]:
    """Frequencies per axis, and how many times larger than on them sum_c |w^_c|² may be elsewhere, for filters of this
    side along so many axes: at most 1.1 times. *Rigorous bound.*

    A trigonometric polynomial p of degree d is at least cos(d a) max|p| at a distance of a <= pi/(2 d) from where it is
    largest in size (M. Riesz; Ehlich and Zeller, Math. Z. 86, 1964), here along each axis in turn, d = side - 1.
    """
    grid = 16
    while (overshoot := _overshoot(side, grid, dimensions)) > _OVERSHOOT or grid < 2 * side:
        grid *= 2
    return grid, overshoot * _ROUND_UP


def _overshoot(side: int, grid: int, dimensions: int) -> float:
    lowest = math.cos(min(math.pi * (side - 1) / grid, 0.5 * math.pi))
    return math.pow(lowest, -dimensions) if lowest > 1e-3 else math.inf


@torch.no_grad()
def jacobian_bound(factors: Sequence[Tensor], grid: int | None = None) -> float:
    """Bound of the norm of the Jacobian of :func:`normalised` in all factors together. *Rigorous bound.*

    A change of one factor enters the composition linearly, and by Parseval on a grid without wrap-around its norm is at
    most the largest |O^| |I^| over the frequencies, O^ and I^ the transforms of what follows and what precedes.
    w = phi/n has the Jacobian (J - w ∇n^T)/n.
    """
    exact = [factor.detach().double() for factor in factors]
    exact[0] = zero_mean(exact[0])
    square = sum(_block_norm(exact, l) ** 2 for l in range(len(exact)))
    raw = [factor.detach().double().requires_grad_() for factor in factors]
    with torch.enable_grad():
        filters = compose([zero_mean(raw[0]), *raw[1:]])
        norm = spectral_norm(filters, grid)
        slopes = torch.autograd.grad(norm, raw)
    slope = math.sqrt(sum(float(s.square().sum()) for s in slopes))
    n = float(norm)
    return (math.sqrt(square) + float(filters.norm()) / n * slope) / n * _ROUND_UP


def _block_norm(factors: Sequence[Tensor], l: int) -> float:
    """Bound of the norm of the linear map from factor l to the composition."""
    side = _grid(sum(f.shape[-1] - 1 for f in factors) + 1)
    size = torch.ones((), dtype=torch.float64)
    if l > 0:
        size = size * _largest(_transform(compose(factors[:l]), side))
    if l + 1 < len(factors):
        size = size * _largest(_transform(compose(factors[l + 1 :]), side))
    return float(size.amax())


def _largest(spectrum: Tensor) -> Tensor:
    """The square-rooted largest eigenvalue of A^H A for matrices (n, c) at each frequency, (*frequencies,)."""
    A = spectrum.movedim((0, 1), (-2, -1))
    gram = A.mH @ A if A.shape[-1] <= A.shape[-2] else A @ A.mH
    scale = A.abs().square().sum((-2, -1))
    largest: Tensor = torch.linalg.eigvalsh(gram)[..., -1].clamp_min(0.0) + 1e-13 * scale
    return largest.sqrt()


def _transform(kernels: Tensor, side: int) -> Tensor:
    """On the half spectrum of a torus of this side."""
    sides = _sides(kernels)
    spectrum: Tensor = torch.fft.rfftn(kernels, s=[side] * len(sides), dim=sides)
    return spectrum


def _sides(kernels: Tensor) -> tuple[int, ...]:
    return tuple(range(2, kernels.dim()))


def _grid(side: int) -> int:
    """Frequencies per axis: more than twice the kernel's side, so that nothing wraps around."""
    return max(16, 1 << (2 * side - 1).bit_length())
