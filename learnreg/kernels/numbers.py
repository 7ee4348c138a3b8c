"""Numbers beside tensors, made on their device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["number_like"]


def number_like(value: Tensor | float, like: Tensor) -> Tensor:
    """A number as a tensor without axes, or a tensor, in the dtype and on the device of ``like``. ``torch.as_tensor``
    would copy a number from the host, and wait for a GPU to take it."""
    if isinstance(value, Tensor):
        return value.to(like.device, like.dtype)
    return torch.full((), value, dtype=like.dtype, device=like.device)
