"""Sums, inner products and norms of each sample of a batch, and numbers per sample that broadcast against tensors."""

from __future__ import annotations

from torch import Tensor

__all__ = ["expand", "inner_samples", "norm_samples", "sum_samples"]


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
