"""Generalised Tikhonov regularization: squares of the responses to learned filters."""

from __future__ import annotations

from typing import Self, cast

import torch

from learnreg.convolutions.dct import LARGEST_SIDE, MOST_FILTERS, dct_filters
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.convolutions.padding import Boundary
from learnreg.linear.arguments import model_scale, whole_number
from learnreg.lower_level.regularizer import Regularizer
from learnreg.lower_level.saddle_terms import Pictures, SaddleTerms
from learnreg.potentials.square import Square
from learnreg.regularizers.image_kind import Coupling, ImageKind
from learnreg.regularizers.learned_filters import LearnedFilters
from learnreg.regularizers.options import RegularizerOptions
from learnreg.regularizers.raw_parameters import positive_log

__all__ = ["GeneralisedTikhonov"]


class GeneralisedTikhonov(LearnedFilters, Regularizer):
    """R(x) = sum_c l_c/2 ‖w_c * x‖² with n filters w_c of side ``size``, minus their means, and weights l_c, raw
    ``filters`` and ``log_weights``; initially the DCT basis without the constant, weights of this sum. The lower level
    is one linear system.

    ``channels``, ``coupling`` and ``dimensions`` are those of :class:`FieldsOfExperts`; the squares of both parts of
    complex images add up to those of their modulus.

    Parameters
    ----------
    filters, size, weight: how many filters of size x size pixels, and the sum of their initial weights.
    boundary, generator, channels, coupling, dimensions: as of ``FieldsOfExperts``.

    Raises
    ------
    ConfigError: an argument that is out of its range, or of the wrong kind.

    Examples
    --------
    >>> R = lr.regularizers.GeneralisedTikhonov(filters=4, size=3)
    >>> R.value(torch.rand(2, 1, 8, 8)).shape
    torch.Size([2])
    """

    summary = "sum of l_c/2 (w_c * x)²"

    def __init__(
        self,
        filters: int = 24,
        size: int = 5,
        weight: float = 10.0,
        boundary: Boundary = "reflect",
        generator: torch.Generator | None = None,
        *,
        channels: int = 1,
        coupling: Coupling = "separate",
        dimensions: int = 2,
    ) -> None:
        super().__init__()
        images = ImageKind.of("GeneralisedTikhonov", channels, coupling, dimensions)
        whole_number(filters, "GeneralisedTikhonov(filters)", most=MOST_FILTERS)
        whole_number(size, "GeneralisedTikhonov(size)", least=2, most=LARGEST_SIDE)
        weight = model_scale(weight, "GeneralisedTikhonov(weight)")
        weights = positive_log(weight / filters, "GeneralisedTikhonov weight", filters)
        start = dct_filters(filters, size, generator, dimensions, channels if images.across else 0)
        self._set(start, weights, None, boundary, zero_mean=True, images=images)

    @classmethod
    def from_options(cls, options: RegularizerOptions, generator: torch.Generator) -> Self:
        boundary = cast(Boundary, options.boundary)
        return cls(options.filters, options.filter_side, boundary=boundary, generator=generator, **options.image_kind)

    def saddle_terms(self, image_shape: tuple[int, ...]) -> SaddleTerms:
        shape = self.images.check(image_shape, "GeneralisedTikhonov")
        bank = FilterBank(self._exact_filters(), shape, self.boundary, self.zero_mean)
        return SaddleTerms(bank, Square(**self._numbers()))

    @torch.no_grad()
    def pictures(self) -> Pictures:
        return self.images.pictures(self.effective_filters[:, None], self.weights, None, Square(**self._numbers()))
