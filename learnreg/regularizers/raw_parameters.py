"""Raw parameters of regularizers, which any number may be."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from learnreg.errors import ConfigError, ShapeError
from learnreg.linear.arguments import given_tensor

__all__ = ["positive_log"]


def positive_log(values: Tensor | float, name: str, count: int | None = None) -> nn.Parameter:
    """The logarithm of positive numbers as a parameter; ``count`` repeats a single one."""
    tensor = given_tensor(values, name) if not isinstance(values, (int, float)) else torch.as_tensor(float(values))
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.get_default_dtype())
    if not bool(torch.isfinite(tensor).all()) or bool((tensor <= 0).any()):
        raise ConfigError(f"{name}: expected positive finite numbers, got a minimum of {float(tensor.min()):g}.")
    if count is not None:
        if tensor.numel() not in (1, count):
            raise ShapeError(f"{name}: got {tensor.numel()} numbers for {count} filters.")
        tensor = tensor.reshape(-1).expand(count)
    return nn.Parameter(tensor.log().clone())
