"""What a training run is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from learnreg.errors import ConfigError
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.hypergradients.implicit import Implicit
from learnreg.linear.arguments import LARGEST_SEED, check_flag, check_one_of, is_whole, real_number, shown, whole_number

__all__ = [
    "NOISE_WEIGHTINGS",
    "SAMPLINGS",
    "SCHEDULES",
    "NoiseWeightingName",
    "OptimizerName",
    "SamplingName",
    "ScheduleName",
    "TrainingOptions",
]

OptimizerName = Literal["adam", "lbfgs", "adaptive"]
ScheduleName = Literal["steady", "annealed"]
SamplingName = Literal["growing", "fixed", "minibatch"]
NoiseWeightingName = Literal["none", "inverse-sigma", "inverse-variance"]
SAMPLINGS: tuple[str, ...] = get_args(SamplingName)
SCHEDULES: tuple[str, ...] = get_args(ScheduleName)
NOISE_WEIGHTINGS = {"none": 0, "inverse-sigma": 1, "inverse-variance": 2}
"""The power of its noise level that the loss of a sample is divided by."""

_DEFAULT_MINUTES = 5.0
_LARGEST_CHUNK = 16
_MOST_UPDATES = 10**12
_SAMPLES, _GROWING_SAMPLES = 64, 512
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
    "schedule",
    "validation",
    "noise_weighting",
    "pretraining",
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
    samples: int | None = None
    seed: int = 0
    tune_start: bool = True
    audit_every: int = 10
    sampling: SamplingName = "growing"
    workers: int = 1
    chunk_size: int | None = None
    epochs: float | None = None
    schedule: ScheduleName = "steady"
    validation: float = 0.0
    patience: int | None = None
    noise_weighting: NoiseWeightingName = "none"
    pretraining: int = 0

    def __post_init__(self) -> None:
        if self.minutes is not None:
            real_number(self.minutes, "train(minutes)", above=0.0)
        if self.updates is not None and not is_whole(self.updates, 1, _MOST_UPDATES):
            raise ConfigError(
                f"train(updates={shown(self.updates)}): expected an integer from 1 to {_MOST_UPDATES:,}, or None."
            )
        if self.epochs is not None:
            self._check_epochs()
        for name in ("samples", "batch_size", "audit_every", "chunk_size"):
            if name == "audit_every" or getattr(self, name) is not None:
                whole_number(getattr(self, name), f"train({name})")
        whole_number(self.seed, "train(seed)", least=-LARGEST_SEED, most=LARGEST_SEED)
        real_number(self.step_size, "train(step_size)", above=0.0)
        check_one_of(self.optimizer, get_args(OptimizerName), "train(optimizer)")
        check_one_of(self.sampling, SAMPLINGS, "train(sampling)")
        check_one_of(self.schedule, SCHEDULES, "train(schedule)")
        check_one_of(self.noise_weighting, tuple(NOISE_WEIGHTINGS), "train(noise_weighting)")
        if self.schedule == "annealed" and self.updates is None and self.epochs is None:
            raise ConfigError(
                "train(schedule='annealed'): it needs to know the length of a run; give updates or epochs."
            )
        check_flag(self.tune_start, "train(tune)")
        whole_number(self.pretraining, "train(pretraining)", least=0)
        real_number(self.tolerance, "tolerance", above=0.0)
        if not 0.0 <= real_number(self.validation, "train(validation)") < 1.0:
            raise ConfigError(f"train(validation={self.validation:g}): expected a share >= 0 and < 1, or a data set.")
        if self.patience is not None:
            whole_number(self.patience, "train(patience)")

    def _check_epochs(self) -> None:
        real_number(self.epochs, "train(epochs)", above=0.0)
        if self.optimizer == "lbfgs" or (self.optimizer == "adaptive" and self.sampling != "minibatch"):
            raise ConfigError(
                f"train(epochs={self.epochs}): {self.optimizer} draws no minibatches, but takes its samples at once; "
                "give updates."
            )

    @property
    def seconds(self) -> float:
        """Of upper-level training at most: as many as it takes where updates or epochs alone are given."""
        if self.minutes is None:
            endless = self.updates is not None or self.epochs is not None
            return math.inf if endless else 60.0 * _DEFAULT_MINUTES
        return 60.0 * self.minutes

    @property
    def most_samples(self) -> int:
        """``samples``, or what suits the optimizer: one that begins with a few affords more."""
        growing = self.optimizer == "adaptive" and self.sampling == "growing"
        return self.samples or (_GROWING_SAMPLES if growing else _SAMPLES)

    def chunk(self, batch_size: int) -> int:
        """``chunk_size``, or what keeps the threads of one worker busy: many small chunks cost more than few large
        ones. The number of workers has no say, so that any of them makes the same bits."""
        return self.chunk_size or min(_LARGEST_CHUNK, max(1, math.ceil(batch_size / self.workers)))

    def lasting(self) -> dict[str, Any]:
        """What a resumed run cannot change."""
        kept = {name: getattr(self, name) for name in _LASTING}
        return {**kept, "samples": self.most_samples, "method": repr(self.method)}
