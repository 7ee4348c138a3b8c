"""Arguments that nobody should pass, and what has to come of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import registry
import torch
from torch import nn

import learnreg as lr

__all__ = ["ODD_NUMBERS", "SHAPE", "B", "X", "ends_well", "odd_tensors"]

SHAPE = (1, 4, 4)
B, X = registry.rand(2, *SHAPE), registry.rand(2, *SHAPE, seed=3)

with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # that nested tensors are a prototype
    NESTED = torch.nested.nested_tensor([torch.ones(1, 4, 4), torch.ones(1, 4, 3)])


class Subclass(torch.Tensor):
    """Of a user."""


def odd_tensors() -> Iterator[tuple[str, Any]]:
    yield from {
        "None": None, "text": "b", "int": 3, "float": 0.5, "bool": True, "list": [1.0, 2.0], "pair": (B, B),
        "nested lists": [[B], [B]], "dict": {"b": B}, "array": B.numpy(), "float32 array": B.float().numpy(),
        "object array": np.array([None, 1]), "half array": B.half().numpy(), "complex": B.to(torch.complex128),
        "negated": torch._neg_view(B.clone()), "sparse": B.to_sparse(), "rows": torch.eye(4).to_sparse_coo(),
        "meta": B.to("meta"), "leaf": B.clone().requires_grad_(), "not a leaf": 2 * B.clone().requires_grad_(),
        "parameter": nn.Parameter(B.clone()), "subclass": B.as_subclass(Subclass), "half": B.half(),
        "bfloat16": B.bfloat16(), "int64": B.long(), "mask": B > 0.5, "uint8": B.to(torch.uint8), "empty": B[:0],
        "scalar": B.sum(), "flat": B.flatten(), "no batch": B[0], "no channel": B[:, 0], "5 axes": B[None],
        "NaN": B * math.nan, "infinite": B * math.inf, "expanded": B[:1].expand(2, *SHAPE), "tiny": 1e-310 * B,
        "transposed": B.transpose(2, 3), "3 channels": registry.rand(2, 3, 4, 4), "3 samples": registry.rand(3, *SHAPE),
        "float8": B.float().to(torch.float8_e4m3fn), "iterator": iter([1]), "module": nn.Linear(2, 2),
        "class": torch.Tensor, "function": torch.sin, "ellipsis": ...,
        "nested": NESTED,
    }.items()  # fmt: skip


ODD_NUMBERS: dict[str, Any] = {
    "None": None, "text": "1e-3", "negative": -1.0, "zero": 0, "NaN": math.nan, "infinite": math.inf, "bool": True,
    "complex": 1j, "tensor": torch.tensor(1e-3), "tensors": torch.tensor([1e-3, 1e-3]), "list": [1], "dict": {},
    "nested tensor": NESTED, "bytes": b"x", "texts": ["a", "b"],
    "array": np.ones(3), "meta": torch.empty((), device="meta"), "large": 2**63, "function": abs,
    "ragged": [[1], [2, 3]], "float32": np.float32(1e-3), "int64": np.int64(3), "huge": 10**400, "class": float,
    "object": object(),
}  # fmt: skip


def ends_well(call: Callable[[Any], object], value: Any) -> None:
    """It returns, or raises an error of this package; what it certifies is finite."""
    try:
        result = call(value)
    except lr.LearnregError:
        return
    if getattr(result, "certified", False) and hasattr(result, "error_bound"):
        assert bool(torch.isfinite(torch.as_tensor(result.error_bound)).all())
