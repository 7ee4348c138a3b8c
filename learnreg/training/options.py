"""What a training run is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from learnreg.errors import ConfigError
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.hypergradients.implicit import Implicit
from learnreg.solvers.solve import check_tolerance

__all__ = ["OptimizerName", "TrainingOptions"]

OptimizerName = Literal["adam", "lbfgs", "adaptive"]


@dataclass(frozen=True)
class TrainingOptions:
    """The options of ``learnreg.train``, which explains them. workers: threads of one core each that share a batch.

    Raises
    ------
    ConfigError: a number out of range.
    """

    minutes: float = 5.0
    batch_size: int = 16
    method: HypergradientMethod = field(default_factory=Implicit)
    tolerance: float = 1e-1
    optimizer: OptimizerName = "adam"
    step_size: float = 2e-2
    samples: int = 64
    seed: int = 0
    max_updates: int | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        if not (self.minutes > 0 and math.isfinite(self.minutes)):
            raise ConfigError(f"train(minutes={self.minutes!r}): expected a positive number.")
        if self.batch_size < 1 or self.samples < 1:
            raise ConfigError(
                f"train(batch_size={self.batch_size!r}, samples={self.samples!r}): expected integers >= 1."
            )
        check_tolerance(self.tolerance)
