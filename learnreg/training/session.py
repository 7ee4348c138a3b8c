"""What every upper-level method of a training run shares: the gradient of a batch, by way of the run's samples, warm
starts, workers and clock."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from learnreg.errors import CheckpointError, DataError, SolverError
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.hypergradients.compute import Start
from learnreg.linear.operator import LinearOperator
from learnreg.losses import UpperLoss, loss_at
from learnreg.lower_level.blame import blame_operators
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.training.clock import Clock
from learnreg.training.group import Group
from learnreg.training.memory import check_memory
from learnreg.training.messages import digest
from learnreg.training.noise_levels import check_levels, weighted
from learnreg.training.options import TrainingOptions
from learnreg.training.samples import Reader, Sample, grouped, stacked
from learnreg.training.schedule import AuditCount
from learnreg.training.sources import BATCH_SIZE, Source, TrainingData, source_of
from learnreg.training.tolerances import Audit, BatchGradient, Tolerances, audit, improve_batch
from learnreg.training.warm_starts import WarmStarts, hollow_start
from learnreg.training.workers import Workers, pieces

__all__ = ["Chunk", "Evaluation", "Session"]

R = TypeVar("R")

_AUDIT_SAMPLES = 2
_DISTANCE_SHARE = 0.5
"""Of the tolerance, what the estimated error of a gradient should be at most: its bound needs the rest."""

_LARGEST_VALUE = 16.0


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and hypergradient over some samples. mean_square: mean squared error per pixel. audit: of a few of the
    samples, at the same parameters, if one was due."""

    loss: float
    gradient: dict[str, Tensor]
    mean_square: float
    lower_level_steps: int
    audit: Audit | None


@dataclass(frozen=True)
class Chunk:
    """Samples of one kind, for one thread of one worker, their owner, and the lower-level problem of their kind."""

    frozen: FrozenProblem
    samples: Sequence[Sample]
    owner: int


@dataclass(frozen=True)
class _Audited:
    """The first samples of a batch as its gradient used them: what an audit judges. state: where the gradient was
    formed, or where a method that returns one of its own began, at the tolerances ``own``."""

    frozen: FrozenProblem
    b: Tensor
    loss: UpperLoss
    state: Start
    own: Tolerances | None = None


@dataclass(frozen=True)
class _Solved:
    """A chunk at the present tolerances. square: mean squared error per pixel. audited: None at other workers."""

    found: BatchGradient
    square: float
    audited: _Audited | None

    def sent(self) -> _Solved:
        """What other workers need of it."""
        return _Solved(replace(self.found, state=hollow_start(self.found.state)), self.square, None)


