"""What every upper-level method of a training run shares: batches, warm starts, the clock, and the gradient of a
batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from learnreg.errors import ConfigError, DataError, SolverError
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.hypergradients.compute import Start
from learnreg.losses import UpperLoss
from learnreg.lower_level.blame import blame_operators
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.training.tolerances import Audit, BatchGradient, Tolerances, audit, improve_batch

__all__ = ["Evaluation", "PairedDataset", "Session", "TimeUp"]

_AUDIT_SHARE = 0.08
_AUDIT_SAMPLES = 2
_WARM_START_BYTES = 2 * 1024**3


class PairedDataset(Protocol):
    """A map-style dataset: item i is (b, x_true), without batch axis."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]: ...


class TimeUp(Exception):  # noqa: N818 (a signal, not an error)
    """The time for upper-level training is over."""


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
    """The first samples of a batch as its gradient used them: what an audit judges."""

    b: Tensor
    x_true: Tensor
    state: Start


@dataclass
class Session:
    """The state of a training run besides the parameters.

    Chunks of a batch run in ``workers`` threads of one core each: on a CPU that is faster than splitting every small
    operation over the cores, and does not collapse when another process wants one of them.
    """

    problem: LowerLevelProblem
    dataset: PairedDataset
    loss: Callable[[Tensor], UpperLoss]
    method: HypergradientMethod
    batch_size: int
    seed: int
    seconds: float
    target: float
    tolerances: Tolerances = field(default_factory=Tolerances)
    applications: int = 0
    elapsed_before: float = 0.0
    workers: int = 1
    _pool: ThreadPoolExecutor = field(init=False)
    _warm: dict[int, Start] = field(default_factory=dict)
    _order: list[int] = field(default_factory=list)
    _epoch: int = 0
    _began: float = field(default_factory=time.monotonic)
    _audit_seconds: float = 0.0
    _last_audit_seconds: float = 0.0
    _unaudited: _Audited | None = None

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(self.workers)

    def close(self) -> None:
        """End the worker threads."""
        self._pool.shutdown()

    # ---- clock -----------------------------------------------------------------------------------------------------

    @property
    def elapsed(self) -> float:
        """Seconds of upper-level training so far, earlier runs included."""
        return self.elapsed_before + time.monotonic() - self._began

    @property
    def progress(self) -> float:
        """Share of the time that is used up, in [0, 1]."""
        return min(1.0, self.elapsed / self.seconds)

    def check_time(self) -> None:
        """Raise TimeUp when the time is over."""
        if self.elapsed >= self.seconds:
            raise TimeUp

    # ---- samples ---------------------------------------------------------------------------------------------------

    def next_batch(self) -> list[int]:
        """The next minibatch of a seeded permutation of the dataset, one after the other."""
        batch: list[int] = []
        size = min(self.batch_size, len(self.dataset))
        while len(batch) < size:
            if not self._order:
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self._epoch)
                self._order = torch.randperm(len(self.dataset), generator=generator).tolist()
                self._epoch += 1
            batch.append(self._order.pop())
        return batch

    def samples(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Measurements and ground truths, stacked.

        Raises
        ------
        DataError: an item that is not (b, x_true), or has NaN.
        """
        items = [self.dataset[i] for i in indices]
        try:
            b, x_true = (torch.stack([item[k] for item in items]) for k in range(2))
        except (TypeError, IndexError, RuntimeError) as error:
            raise DataError(
                f"dataset items {list(indices)[:4]}...: expected pairs (b, x_true) of tensors of one shape ({error})."
            ) from error
        if not (bool(torch.isfinite(b).all()) and bool(torch.isfinite(x_true).all())):
            raise DataError(f"NaN or infinite values in dataset items {list(indices)}.", hint="Clean the data.")
        return b, x_true

    def _starts(self, indices: Sequence[int], b: Tensor) -> Start:
        """Earlier states of the samples; one that is new has no latent variables, so that they are guessed for all."""
        cold = self._cold_start(b)
        states = [self._warm.get(i, Start(cold[k], torch.zeros_like(cold[k]))) for k, i in enumerate(indices)]
        columns = ([getattr(state, name) for state in states] for name in ("x", "X", "z", "Z"))
        x, X, z, Z = (None if any(v is None for v in column) else torch.stack(column) for column in columns)
        assert x is not None
        assert X is not None
        return Start(x, X, z, Z).part(slice(None), 1.0 / len(indices))

    def _cold_start(self, b: Tensor) -> Tensor:
        shape = self.problem.operator.domain_shape
        return b if tuple(b.shape[1:]) == shape else torch.zeros(b.shape[0], *shape, dtype=b.dtype, device=b.device)

    def _keep(self, indices: Sequence[int], state: Start) -> None:
        """Remember states, and adjoint states of the sum over samples: a mean's carry 1/batch, which varies."""
        item_bytes = 2 * sum(v[0].numel() * v.element_size() for v in (state.x, state.z) if v is not None)
        for k, i in enumerate(indices):
            if i in self._warm or (len(self._warm) + 1) * item_bytes <= _WARM_START_BYTES:
                self._warm[i] = state.part(k, len(indices))

    def chunks(self, indices: Sequence[int]) -> Iterator[Sequence[int]]:
        """The samples in pieces of at most batch_size, at least one for each worker."""
        size = min(self.batch_size, max(1, math.ceil(len(indices) / self.workers)))
        for first in range(0, len(indices), size):
            yield indices[first : first + size]

    # ---- loss and gradient -----------------------------------------------------------------------------------------

    def evaluate(self, indices: Sequence[int]) -> Evaluation:
        """Mean loss over the samples and its hypergradient, at the present tolerances; warm-started.

        Raises
        ------
        SolverError: the loss or the gradient is not finite. OperatorError: because of an operator.
        """
        total, square, steps = 0.0, 0.0, 0
        gradient = {name: torch.zeros_like(p) for name, p in self.problem.learnable().items()}
        self._unaudited = None
        for chunk, result, error, audited in self._pool.map(self._evaluate_chunk, list(self.chunks(indices))):
            self._unaudited = self._unaudited or audited
            share = len(chunk) / len(indices)
            total += share * result.loss
            square += share * error
            for name in gradient:
                gradient[name] += share * result.gradient[name]
            steps = max(steps, result.steps)
            self.applications += result.applications
        if not math.isfinite(total) or any(not bool(torch.isfinite(g).all()) for g in gradient.values()):
            raise self._not_finite(indices, total)
        return Evaluation(total, gradient, square, steps, self._audit_if_due())

    def _not_finite(self, indices: Sequence[int], total: float) -> SolverError:
        """What to say of a loss or gradient that is not finite; OperatorError if an operator is the cause, and
        AssumptionError if the parameters are."""
        b, x_true = self.samples(list(indices)[:1])
        blame_operators(self.problem.instance(b), x_true)
        return SolverError(
            f"the upper-level loss or its gradient is not finite (loss {total}), although parameters and operators "
            "are; lower the step size, and check a loss or a regularizer of your own."
        )

    def _evaluate_chunk(self, chunk: Sequence[int]) -> tuple[Sequence[int], BatchGradient, float, _Audited]:
        """One chunk, in a worker thread."""
        b, x_true = self.samples(chunk)
        loss = self.loss(x_true)
        result = improve_batch(self.problem, b, loss, self.method, self._starts(chunk, b), self.tolerances)
        state = result.state
        self._keep(chunk, state)
        few = slice(0, _AUDIT_SAMPLES)
        scale = len(chunk) / len(chunk[few])  # adjoint states carry 1/batch
        audited = _Audited(b[few], x_true[few], state.part(few, scale))
        return chunk, result, float((state.x - x_true).double().square().mean()), audited

    def _audit_if_due(self) -> Audit | None:
        """Audit the hypergradient of a few samples of the latest batch, if one more keeps the time of audits at its
        small share, and adapt the tolerances to what it says."""
        latest = self._unaudited
        if latest is None or self._audit_seconds + self._last_audit_seconds > _AUDIT_SHARE * self.elapsed:
            return None
        began = time.monotonic()
        found = audit(self.problem, latest.b, self.loss(latest.x_true), latest.state, self.target)
        self._last_audit_seconds = time.monotonic() - began
        self._audit_seconds += self._last_audit_seconds
        self.applications += found.applications
        self.tolerances = self.tolerances.adapted(found.relative_error, self.target)
        return found

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides parameters and optimizer."""
        return {
            "elapsed": self.elapsed,
            "applications": self.applications,
            "order": self._order,
            "epoch": self._epoch,
            "state_tolerance": self.tolerances.state,
            "adjoint_tolerance": self.tolerances.adjoint,
            "audit_seconds": self._audit_seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        try:
            self.elapsed_before = float(state["elapsed"])
            self.applications = int(state["applications"])
            self._order, self._epoch = list(state["order"]), int(state["epoch"])
            self.tolerances = Tolerances(float(state["state_tolerance"]), float(state["adjoint_tolerance"]))
            self._audit_seconds = float(state["audit_seconds"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"the checkpoint does not fit this version: {error}.") from error
        self._began = time.monotonic()
