"""Shapes of what operators take and return, and what does not fit them, named."""

from __future__ import annotations

from typing import Any

from learnreg.errors import ShapeError
from learnreg.linear.arguments import check_dense, check_precision, shown

__all__ = ["Shape", "check_batched", "check_one_channel", "checked_shape"]

Shape = tuple[int, ...]
"""Without the batch axis."""


def checked_shape(shape: Shape, name: str) -> Shape:
    """The shape as integers; ShapeError for none, or for sizes below 1."""
    try:
        result = tuple(int(s) for s in shape)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        result = ()
    if not result or any(s < 1 for s in result):
        raise ShapeError(
            f"{name}={shown(shape)}: expected a non-empty tuple of positive sizes, without the batch axis."
        )
    return result


def check_one_channel(shape: tuple[int, ...], who: str) -> tuple[int, int, int]:
    """The shape, or ShapeError unless it is (1, height, width), with what serves other images."""
    if len(shape) != 3 or shape[0] != 1:
        raise ShapeError(
            f"{who}: got images of shape {tuple(shape)}, expected one channel, (1, height, width). Colour, complex "
            "numbers as two channels, signals, volumes: FieldsOfExperts, TotalVariation and others take channels=, "
            "coupling= and dimensions=, and AnalysisOperator(W, potential) any shape (docs/regularizers.md)."
        )
    return shape[0], shape[1], shape[2]


def check_batched(tensor: Any, shape: Shape, name: str) -> None:
    """ShapeError unless it is a tensor (batch, *shape) of float32 or float64 numbers."""
    check_dense(tensor, name, "(batch, *shape)")
    if tensor.dim() != len(shape) + 1 or tuple(tensor.shape[1:]) != shape:
        expected = ", ".join(str(s) for s in shape)
        raise ShapeError(
            f"{name}: got shape {tuple(tensor.shape)}, expected (batch, {expected}).{_axis_hint(tensor.shape, shape)}"
        )
    check_precision(tensor, name)


def _axis_hint(found: Shape, shape: Shape) -> str:
    """What to say of a missing or superfluous axis."""
    if tuple(found) == shape:
        return " Add a batch axis with tensor[None]."
    if len(found) == len(shape) + 2 and tuple(found[2:]) == shape:
        return f" The operator was made for images without a channel axis; make it for {(int(found[1]), *shape)}."
    if len(shape) > 1 and shape[0] == 1 and tuple(found[1:]) == shape[1:]:
        return " Add a channel axis with tensor[:, None]."
    return ""
