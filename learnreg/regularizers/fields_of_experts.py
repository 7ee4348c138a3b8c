"""Fields of Experts: a bank of learned filters, each with a learned weight and smoothing (Roth and Black, 2009)."""

from __future__ import annotations

from typing import Any, Self, cast

import torch
from torch import Tensor

from learnreg.convolutions.dct import LARGEST_SIDE, MOST_FILTERS, dct_filters
from learnreg.convolutions.padding import Boundary
from learnreg.errors import ConfigError, ShapeError
from learnreg.linear.arguments import check_type, is_whole, real_number, shown
from learnreg.lower_level.regularizer import Regularizer
from learnreg.lower_level.saddle_terms import Pictures, SaddleTerms
from learnreg.potentials import potential_from_config, potential_to_config
from learnreg.potentials.base import Potential
from learnreg.potentials.pseudo_huber import PseudoHuber
from learnreg.regularizers.image_kind import Coupling, ImageKind
from learnreg.regularizers.learned_filters import ArrayLike, LearnedFilters, filters_from
from learnreg.regularizers.options import RegularizerOptions
from learnreg.regularizers.raw_parameters import positive_log

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
    channels, dimensions: of the images (channels, *sides).
    coupling: "separate", the same filters for every channel; "joint", filters (n, channels, k, k) across them;
        "complex", the same filters for two channels, phi of the modulus of both responses.
    noise_conditioned: l_c and v_c - minimum_smoothing are multiplied by learned powers of sigma/(25/255) in
        ``at(sigma)``, with the raw parameters ``weight_exponents`` and ``smoothing_exponents``, which start at 1.

    The raw parameters are ``filters`` (n, k, k), ``log_weights`` (n,) and ``log_smoothing`` (n,), the logarithm of
    v_c - minimum_smoothing. The filters in use are the raw ones minus their means (of each channel), so that R ignores
    constants (not in :meth:`from_arrays`).

    Raises
    ------
    ConfigError: numbers out of their range.
    ShapeError: a potential whose parameters do not fit the filters.

    Examples
    --------
    >>> R = lr.regularizers.FieldsOfExperts(filters=24, size=5, potential=lr.PseudoHuber(smoothing=0.01))
    >>> {name: tuple(parameter.shape) for name, parameter in R.named_parameters()}
    {'filters': (24, 5, 5), 'log_weights': (24,), 'log_smoothing': (24,)}
    """

    grows_in = ("noise_conditioned",)
    summary = "sum of l_c phi(w_c * x), phi one of the potentials with a name"

    def __init__(
        self,
        filters: int = 24,
        size: int = 5,
        potential: Potential | None = None,
        boundary: Boundary = "reflect",
        minimum_smoothing: float = 0.0,
        generator: torch.Generator | None = None,
        *,
        channels: int = 1,
        coupling: Coupling = "separate",
        dimensions: int = 2,
        noise_conditioned: bool = False,
    ) -> None:
        super().__init__()
        images = ImageKind.of("FieldsOfExperts", channels, coupling, dimensions)
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
        self._potential = _checked(potential, images)
        self._set(
            dct_filters(filters, size, generator, dimensions, channels if images.across else 0),
            positive_log(initial_weight, "weights", filters),
            None
            if smoothing is None
            else positive_log(smoothing - minimum_smoothing, "smoothing - minimum_smoothing", filters),
            boundary,
            zero_mean=True,
            minimum_smoothing=minimum_smoothing,
            images=images,
        )
        self._condition_on_noise(noise_conditioned)

    @classmethod
    def from_arrays(
        cls,
        filters: ArrayLike,
        weights: ArrayLike,
        smoothing: ArrayLike | None,
        boundary: Boundary = "valid",
        potential: Potential | None = None,
        *,
        channels: int = 1,
        coupling: Coupling = "separate",
        dimensions: int = 2,
    ) -> FieldsOfExperts:
        """A Field of Experts with exactly these filters (n, k, k), weights (n,) > 0 and smoothings (n,) > 0; None
        for a potential without smoothing. Filters are (n, channels, k, k) where they are across channels, of as many
        sides as ``dimensions`` says.

        NumPy arrays or tensors; keeps the filters' dtype, does not re-centre them, stays trainable.

        Raises
        ------
        ShapeError: the shapes do not fit. ConfigError: a weight or smoothing that is not positive and finite.
        """
        images = ImageKind.of("from_arrays", channels, coupling, dimensions)
        w = filters_from(filters)
        if not images.across and w.dim() == dimensions + 2 and w.shape[1] == 1:
            w = w[:, 0]
        if w.dim() != len(images.kernel(1)) + 1 or (images.across and w.shape[1] != channels):
            expected = ", ".join(["n", *([str(channels)] if images.across else []), *["k"] * dimensions])
            raise ShapeError(f"from_arrays(filters): got shape {tuple(w.shape)}, expected ({expected}).")
        potential = _checked(potential if potential is not None else PseudoHuber(1.0), images)
        if (smoothing is None) == ("smoothing" in potential.number_names):
            expected = "smoothings" if smoothing is None else "None, since the potential has no smoothing"
            raise ConfigError(f"from_arrays(smoothing, potential={type(potential).__name__}): expected {expected}.")
        result = cls._of_arrays(w, weights, smoothing, boundary, images)
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
            noise_conditioned=options.noise_conditioned,
            **options.image_kind,
        )

    def saddle_terms(self, image_shape: tuple[int, ...]) -> SaddleTerms:
        shape = self.images.check(image_shape, "FieldsOfExperts")
        bank = self.images.bank(self._exact_filters(), shape, self.boundary, self.zero_mean)
        return SaddleTerms(bank, self._seen())

    def _seen(self) -> Potential:
        """The potential of the responses."""
        potential = self._potential.with_numbers(**self._numbers())
        return self.images.seen_by(potential, "FieldsOfExperts")

    def config(self) -> dict[str, Any]:
        return super().config() | {"potential": potential_to_config(self._potential)}

    @torch.no_grad()
    def pictures(self) -> Pictures:
        return self.images.pictures(self.effective_filters[:, None], self.weights, self.smoothing, self._seen())

    def extra_repr(self) -> str:
        n, k = self.filters.shape[0], self.filters.shape[-1]
        potential = type(self._potential).__name__
        sizes = f"filters={n}, size={k}, potential={potential}, boundary={self.boundary!r}"
        return sizes + self.images.described()


def _checked(potential: Potential, images: ImageKind) -> Potential:
    """ConfigError for a potential that has no name in model files, or no form for the modulus of complex images."""
    potential_to_config(potential)
    images.seen_by(potential, "FieldsOfExperts(coupling='complex')")
    return potential
