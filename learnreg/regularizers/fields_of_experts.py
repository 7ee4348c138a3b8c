"""Fields of Experts: a bank of learned filters, each with a learned weight and smoothing (Roth and Black, 2009)."""

from __future__ import annotations

from typing import Any, Self, cast

import torch
from torch import Tensor

from learnreg.convolutions.dct import LARGEST_SIDE, MOST_FILTERS, dct_filters
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.convolutions.padding import Boundary
from learnreg.errors import ConfigError, ShapeError
from learnreg.linear.arguments import check_type, is_whole, real_number, shown
from learnreg.linear.shapes import check_one_channel
from learnreg.lower_level.regularizer import Regularizer, positive_log
from learnreg.lower_level.saddle_terms import Pictures, SaddleTerms
from learnreg.potentials import potential_from_config, potential_to_config
from learnreg.potentials.base import Potential
from learnreg.potentials.pseudo_huber import PseudoHuber
from learnreg.regularizers.learned_filters import ArrayLike, LearnedFilters, filters_from
from learnreg.regularizers.options import RegularizerOptions

__all__ = ["FieldsOfExperts"]


class FieldsOfExperts(LearnedFilters, Regularizer):
    """R(x) = sum_c sum_i l_c phi((w_c * x)_i; v_c): n filters w_c of side k, weights l_c and smoothings v_c.

    Parameters
    ----------
    filters: number n of filters. Initially the DCT basis without the constant, then random ones.
    size: side k of the filters.
    potential: one of ``learnreg.potentials.POTENTIALS``; its smoothing, if it has one, and weight are the initial ones.
    boundary: "reflect", "valid" (responses only where the filter fits; the default of ``from_arrays``), "zero",
        "circular" or "replicate".
    minimum_smoothing: v_c stays above it, by parametrisation. Smoothings far below the noise cost iterations and change
        no image; 0 leaves them free.
    generator: for the random filters; torch's default generator otherwise.

    The raw parameters are ``filters`` (n, k, k), ``log_weights`` (n,) and ``log_smoothing`` (n,), the logarithm of
    v_c - minimum_smoothing. The filters in use are the raw ones minus their means, so that R ignores constants (not in
    :meth:`from_arrays`).
    """

    summary = "sum of l_c phi(w_c * x), phi one of the potentials with a name"

    def __init__(
        self,
        filters: int = 24,
        size: int = 5,
        potential: Potential | None = None,
        boundary: Boundary = "reflect",
        minimum_smoothing: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not is_whole(filters, 1, MOST_FILTERS) or not is_whole(size, 2, LARGEST_SIDE):
            raise ConfigError(
                f"FieldsOfExperts(filters={shown(filters)}, size={shown(size)}): expected integers, filters from 1 to "
                f"{MOST_FILTERS:,}, size from 2 to {LARGEST_SIDE:,}. For given arrays use FieldsOfExperts.from_arrays."
            )
        minimum_smoothing = real_number(minimum_smoothing, "FieldsOfExperts(minimum_smoothing)", least=0.0)
        potential = potential if potential is not None else PseudoHuber(smoothing=1e-2)
        check_type(potential, Potential, "FieldsOfExperts(potential)", "one such as lr.PseudoHuber(0.01)")
        initial_weight = potential.weight if isinstance(potential.weight, Tensor) else potential.weight / filters
        smoothing = potential.numbers().get("smoothing")
        self._potential = potential
        potential_to_config(potential)
        self._set(
            dct_filters(filters, size, generator),
            positive_log(initial_weight, "weights", filters),
            None
            if smoothing is None
            else positive_log(smoothing - minimum_smoothing, "smoothing - minimum_smoothing", filters),
            boundary,
            zero_mean=True,
            minimum_smoothing=minimum_smoothing,
        )

    @classmethod
    def from_arrays(
        cls,
        filters: ArrayLike,
        weights: ArrayLike,
        smoothing: ArrayLike | None,
        boundary: Boundary = "valid",
        potential: Potential | None = None,
    ) -> FieldsOfExperts:
        """A Field of Experts with exactly these filters (n, k, k), weights (n,) > 0 and smoothings (n,) > 0; None
        for a potential without smoothing.

        NumPy arrays or tensors; keeps the filters' dtype, does not re-centre them, stays trainable.

        Raises
        ------
        ShapeError: the shapes do not fit. ConfigError: a weight or smoothing that is not positive and finite.
        """
        w = filters_from(filters)
        if w.dim() == 4 and w.shape[1] == 1:
            w = w[:, 0]
        if w.dim() != 3:
            raise ShapeError(f"from_arrays(filters): got shape {tuple(w.shape)}, expected (n, k, k).")
        potential = potential if potential is not None else PseudoHuber(1.0)
        potential_to_config(potential)
        if (smoothing is None) == ("smoothing" in potential.number_names):
            expected = "smoothings" if smoothing is None else "None, since the potential has no smoothing"
            raise ConfigError(f"from_arrays(smoothing, potential={type(potential).__name__}): expected {expected}.")
        result = cls._of_arrays(w, weights, smoothing, boundary)
        result._potential = potential
        return result

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        result = super().from_config(config)
        result._potential = potential_from_config(config["potential"])
        return result

    @classmethod
    def from_options(cls, options: RegularizerOptions, generator: torch.Generator) -> Self:
        potential = potential_from_config(options.potential, options.smoothing, options.weight)
        return cls(
            options.filters,
            options.filter_side,
            potential,
            boundary=cast(Boundary, options.boundary),
            minimum_smoothing=options.minimum_smoothing,
            generator=generator,
        )

    def saddle_terms(self, image_shape: tuple[int, ...]) -> SaddleTerms:
        shape = check_one_channel(image_shape, "FieldsOfExperts")
        bank = FilterBank(self._exact_filters(), shape, self.boundary, self.zero_mean)
        return SaddleTerms(bank, self._potential.with_numbers(**self._numbers()))

    def config(self) -> dict[str, Any]:
        return super().config() | {"potential": potential_to_config(self._potential)}

    @torch.no_grad()
    def pictures(self) -> Pictures:
        return Pictures(self.effective_filters[:, None], self.weights, self.smoothing)

    def extra_repr(self) -> str:
        n, k, _ = self.filters.shape
        return f"filters={n}, size={k}, potential={type(self._potential).__name__}, boundary={self.boundary!r}"