class Session:
    """The state of a training run besides the parameters.

    Parameters
    ----------
    target: relative error of the hypergradients, which audits hold by way of ``tolerances``.
    source, clock, workers, warm: the parts of the run; ``close`` ends the workers.
    audit_every: gradients from one audit to the next.
    chunk_size: samples in a chunk at most.
    group: the workers that share the batches.
    noise_weighting: of the losses of samples by their noise levels.
    """

    def __init__(
        self,
        problem: LowerLevelProblem,
        loss: Callable[[Tensor], UpperLoss],
        method: HypergradientMethod,
        target: float,
        *,
        source: Source,
        clock: Clock,
        workers: Workers,
        warm: WarmStarts,
        audit_every: int = 10,
        chunk_size: int = 8,
        group: Group | None = None,
        noise_weighting: str = "none",
    ) -> None:
        self.problem, self.loss, self.method, self.target = problem, loss, method, target
        self.noise_weighting = noise_weighting
        self.source, self.clock, self.workers, self.warm = source, clock, workers, warm
        self.chunk_size, self.group = chunk_size, Group() if group is None else group
        self.tolerances = Tolerances()
        self.applications = 0
        self.audits = AuditCount(audit_every)
        self._unaudited: _Audited | None = None

    @classmethod
    def of(
        cls,
        problem: LowerLevelProblem,
        data: TrainingData,
        loss: Callable[[Tensor], UpperLoss],
        options: TrainingOptions,
        group: Group | None = None,
    ) -> Session:
        """What the options ask for.

        Raises
        ------
        DataError, ConfigError: data of another kind, or that the problem cannot use.
        """
        workers, group = Workers(options.workers), Group() if group is None else group
        try:
            chunk_size = options.chunk(options.batch_size or getattr(data, "batch_size", None) or BATCH_SIZE)
            source = source_of(
                data, Reader(problem.operator), workers, options.batch_size, options.seed, group, chunk_size
            )
            first = source.first(1)
            if not first:
                raise DataError("the dataset is empty.", hint="Pass at least one pair (b, x_true).")
            check_levels(problem, first[0].sigma, options.noise_weighting)
            at_once = source.largest_batch if options.optimizer == "adam" else source.count(options.most_samples)
            check_memory(problem, first[0], at_once, chunk_size, options.workers)
            loss_at(loss, first[0].x_true[None])
            _warn_of_units(problem.operator, first[0])
        except BaseException:
            workers.close()
            raise
        clock = Clock(options.seconds)
        clock.agree = group.first
        return cls(
            problem,
            loss,
            options.method,
            options.tolerance,
            source=source,
            clock=clock,
            workers=workers,
            warm=WarmStarts(group=group),
            audit_every=options.audit_every,
            chunk_size=chunk_size,
            group=group,
            noise_weighting=options.noise_weighting,
        )

    @torch.no_grad()
    def share_problem(self) -> None:
        """Let all workers of a group begin with the parameters of the first one.

        Raises
        ------
        WorkerError: their problems differ in something else.
        """
        learnable = self.problem.learnable()
        self.group.place = next(iter(learnable.values())).device
        for name, value in self.group.first(lambda: learnable).items():
            if value is not learnable[name]:
                learnable[name].copy_(value)
        if self.source.batch_size <= (self.group.size - 1) * self.chunk_size:
            self.group.first(self._warn_of_idle_workers)
        fixed = {name: t for name, t in self.problem.state_dict().items() if name not in learnable}
        self.group.check_same("the problem", lambda: {name: digest(t) for name, t in fixed.items()})

    def _warn_of_idle_workers(self) -> None:
        found = math.ceil(self.source.batch_size / self.chunk_size)
        warnings.warn(
            f"train: a batch of {self.source.batch_size} samples is {found} chunks of {self.chunk_size} for "
            f"{self.group.size} workers; the others are idle. Give a smaller chunk_size, or a larger batch_size.",
            stacklevel=6,
        )

    def close(self, wait: bool = True) -> None:
        """End the worker threads, and wait for what they have begun."""
        self.workers.close(wait)

    # ---- loss and gradient -----------------------------------------------------------------------------------------

    def chunks(self, samples: Sequence[Sample], largest: int | None = None) -> list[Chunk]:
        """The samples for the workers, at most ``largest`` in a chunk, at the problem's present parameters."""
        size = self.chunk_size if largest is None else min(largest, self.chunk_size)
        frozen = self.problem.frozen()  # once: chunks, workers and the audit share what depends on theta
        found = [
            (frozen.of_kind(tuple(kind[0].x_true.shape), kind[0].sigma), piece)
            for kind in grouped(samples)
            for piece in pieces(kind, size)
        ]
        return [Chunk(part, piece, self.group.owner(k, len(found))) for k, (part, piece) in enumerate(found)]

    def loss_of(self, samples: Sequence[Sample], x_true: Tensor) -> UpperLoss:
        """The loss of samples of one kind, with their ground truths, as their noise level weights it."""
        return weighted(loss_at(self.loss, x_true), self.noise_weighting, samples[0].sigma)

    def map(self, function: Callable[[Chunk], R], chunks: Sequence[Chunk], sent: Callable[[R], R]) -> list[R]:
        """Results of all chunks, each solved by its owner, where its samples are and their earlier states. sent: what
        the other workers get of a result."""
        self.warm.bring([(chunk.samples, chunk.owner) for chunk in chunks])
        owners = [chunk.owner for chunk in chunks]
        return self.group.map(self.workers.map, lambda chunk: function(self._whole(chunk)), chunks, sent, owners)

    def _whole(self, chunk: Chunk) -> Chunk:
        return replace(chunk, samples=self.source.whole(chunk.samples))

    def evaluate(self, samples: Sequence[Sample]) -> Evaluation:
        """Mean loss over the samples and its hypergradient, at the present tolerances; warm-started.

        Raises
        ------
        SolverError: the loss or the gradient is not finite. OperatorError: because of an operator.
        """
        total, square, steps = 0.0, 0.0, 0
        chunks = self.chunks(samples)
        parameters = chunks[0].frozen.parameters
        sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
        results = self.map(self._evaluate_chunk, chunks, _Solved.sent)
        self._unaudited = results[0].audited
        for chunk, solved in zip(chunks, results, strict=True):  # in this order: sums of floats depend on it
            result, share = solved.found, len(chunk.samples) / len(samples)
            self.warm.keep(chunk.samples, result.state, chunk.owner)  # not before all have read theirs
            total += share * result.loss
            square += share * solved.square
            for name in sums:
                sums[name].add_(result.gradient[name].to(sums[name]), alpha=share)
            steps = max(steps, result.steps)
            self.applications += result.applications
        gradient = {name: sums[name].to(p) for name, p in parameters.items()}
        if not math.isfinite(total) or any(not bool(torch.isfinite(g).all()) for g in gradient.values()):
            self.group.first(lambda: self._refuse(chunks[0], total))
        return Evaluation(total, gradient, square, steps, self._audit_if_due())

    def _refuse(self, chunk: Chunk, total: float) -> None:
        """SolverError for a loss or gradient that is not finite; OperatorError if an operator is the cause, and
        AssumptionError if the parameters are."""
        b, x_true = stacked(self.source.whole(chunk.samples[:1]))
        blame_operators(chunk.frozen.first_stage.at(b), x_true)
        raise SolverError(
            f"the upper-level loss or its gradient is not finite (loss {total}), although parameters and operators "
            "are; lower the step size, and check a loss or a regularizer of your own."
        )

    def _evaluate_chunk(self, chunk: Chunk) -> _Solved:
        """One chunk, in a worker thread."""
        b, x_true = stacked(chunk.samples)
        loss = self.loss_of(chunk.samples, x_true)
        start = self.warm.starts(chunk.samples, b)
        tolerances = self.tolerances.at(chunk.samples[0].sigma)
        result = improve_batch(chunk.frozen, b, loss, self.method, start, tolerances)
        state = result.state
        few = slice(0, _AUDIT_SAMPLES)
        scale = len(b) / len(b[few])  # adjoint states carry 1/batch
        formed = start if result.own else state
        few_loss = self.loss_of(chunk.samples, x_true[few])
        audited = _Audited(chunk.frozen, b[few], few_loss, formed.part(few, scale), tolerances if result.own else None)
        return _Solved(result, float((state.x - x_true).double().square().mean()), audited)

    def _audit_if_due(self) -> Audit | None:
        """Audit the hypergradient of a few samples of the latest batch, if one is due, and adapt the tolerances to what
        it says."""
        if not self.audits.next():
            return None
        found = self.group.first(lambda: self.workers.call(self._audit, self._unaudited))  # it has the first chunk
        self.applications += found.applications
        self.tolerances = self.tolerances.adapted(found.distance / _DISTANCE_SHARE, self.target)
        return found

    def audit_samples(self, samples: Sequence[Sample]) -> Audit:
        """Audit the hypergradient of the first of these samples at the states where they were left."""
        chunk = self.chunks(samples[:1])[0]
        few = [sample for sample in samples if sample.kind == samples[0].kind][:_AUDIT_SAMPLES]
        self.warm.bring([(few, 0)])

        def judged() -> Audit:
            b, x_true = stacked(self.source.whole(few))
            return self._audit(_Audited(chunk.frozen, b, self.loss_of(few, x_true), self.warm.starts(few, b)))

        found = self.group.first(lambda: self.workers.call(judged))
        self.applications += found.applications
        return found

    def _audit(self, latest: _Audited) -> Audit:
        """In a thread. A method that returns a gradient runs again, on these samples alone."""
        loss = latest.loss
        used: BatchGradient | Start = latest.state
        if latest.own is not None:
            used = improve_batch(latest.frozen, latest.b, loss, self.method, latest.state, latest.own)
        return audit(latest.frozen, latest.b, loss, used, self.target)

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """What an update changes, but the time; in little memory of its own."""
        return {**self._counted(), "warm": self.warm.snapshot()}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go back to where ``snapshot`` was called."""
        self._load_counted(snapshot)
        self.warm.restore(snapshot["warm"])

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides parameters and optimizer: one flat table, whose keys are those of the
        parts.

        Raises
        ------
        WorkerError: workers of a group that differ.
        """
        self.group.check_same("what they have computed", self._digests)
        return {**self.clock.state_dict(), **self._counted(), **self.warm.state_dict()}

    def _digests(self) -> dict[str, str]:
        """What is the same at all workers, in short."""
        numbers = {name: digest(p) for name, p in self.problem.learnable().items()}
        return {**numbers, "samples drawn, tolerances and counts": digest(self._counted())}

    def load_state_dict(self, state: dict[str, Any], same_data: bool = True) -> None:
        """Go on from a checkpoint; ``same_data``: False where it is of other data, whose order and states are left out.

        Raises
        ------
        CheckpointError: a checkpoint of another shape.
        """
        try:
            self._load_counted(state, same_data)
            if same_data:
                self.warm.load_state_dict(state)
            self.clock.load_state_dict(state)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint does not fit this version: {error}.") from error

    def _counted(self) -> dict[str, Any]:
        return {
            "applications": self.applications,
            **self.source.state_dict(),
            "state_tolerance": self.tolerances.state,
            "adjoint_tolerance": self.tolerances.adjoint,
            "target": self.target,
            **self.audits.state_dict(),
        }

    def _load_counted(self, state: dict[str, Any], same_data: bool = True) -> None:
        self.applications = int(state["applications"])
        self.tolerances = Tolerances(float(state["state_tolerance"]), float(state["adjoint_tolerance"]))
        self.target = float(state.get("target", self.target))
        if same_data:
            self.source.load_state_dict(state)
        self.audits.load_state_dict(state)


@torch.no_grad()
def _warn_of_units(operator: LinearOperator, sample: Sample) -> None:
    """Warn of images that look like 0..255; of measurements that are images, too, and do not have the size of what the
    operator makes of the true one, as k-space has."""
    largest = float(sample.x_true.abs().max())
    if sample.b.shape == sample.x_true.shape:
        made = operator(sample.x_true[None].to(operator._device(), sample.b.dtype)).abs().max()
        largest = max(largest, float(sample.b.abs().max()) / max(float(made), 1.0))
    if largest > _LARGEST_VALUE:
        warnings.warn(
            f"train: images reach {largest:g}. Initial weights and smoothings are meant for images between 0 "
            "and about 1: divide images and measurements by their largest value, or choose them for these units.",
            stacklevel=6,
        )
