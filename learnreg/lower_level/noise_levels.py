"""Noise levels that regularizers are conditioned on: a number, or one for each sample of a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from learnreg.errors import ConfigError, ShapeError
from learnreg.linear.arguments import real_number, shown

__all__ = ["check_levels", "checked_level"]


def check_levels(indices: Sequence[Tensor], batch: int) -> None:
    """ShapeError unless the samples of all levels, if there are any, are those of a batch of this size."""
    count = sum(map(len, indices))
    if indices and count != batch:
        raise ShapeError(f"noise levels of {count} samples were given, for a batch of {batch}.")


def checked_level(sigma: Any, name: str) -> float | Tensor:
    """A noise level as a number, or one for each sample as a tensor (batch,).

    Raises
    ------
    ConfigError: neither, or not positive and finite.
    """
    if isinstance(sigma, Tensor) and not sigma.is_nested and sigma.dim() == 1 and len(sigma) and not sigma.is_meta:
        if not (bool(torch.isfinite(sigma).all()) and float(sigma.min()) > 0):
            raise ConfigError(f"{name}: expected positive finite noise levels, got {sigma.tolist()}.")
        return sigma.detach()
    number = sigma.item() if isinstance(sigma, Tensor) and sigma.dim() == 0 and not sigma.is_meta else sigma
    try:
        return real_number(math.nan if isinstance(number, bool) else number, name, above=0.0)
    except ConfigError as error:
        raise ConfigError(
            f"{name}: got {shown(sigma)}, expected a positive finite number, or a tensor (batch,) with one for each "
            "sample."
        ) from error
