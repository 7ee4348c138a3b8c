"""Fields of Experts: a bank of learned filters, each with a learned weight and smoothing (Roth and Black, 2009)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from learnreg.errors import ConfigError, ShapeError
from learnreg.filterbank import BOUNDARIES, Boundary, FilterBank
from learnreg.potentials import Potential, PseudoHuber
from learnreg.regularizers.base import (
    ParameterRole,
    Regularizer,
    SaddleTerms,
    positive_log,
    potential_from_config,
    potential_to_config,
)

__all__ = ["ArrayLike", "FieldsOfExperts", "as_tensor", "dct_filters"]

ArrayLike = Tensor | np.ndarray[Any, Any]


def dct_filters(count: int, size: int, generator: torch.Generator | None = None) -> Tensor:
    """The first ``count`` DCT-II basis filters without the constant, by increasing frequency, unit norm; beyond
    size² - 1 of them, random zero-mean unit-norm filters. Shape (count, size, size)."""
    n = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi * (n[None, :] + 0.5) * n[:, None] / size)
    basis = basis / basis.norm(dim=1, keepdim=True)
    pairs = sorted(((i, j) for i in range(size) for j in range(size)), key=lambda p: (p[0] + p[1], max(p), p))[1:]
    filters = [torch.outer(basis[i], basis[j]) for i, j in pairs[:count]]
    for _ in range(count - len(filters)):
        w = torch.randn(size, size, dtype=torch.float64, generator=generator)
        w = w - w.mean()
        filters.append(w / w.norm())
    return torch.stack(filters).to(torch.get_default_dtype())


def as_tensor(values: ArrayLike) -> Tensor:
    """A tensor cut from autograd; NumPy views with negative strides are copied."""
    return torch.as_tensor(values.copy(order="C") if isinstance(values, np.ndarray) else values).detach()


class FieldsOfExperts(Regularizer):
    """R(x) = sum_c sum_i l_c phi((w_c * x)_i; v_c): n filters w_c of side k, weights l_c and smoothings v_c.

    Parameters
    ----------
    filters: number n of filters. Initially the DCT basis without the constant, then random ones.
    size: side k of the filters.
    potential: ``PseudoHuber``, ``LogCosh`` or ``Huber``; its smoothing and weight are the initial ones.
    boundary: "valid" (responses only where the filter fits), "zero", "circular", "reflect" or "replicate".
    minimum_smoothing: v_c stays above it, by parametrisation. Smoothings far below the noise cost iterations and change
        no image; 0 leaves them free.
    generator: for the random filters; torch's default generator otherwise.

    The raw parameters are ``filters`` (n, k, k), ``log_weights`` (n,) and ``log_smoothing`` (n,), the logarithm of
    v_c - minimum_smoothing. The filters in use are the raw ones minus their means, so that R ignores constants (not in
    :meth:`from_arrays`).
    """

    def __init__(
        self,
        filters: int = 24,
        size: int = 5,
        potential: Potential | None = None,
        boundary: Boundary = "valid",
        minimum_smoothing: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(filters, int) or filters < 1 or not isinstance(size, int) or size < 2:
            raise ConfigError(
                f"FieldsOfExperts(filters={filters!r}, size={size!r}): expected integers, filters >= 1, size >= 2. "
                "For given arrays use FieldsOfExperts.from_arrays."
            )
        potential = potential if potential is not None else PseudoHuber(smoothing=1e-2)
        initial_weight = potential.weight if isinstance(potential.weight, Tensor) else potential.weight / filters
        self._set(
            dct_filters(filters, size, generator),
            positive_log(initial_weight, "weights", filters),
            positive_log(potential.smoothing - minimum_smoothing, "smoothing - minimum_smoothing", filters),
            potential,
            boundary,
            zero_mean=True,
            minimum_smoothing=minimum_smoothing,
        )

    def _set(
        self,
        filters: Tensor,
        log_weights: nn.Parameter,
        log_smoothing: nn.Parameter,
        potential: Potential,
        boundary: Boundary,
        zero_mean: bool,
        minimum_smoothing: float = 0.0,
    ) -> None:
        if boundary not in BOUNDARIES:
            raise ConfigError(f"boundary={boundary!r}: expected one of {', '.join(BOUNDARIES)}.")
        self.filters = nn.Parameter(filters)
        self.log_weights, self.log_smoothing = log_weights, log_smoothing
        self._potential, self.boundary, self.zero_mean = potential, boundary, zero_mean
        self.minimum_smoothing = float(minimum_smoothing)
        potential_to_config(potential)

    @classmethod
    def from_arrays(
        cls,
        filters: ArrayLike,
        weights: ArrayLike,
        smoothing: ArrayLike,
        boundary: Boundary = "valid",
        potential: Potential | None = None,
    ) -> FieldsOfExperts:
        """A Field of Experts with exactly these filters (n, k, k), weights (n,) > 0 and smoothings (n,) > 0.

        NumPy arrays or tensors; keeps the filters' dtype, does not re-centre them, stays trainable.

        Raises
        ------
        ShapeError: the shapes do not fit. ConfigError: a weight or smoothing that is not positive and finite.
        """
        w = as_tensor(filters).clone()
        if w.dim() == 4 and w.shape[1] == 1:
            w = w[:, 0]
        if w.dim() != 3:
            raise ShapeError(f"from_arrays(filters): got shape {tuple(w.shape)}, expected (n, k, k).")
        if not w.is_floating_point():
            w = w.to(torch.get_default_dtype())
        if not bool(torch.isfinite(w).all()):
            raise ConfigError("from_arrays(filters): NaN or infinite entries.")
        result = cls.__new__(cls)
        Regularizer.__init__(result)
        result._set(
            w,
            positive_log(as_tensor(weights).to(w.dtype), "from_arrays(weights)", w.shape[0]),
            positive_log(as_tensor(smoothing).to(w.dtype), "from_arrays(smoothing)", w.shape[0]),
            potential if potential is not None else PseudoHuber(1.0),
            boundary,
            zero_mean=False,
        )
        return result

    @property
    def weights(self) -> Tensor:
        """l_c, shape (n,)."""
        return self.log_weights.exp()

    @property
    def smoothing(self) -> Tensor:
        """v_c, shape (n,)."""
        return self.minimum_smoothing + self.log_smoothing.exp()

    @property
    def effective_filters(self) -> Tensor:
        """w_c as applied to images, shape (n, k, k), in the dtype of the parameters."""
        return self._exact_filters().to(self.filters.dtype)

    def _exact_filters(self) -> Tensor:
        """In float64, so that the gradient of the raw filters is rounded once, at the end: the mean that is projected
        out of it can be far larger than what remains."""
        filters = self.filters.double()
        return filters - filters.mean((-2, -1), keepdim=True) if self.zero_mean else filters

    def saddle_terms(self, image_shape: tuple[int, ...]) -> SaddleTerms:
        if len(image_shape) != 3:
            raise ShapeError(f"FieldsOfExperts: got images of shape {image_shape}, expected (1, height, width).")
        bank = FilterBank(self._exact_filters(), image_shape, self.boundary, self.zero_mean)
        weights = self.log_weights.double().exp()[:, None, None]
        smoothing = self.minimum_smoothing + self.log_smoothing.double().exp()[:, None, None]
        return SaddleTerms(bank, self._potential.with_parameters(weights, smoothing))

    def parameter_roles(self) -> dict[str, ParameterRole]:
        return {"filters": "operator", "log_weights": "log_weight", "log_smoothing": "log_smoothing"}

    def config(self) -> dict[str, Any]:
        return {
            "filters": list(self.filters.shape),
            "potential": potential_to_config(self._potential),
            "boundary": self.boundary,
            "zero_mean": self.zero_mean,
            "minimum_smoothing": self.minimum_smoothing,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> FieldsOfExperts:
        n, k, l = (int(size) for size in config["filters"])
        result = cls.__new__(cls)
        Regularizer.__init__(result)
        result._set(
            torch.zeros(n, k, l),
            nn.Parameter(torch.zeros(n)),
            nn.Parameter(torch.zeros(n)),
            potential_from_config(config["potential"]),
            config["boundary"],
            zero_mean=bool(config["zero_mean"]),
            minimum_smoothing=float(config["minimum_smoothing"]),
        )
        return result

    def extra_repr(self) -> str:
        n, k, _ = self.filters.shape
        return f"filters={n}, size={k}, potential={type(self._potential).__name__}, boundary={self.boundary!r}"
