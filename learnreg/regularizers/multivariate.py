"""Multivariate Fields of Experts: groups of learned filters under potentials of a norm of their responses."""

from __future__ import annotations

from typing import Any, Literal, Self, cast

import torch
from torch import Tensor

from learnreg.convolutions.dct import LARGEST_SIDE, MOST_FILTERS, dct_filters
from learnreg.convolutions.padding import Boundary
from learnreg.errors import ConfigError, ShapeError
from learnreg.linear.arguments import check_one_of, is_whole, model_scale, real_number, shown
from learnreg.lower_level.regularizer import Regularizer
from learnreg.lower_level.saddle_terms import Pictures, SaddleTerms
from learnreg.potentials.isotropic import IsotropicPseudoHuber
from learnreg.potentials.maximum import MaximumEnvelope
from learnreg.regularizers.image_kind import Coupling, ImageKind
from learnreg.regularizers.learned_filters import ArrayLike, LearnedFilters, filters_from
from learnreg.regularizers.options import RegularizerOptions
from learnreg.regularizers.raw_parameters import positive_log

__all__ = ["MultivariateExperts"]

Norm = Literal["euclidean", "maximum"]

NORMS: dict[str, type[IsotropicPseudoHuber] | type[MaximumEnvelope]] = {
    "euclidean": IsotropicPseudoHuber,
    "maximum": MaximumEnvelope,
}
"""The potential of a group, by the norm that it approaches far out."""

_WEIGHT_OF_EXPERTS = 0.4  # over the weight of a field of experts which smooths as much


