"""Smoothed isotropic total variation, its weight learnable."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from learnreg.convolutions.gradient import Gradient
from learnreg.linear.arguments import model_scale
from learnreg.linear.shapes import check_one_channel
from learnreg.lower_level.regularizer import Regularizer, positive_log
from learnreg.lower_level.saddle_terms import ParameterRole, SaddleTerms
from learnreg.potentials.isotropic import IsotropicPseudoHuber
from learnreg.regularizers.options import RegularizerOptions

__all__ = ["TotalVariation"]


class TotalVariation(Regularizer):
    """weight · sum_i (sqrt(|Dx|_i² + smoothing²) - smoothing), with forward differences D.

    Parameters
    ----------
    weight: initial weight; learnable through the raw parameter ``log_weight``.
    smoothing: fixed, in image units.
    """

    summary = "isotropic, smoothed, forward differences"

    def __init__(self, weight: float = 0.1, smoothing: float = 1e-3) -> None:
        super().__init__()
        self.smoothing = model_scale(smoothing, "TotalVariation(smoothing)")
        self.log_weight: nn.Parameter = positive_log(model_scale(weight, "TotalVariation(weight)"), "weight")

    @classmethod
    def from_options(cls, options: RegularizerOptions, generator: torch.Generator) -> Self:
        return cls(weight=options.variation_weight)

    @property
    def weight(self) -> Tensor:
        """The weight, positive by parametrisation."""
        return self.log_weight.exp()

    def saddle_terms(self, image_shape: tuple[int, ...]) -> SaddleTerms:
        check_one_channel(image_shape, "TotalVariation")
        return SaddleTerms(Gradient(image_shape), IsotropicPseudoHuber(self.smoothing, self.log_weight.double().exp()))

    def parameter_roles(self) -> dict[str, ParameterRole]:
        return {"log_weight": "log_weight"}

    def config(self) -> dict[str, Any]:
        return {"smoothing": self.smoothing}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(smoothing=float(config["smoothing"]))

    def extra_repr(self) -> str:
        return f"weight={float(torch.exp(self.log_weight.detach())):.4g}, smoothing={self.smoothing:g}"
