"""Shapes of what operators take and return, and what does not fit them, named."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from learnreg.errors import ConfigError, ShapeError

__all__ = ["Shape", "check_batched", "check_images", "check_precision", "checked_shape", "given_tensor"]

Shape = tuple[int, ...]
"""Without the batch axis."""


def checked_shape(shape: Shape, name: str) -> Shape:
    """The shape as integers; ShapeError for none, or for sizes below 1."""
    result = tuple(int(s) for s in shape)
    if not result or any(s < 1 for s in result):
        raise ShapeError(f"{name}={shape!r}: expected a non-empty tuple of positive sizes, without the batch axis.")
    return result


def given_tensor(value: Any, name: str) -> Tensor:
    """What a constructor was given as a tensor of real numbers: tensors themselves, NumPy arrays and lists as copies.

    Raises
    ------
    ShapeError: something else. ConfigError: a tensor that requires a gradient and is no nn.Parameter, which nobody
    would learn.
    """
    if isinstance(value, Tensor):
        if value.is_complex() or value.layout != torch.strided:
            kind = value.dtype if value.is_complex() else value.layout
            raise ShapeError(f"{name}: got a tensor of {kind}, expected a dense one of real numbers.")
        if value.requires_grad and not isinstance(value, nn.Parameter):
            raise ConfigError(f"{name}: requires a gradient; make it an nn.Parameter to learn it, or detach() it.")
        return value
    try:
        array = np.array(value)
    except ValueError as error:  # lists of different lengths
        raise ShapeError(f"{name}: expected a tensor of real numbers ({error}).") from error
    if array.dtype.kind not in "biuf":
        raise ShapeError(f"{name}: got {type(value).__name__} ({array.dtype}), expected a tensor of real numbers.")
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype(np.float64 if array.dtype.itemsize > 4 else np.float32))
    return torch.from_numpy(array.astype(bool if array.dtype.kind == "b" else np.int64))


def check_batched(tensor: Any, shape: Shape, name: str) -> None:
    """ShapeError unless it is a tensor (batch, *shape) of float32 or float64 numbers."""
    _check_dense(tensor, name, "(batch, *shape)")
    if tensor.dim() != len(shape) + 1 or tuple(tensor.shape[1:]) != shape:
        expected = ", ".join(str(s) for s in shape)
        raise ShapeError(
            f"{name}: got shape {tuple(tensor.shape)}, expected (batch, {expected}).{_axis_hint(tensor.shape, shape)}"
        )
    check_precision(tensor, name)


def check_images(x: Any, name: str) -> None:
    """ShapeError unless it is a tensor (batch, *image_shape) of float32 or float64 numbers, of any shape."""
    _check_dense(x, name, "(batch, *image_shape)")
    if x.dim() < 2:
        raise ShapeError(f"{name}: got shape {tuple(x.shape)}, expected (batch, *image_shape).")
    check_precision(x, name)


def _check_dense(tensor: Any, name: str, expected: str) -> None:
    if not isinstance(tensor, Tensor):
        hint = " Pass torch.from_numpy(...)." if type(tensor).__module__ == "numpy" else ""
        raise ShapeError(f"{name}: got {type(tensor).__name__}, expected a tensor {expected}.{hint}")
    if tensor.layout != torch.strided:
        raise ShapeError(f"{name}: got a tensor of layout {tensor.layout}, expected a dense one; call .to_dense().")


def check_precision(tensor: Tensor, name: str) -> None:
    """ShapeError unless its numbers are float32 or float64: half precision ends far above any tolerance."""
    if tensor.dtype not in (torch.float32, torch.float64):
        hint = "call .float()"
        if tensor.is_complex():
            hint = "complex images are two channels, real and imaginary part"
        raise ShapeError(f"{name}: got dtype {tensor.dtype}, expected float32 or float64; {hint}.")


def _axis_hint(found: Shape, shape: Shape) -> str:
    """What to say of a missing or superfluous axis."""
    if tuple(found) == shape:
        return " Add a batch axis with tensor[None]."
    if len(found) == len(shape) + 2 and tuple(found[2:]) == shape:
        return f" The operator was made for images without a channel axis; make it for {(int(found[1]), *shape)}."
    if len(shape) > 1 and shape[0] == 1 and tuple(found[1:]) == shape[1:]:
        return " Add a channel axis with tensor[:, None]."
    return ""
