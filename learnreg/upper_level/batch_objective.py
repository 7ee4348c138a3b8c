"""The upper-level objective on one batch: certified values and hypergradients, warm-started from call to call."""

from __future__ import annotations

import math
from collections.abc import Callable
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


class BatchObjective:
    """theta -> loss of the lower-level solutions of a batch.

    Parameters
    ----------
    problem, b, loss: as in :func:`learnreg.hypergradient`.
    method: of the hypergradients; ``Implicit()`` by default.
    certificate: of the hypergradients, as in :func:`learnreg.hypergradient`.

    States and adjoint states of earlier calls are the starting points of later ones. ``operator_applications`` counts
    everything so far.
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
        self.operator_applications = 0

    def state_dict(self) -> dict[str, Any]:
        """Where the next call starts."""
        start = self.start
        return {} if start is None else {"x": start.x, "X": start.X, "z": start.z, "Z": start.Z}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start the next call where it was after ``state_dict``."""
        self.start = Start(**state) if state else None

    def gradient(
        self, tolerance: float, absolute_tolerance: float = 0.0, max_steps: int | None = None
    ) -> Hypergradient:
        """The hypergradient at the current parameters, with its bound."""
        result = hypergradient(
            self.problem,
            self.b,
            self.loss,
            self.method,
            tolerance,
            absolute_tolerance=absolute_tolerance,
            max_steps=max_steps,
            certificate=self.certificate,
            start=self.start,
        )
        self.start = Start.after(result)
        self.operator_applications += result.operator_applications
        return result

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


def _size(t: Tensor) -> float:
    """The root mean square, of numbers of any size; 0.0 where it is not finite."""
    largest = float(t.abs().max()) if t.numel() else 0.0
    if not (largest > 0 and math.isfinite(largest)):
        return 0.0
    return largest * float((t.double() / largest).square().mean().sqrt())
