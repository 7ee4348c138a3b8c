"""Regularizers of one's own that say their value, with and without constants, and problems with them."""

from __future__ import annotations

import math
from typing import Any

import registry
import torch
from registry import SHAPE
from torch import Tensor, nn
from torch.nn import functional as F

import learnreg as lr
from learnreg.operators import Blur, Identity, Inpainting
from learnreg.regularizers import Regularizer

__all__ = ["OPERATORS", "Declared", "Network", "problem_of"]


class Network(Regularizer):
    """A smooth network that nobody made convex, in float32."""

    def __init__(self, features: int = 4, channels: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, features, 3, padding=1)
        self.layers = nn.ModuleList([nn.Conv2d(features, features, 3, padding=1)])

    def value(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.first(x))
        for layer in self.layers:
            z = F.softplus(layer(z))
        return 0.1 * z.sum((1, 2, 3))

    def config(self) -> dict[str, Any]:
        return {"features": len(self.first.bias), "channels": self.first.weight.shape[1]}


class Declared(Regularizer):
    """w · sum of log cosh(s k * x), plus a part of known modulus, with constants from ‖k *‖ <= 1."""

    def __init__(self, modulus: float = 0.0, weight: float = 0.5, steepness: float = 3.0) -> None:
        super().__init__()
        self.weight, self.own, s = nn.Parameter(torch.tensor(weight)), modulus, steepness
        kernel = torch.tensor([[0.0, 0.25, 0.0], [0.25, 0.0, -0.25], [0.0, -0.25, 0.0]])
        self.register_buffer("kernel", s * kernel[None, None])
        self.modulus: float | None = modulus
        self.gradient_lipschitz: float | None = weight * s * s + abs(modulus)
        self.hessian_lipschitz: float | None = 0.77 * weight * s**3 + abs(modulus)
        self.cross_bound, self.cross_lipschitz = s * math.sqrt(math.prod(SHAPE)), s * s

    def value(self, x: Tensor) -> Tensor:
        t = F.conv2d(x, self.kernel, padding=1).abs()  # type: ignore[arg-type]
        value = self.weight * (t + F.softplus(-2.0 * t) - math.log(2.0)).sum((1, 2, 3))
        known = x.square().sum((1, 2, 3)) / 2 if self.own >= 0 else -torch.cos(x).sum((1, 2, 3))
        return value + self.own * known


OPERATORS = {
    "denoising": lambda: Identity(SHAPE),
    "inpainting": lambda: Inpainting((registry.rand(*SHAPE) > 0.4).double()),
    "learned-blur": lambda: Blur(nn.Parameter(registry.rand(3, 3) / 4), SHAPE, "reflect"),
}


def problem_of(regularizer: Regularizer, operator: str = "denoising", ridge: float = 0.3) -> lr.LowerLevelProblem:
    return lr.LowerLevelProblem(OPERATORS[operator](), regularizer, ridge=ridge)
