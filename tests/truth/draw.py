"""Random choices from one generator, and the ranges that random problems are drawn from."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["DOUBLE", "RANGES", "Draw", "Ranges"]

DOUBLE = torch.float64


@dataclass(frozen=True)
class Ranges:
    """What problems are drawn from. kinds: images of several channels and of one to three dimensions. local: energies
    that may have several minimisers, bounds of local ones."""

    smoothing: tuple[float, float] = (1e-4, 1.0)
    scale: tuple[float, float] = (1e-2, 2.0)
    ridge: tuple[float, float] = (1e-2, 1.0)
    offset: float = 0.0
    constrained: float = 0.1
    weighted: float = 0.25
    ridged: float = 0.3
    dtypes: tuple[torch.dtype, ...] = (DOUBLE,)
    scans: bool = False
    kinds: bool = False
    sides: tuple[int, int] = (3, 9)
    local: bool = False
    regularizers: tuple[str, ...] = ("FieldsOfExperts", "TotalVariation", "AnalysisOperator", "FieldsOfExperts")
    dualised: bool = False


_KINDS = ("ExpertsOfKinds", "ExpertsOfKinds", "GroupsOfKinds", "VariationOfKinds", "SquaresOfKinds", "RidgeOfKinds")

_EXTREME = Ranges((1e-4, 1e2), (1e-4, 1e2), (1e-4, 1e2), offset=100.0, constrained=0.2)
_EITHER_PRECISION = replace(_EXTREME, dtypes=(DOUBLE, torch.float32))

RANGES = {
    "ordinary": Ranges(),
    "extreme": _EXTREME,
    "constrained": Ranges((1e-2, 1.0), (1e-2, 1.0), (0.1, 1.0), constrained=1.0),
    "float32": Ranges(dtypes=(torch.float32,)),
    "tomography": Ranges(
        (1e-3, 1.0), (1e-3, 1.0), (1e-4, 0.1), 0.0, 0.4, 0.5, 1.0, dtypes=(DOUBLE, torch.float32), scans=True
    ),
    "ridge": Ranges(regularizers=("RidgeRegularizer",)),
    "grouped": Ranges(regularizers=("MultivariateExperts", "LearnedTotalVariation")),
    "grouped-extreme": replace(_EITHER_PRECISION, regularizers=("MultivariateExperts", "LearnedTotalVariation")),
    "second-order": Ranges(sides=(3, 7), regularizers=("LearnedTotalGeneralizedVariation",)),
    "lifted": Ranges((1e-3, 1.0), (1e-2, 1.0), sides=(3, 7), regularizers=("LiftedNetwork",)),
    "networks": Ranges((1e-3, 1.0), (1e-2, 1.0), sides=(8, 12), regularizers=("InputConvexNetwork",)),
    "large-ridge": Ranges(regularizers=("RidgeRegularizer",), sides=(8, 16)),
    "channels": Ranges((1e-3, 1.0), (1e-2, 1.0), kinds=True, regularizers=_KINDS),
    "channels-extreme": replace(_EITHER_PRECISION, kinds=True, regularizers=_KINDS),
    "quadratic": Ranges(regularizers=("Quadratic",)),
    "analysis-l1": Ranges(
        scale=(3e-3, 1.0), constrained=0.0, dtypes=(DOUBLE, DOUBLE, torch.float32), regularizers=("AbsoluteValue",)
    ),
    "nonconvex": Ranges(regularizers=("WeaklyConvexRidge",)),
    "local": Ranges((1e-2, 1.0), (1e-1, 2.0), (1e-3, 0.3), constrained=0.2, regularizers=("DeepRidge",), local=True),
    "local-extreme": replace(_EXTREME, constrained=0.3, regularizers=("DeepRidge",), local=True),
    "large-nonconvex": Ranges(regularizers=("WeaklyConvexRidge",), sides=(8, 16)),
    "data-terms": Ranges(
        (1e-3, 1.0),
        constrained=0.3,
        ridged=0.5,
        sides=(3, 7),
        dtypes=(DOUBLE, DOUBLE, torch.float32),
        regularizers=("FieldsOfExperts", "TotalVariation", "AnalysisOperator", "RidgeRegularizer", "WeaklyConvexRidge"),
        dualised=True,
    ),
}


class Draw:
    """Random choices from one generator."""

    def __init__(self, generator: torch.Generator, ranges: Ranges | None = None) -> None:
        self.generator, self.ranges = generator, ranges or Ranges()

    def scale(self) -> float:
        return self.log_uniform(*self.ranges.scale)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator, dtype=DOUBLE))

    def log_uniform(self, low: float, high: float) -> float:
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def chance(self, probability: float) -> bool:
        return self.uniform(0.0, 1.0) < probability

    def choice(self, *options: object) -> object:
        return options[self.integer(0, len(options) - 1)]

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=DOUBLE)

    def rand(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=DOUBLE)
