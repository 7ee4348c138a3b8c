"""Largest eigenvalues of Gram matrices, from above."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["largest_eigenvalue"]

_EIGENVALUE_LIMIT = 640


def largest_eigenvalue(gram: Tensor) -> Tensor:
    """Rigorous bound of the largest eigenvalue of symmetric positive semidefinite matrices (..., n, n): itself, or
    beyond 640 rows the root of ‖G²‖_F, at most n^(1/4) and usually about 1.2 times it. Infinite where entries are not
    finite."""
    n = gram.shape[-1]
    scale = gram.flatten(-2).norm(dim=-1)
    usable = torch.isfinite(scale) & (scale > 0)
    scaled = torch.where(usable[..., None, None], gram / torch.where(usable, scale, 1.0)[..., None, None], 0.0)
    if n <= _EIGENVALUE_LIMIT:
        largest = torch.linalg.eigvalsh(scaled)[..., -1].clamp_min(0.0) + 1e-14 * n
    else:
        largest = (scaled @ scaled).flatten(-2).norm(dim=-1).sqrt() * (1.0 + 1e-13 * n)
    return torch.where(scale == 0, 0.0, torch.where(usable, largest * scale, torch.inf))
