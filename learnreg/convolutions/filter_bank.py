"""Convolutions as linear operators: a bank of small filters on one image channel, with the boundary of choice.

"Convolution" is correlation, as in torch's conv2d; its kernels are in ``correlation``. Padding is an operator of its
own with an exact adjoint, so every boundary is the valid correlation of a padded image.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from learnreg.convolutions.correlation import correlate, correlate_adjoint
from learnreg.convolutions.filter_pairing import FilterPairing
from learnreg.convolutions.local_gram import local_gram
from learnreg.convolutions.local_norm import local_norm_bound
from learnreg.convolutions.padding import BOUNDARIES, Boundary, margins, pad, pad_adjoint, source_index
from learnreg.errors import ConfigError, ShapeError
from learnreg.linear.bands import Bands
from learnreg.linear.normed import Normed
from learnreg.linear.norms import (
    FAILURE_PROBABILITY,
    GRAM_LIMIT,
    NormBound,
    circulant_bound,
    gram_norm_bound,
    power_estimate,
    probabilistic_norm_bound,
)
from learnreg.linear.operator import LinearOperator
from learnreg.linear.parameter_groups import Pairing
from learnreg.linear.shapes import check_one_channel
from learnreg.linear.stencil import Stencil

__all__ = ["FilterBank", "padding_norm", "weighted_norm_bound"]

_REPEATING = ("reflect", "replicate")
_DENSE_PIXELS = 1024
_LOOSE = 1.45


class FilterBank(LinearOperator):
    """Correlation of a one-channel image with n filters.

    Parameters
    ----------
    filters: (n, k, l); an nn.Parameter makes the operator learnable.
    domain_shape: (1, H, W).
    boundary: "valid" (responses only where the filter fits, range (n, H-k+1, W-l+1)), or "zero", "circular",
        "reflect", "replicate" (range (n, H, W)).
    zero_mean: the filters come from a parametrisation that subtracts their means, so that gradients with respect to its
        raw filters have zero means; certificates use it.

    Raises
    ------
    ShapeError: the image is smaller than the filter (or than its margin, for "reflect").
    """

    filters: Tensor

    def __init__(
        self,
        filters: Tensor,
        domain_shape: tuple[int, int, int],
        boundary: Boundary = "valid",
        zero_mean: bool = False,
    ) -> None:
        if boundary not in BOUNDARIES:
            raise ConfigError(f"boundary={boundary!r}: expected one of {', '.join(BOUNDARIES)}.")
        if zero_mean and isinstance(filters, torch.nn.Parameter):
            raise ConfigError(
                "FilterBank(zero_mean=True): the filters are parameters themselves, so nothing subtracts their means; "
                "pass filters computed from parameters, or zero_mean=False."
            )
        if filters.dim() != 3:
            raise ShapeError(f"filters: got shape {tuple(filters.shape)}, expected (n, k, k).")
        check_one_channel(domain_shape, type(self).__name__)
        (n, k, l), (_, height, width) = filters.shape, domain_shape
        if boundary == "valid" and (height < k or width < l):
            raise ShapeError(f"image {height}x{width} is smaller than the {k}x{l} filters; use smaller filters.")
        if boundary == "reflect" and (height <= k // 2 or width <= l // 2):
            raise ShapeError(f"image {height}x{width} is too small to reflect at the margin of {k}x{l} filters.")
        sides = (height - k + 1, width - l + 1) if boundary == "valid" else (height, width)
        super().__init__(domain_shape, (n, *sides))
        self.filters, self.boundary, self.zero_mean = filters, boundary, zero_mean
        self.groups = int(n)

    def forward(self, x: Tensor) -> Tensor:
        return correlate(pad(x, self.filter_shape, self.boundary), self.filters.to(x.dtype))

    def forward_into(self, x: Tensor, out: Tensor) -> Tensor:
        return correlate(pad(x, self.filter_shape, self.boundary), self.filters.to(x.dtype), out)

    def adjoint(self, y: Tensor) -> Tensor:
        padded = correlate_adjoint(y, self.filters.to(y.dtype))
        return pad_adjoint(padded, self.filter_shape, self.boundary, self._sides)

    @property
    def filter_shape(self) -> tuple[int, int]:
        """Sides (k, l) of the filters."""
        return int(self.filters.shape[1]), int(self.filters.shape[2])

    def per_filter(self, values: Tensor) -> Tensor:
        """Numbers that belong to the ``groups`` of filters, here to each filter, as (n,)."""
        return values.flatten()

    @property
    def _sides(self) -> tuple[int, int]:
        return self.domain_shape[1], self.domain_shape[2]

    def _find_norm(self) -> NormBound:
        """The torus bound, unless it may be loose (repeated pixels, narrow images) and a power iteration cannot show
        that it is not: then for repeated pixels that of a small image; if it is loose, too, the dense Gram matrix, or
        beyond 4,096 pixels the randomised bound."""
        bound = weighted_norm_bound(self, torch.ones(self.filters.shape[0]))
        pixels, narrow = math.prod(self._sides), min(self._sides) < 4 * max(self.filter_shape)
        repeating = self.boundary in _REPEATING
        if self.boundary == "circular" or pixels <= _DENSE_PIXELS or not (narrow or repeating):
            return NormBound(bound)
        bank = FilterBank(self.filters.detach().double(), (1, *self._sides), self.boundary)
        device = self.filters.device

        def gram(v: Tensor) -> Tensor:
            return bank.adjoint(bank(v))

        tight = _LOOSE * power_estimate(gram, self.domain_shape, device=device, steps=20)
        if bound > tight and repeating:
            build = lambda sides: FilterBank(bank.filters, (1, *sides), bank.boundary)  # noqa: E731
            bound = min(bound, local_norm_bound(build, self.filter_shape, self._sides, device))
        if bound <= tight:
            return NormBound(bound)
        if pixels <= GRAM_LIMIT:
            return NormBound(min(bound, gram_norm_bound(local_gram(bank, self.filter_shape, device))))
        random = probabilistic_norm_bound(gram, self.domain_shape, device=device)
        return NormBound(random, "probabilistic", FAILURE_PROBABILITY).at_most(bound)

    def norm_near(self, other: Normed) -> NormBound | None:
        if type(other) is not type(self) or not isinstance(other, FilterBank) or other.boundary != self.boundary:
            return None
        if other.domain_shape != self.domain_shape or other.filters.shape != self.filters.shape:
            return None
        filters = self.filters.detach().double()
        apart = _torus_bound(filters - other.filters.detach().to(filters), self) * padding_norm(self)
        found = other.norm()
        return replace(found, value=found.value + apart * (1.0 + 1e-12))

    def channel_norm(self, weights: Tensor) -> float | None:
        fits = weights.numel() == self.groups
        return weighted_norm_bound(self, self.per_filter(weights), tight=False) if fits else None

    def gram_lower_bound(self) -> float:
        if self.boundary != "circular":
            return 0.0
        lowest = circulant_bound(self.filters, self._sides)[1]
        return max(0.0, lowest * (1.0 - 1e-12) - 1e-15)

    def row_norms(self, grouped: bool) -> Tensor | float:
        if grouped:
            return self.norm_bound()
        norms = self.filters.detach().to(torch.float64).flatten(1)
        if self.boundary == "circular" and any(k > n for k, n in zip(self.filter_shape, self._sides, strict=True)):
            norms = norms.abs().sum(1)
        else:
            norms = norms.norm(dim=1) * padding_norm(self)
        return (norms * (1.0 + 1e-12))[:, None, None]

    def stencil(self) -> Stencil | None:
        filters = self.filters.detach()
        squares = FilterBank(filters.square(), (1, *self._sides), self.boundary)
        return Stencil(filters, self.boundary == "circular", squares.adjoint, inside=self.boundary == "valid")

    def bands(self) -> Bands | None:
        filters = self.filters.detach()
        return Bands(
            extend=lambda x: pad(x, self.filter_shape, self.boundary),
            contract=lambda z: pad_adjoint(z, self.filter_shape, self.boundary, self._sides),
            respond=lambda z: correlate(z, filters.to(z.dtype)),
            pull=lambda y: correlate_adjoint(y, filters.to(y.dtype)),
            pull_diagonal=lambda w: correlate_adjoint(w, filters.square().to(w.dtype)),
            overlap=self.filter_shape[0] - 1,
        )

    def parameter_lipschitz(self) -> float | None:
        # Also for filters that require no gradient: under no_grad, filters computed from parameters do not show it.
        return padding_lipschitz(self)

    def parameter_groups(self) -> tuple[Pairing, ...]:
        repeat = padding_norm(self)
        return (FilterPairing(padding_lipschitz(self), self.filter_shape, self.boundary, repeat, self.zero_mean),)

    def group_images(self, p: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        """Of each group of filters that shares a number."""
        if shape != (self.groups, 1, 1):
            return None
        p, filters = p.flatten(1, -3), self.filters.to(p.dtype)
        parts = [correlate_adjoint(p[:, c : c + 1], filters[c : c + 1]) for c in range(filters.shape[0])]
        images = pad_adjoint(torch.cat(parts, dim=1), self.filter_shape, self.boundary, self._sides).flatten(2)
        return images.reshape(images.shape[0], -1, self.groups, images.shape[2]).sum(1)


def weighted_norm_bound(bank: FilterBank, channel_weights: Tensor, tight: bool = True) -> float:
    """Rigorous bound of ‖diag(sqrt(channel_weights)) W‖ for a filter bank, at most about 1.2 times the norm.

    ``tight=False`` leaves out the dense matrix of small images, where the bound is then looser, but cheap."""
    scale = channel_weights.detach().to(dtype=torch.float64, device=bank.filters.device).sqrt()
    filters = bank.filters.detach().to(torch.float64) * scale[:, None, None]
    if bank.boundary == "circular":
        return _torus_bound(filters, bank) * (1.0 + 1e-12)
    if tight and math.prod(bank._sides) <= _DENSE_PIXELS:
        size = float(filters.abs().max())
        if size == 0.0 or not math.isfinite(size):
            return size
        scaled = FilterBank(filters / size, cast(tuple[int, int, int], bank.domain_shape), bank.boundary)
        return size * gram_norm_bound(local_gram(scaled, bank.filter_shape, filters.device))
    bound = _torus_bound(filters, bank)
    if bank.boundary in _REPEATING:
        bound = min(bound * padding_norm(bank), _schur_bound(filters, bank))
        if not tight:
            bound = min(bound, float(scale.max()) * bank.norm_bound())
    return bound * (1.0 + 1e-12)


def _torus_bound(filters: Tensor, bank: FilterBank) -> float:
    """Of filters in float64 on padded images of the bank."""
    around = 0 if bank.boundary == "circular" else 1
    height, width = (n + around * (k - 1) for n, k in zip(bank._sides, bank.filter_shape, strict=True))
    return math.sqrt(circulant_bound(filters, (height, width))[0])


def padding_norm(bank: FilterBank) -> float:
    """Bound of the norm of the padding: "reflect" and "replicate" repeat a pixel as often as the largest column count
    says; 1 for the others."""
    counts = 1.0
    if bank.boundary not in _REPEATING:
        return counts
    for n, k in zip(bank._sides, bank.filter_shape, strict=True):
        index = source_index(n, *margins(k), bank.boundary, torch.device("cpu"))
        counts *= float(torch.bincount(index, minlength=n).max())
    return math.sqrt(counts)


def _schur_bound(filters: Tensor, bank: FilterBank) -> float:
    """‖M‖² <= (largest absolute row sum)(largest absolute column sum), both exact: |M| applied to ones."""
    absolute = FilterBank(filters.abs(), cast(tuple[int, int, int], bank.domain_shape), bank.boundary)
    ones = torch.ones(1, *absolute.domain_shape, dtype=torch.float64, device=filters.device)
    rows = absolute(ones)
    return math.sqrt(float(rows.max()) * float(absolute.adjoint(torch.ones_like(rows)).max()))


def padding_lipschitz(bank: FilterBank) -> float:
    """c with ‖∂_w <w * pad(u), p>‖_F <= c ‖u‖ ‖p‖: sqrt(k l) times the norm of the padding. *Rigorous bound.*

    The gradient's entry (c, i, j) is the inner product of p_c with one shifted window of the padded image; a window of
    a circular padding is a permutation of the image, so the factor is needed for repeated pixels alone.
    """
    k, l = bank.filter_shape
    repeat = 1.0
    if bank.boundary in _REPEATING:
        for n, side in zip(bank._sides, (k, l), strict=True):
            index = source_index(n, *margins(side), bank.boundary, torch.device("cpu"))
            windows = index.unfold(0, n, 1)
            repeat *= max(float(torch.bincount(w, minlength=n).max()) for w in windows)
    return math.sqrt(k * l * repeat)
