"""What a training run is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from learnreg.errors import ConfigError
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.hypergradients.implicit import Implicit
from learnreg.solvers.solve import check_tolerance

__all__ = ["SAMPLINGS", "OptimizerName", "SamplingName", "TrainingOptions"]

OptimizerName = Literal["adam", "lbfgs", "adaptive"]
SamplingName = Literal["growing", "fixed", "minibatch"]
SAMPLINGS: tuple[str, ...] = get_args(SamplingName)

_DEFAULT_MINUTES = 5.0
_LASTING = (
    "batch_size",
    "tolerance",
    "optimizer",
    "step_size",
    "samples",
    "seed",
    "tune_start",
    "audit_every",
    "sampling",
)


@dataclass(frozen=True)
class TrainingOptions:
    """The options of ``learnreg.train``, which explains them. workers: threads of one core each that share a batch.

    Raises
    ------
    ConfigError: a number out of range.
    """

    minutes: float | None = None
    updates: int | None = None
    batch_size: int | None = None
    method: HypergradientMethod = field(default_factory=Implicit)
    tolerance: float = 1e-1
    optimizer: OptimizerName = "adam"
    step_size: float = 2e-2
    samples: int = 64
    seed: int = 0
    tune_start: bool = True
    audit_every: int = 10
    sampling: SamplingName = "growing"
    workers: int = 1

    def __post_init__(self) -> None:
        if self.minutes is not None and not (self.minutes > 0 and math.isfinite(self.minutes)):
            raise ConfigError(f"train(minutes={self.minutes!r}): expected a positive number.")
        if self.updates is not None and not (_whole(self.updates) and self.updates >= 1):
            raise ConfigError(f"train(updates={self.updates!r}): expected an integer >= 1, or None.")
        sizes = (self.samples, 1 if self.batch_size is None else self.batch_size)
        if not all(_whole(size) and size >= 1 for size in sizes):
            raise ConfigError(
                f"train(batch_size={self.batch_size!r}, samples={self.samples!r}): expected integers >= 1."
            )
        if not (_whole(self.audit_every) and self.audit_every >= 1):
            raise ConfigError(f"train(audit_every={self.audit_every!r}): expected an integer >= 1.")
        if self.sampling not in SAMPLINGS:
            raise ConfigError(f"train(sampling={self.sampling!r}): expected one of {', '.join(SAMPLINGS)}.")
        if not (self.step_size > 0 and math.isfinite(self.step_size)):
            raise ConfigError(f"train(step_size={self.step_size!r}): expected a positive number.")
        check_tolerance(self.tolerance)

    @property
    def seconds(self) -> float:
        """Of upper-level training at most: as many as it takes where updates alone are given."""
        if self.minutes is None:
            return 60.0 * _DEFAULT_MINUTES if self.updates is None else math.inf
        return 60.0 * self.minutes

    def lasting(self) -> dict[str, Any]:
        """What a resumed run cannot change."""
        return {**{name: getattr(self, name) for name in _LASTING}, "method": repr(self.method)}


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
