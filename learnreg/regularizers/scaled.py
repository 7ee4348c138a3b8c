"""A regularizer as it was learned, times one factor: what it takes to use it with another forward operator."""

from __future__ import annotations

import copy
import math
from typing import Any, Self

from torch import Tensor, nn

from learnreg.errors import ConfigError
from learnreg.linear.arguments import real_number
from learnreg.lower_level.regularizer import Regularizer
from learnreg.lower_level.saddle_terms import ParameterRole, Pictures, SaddleTerms
from learnreg.regularizers.raw_parameters import positive_log

__all__ = ["Scaled"]


class Scaled(Regularizer):
    """factor · R(x), the factor learnable through the raw parameter ``log_factor``, and R fixed.

    A regularizer that was learned for denoising suits another forward operator up to the balance with the data term,
    which is one number: try a few on pairs of measurement and ground truth, or learn it (examples/10).

    Parameters
    ----------
    regularizer: R, any regularizer; a copy of it is kept as ``base``, whose parameters are not learned unless you let
        them (``base.requires_grad_()``).
    factor: initial factor, positive.

    Raises
    ------
    ConfigError: the factor is not a positive number, or ``regularizer`` is none.

    Examples
    --------
    >>> R = lr.regularizers.Scaled(lr.regularizers.TotalVariation(0.1), factor=2.0)
    >>> R.value(torch.rand(2, 1, 8, 8)).shape
    torch.Size([2])
    """

    summary = "a factor times another regularizer"

    def __init__(self, regularizer: Regularizer, factor: float = 1.0) -> None:
        super().__init__()
        if not isinstance(regularizer, Regularizer):
            raise ConfigError(f"Scaled(regularizer=...): got {type(regularizer).__name__}, expected a Regularizer.")
        factor = real_number(factor, "Scaled(factor)", above=0.0)
        self.base = copy.deepcopy(regularizer).requires_grad_(False)
        self.log_factor: nn.Parameter = positive_log(factor, "Scaled factor")
        self.image_channels, self.image_dimensions = self.base.image_channels, self.base.image_dimensions

    @property
    def factor(self) -> Tensor:
        """The factor, positive by parametrisation."""
        return self.log_factor.exp()

    def saddle_terms(self, image_shape: tuple[int, ...]) -> SaddleTerms:
        terms = self.base.saddle_terms(image_shape)
        if terms.latent.channels:
            raise ConfigError(f"Scaled: {type(self.base).__name__} has latent variables, whose terms no factor scales.")
        return SaddleTerms(terms.operator, terms.potential.scaled(self.log_factor.double().exp()))

    def parameter_roles(self) -> dict[str, ParameterRole]:
        roles: dict[str, ParameterRole] = {"log_factor": "log_factor"}
        return roles | {f"base.{name}": role for name, role in self.base.parameter_roles().items()}

    def parameter_jacobian_bounds(self) -> dict[ParameterRole, float]:
        """Those of R; factors of factors all move the same product."""
        bounds = dict(self.base.parameter_jacobian_bounds())
        if "log_factor" in self.base.parameter_roles().values():
            bounds["log_factor"] = math.hypot(1.0, bounds.get("log_factor", 1.0)) * (1.0 + 1e-12)
        return bounds

    def conditioned(self, sigma: float) -> Self:
        conditioned = self.base.at(sigma)
        if conditioned is self.base:
            return self
        twin = copy.copy(self)
        twin._modules = {**self._modules, "base": conditioned}  # the factor is shared, and stays learnable
        return twin

    def project_(self) -> None:
        self.base.project_()

    def scale_parameters(self) -> list[nn.Parameter]:
        return [self.log_factor]

    def config(self) -> dict[str, Any]:
        return {"base": self.base}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(config["base"])

    def pictures(self) -> Pictures | None:
        """Those of R as it is, not scaled."""
        return self.base.pictures()

    def extra_repr(self) -> str:
        return f"factor={float(self.factor.detach()):.4g}"
