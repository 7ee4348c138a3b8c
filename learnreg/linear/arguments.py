"""What callers pass, as what it has to be: numbers, tensors of a constructor, images; or one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from learnreg.errors import ConfigError, ShapeError

__all__ = [
    "LARGEST_SEED",
    "check_batch",
    "check_dense",
    "check_flag",
    "check_generator",
    "check_images",
    "check_one_of",
    "check_precision",
    "check_real",
    "check_type",
    "given_tensor",
    "is_whole",
    "model_scale",
    "real_number",
    "shown",
    "whole_number",
]

LARGEST_SEED = 2**63 - 1
"""Of torch's generators."""

_SMALLEST_SCALE, _LARGEST_SCALE = 1e-15, 1e15

_LONGEST_TEXT = 60


def check_type(value: object, kind: type | tuple[type, ...], call: str, expected: str) -> None:
    """ConfigError unless it is of this kind."""
    if not isinstance(value, kind):
        found = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise ConfigError(f"{call}: got {found}, expected {expected}.")


def real_number(
    value: object, name: str, *, above: float = -math.inf, least: float = -math.inf, finite: bool = True
) -> float:
    """A number as float; ConfigError for something else, NaN, one that is not above, or below the least, or infinite
    where it has to be finite. name: "tolerance", say, or "TotalVariation(weight)"."""
    given, value = value, plain_number(value)
    try:
        number = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        number = math.inf
    if number > above and number >= least and not (finite and math.isinf(number)):
        return number
    kind = "finite number" if finite else "number"
    kind = f"a positive {kind}" if above == 0.0 else f"a {kind}" if least == -math.inf else f"a {kind} >= {least:g}"
    raise ConfigError(f"{_call(name, given)}: expected {kind}.")


def model_scale(value: object, name: str) -> float:
    """A positive number, such as a weight or a smoothing, as float; ConfigError for one that is not between 1e-15 and
    1e15. Squares of others, and what they are multiplied by, leave the range of float32."""
    number = real_number(value, name, above=0.0)
    if not _SMALLEST_SCALE <= number <= _LARGEST_SCALE:
        raise ConfigError(
            f"{_call(name, value)}: expected a number from {_SMALLEST_SCALE:g} to {_LARGEST_SCALE:g}, so that products "
            "of several stay within float32; give images another unit, and what belongs to them."
        )
    return number


