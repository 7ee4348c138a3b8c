"""Sums, inner products and norms of each sample of a batch, numbers per sample that broadcast against tensors, and
real linear maps of complex batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["complexly", "expand", "inner_samples", "norm_samples", "sum_samples"]


def sum_samples(t: Tensor) -> Tensor:
    """Sum over everything but the batch: (batch, ...) to (batch,)."""
    return t.flatten(1).sum(1)


def inner_samples(a: Tensor, b: Tensor) -> Tensor:
    """Inner product per sample, (batch,)."""
    return sum_samples(a * b)


def norm_samples(t: Tensor) -> Tensor:
    """2-norm per sample, (batch,)."""
    return sum_samples(t * t).sqrt()


def expand(values: Tensor, like: Tensor) -> Tensor:
    """Per-sample values (batch,) shaped to broadcast against ``like`` (batch, ...)."""
    return values.reshape(-1, *(1,) * (like.dim() - 1))


def complexly(linear: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    """A real linear map of batches at a complex one, of its real and imaginary parts in one batch; at a real one as it
    is."""
    if not v.is_complex():
        return linear(v)
    real, imaginary = linear(torch.cat([v.real, v.imag])).chunk(2)
    return torch.complex(real.contiguous(), imaginary.contiguous())
