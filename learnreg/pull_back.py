"""Newton's method for the pull-back of a pseudo-Huber function's dual proximal map."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["newton_constants", "newton_pull_back"]


def newton_constants(weight: Tensor | float, smoothing: Tensor | float, t: Tensor, sigma: Tensor) -> tuple[Tensor, ...]:
    """nu², l, l nu², sigma and 1/(sigma + l/nu) of a pseudo-Huber function, to broadcast against t."""
    square = torch.as_tensor(smoothing, dtype=t.dtype, device=t.device) ** 2
    weight = torch.as_tensor(weight, dtype=t.dtype, device=t.device)
    return square, weight, weight * square, sigma, 1.0 / (sigma + weight / smoothing)


def newton_pull_back(size: Tensor, T: Tensor, steps: int, *constants: Tensor) -> None:
    """Newton's method on sigma T + f'(T) = size, T >= 0, in the memory of T, which holds the start: with R = 1/sqrt(T²
    + nu²) the next point is (size - l (TR)³) / (sigma + l nu² R³), never above the root since f' is concave there."""
    square, weight, curvature, sigma, share = constants
    low = size * share
    for _ in range(steps):
        inverse = torch.addcmul(square, T, T).rsqrt_()
        T.mul_(inverse).pow_(3)
        torch.addcmul(size, T, weight, value=-1.0, out=T)
        T.div_(inverse.pow_(3).mul_(curvature).add_(sigma))  # addcmul with two constants of a channel is slow
        torch.maximum(T, low, out=T)
