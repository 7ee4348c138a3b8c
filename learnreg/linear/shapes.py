"""Shapes of what operators take and return, and what does not fit them, named."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from learnreg.errors import ShapeError

__all__ = ["Shape", "check_batched", "checked_shape"]

Shape = tuple[int, ...]
"""Without the batch axis."""


def checked_shape(shape: Shape, name: str) -> Shape:
    """The shape as integers; ShapeError for none, or for sizes below 1."""
    result = tuple(int(s) for s in shape)
    if not result or any(s < 1 for s in result):
        raise ShapeError(f"{name}={shape!r}: expected a non-empty tuple of positive sizes, without the batch axis.")
    return result


def check_batched(tensor: Any, shape: Shape, name: str) -> None:
    """ShapeError unless it is a tensor of floating-point numbers (batch, *shape)."""
    if not isinstance(tensor, Tensor):
        hint = " Pass torch.from_numpy(...)." if type(tensor).__module__ == "numpy" else ""
        raise ShapeError(f"{name}: got {type(tensor).__name__}, expected a tensor (batch, *shape).{hint}")
    if tensor.dim() != len(shape) + 1 or tuple(tensor.shape[1:]) != shape:
        expected = ", ".join(str(s) for s in shape)
        hint = " Add a batch axis with tensor[None]." if tuple(tensor.shape) == shape else ""
        raise ShapeError(f"{name}: got shape {tuple(tensor.shape)}, expected (batch, {expected}).{hint}")
    if not tensor.is_floating_point():
        raise ShapeError(f"{name}: got dtype {tensor.dtype}, expected a floating-point tensor; call .float().")