def plain_number(value: object) -> object:
    """The number that a tensor or an array without axes holds; anything else as it is."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        return value[()]
    if isinstance(value, Tensor) and not value.is_nested and value.dim() == 0 and not value.is_meta:
        return value.detach().item()
    return value


def whole_number(value: object, name: str, *, least: int = 1, most: int | None = None) -> int:
    """A whole number as int; ConfigError for something else, or one that is out of range."""
    if is_whole(value, least, most):
        return int(plain_number(value))  # type: ignore[call-overload, no-any-return]
    kind = "a positive integer" if least == 1 else f"an integer >= {least}"
    limit = "" if most is None else f", at most {most:,}"
    raise ConfigError(f"{_call(name, value)}: expected {kind}{limit}.")


def is_whole(value: object, least: int = 1, most: int | None = None) -> bool:
    """Whether it is a whole number, Python's or NumPy's, in this range; truth values are none."""
    value = plain_number(value)
    if isinstance(value, bool) or not isinstance(value, Integral):
        return False
    return int(value) >= least and (most is None or int(value) <= most)


def check_one_of(value: object, known: Sequence[str], name: str) -> None:
    """ConfigError unless it is one of these texts."""
    if not (isinstance(value, str) and value in known):
        *others, last = map(repr, known)
        expected = f"{', '.join(others)} or {last}" if others else last
        raise ConfigError(f"{_call(name, value)}: expected {expected}.")


def check_flag(value: object, name: str) -> None:
    """ConfigError unless it is True or False, or their numbers 1 and 0."""
    if not isinstance(value, (bool, np.bool_)) and not is_whole(value, 0, 1):
        raise ConfigError(f"{_call(name, value)}: expected True or False.")


def check_generator(value: object) -> None:
    """ConfigError unless it is a generator of random numbers or None."""
    check_type(value, (torch.Generator, type(None)), "generator", "a torch.Generator or None")


def shown(value: object) -> str:
    """An argument in an error message: one short line, whatever it is."""
    if isinstance(value, Tensor) and value.is_nested:
        return "a nested tensor"
    if isinstance(value, (Tensor, np.ndarray)) and (value.ndim or (isinstance(value, Tensor) and value.is_meta)):
        return f"{'a tensor' if isinstance(value, Tensor) else 'an array'} of shape {tuple(value.shape)}"
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 3]}..."


def _call(name: str, value: object) -> str:
    """The argument as it was passed: "tolerance=-1", "TotalVariation(weight=-1)"."""
    return f"{name[:-1]}={shown(value)})" if name.endswith(")") else f"{name}={shown(value)}"


def given_tensor(value: Any, name: str) -> Tensor:
    """What a constructor was given as a tensor of real numbers: tensors themselves, NumPy arrays and lists as copies.

    Raises
    ------
    ShapeError: something else. ConfigError: a tensor that requires a gradient and is no nn.Parameter, which nobody
    would learn.
    """
    if isinstance(value, Tensor):
        check_real(value, name)
        if value.requires_grad and not isinstance(value, nn.Parameter):
            raise ConfigError(f"{name}: requires a gradient; make it an nn.Parameter to learn it, or detach() it.")
        return value
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise ShapeError(f"{name}: got a NumPy array with masked entries; say what they are, by .filled(value).")
    try:
        array = np.array(value)
    except (ValueError, TypeError, RuntimeError) as error:  # lists of different lengths, of tensors
        raise ShapeError(f"{name}: expected a tensor of real numbers ({error}).") from error
    if array.dtype.kind not in "biuf":
        raise ShapeError(f"{name}: got {type(value).__name__} ({array.dtype}), expected a tensor of real numbers.")
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype(np.float64 if array.dtype.itemsize > 4 else np.float32))
    if array.dtype.kind == "b":
        return torch.from_numpy(array)
    return torch.from_numpy(array.astype(np.float64 if array.dtype == np.uint64 else np.int64))


def check_images(x: Any, name: str) -> None:
    """ShapeError unless it is a tensor (batch, *image_shape) of float32 or float64 numbers, of any shape."""
    check_dense(x, name, "(batch, *image_shape)")
    if x.dim() < 2:
        raise ShapeError(f"{name}: got shape {tuple(x.shape)}, expected (batch, *image_shape).")
    check_precision(x, name)
    check_real(x, name)


def check_dense(tensor: Any, name: str, expected: str) -> None:
    """ShapeError unless it is a tensor, with numbers at every place of a rectangle."""
    if not isinstance(tensor, Tensor):
        hint = " Pass torch.from_numpy(...)." if type(tensor).__module__ == "numpy" else ""
        raise ShapeError(f"{name}: got {type(tensor).__name__}, expected a tensor {expected}.{hint}")
    if tensor.is_nested:
        raise ShapeError(f"{name}: got a nested tensor, expected a dense one; images of one batch have one shape.")
    if tensor.layout != torch.strided:
        raise ShapeError(f"{name}: got a tensor of layout {tensor.layout}, expected a dense one; call .to_dense().")


def check_real(tensor: Any, name: str, expected: str = "of real numbers") -> None:
    """ShapeError unless it is a dense tensor of real numbers of any common dtype, with data."""
    check_dense(tensor, name, expected)
    if tensor.is_meta:
        raise ShapeError(f"{name}: got a tensor on the device 'meta', which has no data.")
    if tensor.is_complex() or tensor.is_quantized or (tensor.dtype.itemsize == 1 and tensor.is_floating_point()):
        raise ShapeError(f"{name}: got dtype {tensor.dtype}, expected real numbers such as float32.")


def check_precision(tensor: Tensor, name: str) -> None:
    """ShapeError unless its numbers are float32 or float64: half precision ends far above any tolerance."""
    if tensor.dtype not in (torch.float32, torch.float64):
        hint = "call .float()"
        if tensor.is_complex():
            hint = "complex numbers are two channels, learnreg.operators.as_channels(tensor)"
        raise ShapeError(f"{name}: got dtype {tensor.dtype}, expected float32 or float64; {hint}.")


def check_batch(tensor: Tensor, batch: int, name: str) -> None:
    """ShapeError unless there are as many samples as measurements."""
    if tensor.shape[0] != batch:
        raise ShapeError(f"{name}: got {tensor.shape[0]} samples for a batch b of {batch}.")
