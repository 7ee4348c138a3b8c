"""Chains of reweighted problems, and data for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from registered.randomness import randn
from torch import Tensor

import learnreg as lr
from learnreg.operators import Blur, Identity
from learnreg.regularizers import FieldsOfExperts, Reweighted, RidgeRegularizer, TotalVariation

__all__ = ["CHAINS", "CHAIN_CASES", "CHAIN_SHAPE", "away", "chain_data", "chain_problem", "few_experts"]

CHAIN_SHAPE = (1, 6, 7)


LEVEL = 0.05
"""The noise level of chains that follow it."""


def few_experts(boundary: str = "reflect", smoothing: float = 0.05, **options: bool) -> FieldsOfExperts:
    generator = torch.Generator().manual_seed(1)
    return FieldsOfExperts(3, 3, lr.PseudoHuber(smoothing, 0.9), boundary, generator=generator, **options)  # type: ignore[arg-type]


def _nonconvex_ridge() -> RidgeRegularizer:
    generator = torch.Generator().manual_seed(3)
    return RidgeRegularizer((2, 4), 3, 9, "convex-nonconvex", depth=0.9, weight=0.2, smoothing=0.1, generator=generator)


CHAINS: dict[str, Callable[[], Reweighted]] = {
    "experts": lambda: Reweighted(few_experts("valid"), scale=0.2),
    "windows": lambda: Reweighted(few_experts(), window=3, steps=3, scale=0.2),
    "groups": lambda: Reweighted(TotalVariation(0.1, 0.02), scale=0.3),
    "free": lambda: Reweighted(
        few_experts(), "free", features=2, size=3, scale=3.0, generator=torch.Generator().manual_seed(2)
    ),
    "nonconvex, free": lambda: Reweighted(
        _nonconvex_ridge(), "free", features=2, size=3, scale=3.0, generator=torch.Generator().manual_seed(2)
    ),
    "responses": lambda: Reweighted(few_experts(), "responses", size=3, generator=torch.Generator().manual_seed(2)),
    "nonconvex, responses": lambda: Reweighted(
        _nonconvex_ridge(), "responses", size=3, scale=3.0, generator=torch.Generator().manual_seed(2)
    ),
    "groups, responses": lambda: Reweighted(TotalVariation(0.1, 0.02), "responses", 1, size=3),
    "levels": lambda: Reweighted(few_experts(noise_conditioned=True), window=3, scale=0.2),
    "levels, free": lambda: Reweighted(
        few_experts(noise_conditioned=True),
        "free",
        1,
        features=2,
        size=3,
        scale=3.0,
        generator=torch.Generator().manual_seed(2),
    ),
    "levels, responses": lambda: Reweighted(few_experts(noise_conditioned=True), "responses", 2, size=3),
}


def away(R: Reweighted) -> Reweighted:
    """Away from its start, in float64."""
    with torch.no_grad():
        for i, p in enumerate(R.double().weights.parameters()):
            p.add_(0.3 * randn(*p.shape, seed=30 + i))
    return R


def chain_data(seed: int = 1) -> Tensor:
    image = torch.zeros(2, *CHAIN_SHAPE, dtype=torch.float64)
    image[0, :, 1:4, 2:5], image[1, :, 3:] = 1.0, 0.6
    return image + 0.1 * randn(2, *CHAIN_SHAPE, seed=seed)


def chain_problem(name: str, constrained: bool = False, **options: object) -> lr.LowerLevelProblem:
    groups = name.startswith("groups")
    operator = Blur(torch.full((3, 3), 1 / 9).double(), CHAIN_SHAPE) if groups else Identity(CHAIN_SHAPE)
    constraint = lr.Box(0.05, 0.8) if constrained else None
    ridge = 0.3 if groups else 0.0
    options = {"noise_level": LEVEL if name.startswith("levels") else None} | options
    return lr.LowerLevelProblem(operator, away(CHAINS[name]()), ridge=ridge, constraint=constraint, **options)  # type: ignore[arg-type]


CHAIN_CASES = [
    ("experts", False),
    ("windows", True),
    ("groups", True),
    ("free", False),
    ("nonconvex, free", False),
    ("responses", False),
    ("nonconvex, responses", False),
    ("groups, responses", True),
    ("levels", True),
    ("levels, free", False),
    ("levels, responses", False),
]
"""Names, and whether a box holds some pixels."""
