"""A bilevel problem as the objective of certified descent and of torch's optimizers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from learnreg.hypergradients.base import HypergradientMethod
from learnreg.hypergradients.compute import CertificateName, Start
from learnreg.linear.arguments import check_type
from learnreg.result import Hypergradient
from learnreg.upper_level.batch_objective import BatchObjective, CertifiedValue
from learnreg.upper_level.bilevel_problem import PosedProblem
from learnreg.upper_level.objective import Accuracy, Trial

__all__ = ["BilevelObjective"]


class BilevelObjective(BatchObjective):
    """theta -> loss of a :class:`PosedProblem`, for :class:`AdaptiveDescent`, ``closure()`` for ``torch.optim``.

    Parameters
    ----------
    posed: ``BilevelProblem.at(theta, x, data)``; steps change the tensors of theta in place.
    project: called without arguments after each accepted step, to bring theta back to its admissible set.
    method, certificate: as in :class:`BatchObjective`.

    Raises
    ------
    ConfigError: something that is no posed problem.

    Examples
    --------
    >>> def lower(x, theta, data):
    ...     return 0.5 * (x - data).square().sum() + 0.5 * theta.exp() * x.square().sum()
    >>> def upper(x, theta, data):
    ...     return 0.5 * (x - 1.0).square().sum()
    >>> problem = lr.BilevelProblem(lower, upper, strong_convexity=1.0)
    >>> theta, x, data = (torch.full((), 0.5, dtype=torch.float64) for _ in range(3))
    >>> objective = lr.BilevelObjective(problem.at(theta, x, data))
    >>> round(float(objective.gradient(tolerance=1e-3).loss), 3)
    0.329
    """

    def __init__(
        self,
        posed: PosedProblem,
        method: HypergradientMethod | None = None,
        certificate: CertificateName = "auto",
        project: Callable[[], Any] | None = None,
    ) -> None:
        check_type(posed, PosedProblem, "BilevelObjective(posed)", "lr.BilevelProblem(...).at(theta, x, data)")
        super().__init__(posed.problem, posed.b, posed.loss, method, certificate)
        posed.function.project = project
        self.posed = posed

    @property
    def x(self) -> Any:
        """The latest lower-level solution, in the form of the starting point."""
        return self.posed.shaped(self._state())

    def _settle(self) -> None:
        """Start on the face of the linear constraints that holds the solution."""
        start = self.start or Start(self.posed.start, 0.0 * self.posed.start)
        self.start = replace(start, x=self.posed.settled(start.x))

    def _is_sure(self) -> bool:
        return self.posed.faces is None or not self.posed.faces.standing().reason

    def value(self, width: float, floor: float = 1e-7) -> CertifiedValue:
        self._settle()
        found = super().value(width, floor)
        return found if self._is_sure() else replace(found, certified=False)

    def _evaluate(self, accuracy: Accuracy) -> Trial:
        self._settle()
        trial = super()._evaluate(accuracy)
        direct = self.posed.direct(self._state().double())
        whole = {name: (g.double() + direct[name]).to(g) for name, g in trial.gradient.items()}
        return replace(trial, gradient=whole, certified=trial.certified and self._is_sure())

    def _hypergradient(self, tolerance: float, **options: Any) -> Hypergradient:
        """In all of theta, with the direct term."""
        return self.posed.flat_hypergradient(self.method, tolerance, **options)

    def _state(self) -> Tensor:
        return self.posed.start if self.start is None else self.start.x
