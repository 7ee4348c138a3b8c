"""How kernels divide responses among programs: each takes one block of one row."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["BOUNDS", "FAST", "add_blocks", "block_sums", "grid", "larger", "place", "smaller"]

_BLOCK = 1024
"""Numbers that a program works on."""

FAST = {"BLOCK": _BLOCK, "enable_fp_fusion": True}
"""How iterations are compiled: with fused multiply-adds."""

BOUNDS = {"BLOCK": _BLOCK, "enable_fp_fusion": False}
"""How bounds are compiled: plain arithmetic, in the order that is written."""


def grid(rows: int, pixels: int) -> tuple[int, int]:
    """Programs for so many rows: the first axis takes 2^31 of them, the second 65,535."""
    return rows, triton.cdiv(pixels, _BLOCK)


def block_sums(sums: Tensor, pixels: int) -> Tensor:
    """Memory for a number of each block, to be added up to ``sums``."""
    return torch.empty(*sums.shape, triton.cdiv(pixels, _BLOCK), dtype=torch.float64, device=sums.device)


def add_blocks(parts: Tensor, sums: Tensor) -> None:
    """The sums of :func:`block_sums`."""
    torch.sum(parts, -1, out=sums)


@triton.jit
def place(pixels, BLOCK: tl.constexpr) -> Any:
    """The row of this program, where its numbers stand in memory, and which of them are in the row."""
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    return row, row.to(tl.int64) * pixels + column, column < pixels


@triton.jit
def larger(a, b) -> Any:
    """The larger of two numbers; NaN where one is: for bounds."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def smaller(a, b) -> Any:
    """The smaller of two numbers; NaN where one is: for bounds."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
