"""What certified descent asks of an upper-level objective, and what it is told."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learnreg.lower_level.pairing import sum_gradients
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.result import Brief

__all__ = ["Accuracy", "CertifiedGradient", "Objective", "Trial"]

_MOST_AT_ONCE = 0.01
"""What an accuracy is sharpened by at once: widths follow their model no farther."""

_OF_FIRST_ORDER = 0.2
"""The same where the width is of first order: nearer to the solution it may be of second order, and much less."""


@dataclass(frozen=True)
class Accuracy:
    """How accurately the lower level is solved, without units. state: certified root-mean-square error of x over that
    of x. adjoint: residual of the adjoint equation over the gradient of the loss."""

    state: float = 3e-3
    adjoint: float = 3e-2

    def within(self, ceiling: Accuracy) -> Accuracy:
        """No looser than that."""
        return Accuracy(min(self.state, ceiling.state), min(self.adjoint, ceiling.adjoint))

    def scaled(self, factor: float) -> Accuracy:
        """Both times a factor."""
        return Accuracy(self.state * factor, self.adjoint * factor)


@dataclass(frozen=True, repr=False)
class Trial(Brief):
    """The objective at some parameters. lower, upper: contain the loss, a *rigorous bound* if ``certified``. gradient:
    the hypergradient at the computed states, without a bound. state_part, adjoint_part, first_order: what the width is
    made of, see :class:`learnreg.certificates.loss_enclosure.LossEnclosure`. limited: rounding keeps it from getting
    any narrower."""

    lower: float
    upper: float
    certified: bool
    gradient: dict[str, Tensor]
    state_part: float
    adjoint_part: float
    first_order: bool
    limited: bool = False

    @property
    def width(self) -> float:
        return self.upper - self.lower

    @property
    def loss(self) -> float:
        return 0.5 * (self.lower + self.upper)

    @classmethod
    def mean(cls, trials: Sequence[Trial], shares: Sequence[float]) -> Trial:
        """Of parts of a batch, each with its share of the samples."""
        if len(trials) == 1:
            return trials[0]

        def total(name: str) -> float:
            return math.fsum(s * getattr(t, name) for t, s in zip(trials, shares, strict=True))

        scaled = [{n: s * g for n, g in t.gradient.items()} for t, s in zip(trials, shares, strict=True)]
        finite = all(math.isfinite(t.width) for t in trials)
        return cls(
            lower=total("lower") if finite else -math.inf,
            upper=total("upper") if finite else math.inf,
            certified=all(t.certified for t in trials),
            gradient=sum_gradients(scaled),
            state_part=total("state_part"),
            adjoint_part=total("adjoint_part"),
            first_order=any(t.first_order for t in trials),
            limited=any(t.limited for t in trials),
        )

    def sharpened(self, accuracy: Accuracy, width: float) -> Accuracy:
        """The accuracy that should make the interval as narrow as ``width``."""
        if not self.width > width:
            return accuracy
        if self.first_order or not math.isfinite(self.state_part + self.adjoint_part):
            factor = 0.4 * width / self.width if math.isfinite(self.width) else 0.0
            return Accuracy(accuracy.state * max(factor, _OF_FIRST_ORDER), accuracy.adjoint)
        state = math.sqrt(min(1.0, 0.15 * width / max(self.state_part, 1e-300)))
        adjoint = min(1.0, 0.15 * width / max(state * self.adjoint_part, 1e-300))
        if adjoint < 0.1:  # a better x serves both terms
            state, adjoint = state * math.sqrt(adjoint), math.sqrt(adjoint)
        return Accuracy(accuracy.state * max(state, _MOST_AT_ONCE), accuracy.adjoint * max(adjoint, _MOST_AT_ONCE))

    def relaxed(self, accuracy: Accuracy, width: float) -> Accuracy:
        """A looser accuracy for what comes next, where the interval is much narrower than ``width``."""
        return accuracy if self.width > 0.1 * width else accuracy.scaled(1.2)


@dataclass(frozen=True, repr=False)
class CertifiedGradient(Brief):
    """A hypergradient with its error bound, in the 2-norm over all parameters, a *rigorous bound* if ``certified``.
    reached: whether it meets the tolerance."""

    gradient: dict[str, Tensor]
    error_bound: float
    certified: bool
    reached: bool


class Objective(ABC):
    """theta -> the mean loss of the lower-level solutions of some samples, warm-started from call to call.

    problem: its learnable parameters are theta. operator_applications: so far. latest: the trial at the present
    parameters, None where they have changed since the last one.
    """

    problem: LowerLevelProblem
    operator_applications: int = 0
    _latest: tuple[dict[str, Tensor], Trial] | None = None

    @property
    def latest(self) -> Trial | None:
        if self._latest is None:
            return None
        at, trial = self._latest
        same = all(torch.equal(p, at[name]) for name, p in self.problem.learnable().items())
        return trial if same else None

    def evaluate(self, accuracy: Accuracy) -> Trial:
        """Loss interval and gradient at the present parameters, from one solve and one adjoint solve."""
        trial = self._evaluate(accuracy)
        self._latest = ({name: p.detach().clone() for name, p in self.problem.learnable().items()}, trial)
        return trial

    @abstractmethod
    def _evaluate(self, accuracy: Accuracy) -> Trial:
        """The same, not kept."""

    @abstractmethod
    def certified_gradient(self, tolerance: float) -> CertifiedGradient:
        """The gradient at the present parameters with an error bound of ``tolerance`` times its norm, if reachable."""

    @abstractmethod
    def starts(self) -> Any:
        """Where the next call starts."""

    @abstractmethod
    def start_at(self, starts: Any) -> None:
        """Start the next call there."""

    def snapshot(self) -> Any:
        """What calls change, but the count."""
        return self._latest, self.starts()

    def restore(self, snapshot: Any) -> None:
        """Go back to ``snapshot``."""
        self._latest, starts = snapshot
        self.start_at(starts)

    def latest_state(self) -> dict[str, Any]:
        """The latest trial, for checkpoints."""
        if self._latest is None:
            return {}
        at, trial = self._latest
        fields = {f.name: getattr(trial, f.name) for f in dataclasses.fields(trial)}
        return {"at": at, "trial": fields}

    def load_latest(self, state: dict[str, Any]) -> None:
        """Remember what ``latest_state`` returned."""
        self._latest = (state["at"], Trial(**state["trial"])) if state else None
