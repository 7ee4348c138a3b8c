"""Upper bounds on operator norms.

A power iteration approaches the norm from below, so nothing here returns one as it is: dense Gram matrices give the
norm itself, Schatten norms and circulant embeddings bound it rigorously, and the randomised bound states how likely
it is to fail.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "DENSE_LIMIT",
    "FAILURE_PROBABILITY",
    "NormBound",
    "NormKind",
    "circulant_bound",
    "dense_matrix",
    "gram_norm_bound",
    "largest_eigenvalue",
    "matrix_norm_bound",
    "power_estimate",
    "probabilistic_norm_bound",
]

DENSE_LIMIT = 4096
"""Operators with at most this many unknowns (on the smaller side) are bounded through their dense matrix."""

FAILURE_PROBABILITY = 1e-10
"""Probability, over the random start, that ``probabilistic_norm_bound`` is below the norm."""

NormKind = Literal["rigorous", "probabilistic", "declared"]

_EIGENVALUE_LIMIT, _BATCHED_EIGENVALUE_LIMIT = 1024, 640
_POWER_STEPS = 100


@dataclass(frozen=True)
class NormBound:
    """An upper bound of an operator's norm. kind: "rigorous"; "probabilistic", too small with probability ``failure``;
    or "declared", somebody vouches for it."""

    value: float
    kind: NormKind = "rigorous"
    failure: float = 0.0

    def scaled(self, factor: float) -> NormBound:
        """The bound of the norm times a number >= 0."""
        return NormBound(factor * self.value, self.kind, self.failure)

    def at_most(self, other: float) -> NormBound:
        """The same, or a rigorous bound that is smaller, without the failure probability."""
        return self if self.value < other else NormBound(other)


def dense_matrix(
    apply: Callable[[Tensor], Tensor],
    domain_shape: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
    block: int = 256,
) -> Tensor:
    """The matrix (range size, domain size) of a batched linear map, column by column in blocks.

    Parameters
    ----------
    apply: maps (batch, *domain_shape) to (batch, *range_shape).
    """
    size = math.prod(domain_shape)
    columns = []
    for start in range(0, size, block):
        count = min(block, size - start)
        unit = torch.zeros(count, size, dtype=dtype, device=device)
        unit[torch.arange(count), torch.arange(start, start + count)] = 1.0
        columns.append(apply(unit.reshape(count, *domain_shape)).reshape(count, -1))
    return torch.cat(columns).T


def matrix_norm_bound(matrix: Tensor) -> float:
    """Rigorous bound of the largest singular value: the root of that of the smaller Gram matrix, see
    ``gram_norm_bound``."""
    a = matrix.to(torch.float64)
    size = float(a.abs().max())
    if size == 0.0 or not math.isfinite(size):
        return size
    a = a / size  # squares neither underflow nor overflow
    return size * gram_norm_bound(a @ a.T if a.shape[0] <= a.shape[1] else a.T @ a)


def gram_norm_bound(gram: Tensor) -> float:
    """Rigorous bound of ‖A‖ from G = A^T A: the root of the exact eigenvalue, or beyond 1,024 unknowns of the Schatten
    norm by repeated squaring, at most 1.07 times the norm."""
    size = float(gram.abs().max())
    if size == 0.0 or not math.isfinite(size):
        return math.sqrt(size)
    gram = gram.to(torch.float64) / size
    if gram.shape[0] <= _EIGENVALUE_LIMIT:
        largest = float(torch.linalg.eigvalsh(gram)[-1].clamp_min(0.0))
        return math.sqrt(size * largest) * (1.0 + 1e-12 * gram.shape[0])
    log_norm, exponent = math.log(size), 1.0
    for _ in range(6):
        scale = float(torch.linalg.norm(gram))
        log_norm += exponent * math.log(scale)
        gram = gram / scale
        gram = gram @ gram
        exponent *= 0.5
    log_norm += exponent * math.log(float(torch.linalg.norm(gram)))
    return math.exp(0.5 * log_norm) * (1.0 + 1e-10)


def largest_eigenvalue(gram: Tensor) -> Tensor:
    """Rigorous bound of the largest eigenvalue of symmetric positive semidefinite matrices (..., n, n): itself, or
    beyond 640 rows the root of ‖G²‖_F, at most n^(1/4) and usually about 1.2 times it. Infinite where entries are not
    finite."""
    n = gram.shape[-1]
    scale = gram.flatten(-2).norm(dim=-1)
    usable = torch.isfinite(scale) & (scale > 0)
    scaled = torch.where(usable[..., None, None], gram / torch.where(usable, scale, 1.0)[..., None, None], 0.0)
    if n <= _BATCHED_EIGENVALUE_LIMIT:
        largest = torch.linalg.eigvalsh(scaled)[..., -1].clamp_min(0.0) + 1e-14 * n
    else:
        largest = (scaled @ scaled).flatten(-2).norm(dim=-1).sqrt() * (1.0 + 1e-13 * n)
    return torch.where(scale == 0, 0.0, torch.where(usable, largest * scale, torch.inf))


def probabilistic_norm_bound(
    gram: Callable[[Tensor], Tensor],
    domain_shape: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
    failure_probability: float = FAILURE_PROBABILITY,
) -> float:
    """Bound of the norm of A from 100 applications of A^T A to a random start; too small with probability at most
    ``failure_probability`` over that start. About 1.05 to 1.1 times the norm.

    Source: Kuczynski and Wozniakowski, SIAM J. Matrix Anal. Appl. 13 (1992), Theorem 4.1(b): after k power steps the
    estimate falls below (1-eps) times the largest eigenvalue with probability at most 0.824 sqrt(n) (1-eps)^(k-1/2).
    """
    share = (failure_probability / (0.824 * math.sqrt(math.prod(domain_shape)))) ** (1.0 / (_POWER_STEPS - 1.5))
    return power_estimate(gram, domain_shape, dtype, device) / math.sqrt(share)


def power_estimate(
    gram: Callable[[Tensor], Tensor],
    domain_shape: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
    steps: int = _POWER_STEPS,
) -> float:
    """Lower bound of the norm of A from power steps with A^T A: an *estimate*, never to be used as an upper bound."""
    generator = torch.Generator(device="cpu").manual_seed(20130731)
    start = torch.randn(1, math.prod(domain_shape), dtype=torch.float64, generator=generator)
    vector = (start / start.norm()).to(device=device, dtype=dtype).reshape(1, *domain_shape)
    rayleigh = 0.0
    for _ in range(steps):
        image = gram(vector)
        rayleigh = float((image * vector).sum())
        norm = image.norm()
        vector = image / torch.where(norm == 0, torch.ones_like(norm), norm)
    return math.sqrt(max(rayleigh, 0.0))


def circulant_bound(filters: Tensor, shape: tuple[int, int]) -> tuple[float, float]:
    """Largest and smallest value of sum_c |w^_c|^2 over the frequencies of a torus of the given size.

    The largest is the squared norm of the circular filter bank on that torus, and a rigorous bound for every sub-block
    of it (zero-padded and valid correlation: torus sides >= image + filter - 1).

    Parameters
    ----------
    filters: (n, k, l), one input channel; folded around the torus if larger than it.
    shape: torus sides (H, W).
    """
    w = filters.detach().to(torch.float64)
    folded = torch.zeros(w.shape[0], *shape, dtype=w.dtype, device=w.device)
    rows = torch.arange(w.shape[1], device=w.device) % shape[0]
    cols = torch.arange(w.shape[2], device=w.device) % shape[1]
    index = (rows[:, None] * shape[1] + cols[None, :]).reshape(-1)
    folded.view(w.shape[0], -1).index_add_(1, index, w.reshape(w.shape[0], -1))
    power = torch.fft.rfft2(folded).abs().square().sum(0)
    return float(power.max()), float(power.min())
