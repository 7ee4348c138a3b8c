"""Shapes of what operators take and return, and what does not fit them, named."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from learnreg.errors import ShapeError

__all__ = ["Shape", "check_batched", "check_one_channel", "checked_shape"]

Shape = tuple[int, ...]
"""Without the batch axis."""


def checked_shape(shape: Shape, name: str) -> Shape:
    """The shape as integers; ShapeError for none, or for sizes below 1."""
    result = tuple(int(s) for s in shape)
    if not result or any(s < 1 for s in result):
        raise ShapeError(f"{name}={shape!r}: expected a non-empty tuple of positive sizes, without the batch axis.")
    return result


def check_one_channel(shape: tuple[int, ...], who: str) -> tuple[int, int, int]:
    """The shape, or ShapeError unless it is (1, height, width), with what serves other images."""
    if len(shape) != 3 or shape[0] != 1:
        raise ShapeError(
            f"{who}: got images of shape {tuple(shape)}, expected one channel, (1, height, width). Colour, complex "
            "numbers as two channels, signals, volumes: AnalysisOperator(W, potential) with a LinearOperator W of your "
            "own is certified alike, and a Regularizer that defines value(x) takes any shape (docs/regularizers.md)."
        )
    return shape[0], shape[1], shape[2]


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
