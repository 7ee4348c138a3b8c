"""What solves return: a status that ends in advice, the solution, the hypergradient, and their bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

import torch
from torch import Tensor

__all__ = ["BoundKind", "Certificate", "History", "Hypergradient", "Solution", "Status"]

BoundKind = Literal["rigorous", "estimate", "none"]


class Status(Enum):
    """How a solve ended; the value is a sentence that ends in advice."""

    CONVERGED = "The certified error bound meets the tolerance; nothing to do."
    ESTIMATED = "The estimated error meets the tolerance, but no bound exists; the reason says what it lacks."
    MAX_STEPS = "The step limit was reached before the tolerance; raise max_steps or the tolerance."
    STAGNATED = "The error bound no longer falls; loosen the tolerance, or smooth the potential more."
    INDEFINITE = "The energy curves downwards at x, where no minimum is; use a larger ridge or a convex regularizer."
    NOT_FINITE = "Iterates became NaN or infinite; check the parameters, and your own operators with learnreg.testing."
    TOO_FEW_STEPS = "The steps of the method miss the tolerance; give it more steps, or take corrected_gradient."
    PRECISION = "Rounding errors dominate the residual; use float64 data or a larger tolerance."

    @property
    def converged(self) -> bool:
        """Whether the tolerance was met, by a bound or an estimate."""
        return self in (Status.CONVERGED, Status.ESTIMATED)


@dataclass(frozen=True)
class History:
    """What a solve saw at each look at its iterates, in order, and at last what was returned.

    steps, operator_applications: (checks,), so far. error_bound: (checks, batch), of the best point so far, in units
    of x (root mean square) and in the precision of the solver; infinite where no bound exists. The last row is
    ``Solution.error_bound``. residual: (checks, batch), the norm of the energy's reduced gradient, or an equivalent.
    """

    steps: Tensor
    operator_applications: Tensor
    error_bound: Tensor
    residual: Tensor

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, Tensor, Tensor]], batch: int) -> History:
        """From (steps, applications, bounds, residuals) of each look."""
        if not rows:
            none, nothing = torch.zeros(0, dtype=torch.int64), torch.zeros(0, batch)
            return cls(none, none, nothing, nothing)
        steps, applications, bounds, residuals = zip(*rows, strict=True)
        return cls(torch.tensor(steps), torch.tensor(applications), torch.stack(bounds), torch.stack(residuals))

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        return f"History(checks={len(self)})"


@dataclass(frozen=True)
class Solution:
    """The result of :func:`learnreg.solve`.

    x: (batch, *domain_shape). y: the dual point f'(Kx), (batch, *K's range). error_bound: (batch,) root-mean-square
    error of x, in units of x; what kind of number it is says ``bound_kind``. steps: iterations of the slowest sample.
    operator_applications: calls of K or K^T on the batch. solver: the algorithm that ran. reason: why the bound is an
    estimate.
    """

    x: Tensor
    y: Tensor
    error_bound: Tensor
    bound_kind: BoundKind
    status: Status
    steps: int
    operator_applications: int
    solver: str
    reason: str = ""
    history: History = field(default_factory=lambda: History.of([], 0), repr=False)

    @property
    def certified(self) -> bool:
        """Whether ``error_bound`` is a rigorous bound, and finite for every sample."""
        return self.bound_kind == "rigorous" and bool(torch.isfinite(self.error_bound).all())


@dataclass(frozen=True)
class Hypergradient:
    """The result of :func:`learnreg.hypergradient`.

    gradient: by parameter name. error_bound: ‖gradient - exact‖_2 over all parameters; a rigorous bound when
    ``certified``, otherwise what ``bound_kind`` and ``reason`` say. loss: the upper-level loss at x. loss_interval:
    contains the loss at the exact minimiser ((-inf, inf) without a certificate). x, X: lower-level solution and adjoint
    state. state_error_bound, adjoint_error_bound: 2-norms, (batch,). corrected_gradient, corrected_error_bound: the
    certified gradient that one of the method's own was compared with, and its bound; else gradient and error_bound.
    """

    gradient: dict[str, Tensor]
    error_bound: float
    certified: bool
    bound_kind: BoundKind
    reason: str
    loss: float
    loss_interval: tuple[float, float]
    x: Tensor
    X: Tensor
    state_error_bound: Tensor
    adjoint_error_bound: Tensor
    status: Status
    steps: int
    operator_applications: int
    corrected_gradient: dict[str, Tensor]
    corrected_error_bound: float

    @property
    def relative_error_bound(self) -> float:
        """error_bound over the norm of the gradient."""
        norm = self.norm
        return self.error_bound / norm if norm > 0 else float("inf")

    @property
    def norm(self) -> float:
        """‖gradient‖_2 over all parameters."""
        return math.sqrt(sum(float(g.double().square().sum()) for g in self.gradient.values()))


@dataclass(frozen=True)
class Certificate:
    """The result of :func:`learnreg.certify`: what can be said of somebody's x and X.

    error_bound: (batch,) root-mean-square error of x, in units of x. gradient: formed from exactly these x, X.
    gradient_error_bound: ‖gradient - exact‖_2 over all parameters. Both are *rigorous bounds* when ``certified``; else
    ``bound_kind`` and ``reason`` say what they are. loss: at x. loss_interval: contains the loss at the exact minimiser
    ((-inf, inf) without a certificate). adjoint_error_bound: 2-norm error of X, (batch,).

    gradient_error_estimate: distance to the corrected gradient, an *estimate* of the error. loss_estimate: the loss
    corrected by the dual-weighted residual <X, ∇E(x)>, an *estimate* of the loss at the exact minimiser.
    corrected_gradient and its corrected_error_bound, like gradient_error_bound: a better answer, at a corrected point.
    """

    error_bound: Tensor
    gradient: dict[str, Tensor]
    gradient_error_bound: float
    loss: float
    loss_interval: tuple[float, float]
    certified: bool
    bound_kind: BoundKind
    reason: str
    X: Tensor
    adjoint_error_bound: Tensor
    gradient_error_estimate: float
    loss_estimate: float
    corrected_gradient: dict[str, Tensor]
    corrected_error_bound: float
    operator_applications: int
