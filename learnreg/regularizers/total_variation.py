"""Smoothed isotropic total variation, its weight learnable."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from learnreg.linear.arguments import model_scale
from learnreg.lower_level.regularizer import Regularizer
from learnreg.lower_level.saddle_terms import ParameterRole, Pictures, SaddleTerms
from learnreg.potentials.isotropic import IsotropicPseudoHuber
from learnreg.regularizers.image_kind import Coupling, ImageKind
from learnreg.regularizers.options import RegularizerOptions
from learnreg.regularizers.raw_parameters import positive_log

__all__ = ["TotalVariation"]


class TotalVariation(Regularizer):
    """weight · sum_i (sqrt(|Dx|_i² + smoothing²) - smoothing), with forward differences D.

    Parameters
    ----------
    weight: initial weight; learnable through the raw parameter ``log_weight``.
    smoothing: fixed, in image units.
    channels, dimensions: of the images (channels, *sides).
    coupling: "separate", the sum of the variations of all channels; "joint", |Dx|_i is the length of the differences of
        all channels along all directions (vectorial total variation); "complex", the same for two channels.

    Examples
    --------
    >>> lr.regularizers.TotalVariation(weight=0.1).value(torch.ones(1, 1, 8, 8)).detach()  # constants are free
    tensor([0.])
    """

    summary = "isotropic, smoothed, forward differences"

    def __init__(
        self,
        weight: float = 0.1,
        smoothing: float = 1e-3,
        *,
        channels: int = 1,
        coupling: Coupling = "separate",
        dimensions: int = 2,
    ) -> None:
        super().__init__()
        self.images = ImageKind.of("TotalVariation", channels, coupling, dimensions)
        self.image_channels, self.image_dimensions = self.images.channels, self.images.dimensions
        self.smoothing = model_scale(smoothing, "TotalVariation(smoothing)")
        self.log_weight: nn.Parameter = positive_log(model_scale(weight, "TotalVariation(weight)"), "weight")

    @classmethod
    def from_options(cls, options: RegularizerOptions, generator: torch.Generator) -> Self:
        return cls(options.variation_weight, **options.image_kind)

    @property
    def weight(self) -> Tensor:
        """The weight, positive by parametrisation."""
        return self.log_weight.exp()

    def saddle_terms(self, image_shape: tuple[int, ...]) -> SaddleTerms:
        shape = self.images.check(image_shape, "TotalVariation")
        potential = IsotropicPseudoHuber(self.smoothing, self.log_weight.double().exp())
        return SaddleTerms(self.images.gradient(shape), potential)

    def parameter_roles(self) -> dict[str, ParameterRole]:
        return {"log_weight": "log_weight"}

    @torch.no_grad()
    def pictures(self) -> Pictures:
        """Forward differences along each direction, of one channel."""
        sides = self.images.dimensions
        pixel = torch.zeros(2**sides, dtype=torch.float64)
        pixel[0] = 1.0
        differences = torch.stack([pixel.roll(2**d) - pixel for d in reversed(range(sides))])
        filters = differences.reshape(1, sides, *[2] * sides)
        kind, weight = ImageKind(dimensions=sides), self.weight.reshape(1)
        potential = IsotropicPseudoHuber(self.smoothing, weight.double()[:, None, None])
        return kind.pictures(filters, weight, torch.full_like(weight, self.smoothing), potential)

    def config(self) -> dict[str, Any]:
        return {"smoothing": self.smoothing, **self.images.config()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**{**config, "smoothing": float(config["smoothing"])})

    def extra_repr(self) -> str:
        weight = float(torch.exp(self.log_weight.detach()))
        return f"weight={weight:.4g}, smoothing={self.smoothing:g}{self.images.described()}"
