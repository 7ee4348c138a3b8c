"""Upper bounds on operator norms.

Power and Lanczos iterations approach the norm from below, so nothing here returns one as it is: dense Gram matrices
give the norm itself, Cholesky factors and circulant embeddings bound it rigorously, and the randomised bound states how
likely it is to fail.
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
    "GRAM_LIMIT",
    "NormBound",
    "NormKind",
    "circulant_bound",
    "dense_matrix",
    "gram_norm_bound",
    "lanczos_estimate",
    "largest_eigenvalue",
    "matrix_norm_bound",
    "nonnegative_norm_bound",
    "power_estimate",
    "probabilistic_norm_bound",
]

DENSE_LIMIT = 1024
"""Black boxes with at most this many unknowns (on the smaller side) are bounded through their dense matrix."""

GRAM_LIMIT = 4096
"""The same where the Gram matrix takes few applications."""

FAILURE_PROBABILITY = 1e-10
"""Probability, over the random start, that ``probabilistic_norm_bound`` is below the norm."""

NormKind = Literal["rigorous", "probabilistic", "declared"]

_EIGENVALUE_LIMIT, _BATCHED_EIGENVALUE_LIMIT = 256, 640
_POWER_STEPS = 100
_LANCZOS_STEPS = 30
_EXHAUSTED = 1e-14
"""Share of an image beyond the basis that is its rounding; the steps then go on from another random image."""

_LARGEST_BASIS = 2**22
"""Unknowns beyond which so many images in memory cost more than applications."""

_POSITIVE_STEPS, _CLOSE = 200, 1.02
"""Power steps with a matrix without negative entries stop when the bound is within this factor of the norm."""

_MARGINS = (1e-4, 1e-3, 1e-2, 0.1, 1.0)


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
    """Rigorous bound of ‖A‖ from G = A^T A: the root of the exact eigenvalue, or beyond 256 unknowns of a number t with
    t I - G positive definite, usually at most 1.0001 times the norm.

    Source: a Cholesky decomposition that runs to its end shows that no eigenvalue is below -n² eps t (Rump, BIT 46,
    2006, Theorem 2.3).
    """
    size = float(gram.abs().max())
    if size == 0.0 or not math.isfinite(size):
        return math.sqrt(size)
    gram = gram.to(torch.float64) / size
    n = gram.shape[0]
    rounding = 1.0 + 1e-12 * n
    if n <= _EIGENVALUE_LIMIT:
        largest = float(torch.linalg.eigvalsh(gram)[-1].clamp_min(0.0))
        return math.sqrt(size * largest) * rounding
    estimate = lanczos_estimate(lambda v: v @ gram, (n,), device=gram.device)
    for margin in _MARGINS:
        bound = (1.0 + margin) * estimate
        shifted = -gram
        shifted.diagonal().add_(bound)
        if int(torch.linalg.cholesky_ex(shifted).info) == 0:
            return math.sqrt(size * bound) * rounding
    return math.sqrt(size * float(torch.linalg.norm(gram))) * rounding


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
    """Bound of the norm of A from 30 Lanczos steps with A^T A, 60 applications, from a random start; too small with
    probability at most ``failure_probability`` over that start. At most 1.16 times the norm for 10⁶ unknowns. Beyond
    2^22, 100 steps of the power method, which keep no images.

    Source: Kuczynski and Wozniakowski, SIAM J. Matrix Anal. Appl. 13 (1992), Theorem 4.2(b): after k steps the estimate
    falls below (1-eps) times the largest eigenvalue with probability at most 1.648 sqrt(n) exp(-sqrt(eps) (2k-1));
    Theorem 4.1(b): of the power method 0.824 sqrt(n) (1-eps)^(k-1/2).
    """
    size = math.prod(domain_shape)
    if size > _LARGEST_BASIS:
        share = (failure_probability / (0.824 * math.sqrt(size))) ** (1.0 / (_POWER_STEPS - 1.5))
        return power_estimate(gram, domain_shape, dtype, device) / math.sqrt(share)
    odds = math.log(1.648 * math.sqrt(size) / failure_probability)
    share = 1.0 - (odds / (2 * _LANCZOS_STEPS - 1)) ** 2
    return math.sqrt(lanczos_estimate(gram, domain_shape, dtype, device) / share) * (1.0 + 1e-9)


def lanczos_estimate(
    gram: Callable[[Tensor], Tensor],
    domain_shape: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
    steps: int = _LANCZOS_STEPS,
) -> float:
    """Lower bound of the largest eigenvalue of a positive semidefinite map from that many applications: an *estimate*,
    never to be used as an upper bound. Keeps as many images, orthogonal to rounding. Where they span all that the map
    makes of the start, up to rounding that would hide an eigenvector, another random image follows."""
    generator = torch.Generator(device="cpu").manual_seed(20130731)
    steps = min(steps, math.prod(domain_shape))
    vector = _random_unit(domain_shape, dtype, device, generator)
    basis = vector.new_zeros(steps, vector.numel())
    diagonal, below = vector.new_zeros(steps), vector.new_zeros(steps)
    for k in range(steps):
        basis[k] = vector.flatten()
        image = gram(vector)
        diagonal[k] = (image * vector).sum()
        length = _length(image)
        vector = _beyond(basis[: k + 1], image / torch.where(length == 0, 1.0, length))
        left = vector.norm()
        fresh = _random_unit(domain_shape, dtype, device, generator)
        below[k] = torch.where(left <= _EXHAUSTED, 0.0, length * left)
        vector = _beyond(basis[: k + 1], torch.where(left <= _EXHAUSTED, fresh, vector / left))
        vector = _beyond(basis[: k + 1], vector / vector.norm())  # once more for what rounding left
        vector = vector / vector.norm()
    inner = torch.diag(diagonal) + torch.diag(below[:-1], 1) + torch.diag(below[:-1], -1)
    return max(float(torch.linalg.eigvalsh(inner.double())[-1]), 0.0) if bool(inner.isfinite().all()) else math.inf


def _length(image: Tensor) -> Tensor:
    """‖image‖, also where squares underflow: those of A^T A do from norms of 1e-81 on."""
    largest = image.abs().amax()
    scale = torch.where(largest > 0, largest, 1.0)
    length: Tensor = scale * (image / scale).norm()
    return length


def _beyond(basis: Tensor, vector: Tensor) -> Tensor:
    """The part of an image that is orthogonal to the rows of the basis."""
    return vector - ((basis @ vector.flatten()) @ basis).reshape(vector.shape)


def power_estimate(
    gram: Callable[[Tensor], Tensor],
    domain_shape: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
    steps: int = _POWER_STEPS,
) -> float:
    """Lower bound of the norm of A from power steps with A^T A: an *estimate*, never to be used as an upper bound."""
    vector = _random_unit(domain_shape, dtype, device, torch.Generator(device="cpu").manual_seed(20130731))
    rayleigh = 0.0
    for _ in range(steps):
        image = gram(vector)
        rayleigh = float((image * vector).sum())
        norm = _length(image)
        vector = image / torch.where(norm == 0, torch.ones_like(norm), norm)
    return math.sqrt(max(rayleigh, 0.0))


def _random_unit(
    domain_shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device | str | None,
    generator: torch.Generator,
) -> Tensor:
    """Uniform on the sphere, (1, *domain_shape)."""
    start = torch.randn(1, math.prod(domain_shape), dtype=torch.float64, generator=generator)
    unit: Tensor = (start / start.norm()).to(device=device, dtype=dtype)
    return unit.reshape(1, *domain_shape)


def nonnegative_norm_bound(gram: Callable[[Tensor], Tensor], start: Tensor, terms: int) -> float:
    """Rigorous bound of ‖A‖ for A without negative entries, within a few percent, from A^T A and any positive start.

    For a matrix G >= 0 and any v > 0 the spectral radius is at most max_i (Gv)_i / v_i (Collatz and Wielandt; Horn and
    Johnson, Matrix Analysis, Theorem 8.1.26); power steps bring it down. ``terms``: at most how many numbers are added
    up in an entry of Gv; sums of nonnegative terms are too small by a relative error of at most their number times the
    unit roundoff.
    """
    vector, bound = start, math.inf
    for _ in range(_POSITIVE_STEPS):
        image = gram(vector)
        largest = float(image.max())
        if largest == 0.0:
            return 0.0
        bound = min(bound, float((image / vector).max()))
        if bound <= _CLOSE**2 * float((image * vector).sum() / vector.square().sum()):
            break
        vector = (image / largest).clamp_min(1e-6)
    return math.sqrt(bound) * (1.0 + terms * torch.finfo(start.dtype).eps)


def circulant_bound(filters: Tensor, shape: tuple[int, ...]) -> tuple[float, float]:
    """Largest and smallest value of sum_c |w^_c|^2 over the frequencies of a torus of the given sides; for filters of
    several channels, the extreme eigenvalues of the Gram matrices of their transforms.

    The largest is the squared norm of the circular filter bank on that torus, and a rigorous bound for every sub-block
    of it (zero-padded and valid correlation: torus sides >= image + filter - 1).

    Parameters
    ----------
    filters: (n, *filter sides), of one channel, or (n, channels, *filter sides); folded around the torus if larger.
    shape: torus sides.
    """
    w = filters.detach().to(torch.float64)
    w = w[:, None] if w.dim() == len(shape) + 1 else w
    index = torch.zeros((), dtype=torch.int64, device=w.device)
    for side, n in zip(w.shape[2:], shape, strict=True):
        index = index[..., None] * n + torch.arange(side, device=w.device) % n
    folded = torch.zeros(*w.shape[:2], math.prod(shape), dtype=w.dtype, device=w.device)
    folded.index_add_(2, index.flatten(), w.flatten(2))
    spectrum = torch.fft.rfftn(folded.reshape(*w.shape[:2], *shape), dim=tuple(range(2, w.dim())))
    if w.shape[1] == 1:
        power = spectrum.abs().square().sum(0)
    else:
        columns = spectrum.flatten(2).permute(2, 0, 1)
        power = torch.linalg.eigvalsh(columns.mH @ columns)
    return float(power.max()), float(power.min())
