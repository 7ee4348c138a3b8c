"""Learned discretisations of total variation (Chambolle and Pock, "Learning consistent discretizations of the total
variation", SIAM J. Imaging Sci. 14, 2021)."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from learnreg.convolutions.grouped_filter_bank import GroupedFilterBank
from learnreg.convolutions.interpolation import (
    across,
    bilinear,
    check_interpolation,
    difference_norm,
    down,
    middle,
    positions_in_pixel,
    sum_to_one,
)
from learnreg.convolutions.padding import Boundary
from learnreg.errors import ConfigError
from learnreg.lower_level.regularizer import Regularizer
from learnreg.lower_level.saddle_terms import ParameterRole, Pictures, SaddleTerms
from learnreg.potentials.isotropic import IsotropicPseudoHuber
from learnreg.regularizers.image_kind import Coupling, ImageKind
from learnreg.regularizers.options import RegularizerOptions
from learnreg.regularizers.raw_parameters import positive_log

__all__ = ["LearnedTotalVariation"]


class LearnedTotalVariation(Regularizer):
    """R(x) = sum_k sum_i l_k (sqrt(|(L_k1 * D_1 x)_i|² + |(L_k2 * D_2 x)_i|² + v²) - v): total variation whose gradient
    is interpolated, by learned kernels, to several positions in each pixel.

    D_1 and D_2 are forward differences, which live on the edges between pixels. The kernels L_k1 and L_k2 sum to one by
    parametrisation: whatever is learned, affine images have their exact gradient away from the border, and R is a
    consistent discretisation of total variation of weight sum_k l_k. With kernels that are one at the middle and zero
    elsewhere R is :class:`TotalVariation`, border included for "replicate", which repeats pixels beyond the border, so
    that differences across it vanish.

    Parameters
    ----------
    positions: number m of positions. One: R starts as forward differences. More: as interpolation to the edges of a
        pixel, its centre, its corner, then to random points of it.
    size: side of the kernels, odd, at least 3.
    weight: sum of the initial weights l_k, learnable through the raw parameter ``log_weights`` (m,).
    smoothing: v, fixed, in image units.
    boundary: "replicate", or as in :class:`FieldsOfExperts`.
    generator: for the random positions; torch's default generator otherwise.
    channels: of the images (channels, height, width). dimensions: 2.
    coupling: "separate", the sum over the channels; "joint", the square root is taken of the squares of all channels
        together; "complex", the same for two channels. Kernels are the same for all channels.

    The raw parameter ``kernels``, (2, m, k, k), has the kernels for vertical differences, then for horizontal ones;
    those in use are the raw ones plus the constant that makes them sum to one.

    Raises
    ------
    ConfigError: an argument that is out of its range, or of the wrong kind.

    Examples
    --------
    >>> R = lr.regularizers.LearnedTotalVariation(positions=2, size=3)
    >>> R.effective_kernels.shape
    torch.Size([2, 2, 3, 3])
    """

    summary = "total variation with learned interpolation of the differences"

    def __init__(
        self,
        positions: int = 4,
        size: int = 3,
        weight: float = 0.1,
        smoothing: float = 1e-3,
        boundary: Boundary = "replicate",
        generator: torch.Generator | None = None,
        *,
        channels: int = 1,
        coupling: Coupling = "separate",
        dimensions: int = 2,
    ) -> None:
        super().__init__()
        self.images = ImageKind.of("LearnedTotalVariation", channels, coupling, dimensions)
        self.image_channels, self.image_dimensions = self.images.channels, self.images.dimensions
        if dimensions != 2:
            raise ConfigError(
                f"LearnedTotalVariation(dimensions={dimensions}): its positions lie in pixels of images, dimensions=2; "
                "for signals and volumes take TotalVariation, or MultivariateExperts, whose filters can learn it."
            )
        check_interpolation("LearnedTotalVariation", positions, size, boundary, weight=weight, smoothing=smoothing)
        self.kernels = nn.Parameter(_initial_kernels(positions, size, generator))
        self.log_weights: nn.Parameter = positive_log(weight / positions, "LearnedTotalVariation weight", positions)
        self.smoothing, self.boundary = float(smoothing), boundary

    @classmethod
    def from_options(cls, options: RegularizerOptions, generator: torch.Generator) -> Self:
        return cls(
            options.positions,
            options.filter_side,
            weight=options.variation_weight,
            smoothing=options.smoothing,
            generator=generator,
            **options.image_kind,
        )

    @property
    def weights(self) -> Tensor:
        """l_k, shape (m,), positive by parametrisation."""
        return self.log_weights.exp()

    @property
    def effective_kernels(self) -> Tensor:
        """The interpolation kernels in use, (2, m, k, k), in the dtype of the parameters."""
        return sum_to_one(self.kernels).to(self.kernels.dtype)

    @property
    def effective_filters(self) -> Tensor:
        """Interpolated differences as filters applied to images, shape (m, 2, k + 1, k + 1), in the dtype of the
        parameters."""
        return _differences(self.kernels).transpose(0, 1).to(self.kernels.dtype)

    def saddle_terms(self, image_shape: tuple[int, ...]) -> SaddleTerms:
        shape = self.images.check(image_shape, "LearnedTotalVariation")
        # Differences of kernels do not see a constant in the gradient of the filters: zero_mean holds.
        filters, together = _differences(self.kernels), self.images.coupling != "separate"
        bank = GroupedFilterBank(filters, shape, self.boundary, zero_mean=True, over_channels=together)
        return SaddleTerms(bank, IsotropicPseudoHuber(self.smoothing, self.log_weights.double().exp()[:, None, None]))

    def parameter_roles(self) -> dict[str, ParameterRole]:
        return {"kernels": "operator", "log_weights": "log_weight"}

    def parameter_jacobian_bounds(self) -> dict[ParameterRole, float]:
        """From kernels to filters: a projection, then differences of kernels padded by zeros."""
        return {"operator": difference_norm(self.kernels.shape[-1])}

    def config(self) -> dict[str, Any]:
        _, positions, size, _ = self.kernels.shape
        own = {"positions": positions, "size": size, "smoothing": self.smoothing, "boundary": self.boundary}
        return own | self.images.config()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(
            **{**config, "smoothing": float(config["smoothing"])},
            generator=torch.Generator().manual_seed(0),
        )

    @torch.no_grad()
    def pictures(self) -> Pictures:
        filters = self.effective_filters
        potential = IsotropicPseudoHuber(self.smoothing, self.weights.double()[:, None, None])
        return ImageKind().pictures(filters, self.weights, torch.full_like(self.weights, self.smoothing), potential)

    def extra_repr(self) -> str:
        _, positions, size, _ = self.kernels.shape
        sizes = f"positions={positions}, size={size}, smoothing={self.smoothing:g}, boundary={self.boundary!r}"
        return sizes + self.images.described()


def _differences(kernels: Tensor) -> Tensor:
    """The filters (2, m, k + 1, k + 1) of forward differences followed by the kernels of raw ones: vertical, then
    horizontal."""
    vertical, horizontal = sum_to_one(kernels)
    return torch.stack([down(vertical), across(horizontal)])


def _initial_kernels(positions: int, size: int, generator: torch.Generator | None) -> Tensor:
    """Bilinear interpolation from the edges where differences live."""
    if positions == 1:
        return torch.stack([middle(1, size)] * 2).to(torch.get_default_dtype())
    points = positions_in_pixel(positions, generator)
    kernels = [bilinear(points, origin, size) for origin in ((0.5, 0.0), (0.0, 0.5))]
    return torch.stack(kernels).to(torch.get_default_dtype())
