"""Certified descent in a training run: on a sample that grows, on a fixed one, or on minibatches."""

from __future__ import annotations

import math
from typing import Any

import torch

from learnreg.training.options import TrainingOptions
from learnreg.training.sampled_objective import SampledObjective
from learnreg.training.samples import Sample
from learnreg.training.session import Session
from learnreg.training.tolerances import Audit
from learnreg.upper_level.adaptive_descent import AdaptiveDescent, DescentStep
from learnreg.upper_level.directions import Flat

__all__ = ["CertifiedDescent"]

_FIRST_SAMPLES, _CHUNKS = 16, 4
_GROWTH = 2
_STEPS_AHEAD = 4.0
"""How many steps like the next one a sample is kept for."""

_MEMORY = 40
_CAP = 1.0
"""Of steps on minibatches, over the step size of the schedule."""


class CertifiedDescent:
    """Steps of :class:`learnreg.AdaptiveDescent` on samples of a session.

    "growing": from 16 of the samples, in a seeded order, to all of them. Twice as many are taken where no step was
    accepted, or where V > 4 <z, p>: V is the variance of the mean gradient in the metric of the direction, estimated
    from its chunks and corrected for the finite set, and says what another sample would change of the predicted
    decrease <z, p>. "fixed": all from the first step on. "minibatch": the next minibatch at every step, whose length
    is at most the scheduled step size.

    Every tenth gradient is audited on two samples, as Adam's is.

    Source: Byrd, Chin, Nocedal and Wu, Sample size selection in optimization methods for machine learning (2012), whose
    norm test this is; in the metric of a quasi-Newton direction: Bollapragada and others (2018).
    """

    def __init__(self, session: Session, options: TrainingOptions) -> None:
        self.session, self.options = session, options
        self.descent = AdaptiveDescent(first_step=options.step_size, memory=_MEMORY, audit_every=None)
        self._samples: list[Sample] = []
        if options.sampling != "minibatch":
            samples = session.source.first(options.most_samples)
            order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(options.seed)).tolist()
            self._samples = [samples[i] for i in order]
        every = len(self._samples)
        self._set_size(every if options.sampling == "fixed" else min(_FIRST_SAMPLES, every))

    def step(self, factor: float) -> tuple[DescentStep, int, Audit | None]:
        """One step, how many samples it is about, and the audit of its gradient, if one was due. factor: of the step
        size, from the schedule."""
        longest, minibatch = math.inf, self.options.sampling == "minibatch"
        if minibatch:
            self._objective = SampledObjective(self.session, self.session.source.next_batch())
            self.descent.other_samples()
            longest = _CAP * factor * self.options.step_size
        audit, size = self._audit_if_due(), len(self._objective.samples)
        found = self.descent.step(self._objective, longest)
        if not minibatch and size < len(self._samples) and (not found.accepted or self._exhausted()):
            self._set_size(min(_GROWTH * size, len(self._samples)))
        return found, size, audit

    def _audit_if_due(self) -> Audit | None:
        if not self.session.audits.next():
            return None
        if self._objective.latest is None:
            self._objective.evaluate(self.descent.accuracy)
        audit = self.session.audit_samples(self._objective.samples)
        self.descent.hold(audit.distance)
        return audit

    def _exhausted(self) -> bool:
        """Whether the predicted decrease on the sample is small against what another sample would change of it."""
        parts, latest = self._objective.gradients, self._objective.latest
        if len(parts) < 2 or latest is None:
            return False
        flat, directions = Flat(self.session.problem.learnable()), self.descent.directions
        z = flat.vector(latest.gradient)
        p = directions.quasi_newton(flat, z)
        predicted = float(z @ (directions.scaled(flat, z) if p is None else p))
        rest = 1.0 - self.size / len(self._samples)
        return rest * directions.uncertainty(flat, [flat.vector(g) for g in parts]) > _STEPS_AHEAD * predicted

    def _set_size(self, size: int) -> None:
        self.size = size
        chunks = _CHUNKS if size < len(self._samples) else 1
        self._objective = SampledObjective(self.session, self._samples[:size], chunks)
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
