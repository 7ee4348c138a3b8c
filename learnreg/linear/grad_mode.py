"""Computing the same in every mode of torch: gradients off, inference mode, autocast, compiled callers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from learnreg.errors import ShapeError

__all__ = ["full_precision", "outside_inference", "uncompiled", "usable"]

P = ParamSpec("P")
R = TypeVar("R")


def usable(value: Any) -> Any:
    """Tensors as autograd and other libraries accept them, if they were made in inference mode or are lazily negated
    views; all else itself. ShapeError for a tensor without data."""
    if isinstance(value, Tensor):
        if value.is_meta:
            raise ShapeError(f"got a tensor of shape {tuple(value.shape)} on the device 'meta', which has no data.")
        return (value.clone() if value.is_inference() else value).resolve_neg() if not value.is_nested else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        changed = {k: usable(v) for k, v in found.items() if isinstance(v, Tensor) and usable(v) is not v}
        return dataclasses.replace(value, **changed) if changed else value
    return value


_DEVICES = tuple({"cpu", getattr(torch.accelerator.current_accelerator(), "type", "cpu")})


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Switch torch.autocast off, which would round convolutions and matrix products; what it made half precision before
    comes in as float32. Without autocast nothing is done: operators are applied often."""

    @wraps(function)
    def precise(*args: P.args, **kwargs: P.kwargs) -> R:
        if not any(map(torch.is_autocast_enabled, _DEVICES)):
            return function(*args, **kwargs)
        with _without_autocast():
            return function(*map(_widened, args), **{k: _widened(v) for k, v in kwargs.items()})

    return precise


@contextmanager
def _without_autocast() -> Iterator[None]:
    with ExitStack() as off:
        for device in filter(torch.is_autocast_enabled, _DEVICES):
            off.enter_context(torch.autocast(device, enabled=False))
        yield


def _widened(value: Any) -> Any:
    """Half precision as float32; all else itself."""
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16) else value


def _usable_and_widened(value: Any) -> Any:
    return _widened(usable(value))


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """Leave a function out of what torch.compile makes of its callers: it runs as it is, at a graph break."""

    @wraps(function)
    def eager(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_dynamo_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)  # type: ignore[no-untyped-call,no-any-return]
        return function(*args, **kwargs)

    return eager


def outside_inference(function: Callable[P, R]) -> Callable[P, R]:
    """Leave torch's inference mode, in which derivatives are zero without a word, and autocast, which rounds; record
    nothing but what asks for it; torch.compile leaves it out."""

    @wraps(function)
    def outside(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_dynamo_compiling():
            return torch.compiler.disable(outside)(*args, **kwargs)  # type: ignore[no-untyped-call,no-any-return]
        rounded = any(map(torch.is_autocast_enabled, _DEVICES))
        taken: Callable[[Any], Any] = _usable_and_widened if rounded else usable
        with torch.inference_mode(False), torch.no_grad(), _without_autocast():
            return function(*map(taken, args), **{k: taken(v) for k, v in kwargs.items()})

    return outside
