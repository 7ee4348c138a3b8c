"""Certified descent in a training run: on a sample that grows, on a fixed one, or on minibatches."""

from __future__ import annotations

from typing import Any

import torch

from learnreg.training.options import TrainingOptions
from learnreg.training.sampled_objective import SampledObjective
from learnreg.training.samples import Sample
from learnreg.training.session import Session
from learnreg.upper_level.adaptive_descent import AdaptiveDescent, DescentStep
from learnreg.upper_level.directions import Flat

__all__ = ["CertifiedDescent"]

_FIRST_SAMPLES = 8
_GROWTH = 2
_SAMPLING_ERROR = 1.0
_MEMORY = 40
_CAP = 1.0
"""Of steps on minibatches, over the step size of the schedule."""


class CertifiedDescent:
    """Steps of :class:`learnreg.AdaptiveDescent` on samples of a session.

    "growing": from 8 of the samples, in a seeded order, to all of them. Twice as many are taken where the gradient of
    the sample is no longer clearly above what another sample of that size would change of it (the norm test of Byrd,
    Chin, Nocedal and Wu, 2012, in the metric of the groups), or where no step was accepted: the variance V of the mean
    gradient, estimated from its chunks and corrected for the finite set, above ‖g‖². "fixed": all from the first step
    on. "minibatch": the next minibatch at every step, whose length is at most the scheduled step size.
    """

    def __init__(self, session: Session, options: TrainingOptions) -> None:
        self.session, self.options = session, options
        self.descent = AdaptiveDescent(first_step=options.step_size, memory=_MEMORY, audit_every=options.audit_every)
        self._samples: list[Sample] = []
        if options.sampling != "minibatch":
            samples = session.source.first(options.samples)
            order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(options.seed)).tolist()
            self._samples = [samples[i] for i in order]
        self.size = len(self._samples) if options.sampling == "fixed" else min(_FIRST_SAMPLES, len(self._samples))
        self._objective = SampledObjective(session, self._samples[: self.size])

    def step(self, factor: float) -> tuple[DescentStep, int]:
        """One step, and how many samples it is about. factor: of the step size, from the schedule."""
        if self.options.sampling == "minibatch":
            self._objective = SampledObjective(self.session, self.session.source.next_batch())
            self.descent.other_samples()
            longest = _CAP * factor * self.options.step_size
            return self.descent.step(self._objective, longest), len(self._objective.samples)
        size = self.size
        found = self.descent.step(self._objective)
        if size < len(self._samples) and (not found.accepted or self._sampling_error_dominates()):
            self._set_size(min(_GROWTH * size, len(self._samples)))
        return found, size

    def _sampling_error_dominates(self) -> bool:
        parts = self._objective.gradients
        if len(parts) < 2:
            return False
        flat = Flat(self.session.problem.learnable())
        vectors = torch.stack([flat.vector(g) for g in parts])
        mean = vectors.mean(0)
        metric = self.descent.directions.metric(flat, mean)
        rest = 1.0 - self.size / len(self._samples)
        variance = rest * float(((vectors - mean) ** 2 / metric).sum()) / (len(parts) * (len(parts) - 1))
        return variance > _SAMPLING_ERROR**2 * float((mean**2 / metric).sum())

    def _set_size(self, size: int) -> None:
        self.size = size
        self._objective = SampledObjective(self.session, self._samples[:size])
        self.descent.other_samples()

    def state_dict(self) -> dict[str, Any]:
        """State to resume from."""
        return {"descent": self.descent.state_dict(), "size": self.size, "latest": self._objective.latest_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume; checkpoints of earlier versions know no sizes, and begin with the first one."""
        self.descent.load_state_dict(state["descent"])
        if "size" in state:
            self._set_size(int(state["size"]))
            self._objective.load_latest(state["latest"])
