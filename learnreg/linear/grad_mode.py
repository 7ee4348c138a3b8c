"""Computing the same in every grad mode of torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = ["outside_inference", "usable"]

P = ParamSpec("P")
R = TypeVar("R")


def usable(value: Any) -> Any:
    """Tensors that were made in inference mode as tensors that autograd accepts; all else itself."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        changed = {k: usable(v) for k, v in found.items() if isinstance(v, Tensor) and v.is_inference()}
        return dataclasses.replace(value, **changed) if changed else value
    return value


def outside_inference(function: Callable[P, R]) -> Callable[P, R]:
    """Leave torch's inference mode, in which derivatives are zero without a word, and record nothing but what asks for
    it."""

    @wraps(function)
    def outside(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(False), torch.no_grad():
            return function(*map(usable, args), **{k: usable(v) for k, v in kwargs.items()})

    return outside
