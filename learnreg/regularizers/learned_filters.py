"""Learned filters with a weight and a smoothing for each of them, or for each group: what experts have in common."""

from __future__ import annotations

import copy
import math
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from learnreg.convolutions.padding import BOUNDARIES, Boundary
from learnreg.errors import ConfigError
from learnreg.linear.arguments import check_one_of, given_tensor
from learnreg.lower_level.saddle_terms import ParameterRole
from learnreg.regularizers.image_kind import ImageKind
from learnreg.regularizers.noise_conditioned import NoiseConditioned
from learnreg.regularizers.raw_parameters import positive_log

__all__ = ["ArrayLike", "LearnedFilters", "filters_from"]

ArrayLike = Tensor | np.ndarray[Any, Any]


class LearnedFilters(NoiseConditioned):
    """The raw parameters ``filters`` (n, ..., *kernel), ``log_weights`` (n,) and, where the potential has a smoothing,
    ``log_smoothing`` (n,), the logarithm of the smoothing less ``minimum_smoothing``. Filters are used minus their
    means with ``zero_mean``, those of each channel. sigma_0 = 25/255."""

    def _set(
        self,
        filters: Tensor,
        log_weights: nn.Parameter,
        log_smoothing: nn.Parameter | None,
        boundary: Boundary,
        zero_mean: bool,
        minimum_smoothing: float = 0.0,
        images: ImageKind | None = None,
    ) -> None:
        check_one_of(boundary, BOUNDARIES, "boundary")
        self.images = images or ImageKind()
        self.image_channels, self.image_dimensions = self.images.channels, self.images.dimensions
        self.filters = nn.Parameter(filters)
        self.log_weights = log_weights
        self.register_parameter("log_smoothing", log_smoothing)
        self.boundary, self.zero_mean, self.minimum_smoothing = boundary, zero_mean, float(minimum_smoothing)

    @classmethod
    def _of_arrays(
        cls,
        filters: Tensor,
        weights: ArrayLike,
        smoothing: ArrayLike | None,
        boundary: Boundary,
        images: ImageKind | None = None,
    ) -> Self:
        """With exactly these numbers; ConfigError where weights or smoothings are not positive and finite."""
        result = cls.__new__(cls)
        nn.Module.__init__(result)
        result._set(
            filters,
            positive_log(
                _given(weights, "from_arrays(weights)").to(filters.dtype), "from_arrays(weights)", filters.shape[0]
            ),
            _log_smoothing(smoothing, filters),
            boundary,
            zero_mean=False,
            images=images,
        )
        return result

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """With the shapes and options of ``config()``, parameters to be loaded."""
        shape = [int(size) for size in config["filters"]]
        result = cls.__new__(cls)
        nn.Module.__init__(result)
        result._set(
            torch.zeros(shape),
            nn.Parameter(torch.zeros(shape[0])),
            nn.Parameter(torch.zeros(shape[0])) if "minimum_smoothing" in config else None,
            config["boundary"],
            zero_mean=bool(config["zero_mean"]),
            minimum_smoothing=float(config.get("minimum_smoothing", 0.0)),
            images=ImageKind.from_config(config),
        )
        result._condition_on_noise(bool(config.get("noise_conditioned", False)))
        return result

    @property
    def weights(self) -> Tensor:
        """l, shape (n,), at the noise level in use."""
        return self._log_weights().exp()

    @property
    def smoothing(self) -> Tensor | None:
        """v, shape (n,), at the noise level in use; None where the potential has none."""
        logarithm = self._log_smoothing()
        return None if logarithm is None else self.minimum_smoothing + logarithm.exp()

    @property
    def effective_filters(self) -> Tensor:
        """The filters as applied to images, in the shape and dtype of the raw ones."""
        return self._exact_filters().to(self.filters.dtype)

    def _exact_filters(self) -> Tensor:
        """In float64, so that the gradient of the raw filters is rounded once, at the end: the mean that is projected
        out of it can be far larger than what remains."""
        filters, sides = self.filters.double(), tuple(range(-self.images.dimensions, 0))
        return filters - filters.mean(sides, keepdim=True) if self.zero_mean else filters

    def _numbers(self) -> dict[str, float | Tensor]:
        """Weights and smoothings in float64, (n, 1, 1) each, by the keywords of the potential."""
        found: dict[str, float | Tensor] = {"weight": self._log_weights(True).exp()[:, None, None]}
        logarithm = self._log_smoothing(True)
        if logarithm is not None:
            found["smoothing"] = (self.minimum_smoothing + logarithm.exp())[:, None, None]
        return found

    def _log_weights(self, exact: bool = False) -> Tensor:
        return self._at_noise(self.log_weights.double() if exact else self.log_weights, "weight_exponents")

    def _log_smoothing(self, exact: bool = False) -> Tensor | None:
        if self.log_smoothing is None:
            return None
        return self._at_noise(self.log_smoothing.double() if exact else self.log_smoothing, "smoothing_exponents")

    @torch.no_grad()
    def stretched(self, scale: float) -> Self:
        """scale² l phi_v(t / scale) = scale l phi_{scale v}(t) for potentials that grow like |t|; squares stay."""
        twin = copy.deepcopy(self)
        if twin.log_smoothing is not None:
            twin.minimum_smoothing *= scale
            twin.log_smoothing.add_(math.log(scale))
            twin.log_weights.add_(math.log(scale))
        return twin

    def parameter_roles(self) -> dict[str, ParameterRole]:
        roles: dict[str, ParameterRole] = {"filters": "operator", "log_weights": "log_weight"}
        if self.log_smoothing is not None:
            roles["log_smoothing"] = "log_smoothing"
        return roles | self._noise_roles()

    def parameter_jacobian_bounds(self) -> dict[ParameterRole, float]:
        return self._noise_jacobian_bounds()

    def scale_parameters(self) -> list[nn.Parameter]:
        """The weights, without exponents of the noise level."""
        return [self.log_weights]

    def config(self) -> dict[str, Any]:
        smoothing = {} if self.log_smoothing is None else {"minimum_smoothing": self.minimum_smoothing}
        filters, images = list(self.filters.shape), self.images.config()
        noise = {"noise_conditioned": True} if self.noise_conditioned else {}
        kept = {"filters": filters, "boundary": self.boundary, "zero_mean": self.zero_mean}
        return {**kept, **smoothing, **noise, **images}


def _log_smoothing(smoothing: ArrayLike | None, filters: Tensor) -> nn.Parameter | None:
    if smoothing is None:
        return None
    return positive_log(
        _given(smoothing, "from_arrays(smoothing)").to(filters.dtype), "from_arrays(smoothing)", filters.shape[0]
    )


def filters_from(values: ArrayLike) -> Tensor:
    """A copy as a floating-point tensor; ConfigError where entries are not finite."""
    w = _given(values, "from_arrays(filters)").clone()
    if not w.is_floating_point():
        w = w.to(torch.get_default_dtype())
    if not bool(torch.isfinite(w).all()):
        raise ConfigError("from_arrays(filters): NaN or infinite entries.")
    return w


def _given(values: ArrayLike, name: str) -> Tensor:
    """A tensor cut from autograd; arrays are copied."""
    return given_tensor(values.detach() if isinstance(values, Tensor) else values, name).detach()
