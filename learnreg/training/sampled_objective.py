"""The objective of certified descent in a training run: the mean loss of some samples, in chunks for the workers, warm
starts by sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from learnreg.hypergradients.compute import Start, hypergradient
from learnreg.lower_level.pairing import sum_gradients
from learnreg.training.samples import Sample, stacked
from learnreg.training.session import Chunk, Session
from learnreg.training.warm_starts import hollow_start
from learnreg.upper_level.evaluation import evaluate_batch
from learnreg.upper_level.objective import Accuracy, CertifiedGradient, Objective, Trial

__all__ = ["SampledObjective"]

R = TypeVar("R")

_NO_RELATIVE_TOLERANCE = 1e-12


class SampledObjective(Objective):
    """theta -> mean loss of ``samples``, of any kinds. ``gradients``: of the chunks of the latest trial. chunks: at
    least, where the spread of their gradients is to tell how far the sample's is from that of all."""

    def __init__(self, session: Session, samples: Sequence[Sample], chunks: int = 1) -> None:
        self.session, self.problem, self.samples = session, session.problem, list(samples)
        self.least_chunks = chunks
        self.gradients: list[Mapping[str, Tensor]] = []

    def _chunks(self) -> list[Chunk]:
        self.session.clock.check()
        largest = max(1, len(self.samples) // self.least_chunks)
        return self.session.chunks(self.samples, largest)

    def _shares(self, chunks: Sequence[Chunk]) -> list[float]:
        return [len(chunk.samples) / len(self.samples) for chunk in chunks]

    def _evaluate(self, accuracy: Accuracy) -> Trial:
        chunks = self._chunks()
        results = self.session.map(partial(self._evaluate_chunk, accuracy), chunks, _sent)
        for chunk, (_, state, applications) in zip(chunks, results, strict=True):
            self._keep(chunk, state, applications)
        self.gradients = [trial.gradient for trial, _, _ in results]
        return Trial.mean([trial for trial, _, _ in results], self._shares(chunks))

    def _evaluate_chunk(self, accuracy: Accuracy, chunk: Chunk) -> tuple[Trial, Start, int]:
        """In a worker thread."""
        b, x_true = stacked(chunk.samples)
        start = self.session.warm.starts(chunk.samples, b)
        loss = self.session.loss_of(chunk.samples, x_true)
        return evaluate_batch(chunk.frozen, b, loss, self.session.method, start, accuracy)

    def certified_gradient(self, tolerance: float) -> CertifiedGradient:
        """Bounds of the chunks add up to that of their mean, and are asked for in its norm, by the latest trial."""
        latest, chunks = self.latest, self._chunks()
        norm = 0.0 if latest is None else _norm(latest.gradient)
        results = self.session.map(partial(self._certify_chunk, tolerance, tolerance * norm), chunks, _sent)
        for chunk, (_, state, applications) in zip(chunks, results, strict=True):
            self._keep(chunk, state, applications)
        found, shares = [gradient for gradient, _, _ in results], self._shares(chunks)
        scaled = [{n: s * g for n, g in r.gradient.items()} for r, s in zip(found, shares, strict=True)]
        return CertifiedGradient(
            gradient=sum_gradients(scaled),
            error_bound=math.fsum(s * r.error_bound for r, s in zip(found, shares, strict=True)),
            certified=all(r.certified for r in found),
            reached=all(r.reached for r in found),
        )

    def _certify_chunk(self, tolerance: float, absolute: float, chunk: Chunk) -> tuple[CertifiedGradient, Start, int]:
        """In a worker thread."""
        b, x_true = stacked(chunk.samples)
        found = hypergradient(
            chunk.frozen,
            b,
            self.session.loss_of(chunk.samples, x_true),
            self.session.method,
            _NO_RELATIVE_TOLERANCE if absolute > 0 else tolerance,
            absolute_tolerance=absolute,
            start=self.session.warm.starts(chunk.samples, b),
        )
        gradient = CertifiedGradient(found.gradient, found.error_bound, found.certified, found.status.converged)
        return gradient, Start(found.x, found.X), found.operator_applications

    def _keep(self, chunk: Chunk, state: Start, applications: int) -> None:
        self.session.warm.keep(chunk.samples, state, chunk.owner)
        self.session.applications += applications
        self.operator_applications += applications

    def starts(self) -> Any:
        return self.session.warm.snapshot()

    def start_at(self, starts: Any) -> None:
        self.session.warm.restore(starts)


def _sent(result: tuple[R, Start, int]) -> tuple[R, Start, int]:
    """What other workers get of a chunk's result: no states."""
    found, state, applications = result
    return found, hollow_start(state), applications


def _norm(gradient: Mapping[str, Tensor]) -> float:
    return math.sqrt(math.fsum(float(g.double().square().sum()) for g in gradient.values()))
