"""Convolutions as linear operators: a bank of small filters on images, with the boundary of choice.

"Convolution" is correlation, as in torch's conv2d; its kernels are in ``correlation`` and ``joint_correlation``.
Padding is an operator of its own with an exact adjoint, so every boundary is the valid correlation of a padded image.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from learnreg.convolutions.channel_layout import ChannelLayout, PatchSource
from learnreg.convolutions.filter_pairing import FilterPairing
from learnreg.convolutions.gram_entries import gram_entries
from learnreg.convolutions.joint_correlation import correlate_any, correlate_any_adjoint
from learnreg.convolutions.local_gram import local_gram
from learnreg.convolutions.local_norm import local_norm_bound
from learnreg.convolutions.padding import BOUNDARIES, Boundary, margins, pad, pad_adjoint, source_index
from learnreg.errors import ConfigError, ShapeError
from learnreg.linear.bands import Bands
from learnreg.linear.local_matrix import LocalMatrix
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
from learnreg.linear.shapes import checked_shape
from learnreg.linear.stencil import Stencil

__all__ = ["FilterBank", "padding_norm", "weighted_norm_bound"]

_REPEATING = ("reflect", "replicate")
_DENSE_PIXELS = 1024
_LOOSE = 1.45


class FilterBank(LinearOperator):
    """Correlation of images, signals or volumes with n filters.

    Parameters
    ----------
    filters: (n, *filter sides), each applied to every channel, or (n, channels, *filter sides), across channels; an
        nn.Parameter makes the operator learnable.
    domain_shape: (channels, *sides), of one to three sides.
    boundary: "valid" (responses only where the filter fits), or "zero", "circular", "reflect", "replicate" (as many
        responses as pixels).
    zero_mean: the filters come from a parametrisation that subtracts their means, in each channel, so that gradients
        with respect to its raw filters have zero means; certificates use it.

    The range is (n, rows, columns): (n, H-k+1, W-l+1) for one channel and "valid". Planes of a volume lie below each
    other, and so do the responses of channels that a filter sees one at a time; those to a signal are one row.

    Raises
    ------
    ShapeError: the image is smaller than the filter (or than its margin, for "reflect").
    """

    filters: Tensor

    def __init__(
        self,
        filters: Tensor,
        domain_shape: tuple[int, ...],
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
        channels, *sides = domain_shape = checked_shape(domain_shape, "domain_shape")
        across = filters.dim() == len(sides) + 2
        known = 1 <= len(sides) <= 3 and (filters.dim() == len(sides) + 1 or (across and filters.shape[1] == channels))
        if not known:
            raise ShapeError(
                f"filters: got shape {tuple(filters.shape)} for images of shape {domain_shape}, expected (n, k, k) for "
                "images (channels, height, width), (n, channels, k, k) across channels, one k for signals, three for "
                "volumes."
            )
        shape, size = filters.shape[-len(sides) :], "x".join(map(str, sides))
        of_filters = "x".join(map(str, shape))
        if boundary == "valid" and any(n < k for n, k in zip(sides, shape, strict=True)):
            raise ShapeError(f"image {size} is smaller than the {of_filters} filters; use smaller filters.")
        if boundary == "reflect" and any(n <= k // 2 for n, k in zip(sides, shape, strict=True)):
            raise ShapeError(f"image {size} is too small to reflect at the margin of {of_filters} filters.")
        rest = [n - k + 1 for n, k in zip(sides, shape, strict=True)] if boundary == "valid" else sides
        n, copies = int(filters.shape[0]), 1 if across else channels
        super().__init__(domain_shape, (n, copies * math.prod(rest[:-1]), rest[-1]))
        self.filters, self.boundary, self.zero_mean = filters, boundary, zero_mean
        self.groups, self.layout = n, ChannelLayout(channels // copies, copies, n)
        self.response_sides = tuple(rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.layout.arranged(correlate_any(self._padded(x), self._kernels(x)), self.range_shape)

    def forward_into(self, x: Tensor, out: Tensor) -> Tensor:
        if self.layout.copies > 1 and not self.layout.as_members:
            return out.copy_(self.forward(x))
        memory = out.view(len(out) * self.layout.copies, self.layout.filters, *self.response_sides)
        correlate_any(self._padded(x), self._kernels(x), memory)
        return out

    def adjoint(self, y: Tensor) -> Tensor:
        responses = self.layout.taken_apart(y, self.response_sides)
        return self._unpadded(correlate_any_adjoint(responses, self._kernels(y)))

    def _kernels(self, like: Tensor) -> Tensor:
        """(n, channels that a filter sees, *filter sides)."""
        filters = self.filters.to(like.dtype)
        return filters if filters.dim() == len(self.domain_shape) + 1 else filters.unsqueeze(1)

    def _padded(self, x: Tensor) -> Tensor:
        return pad(self.layout.images(x), self.filter_shape, self.boundary)

    def _unpadded(self, padded: Tensor) -> Tensor:
        return self.layout.joined(pad_adjoint(padded, self.filter_shape, self.boundary, self._sides))

    @property
    def filter_shape(self) -> tuple[int, ...]:
        """Sides (k, l) of the filters."""
        return tuple(self.filters.shape[1 - len(self.domain_shape) :])

    def per_filter(self, values: Tensor) -> Tensor:
        """Numbers that belong to the ``groups`` of filters, here to each filter, as (n,)."""
        return values.flatten()

    @property
    def _sides(self) -> tuple[int, ...]:
        return self.domain_shape[1:]

    def alone(self, filters: Tensor, sides: tuple[int, ...] | None = None) -> FilterBank:
        """A bank of these filters, of one shape with its own, on images of those channels that a filter sees, of
        other sides perhaps: applied to several copies of them a bank has the same norms."""
        return FilterBank(filters, (self.layout.inputs, *(sides or self._sides)), self.boundary)

    def _find_norm(self) -> NormBound:
        """The torus bound, unless it may be loose (repeated pixels, narrow images) and a power iteration cannot show
        that it is not: then for repeated pixels that of a small image; if it is loose, too, the dense Gram matrix, or
        beyond 4,096 pixels the randomised bound."""
        bound = weighted_norm_bound(self, torch.ones(self.filters.shape[0]))
        bank = self.alone(self.filters.detach().double())
        pixels, narrow = math.prod(bank.domain_shape), min(self._sides) < 4 * max(self.filter_shape)
        repeating = self.boundary in _REPEATING
        if self.boundary == "circular" or pixels <= _DENSE_PIXELS or not (narrow or repeating):
            return NormBound(bound)
        device = self.filters.device

        def gram(v: Tensor) -> Tensor:
            return bank.adjoint(bank(v))

        tight = _LOOSE * power_estimate(gram, bank.domain_shape, device=device, steps=20)
        if bound > tight and repeating:
            build = lambda sides: bank.alone(bank.filters, sides)  # noqa: E731
            bound = min(bound, local_norm_bound(build, self.filter_shape, self._sides, device))
        if bound <= tight:
            return NormBound(bound)
        if pixels <= GRAM_LIMIT:
            return NormBound(min(bound, gram_norm_bound(local_gram(bank, self.filter_shape, device))))
        random = probabilistic_norm_bound(gram, bank.domain_shape, device=device)
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
        largest, lowest = circulant_bound(self.filters, self._sides)
        rounding = 1e-13 * largest if self.layout.inputs > 1 else 0.0  # of eigenvalues
        return max(0.0, lowest * (1.0 - 1e-12) - 1e-15 - rounding)

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
        squares = FilterBank(filters.square(), self.domain_shape, self.boundary)
        squares.layout = self.layout
        return Stencil(
            self._kernels(filters).detach(),
            self.boundary == "circular",
            squares.adjoint,
            lambda weights: self.layout.apart(weights).mean(-1),
            inside=self.boundary == "valid",
        )

    def gram_entries(self, weights: Tensor) -> LocalMatrix | None:
        single = torch.arange(self.filters.shape[0], device=weights.device)
        return self._gram_entries(weights.reshape(-1, *weights.shape[-2:]), (single, single), weights.abs().amax())

    def _gram_entries(self, weights: Tensor, pairs: tuple[Tensor, Tensor], largest: Tensor) -> LocalMatrix | None:
        """``weights`` of pairs of filters; ``largest``: norm of a matrix of their absolute values."""
        if len(self._sides) != 2 or self.domain_shape[0] != 1 or self.boundary == "circular":
            return None
        filters = self._kernels(weights).detach()[:, 0]
        k, l = self.filter_shape
        sides = self.domain_shape[1], self.domain_shape[2]
        entries = gram_entries(filters, weights, self.boundary, sides, pairs)
        # Cauchy's inequality bounds the sum of the absolute values of the terms of an entry, each of which is rounded
        # a few times and once for each sum over pairs, coefficients and pixels that are repeated
        repeated = padding_norm(self) ** 4
        terms = float(largest) * float(filters.square().sum()) * repeated
        off = (len(weights) + 2 * k * l + 2 * repeated + 16) * 2.0**-52 * terms
        return LocalMatrix(entries, off * (2 * k - 1) * (2 * l - 1))

    def bands(self) -> Bands | None:
        if self.layout.copies > 1 or len(self._sides) != 2:
            return None
        filters = self._kernels(self.filters).detach()
        return Bands(
            extend=self._padded,
            contract=self._unpadded,
            respond=lambda z: correlate_any(z, filters.to(z.dtype)),
            pull=lambda y: correlate_any_adjoint(y.contiguous(), filters.to(y.dtype)),
            pull_diagonal=lambda w: correlate_any_adjoint(w.contiguous(), filters.square().to(w.dtype)),
            overlap=self.filter_shape[0] - 1,
        )

    def parameter_lipschitz(self) -> float | None:
        # Also for filters that require no gradient: under no_grad, filters computed from parameters do not show it.
        return padding_lipschitz(self)

    def parameter_groups(self) -> tuple[Pairing, ...]:
        source = PatchSource(self.filter_shape, self.response_sides, self.boundary, self.layout, self.zero_mean)
        return (FilterPairing(padding_lipschitz(self), source, padding_norm(self)),)

    def group_images(self, p: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        """Of each group of filters that shares a number."""
        if shape != (self.groups, 1, 1):
            return None
        p, filters = self.layout.taken_apart(p, self.response_sides), self._kernels(p)
        parts = [correlate_any_adjoint(p[:, c : c + 1], filters[c : c + 1]) for c in range(filters.shape[0])]
        images = torch.stack([self._unpadded(part).flatten(1) for part in parts], 1)
        return images.reshape(images.shape[0], -1, self.groups, images.shape[2]).sum(1)


def weighted_norm_bound(bank: FilterBank, channel_weights: Tensor, tight: bool = True) -> float:
    """Rigorous bound of ‖diag(sqrt(channel_weights)) W‖ for a filter bank, at most about 1.2 times the norm.

    ``tight=False`` leaves out the dense matrix of small images, where the bound is then looser, but cheap."""
    scale = channel_weights.detach().to(dtype=torch.float64, device=bank.filters.device).sqrt()
    filters = bank.filters.detach().to(torch.float64) * scale.reshape(-1, *(1,) * (bank.filters.dim() - 1))
    if bank.boundary == "circular":
        return _torus_bound(filters, bank) * (1.0 + 1e-12)
    if tight and bank.layout.inputs * math.prod(bank._sides) <= _DENSE_PIXELS:
        size = float(filters.abs().max())
        if size == 0.0 or not math.isfinite(size):
            return size
        return size * gram_norm_bound(local_gram(bank.alone(filters / size), bank.filter_shape, filters.device))
    bound = _torus_bound(filters, bank)
    if bank.boundary in _REPEATING:
        bound = min(bound * padding_norm(bank), _schur_bound(filters, bank))
        if not tight:
            bound = min(bound, float(scale.max()) * bank.norm_bound())
    return bound * (1.0 + 1e-12)


def _torus_bound(filters: Tensor, bank: FilterBank) -> float:
    """Of filters in float64 on padded images of the bank."""
    around = 0 if bank.boundary == "circular" else 1
    sides = tuple(n + around * (k - 1) for n, k in zip(bank._sides, bank.filter_shape, strict=True))
    return math.sqrt(max(circulant_bound(filters, sides)[0], 0.0))


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
    absolute = bank.alone(filters.abs())
    ones = torch.ones(1, *absolute.domain_shape, dtype=torch.float64, device=filters.device)
    rows = absolute(ones)
    return math.sqrt(float(rows.max()) * float(absolute.adjoint(torch.ones_like(rows)).max()))


def padding_lipschitz(bank: FilterBank) -> float:
    """c with ‖∂_w <w * pad(u), p>‖_F <= c ‖u‖ ‖p‖: sqrt(k l) times the norm of the padding. *Rigorous bound.*

    The gradient's entry (c, i, j) is the inner product of p_c with one shifted window of the padded image; a window of
    a circular padding is a permutation of the image, so the factor is needed for repeated pixels alone.
    """
    repeat = 1.0
    if bank.boundary in _REPEATING:
        for n, side in zip(bank._sides, bank.filter_shape, strict=True):
            index = source_index(n, *margins(side), bank.boundary, torch.device("cpu"))
            windows = index.unfold(0, n, 1)
            repeat *= max(float(torch.bincount(w, minlength=n).max()) for w in windows)
    return math.sqrt(math.prod(bank.filter_shape) * repeat)
