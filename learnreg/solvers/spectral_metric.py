"""A metric for the primal step of primal-dual iterations in which all frequencies of an image advance alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.linear.samples import expand, inner_samples
from learnreg.lower_level.instance import Instance
from learnreg.solvers.preconditioner import can_precondition, filter_symbol, padded_sides, spectral_product

__all__ = ["SpectralMetric", "can_measure"]

_MARGIN = 1.001


def can_measure(instance: Instance) -> bool:
    """There is a metric for this problem, and it saves more steps than its FFTs cost."""
    stencil = instance.analysis.stencil()
    if stencil is None or not (stencil.circular or stencil.inside) or stencil.filters.shape[1] > 1:
        return False
    if not can_precondition(instance):
        return False
    return instance.quadratic.number() is not None and not instance.box.constrains


@dataclass(frozen=True)
class SpectralMetric:
    """The inverse step T^-1(s) of images, for dual steps Sigma = s diag(scaling) and a data term d/2 ‖x‖² - <q, x>.

    On a torus that holds the image (E continues it by zeros) the filters are a convolution C, and C^T diag(scaling) C
    has the symbol S >= 0. The step of size s is (d + T^-1)^-1 := E^T (d + s S)^-1 E, a few FFTs of an image.

    It satisfies the condition of the primal-dual method, ‖Sigma^1/2 K T^1/2‖ < 1: by the Schur complement
    <x, (d + T^-1) x> is the minimum over z, the pixels of the torus beside the image, of <(x, z), (d + s S) (x, z)>,
    so that <x, T^-1 x> >= min_z ‖Sigma^1/2 C (x, z)‖². Every row of K is one of C that sees nothing of z, whence
    ‖Sigma^1/2 K x‖² is less than or equal to every ‖Sigma^1/2 C (x, z)‖². A margin in S makes it strict. On boundaries
    that reflect or continue the image rows of K are no rows of C, and there is no such metric.

    symbol: S, (1, 1, *half spectrum), that of every channel: filters that see several of them have no metric here.
    """

    symbol: Tensor
    mass: float
    sides: tuple[int, ...]

    @classmethod
    def of(cls, instance: Instance, scaling: Tensor) -> SpectralMetric | None:
        """For the scaling of dual steps per channel, a number or (n, 1, 1); None where the condition is not known to
        hold, or where FFTs cost more than the steps they save."""
        stencil, mass = instance.analysis.stencil(), instance.quadratic.number()
        if stencil is None or mass is None or not can_measure(instance):
            return None
        sides = padded_sides(stencil, instance.analysis.domain_shape)
        filters = stencil.filters.to(instance.q)
        weights = scaling.to(instance.q).expand(*instance.analysis.range_shape[:-2], 1, 1).reshape(1, 1, -1)
        weights = weights[..., : len(filters)]  # the same for all channels, whose responses follow each other
        return cls(_MARGIN * filter_symbol(filters, weights, sides), float(mass), sides)

    def step(self, gradient: Tensor, size: Tensor) -> Tensor:
        """(d + T^-1(s))^-1 of an image; size: s, (batch,)."""
        bend = torch.addcmul(torch.full_like(self.symbol, self.mass), expand(size, gradient), self.symbol)
        return spectral_product(bend.reciprocal_(), gradient, self.sides)

    def norm(self, image: Tensor) -> Tensor:
        """‖x‖_S, (batch,)."""
        turned = spectral_product(self.symbol, image, self.sides)
        return inner_samples(image, turned).clamp_min(0.0).sqrt()
