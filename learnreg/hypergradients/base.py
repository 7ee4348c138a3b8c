"""The contract of a hypergradient method: improve (x, X) to given accuracies; the driver does the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from learnreg.losses import UpperLoss
from learnreg.lower_level.instance import Instance
from learnreg.result import Status

__all__ = ["Accuracy", "HypergradientMethod", "Iterates"]


@dataclass(frozen=True)
class Accuracy:
    """What a method should reach: a 2-norm error bound of x, and a norm of the adjoint equation's residual,
    (batch,)."""

    state: Tensor
    adjoint: Tensor


@dataclass(frozen=True)
class Iterates:
    """State and adjoint state, with how the solvers ended and how many steps they took; t is the dual pull-back that
    belongs to x, from solvers that have one; warm tells that x is not just any starting point."""

    x: Tensor
    X: Tensor
    status: Status = Status.CONVERGED
    state_steps: int = 0
    adjoint_steps: int = 0
    t: Tensor | None = None
    warm: bool = False


class HypergradientMethod(ABC):
    """How (x, X) is computed. Whatever a method does is judged by the certificate from the iterates alone."""

    name: str

    @abstractmethod
    def improve(
        self,
        instance: Instance,
        loss: UpperLoss,
        start: Iterates,
        accuracy: Accuracy,
        max_state_steps: int | None,
        max_adjoint_steps: int | None,
    ) -> Iterates:
        """Go on from ``start`` until the accuracies are met or the limits reached."""

    def fits(self, instance: Instance) -> bool:
        """Whether the method is defined for this problem."""
        return True

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
