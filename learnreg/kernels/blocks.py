"""Elementwise work on responses in blocks that fit in a CPU's cache, so that every operation but the first finds its
operands there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

__all__ = ["planes", "sum_blocks"]

_BLOCK_BYTES = 256 * 1024


def planes(responses: Tensor, *others: Tensor, whole: bool = False) -> Iterator[tuple[Tensor, ...]]:
    """Views of tensors that broadcast against ``responses`` (batch, n, ...): one block of channels of one sample after
    the other, so small that it stays in a CPU's cache with what is computed from it. ``whole``: blocks of rows, with
    all channels. Small responses and other devices: one block."""
    if responses.device.type != "cpu" or responses.dim() < 3 or responses.nbytes <= _BLOCK_BYTES:
        yield responses, *others
        return
    batch, axis = responses.shape[0], 2 if whole else 1
    size = responses.shape[axis]
    count = max(1, _BLOCK_BYTES * size // responses[0].nbytes)

    def parts(value: Tensor, first: int) -> tuple[Tensor, ...]:
        """Those channels or rows of each sample."""
        batch_axis = value.dim() - responses.dim()
        own = batch_axis + axis
        if own >= 0 and value.shape[own] > 1:
            value = value.narrow(own, first, min(count, size - first))
        if batch_axis == 0 and value.shape[0] > 1:
            return torch.split(value, 1)
        return (value,) * batch

    blocks = [zip(*(parts(v, k) for v in (responses, *others)), strict=True) for k in range(0, size, count)]
    for sample in zip(*blocks, strict=True):
        yield from sample


def sum_blocks(blocks: Iterable[tuple[Tensor, ...]], batch: int) -> tuple[Tensor, ...]:
    """Sums per sample, (batch,) each, from those of the blocks in the order of :func:`planes`."""
    sums = [torch.stack(column) for column in zip(*blocks, strict=True)]
    return tuple(s.flatten() if s.shape[0] == 1 else s.reshape(batch, -1).sum(1) for s in sums)
