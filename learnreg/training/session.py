"""What every upper-level method of a training run shares: the gradient of a batch, by way of the run's samples, warm
starts, workers and clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from learnreg.errors import ConfigError, SolverError
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.hypergradients.compute import Start
from learnreg.losses import UpperLoss, loss_at
from learnreg.lower_level.blame import blame_operators
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.training.clock import AuditBudget, Clock
from learnreg.training.options import TrainingOptions
from learnreg.training.sampler import PairedDataset, Sampler, WarmStarts
from learnreg.training.tolerances import Audit, BatchGradient, Tolerances, audit, improve_batch
from learnreg.training.workers import Workers

__all__ = ["Evaluation", "Session"]

_AUDIT_SAMPLES = 2


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
class _Audited:
    """The first samples of a batch as its gradient used them: what an audit judges. state: where the gradient was
    formed, or where a method that returns one of its own began."""

    b: Tensor
    x_true: Tensor
    state: Start
    own: bool


class Session:
    """The state of a training run besides the parameters.

    Parameters
    ----------
    target: relative error of the hypergradients, which audits hold by way of ``tolerances``.
    sampler, clock, workers, warm: the parts of the run; ``close`` ends the workers.
    """

    def __init__(
        self,
        problem: LowerLevelProblem,
        loss: Callable[[Tensor], UpperLoss],
        method: HypergradientMethod,
        target: float,
        *,
        sampler: Sampler,
        clock: Clock,
        workers: Workers,
        warm: WarmStarts,
    ) -> None:
        self.problem, self.loss, self.method, self.target = problem, loss, method, target
        self.sampler, self.clock, self.workers, self.warm = sampler, clock, workers, warm
        self.tolerances = Tolerances()
        self.applications = 0
        self.audits = AuditBudget(clock)
        self._unaudited: _Audited | None = None

    @classmethod
    def of(
        cls,
        problem: LowerLevelProblem,
        dataset: PairedDataset,
        loss: Callable[[Tensor], UpperLoss],
        options: TrainingOptions,
    ) -> Session:
        """What the options ask for."""
        return cls(
            problem,
            loss,
            options.method,
            options.tolerance,
            sampler=Sampler(dataset, options.batch_size, options.seed),
            clock=Clock(60.0 * options.minutes),
            workers=Workers(options.workers),
            warm=WarmStarts(problem.operator.domain_shape),
        )

    def close(self, wait: bool = True) -> None:
        """End the worker threads, and wait for what they have begun."""
        self.workers.close(wait)

    # ---- loss and gradient -----------------------------------------------------------------------------------------

    def evaluate(self, indices: Sequence[int]) -> Evaluation:
        """Mean loss over the samples and its hypergradient, at the present tolerances; warm-started.

        Raises
        ------
        SolverError: the loss or the gradient is not finite. OperatorError: because of an operator.
        """
        total, square, steps = 0.0, 0.0, 0
        frozen = self.problem.frozen()  # once: chunks, workers and the audit share what depends on theta
        gradient = {name: torch.zeros_like(p) for name, p in frozen.parameters.items()}
        self._unaudited = None
        chunks = self.workers.chunks(indices, self.sampler.batch_size)
        for chunk, result, error, audited in self.workers.map(partial(self._evaluate_chunk, frozen), chunks):
            self._unaudited = self._unaudited or audited
            share = len(chunk) / len(indices)
            total += share * result.loss
            square += share * error
            for name in gradient:
                gradient[name] += share * result.gradient[name]
            steps = max(steps, result.steps)
            self.applications += result.applications
        if not math.isfinite(total) or any(not bool(torch.isfinite(g).all()) for g in gradient.values()):
            raise self._not_finite(frozen, indices, total)
        return Evaluation(total, gradient, square, steps, self._audit_if_due(frozen))

    def _not_finite(self, frozen: FrozenProblem, indices: Sequence[int], total: float) -> SolverError:
        """What to say of a loss or gradient that is not finite; OperatorError if an operator is the cause, and
        AssumptionError if the parameters are."""
        b, x_true = self.sampler.items(list(indices)[:1])
        blame_operators(frozen.at(b), x_true)
        return SolverError(
            f"the upper-level loss or its gradient is not finite (loss {total}), although parameters and operators "
            "are; lower the step size, and check a loss or a regularizer of your own."
        )

    def _evaluate_chunk(
        self, frozen: FrozenProblem, chunk: Sequence[int]
    ) -> tuple[Sequence[int], BatchGradient, float, _Audited]:
        """One chunk, in a worker thread."""
        b, x_true = self.sampler.items(chunk)
        loss = loss_at(self.loss, x_true)
        start = self.warm.starts(chunk, b)
        result = improve_batch(frozen, b, loss, self.method, start, self.tolerances)
        state = result.state
        self.warm.keep(chunk, state)
        few = slice(0, _AUDIT_SAMPLES)
        scale = len(chunk) / len(chunk[few])  # adjoint states carry 1/batch
        formed = start if result.own else state
        audited = _Audited(b[few], x_true[few], formed.part(few, scale), result.own)
        return chunk, result, float((state.x - x_true).double().square().mean()), audited

    def _audit_if_due(self, frozen: FrozenProblem) -> Audit | None:
        """Audit the hypergradient of a few samples of the latest batch, if there is time for one, and adapt the
        tolerances to what it says."""
        latest = self._unaudited
        if latest is None or not self.audits.due:
            return None
        began = time.monotonic()
        found = self.workers.call(self._audit, frozen, latest)
        self.audits.charge(time.monotonic() - began)
        self.applications += found.applications
        self.tolerances = self.tolerances.adapted(found.relative_error, self.target)
        return found

    def _audit(self, frozen: FrozenProblem, latest: _Audited) -> Audit:
        """In a worker thread. A method that returns a gradient runs again, on these samples alone."""
        loss = loss_at(self.loss, latest.x_true)
        used: BatchGradient | Start = latest.state
        if latest.own:
            used = improve_batch(frozen, latest.b, loss, self.method, latest.state, self.tolerances)
        return audit(frozen, latest.b, loss, used, self.target)

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides parameters and optimizer: one flat table, whose keys are those of the
        parts."""
        return {
            **self.clock.state_dict(),
            "applications": self.applications,
            **self.sampler.state_dict(),
            "state_tolerance": self.tolerances.state,
            "adjoint_tolerance": self.tolerances.adjoint,
            **self.audits.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises
        ------
        ConfigError: a checkpoint of another shape.
        """
        try:
            self.applications = int(state["applications"])
            self.tolerances = Tolerances(float(state["state_tolerance"]), float(state["adjoint_tolerance"]))
            for part in (self.sampler, self.audits, self.clock):
                part.load_state_dict(state)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"the checkpoint does not fit this version: {error}.") from error