class MultivariateExperts(LearnedFilters, Regularizer):
    """R(x) = sum_g sum_i l_g (sqrt(sum_j (w_gj * x)_i² + v_g²) - v_g): G groups of s filters of side k, with weights
    l_g and smoothings v_g; or, with norm="maximum", l_g times the Moreau envelope of max_j |(w_gj * x)_i|.

    A group of one filter is an expert of :class:`FieldsOfExperts`; the two differences of total variation are a group
    of two.

    Parameters
    ----------
    groups: number G of groups. group_size: number s of filters in each; their initial filters are those of the DCT
        basis without the constant, each next to its transpose, then random ones.
    size: side k of the filters.
    weight, smoothing: initial ones, the weight that of all groups together.
    boundary: "reflect", "valid" (responses only where the filter fits; the default of ``from_arrays``), "zero",
        "circular" or "replicate".
    minimum_smoothing: v_g stays above it, by parametrisation; 0 leaves it free.
    generator: for the random filters; torch's default generator otherwise.
    channels, dimensions: of the images (channels, *sides).
    coupling: "separate", the same filters for every channel; "joint", filters (G, s, channels, k, k) across them;
        "complex", the same filters for two channels, whose responses are all in the group.
    norm: of the responses of a group. "euclidean" is isotropic and smooth; "maximum" lets filters of a group stand in
        for each other, and its second derivative jumps, so that hypergradients have bounds only where no jump is near.
    noise_conditioned: l_g and v_g - minimum_smoothing are multiplied by learned powers of sigma/(25/255) in
        ``at(sigma)``, with the raw parameters ``weight_exponents`` and ``smoothing_exponents``, which start at 1.

    The raw parameters are ``filters`` (G, s, k, k), ``log_weights`` (G,) and ``log_smoothing`` (G,), the logarithm of
    v_g - minimum_smoothing. The filters in use are the raw ones minus their means, so that R ignores constants (not in
    :meth:`from_arrays`).

    Raises
    ------
    ConfigError: an argument that is out of its range, or of the wrong kind.

    Examples
    --------
    >>> R = lr.regularizers.MultivariateExperts(groups=3, group_size=2, size=3)
    >>> R.value(torch.rand(2, 1, 8, 8)).shape
    torch.Size([2])
    """

    grows_in = ("noise_conditioned",)
    summary = "a field of experts over groups of filters, with a potential of a norm of each"
    norm: Norm = "euclidean"

    def __init__(
        self,
        groups: int = 12,
        group_size: int = 2,
        size: int = 5,
        weight: float = 1.0,
        smoothing: float = 1e-2,
        boundary: Boundary = "reflect",
        minimum_smoothing: float = 0.0,
        generator: torch.Generator | None = None,
        *,
        channels: int = 1,
        coupling: Coupling = "separate",
        dimensions: int = 2,
        noise_conditioned: bool = False,
        norm: Norm = "euclidean",
    ) -> None:
        super().__init__()
        self.norm = _checked(norm)
        images = ImageKind.of("MultivariateExperts", channels, coupling, dimensions)
        counts = is_whole(groups, 1, MOST_FILTERS) and is_whole(group_size, 1, MOST_FILTERS)
        if not counts or not is_whole(size, 2, LARGEST_SIDE) or groups * group_size > MOST_FILTERS:
            raise ConfigError(
                f"MultivariateExperts(groups={shown(groups)}, group_size={shown(group_size)}, size={shown(size)}): "
                f"expected integers, groups >= 1, group_size >= 1, {MOST_FILTERS:,} filters at most, size from 2 to "
                f"{LARGEST_SIDE:,}. For given arrays use MultivariateExperts.from_arrays."
            )
        weight = model_scale(weight, "MultivariateExperts(weight)")
        smoothing = model_scale(smoothing, "MultivariateExperts(smoothing)")
        minimum_smoothing = real_number(minimum_smoothing, "MultivariateExperts(minimum_smoothing)", least=0.0)
        start = _paired_filters(groups * group_size, size, generator, images)
        self._set(
            start.reshape(groups, group_size, *start.shape[1:]),
            positive_log(weight / groups, "weight", groups),
            positive_log(smoothing - minimum_smoothing, "smoothing - minimum_smoothing", groups),
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
        smoothing: ArrayLike,
        boundary: Boundary = "valid",
        *,
        channels: int = 1,
        coupling: Coupling = "separate",
        dimensions: int = 2,
        norm: Norm = "euclidean",
    ) -> MultivariateExperts:
        """Exactly these filters (G, s, k, k), or (G, s, channels, k, k) across channels, of as many sides as
        ``dimensions`` says, weights (G,) > 0 and smoothings (G,) > 0, NumPy arrays or tensors; keeps the filters'
        dtype, does not re-centre them, stays trainable.

        Raises
        ------
        ShapeError: the shapes do not fit. ConfigError: a weight or smoothing that is not positive and finite; another
        norm.
        """
        images = ImageKind.of("from_arrays", channels, coupling, dimensions)
        w = filters_from(filters)
        if w.dim() != len(images.kernel(1)) + 2 or 0 in w.shape or (images.across and w.shape[2] != channels):
            expected = ", ".join(["groups, group_size", *([str(channels)] if images.across else []), *"k" * dimensions])
            raise ShapeError(f"from_arrays(filters): got shape {tuple(w.shape)}, expected ({expected}).")
        result = cls._of_arrays(w, weights, smoothing, boundary, images)
        result.norm = _checked(norm)
        return result

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        result = super().from_config(config)
        result.norm = _checked(config.get("norm", "euclidean"))
        return result

    @classmethod
    def from_options(cls, options: RegularizerOptions, generator: torch.Generator) -> Self:
        group_size = options.group_size or 2
        if options.filters % group_size:
            raise ConfigError(
                f"filters={options.filters}, group_size={group_size}: expected whole groups; choose a multiple."
            )
        return cls(
            options.filters // group_size,
            group_size,
            options.filter_side,
            _WEIGHT_OF_EXPERTS * options.weight,
            options.smoothing,
            boundary=cast(Boundary, options.boundary),
            minimum_smoothing=options.minimum_smoothing,
            generator=generator,
            noise_conditioned=options.noise_conditioned,
            norm=cast(Norm, options.norm),
            **options.image_kind,
        )

    def saddle_terms(self, image_shape: tuple[int, ...]) -> SaddleTerms:
        shape = self.images.check(image_shape, "MultivariateExperts")
        bank = self.images.grouped_bank(self._exact_filters().transpose(0, 1), shape, self.boundary, self.zero_mean)
        return SaddleTerms(bank, NORMS[self.norm](**self._numbers()))

    def config(self) -> dict[str, Any]:
        return {**super().config(), **({} if self.norm == "euclidean" else {"norm": self.norm})}

    @torch.no_grad()
    def pictures(self) -> Pictures:
        potential = NORMS[self.norm](**self._numbers())
        return self.images.pictures(self.effective_filters, self.weights, self.smoothing, potential)

    def extra_repr(self) -> str:
        groups, members, size = *self.filters.shape[:2], self.filters.shape[-1]
        sizes = f"groups={groups}, group_size={members}, size={size}, boundary={self.boundary!r}, norm={self.norm!r}"
        return sizes + self.images.described()


def _checked(norm: str) -> Norm:
    check_one_of(norm, tuple(NORMS), "MultivariateExperts(norm)")
    return cast(Norm, norm)


def _paired_filters(count: int, size: int, generator: torch.Generator | None, images: ImageKind) -> Tensor:
    """DCT filters by increasing frequency, each next to its transpose in the last two axes; then those that are their
    own transpose, then random ones. Shape (count, *kernel)."""
    dimensions, channels = images.dimensions, images.channels if images.across else 0
    known = max(channels, 1) * (size**dimensions - 1)
    filters = dct_filters(max(count, known), size, generator, dimensions, channels)
    if dimensions == 1:
        return filters[:count]
    basis, drawn = filters[:known], filters[known:]
    own = torch.tensor([torch.allclose(w, w.mT) for w in basis])
    return torch.cat([basis[~own], basis[own], drawn])[:count]
