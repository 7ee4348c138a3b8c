"""The upper-level objective on one batch: certified values and hypergradients, warm-started from call to call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learnreg.hypergradients.base import HypergradientMethod
from learnreg.hypergradients.compute import CertificateName, Start, check_certificate, hypergradient
from learnreg.hypergradients.implicit import chosen_method
from learnreg.linear.arguments import check_type, real_number
from learnreg.linear.grad_mode import usable
from learnreg.losses import UpperLoss, check_loss
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.result import Hypergradient, Solution
from learnreg.solvers.solve import solve
from learnreg.upper_level.evaluation import evaluate_batch
from learnreg.upper_level.objective import Accuracy, CertifiedGradient, Objective, Trial

__all__ = ["BatchObjective", "CertifiedValue"]


@dataclass(frozen=True)
class CertifiedValue:
    """The upper-level loss at the current parameters: an interval that contains it (a *rigorous bound* if
    ``certified``), and the lower-level solution it came from."""

    lower: float
    upper: float
    certified: bool
    solution: Solution

    @property
    def width(self) -> float:
        return self.upper - self.lower


class BatchObjective(Objective):
    """theta -> loss of the lower-level solutions of a batch.

    Parameters
    ----------
    problem, b, loss: as in :func:`learnreg.hypergradient`.
    method: of the hypergradients; ``Implicit()`` by default.
    certificate: of the hypergradients, as in :func:`learnreg.hypergradient`.

    States and adjoint states of earlier calls are the starting points of later ones. ``operator_applications`` counts
    everything so far.

    Raises
    ------
    ConfigError: an argument of another kind.
    ShapeError: measurements that are not in the range of the operator.

    Examples
    --------
    >>> problem = lr.LowerLevelProblem(lr.operators.Identity((1, 8, 8)), lr.regularizers.TotalVariation(0.1))
    >>> objective = lr.BatchObjective(problem, torch.rand(1, 1, 8, 8), lr.SquaredError(torch.full((1, 1, 8, 8), 0.5)))
    >>> objective.gradient(tolerance=0.1).certified
    True
    """

    def __init__(
        self,
        problem: LowerLevelProblem,
        b: Tensor,
        loss: UpperLoss,
        method: HypergradientMethod | None = None,
        certificate: CertificateName = "auto",
    ) -> None:
        check_type(problem, LowerLevelProblem, "BatchObjective(problem)", "a LowerLevelProblem")
        problem.operator.check_range(b, "b")
        self.problem, self.b, self.loss = problem, usable(b), check_loss(loss)
        self.certificate = check_certificate(certificate)
        self.method = chosen_method(method)
        self.start: Start | None = None

    def state_dict(self) -> dict[str, Any]:
        """Where the next call starts, and the latest trial."""
        start = self.start
        states = {} if start is None else dict(vars(start))
        return {"start": states, "latest": self.latest_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start the next call where it was after ``state_dict``."""
        start = state.get("start", {})
        self.start = Start(**start) if start else None
        self.load_latest(state.get("latest", {}))

    def starts(self) -> Start | None:
        return self.start

    def start_at(self, starts: Start | None) -> None:
        self.start = starts

    def _evaluate(self, accuracy: Accuracy) -> Trial:
        parts = self.problem.frozen().parts(self.b)
        whole = len(parts) == 1
        trials, states = [], []
        for index, frozen in parts:
            b = self.b if whole else self.b[index]
            loss = self.loss if whole else self.loss.part(index, len(self.b))
            start = self.start if whole or self.start is None else self.start.part(index, len(self.b) / len(index))
            trial, state, applications = evaluate_batch(frozen, b, loss, self.method, start, accuracy)
            trials.append(trial)
            states.append(state)
            self.operator_applications += applications
        shares = [len(index) / len(self.b) for index, _ in parts]
        self.start = states[0] if whole else _joined(states, [index for index, _ in parts], shares)
        return Trial.mean(trials, shares)

    def certified_gradient(self, tolerance: float) -> CertifiedGradient:
        found = self.gradient(tolerance)
        return CertifiedGradient(found.gradient, found.error_bound, found.certified, found.status.converged)

    def gradient(
        self, tolerance: float, absolute_tolerance: float = 0.0, max_steps: int | None = None
    ) -> Hypergradient:
        """The hypergradient at the current parameters, with its bound."""
        result = self._hypergradient(
            tolerance,
            absolute_tolerance=absolute_tolerance,
            max_steps=max_steps,
            certificate=self.certificate,
            start=self.start,
        )
        self.start = Start.after(result)
        self.operator_applications += result.operator_applications
        return result

    def _hypergradient(self, tolerance: float, **options: Any) -> Hypergradient:
        return hypergradient(self.problem, self.b, self.loss, self.method, tolerance, **options)

    def value(self, width: float, floor: float = 1e-7) -> CertifiedValue:
        """Bracket the loss at the current parameters by an interval of at most the given width, if the accuracy that
        takes (a root-mean-square error, not below ``floor`` times the root mean square of x) can be reached."""
        if not (isinstance(width, float) and not width < 0):
            width = real_number(width, "width", least=0.0)
        x = self.b if self.start is None else self.start.x
        if x.shape[1:] != self.problem.operator.domain_shape:
            x = torch.zeros(self.b.shape[0], *self.problem.operator.domain_shape).to(self.b)
        slope = self.loss.gradient(x).double().flatten(1).norm(dim=1).sum()
        per_rms = 2.0 * float(slope) * math.sqrt(math.prod(self.problem.operator.domain_shape))
        floor = floor * (_size(x) or _size(self.b) or 1.0)
        tolerance = max(0.5 * width / max(per_rms, 1e-300), floor)
        start = None if self.start is None else self.start.x
        for _ in range(4):
            solution = solve(self.problem, self.b, tolerance, start=start)
            self.operator_applications += solution.operator_applications
            start = solution.x
            error = solution.error_bound.double() * math.sqrt(math.prod(self.problem.operator.domain_shape))
            x = solution.x.double()
            lower, upper = self.loss.interval(x, error)
            if upper - lower <= width or not solution.status.converged or tolerance <= floor:
                break
            tolerance = max(0.5 * tolerance * width / (upper - lower), floor)
        if self.start is not None:
            self.start = Start(solution.x, self.start.X)
        certified = solution.certified and math.isfinite(upper) and self.loss.computes_in(x) == torch.float64
        return CertifiedValue(lower, upper, certified, solution)

    def closure(
        self, tolerance: float = 1e-1, callback: Callable[[Hypergradient], None] | None = None
    ) -> Callable[[], Tensor]:
        """A closure for ``torch.optim`` (Adam, LBFGS, ...): writes the hypergradient into ``.grad`` and returns the
        loss.

        Parameters
        ----------
        tolerance: relative, of the hypergradient.
        callback: gets each Hypergradient, to look at its bound.
        """

        def evaluate() -> Tensor:
            result = self.gradient(tolerance)
            for name, p in self.problem.learnable().items():
                p.grad = result.gradient[name].clone()
            if callback is not None:
                callback(result)
            return torch.tensor(result.loss)

        return evaluate


def _joined(states: Sequence[Start], indices: Sequence[Tensor], shares: Sequence[float]) -> Start:
    """States of parts of a batch, as those of the batch, whose adjoint states carry 1/batch."""
    order = torch.cat(list(indices)).argsort()
    scaled = [state.part(slice(None), share) for state, share in zip(states, shares, strict=True)]
    columns = ([getattr(state, name) for state in scaled] for name in ("x", "X", "z", "Z"))
    x, X, z, Z = (None if any(v is None for v in c) else torch.cat(c)[order] for c in columns)
    assert x is not None
    assert X is not None
    return Start(x, X, z, Z)


def _size(t: Tensor) -> float:
    """The root mean square, of numbers of any size; 0.0 where it is not finite."""
    largest = float(t.abs().max()) if t.numel() else 0.0
    if not (largest > 0 and math.isfinite(largest)):
        return 0.0
    return largest * float((t.double() / largest).square().mean().sqrt())
