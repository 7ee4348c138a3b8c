"""Weakly convex regularizers that no data term makes up for, and problems with them."""

from __future__ import annotations

from typing import Any

import registry
import torch
from torch import Tensor

import learnreg as lr
from learnreg.linear.operator import LinearOperator
from learnreg.operators import Blur, CartesianMRI, Identity, Inpainting, ParallelBeam2D
from learnreg.regularizers import (
    ImportedRidge,
    RidgeRegularizer,
    Scaled,
)

DOUBLE = torch.float64
SHAPE = (1, 7, 6)


def deep(factor: float = 3.0, seed: int = 0, learned: bool = True, **images: Any) -> Scaled:
    """Concave parts that no identity makes up for."""
    generator = torch.Generator().manual_seed(seed)
    ridge = RidgeRegularizer(
        (2, 3), 3, 9, "convex-nonconvex", weight=0.5, smoothing=0.15, generator=generator, **images
    ).double()
    with torch.no_grad():
        for p in ridge.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=DOUBLE))
        ridge.log_curvature.sub_(1.0)
        ridge.logit_depth.add_(9.0)
    return Scaled(ridge, factor).double().requires_grad_(learned)


def imported(factor: float = 2.0) -> ImportedRidge:
    """f'' by pieces, of either sign."""
    generator = torch.Generator().manual_seed(4)
    kernels = [torch.randn(3, 1, 3, 3, dtype=DOUBLE, generator=generator)]
    kernels[0] -= kernels[0].mean((2, 3), keepdim=True)
    bends = torch.tensor([[0.1, -0.3, 1.0, 1.0, -0.3, 0.1]], dtype=DOUBLE)
    return ImportedRidge([kernels[0] / 4.0], bends, 0.08, factor=factor)


def mask() -> Inpainting:
    return Inpainting((registry.rand(*SHAPE, seed=3) > 0.3).double())


def blur() -> Blur:
    return Blur(torch.tensor([[0.0, 0.2, 0.0], [0.1, 0.4, 0.1], [0.0, 0.2, 0.0]], dtype=DOUBLE), SHAPE)


OPERATORS = {
    "identity": lambda: Identity(SHAPE),
    "inpainting": mask,
    "blur": blur,
    "tomography": lambda: ParallelBeam2D(7, 9).double(),
    "complex images": lambda: Identity((2, 7, 6)),
    "magnetic resonance": lambda: CartesianMRI((torch.arange(6) % 3 != 1).double(), domain_shape=(2, 7, 6)),
}


def problem_with(operator: LinearOperator, regularizer: lr.Regularizer, **options: object) -> lr.LowerLevelProblem:
    return lr.LowerLevelProblem(operator, regularizer, minimiser="local", **options)  # type: ignore[arg-type]


def near(problem: lr.LowerLevelProblem, b: Tensor) -> Tensor:
    return lr.solve(problem, b, 1e-9).x.flatten(1)
