"""Large images: the regularizer f(K x) as a function of the image, by bands of its rows.

Responses K x take as many images as there are filters, more than the memory for a photograph of 12 million pixels. So
the instance of a large image has the identity for K, and for f what is called g(x) = f(K x) here, whose derivatives are
sums over bands: responses of one band exist at a time. It is the same energy of the whole image, not one of tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from learnreg.linear.bands import Bands
from learnreg.linear.examination import foreign_operators
from learnreg.linear.operator import LinearOperator
from learnreg.linear.samples import inner_samples, sum_samples
from learnreg.lower_level.instance import Instance
from learnreg.potentials.base import Number, Potential
from learnreg.potentials.proximal import ProximalPotential

__all__ = ["BandedPotential", "in_bands", "is_large"]

_WHOLE_BYTES = 256 * 1024**2
"""Responses of a batch up to this size are kept whole: solvers that keep them make fewer passes over the image."""

_BAND_BYTES = 8 * 1024**2


class BandedPotential(Potential):
    """g(x) = f(K x) of images x (batch, 1, H, W), evaluated by bands of rows.

    Nothing is kept from band to band but sums in memory that is there before: a number for each band, however small,
    lies behind the responses of its band and keeps the allocator from giving their place to the next ones.

    operator: K. potential: f, a sum over places. bands: how K works through an image.
    """

    def __init__(self, operator: LinearOperator, potential: ProximalPotential, bands: Bands) -> None:
        self.operator, self.potential, self._bands = operator, potential, bands
        self.weight = potential.weight

    def to(self, dtype: torch.dtype) -> BandedPotential:
        return BandedPotential(self.operator, self.potential.to(dtype), self._bands)

    def smoother(self, factor: float) -> BandedPotential | None:
        smoother = self.potential.smoother(factor)
        return None if smoother is None else BandedPotential(self.operator, smoother, self._bands)

    @property
    def scale(self) -> Number:
        return self.potential.scale

    # ---- sums over bands ---------------------------------------------------------------------------------------------

    def value(self, x: Tensor) -> Tensor:
        total = x.new_zeros(x.shape[0])
        for _, (z,) in self._rows(x):
            total += self.potential.value(self._bands.respond(z))
        return total

    def grad(self, x: Tensor) -> Tensor:
        """K^T f'(K x)."""
        return self._summed(x, lambda z: self._bands.pull(self._slopes(self._bands.respond(z))))

    def hess_vec(self, x: Tensor, v: Tensor) -> Tensor:
        """K^T f''(K x) K v."""
        respond, pull = self._bands.respond, self._bands.pull
        return self._summed(x, lambda z, w: pull(self.potential.hess_vec(respond(z), respond(w))), v)

    def second_diagonal(self, x: Tensor) -> Tensor:
        """The diagonal of the Hessian but for cross terms: of the members of a group, and of pixels that a border
        repeats. Preconditioners take it, bounds do not."""
        respond, pull = self._bands.respond, self._bands.pull_diagonal
        return self._summed(x, lambda z: pull(self.potential.second_diagonal(respond(z))))

    def majorant(self, x: Tensor) -> Tensor:
        """The diagonal of K^T D K, D the majorant of f at K x."""
        respond, pull = self._bands.respond, self._bands.pull_diagonal
        return self._summed(x, lambda z: pull(self.potential.majorant(respond(z))))

    def majorant_along(self, x: Tensor, v: Tensor) -> Tensor:
        """<K v, D K v> per sample, (batch,)."""
        respond, majorant = self._bands.respond, self.potential.majorant
        total = x.new_zeros(x.shape[0])
        for _, (z, w) in self._rows(x, v):
            total += inner_samples(majorant(respond(z)), respond(w).square_())
        return total

    def mean_majorant(self, x: Tensor) -> Tensor:
        """That of f at the responses to each filter of K, on average, (batch, filters)."""
        total, pixels = torch.zeros(()), math.prod(self.operator.range_shape[-2:])
        for _, (z,) in self._rows(x):
            total = total.to(x) + self.potential.majorant(self._bands.respond(z)).flatten(1, -3).sum((-2, -1))
        return total / pixels

    # ---- bounds ------------------------------------------------------------------------------------------------------

    @property
    def curvature_limit(self) -> float:
        return self.potential.stiffness(self.operator)

    @property
    def concavity(self) -> float:
        return self.potential.softness(self.operator)

    def second(self, t: Tensor) -> Tensor:
        return torch.full_like(sum_samples(t), self.curvature_limit)

    def curvature_bounds(self, t: Tensor, radius: Tensor | float) -> tuple[Tensor, Tensor]:
        high = self.second(t)
        return torch.full_like(high, -self.concavity), high

    # ---- bands -------------------------------------------------------------------------------------------------------

    def _rows(self, *images: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
        """For one band after the other the rows of extended images, which rows these are first."""
        extended = [self._bands.extend(image) for image in images]
        count = self.operator.range_shape[-2]
        row = math.prod(self.operator.range_shape) // count * extended[0].shape[0] * extended[0].element_size()
        height = max(1, _BAND_BYTES // row)
        for first in range(0, count, height):
            rows = slice(first, min(first + height, count) + self._bands.overlap)
            yield rows, [image[..., rows, :] for image in extended]

    def _summed(self, x: Tensor, work: Callable[..., Tensor], *others: Tensor) -> Tensor:
        """What ``work`` makes of the rows of all images, added up on the extended image and pulled back."""
        total: Tensor | None = None
        for rows, images in self._rows(x, *others):
            if total is None:
                total = torch.zeros_like(self._bands.extend(x))
            total[..., rows, :] += work(*images)
            del images  # views of extended images, which are not needed any more
        assert total is not None
        return self._bands.contract(total)

    def _slopes(self, t: Tensor) -> Tensor:
        return self.potential.grad_into(t, torch.empty_like(t))


class _Whole(LinearOperator):
    """The identity that stands for K where a banded potential contains it."""

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(operator.domain_shape, operator.domain_shape)

    def forward(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y

    def norm_bound(self) -> float:
        return 1.0

    def gram_lower_bound(self) -> float:
        return 1.0


def is_large(instance: Instance) -> bool:
    """Whether the responses of the batch take more memory than solvers should keep."""
    size = math.prod(instance.analysis.range_shape) * instance.q.element_size() * instance.batch
    return size > _WHOLE_BYTES


def in_bands(instance: Instance) -> Instance:
    """The same energy, its regularizer evaluated by bands; the instance itself where nothing is known of bands: of
    operators other than filter banks, of potentials that couple places, and of latent variables.

    Applications count as before: a gradient costs one K and one K^T.
    """
    K, f = instance.analysis, instance.potential
    if instance.latent.channels or not isinstance(f, ProximalPotential) or next(foreign_operators(K), None) is not None:
        return instance
    same_everywhere = all(torch.as_tensor(number).shape[-2:].numel() == 1 for number in f.numbers().values())
    bands = K.bands() if same_everywhere else None
    if bands is None:
        return instance
    return replace(instance, analysis=_Whole(K), potential=BandedPotential(K, f, bands))
