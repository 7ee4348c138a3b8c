"""What solves return: a status that ends in advice, the solution, the hypergradient, and their bounds."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "BoundKind",
    "Brief",
    "Certificate",
    "ChainSolution",
    "History",
    "Hypergradient",
    "KnownError",
    "Minimiser",
    "Solution",
    "Status",
    "brief",
    "holds_globally",
]

BoundKind = Literal["rigorous", "estimate", "none"]

Minimiser = Literal["global", "local"]
"""Which minimiser bounds are about: the one of the energy, or the only one in a ball around the point computed."""


class KnownError(NamedTuple):
    """Of a point: its bound or estimate, (batch,), which of them, and from what it is the distance: the "global"
    minimiser, a "local" one, or that of the last problem of a chain, "given weights"."""

    bound: Tensor
    kind: BoundKind
    scope: str


def holds_globally(kind: BoundKind, radius: Tensor) -> bool:
    """Whether bounds are rigorous, and about the global minimiser: the only one in a ball of infinite radius."""
    return kind == "rigorous" and bool(torch.isinf(radius).all())


_FEW = 4


def brief(value: Any) -> str:
    """A value for people to read: of a tensor its shape, type and place, unless it is a few numbers."""
    if isinstance(value, Tensor):
        if value.numel() <= _FEW and value.dim() < 2 and not value.is_meta:
            numbers = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in value.detach().flatten().tolist()]
            return f"[{', '.join(numbers)}]" if value.dim() else numbers[0]
        if value.dim() == 1 and value.is_floating_point() and not value.is_meta:
            return f"{len(value)} in [{float(value.detach().min()):.4g}, {float(value.detach().max()):.4g}]"
        kind = str(value.dtype).removeprefix("torch.")
        place = "" if value.device.type == "cpu" else f" on {value.device}"
        return f"{tuple(value.shape)} {kind}{place}"
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {brief(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple):
        return f"({', '.join(map(brief, value))})"
    if isinstance(value, list):
        return f"{len(value)} items"
    text = str(value)
    return type(value).__name__ if "\n" in text or is_dataclass(value) else text


class Brief:
    """A dataclass that prints its fields in a few lines, tensors by their shapes."""

    def __repr__(self) -> str:
        parts = (f"{f.name}={brief(getattr(self, f.name))}" for f in fields(self) if f.repr)  # type: ignore[arg-type]
        text = f"{type(self).__name__}({', '.join(parts)})"
        return textwrap.fill(text, 100, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


class Status(Enum):
    """How a solve ended; the value is a sentence that ends in advice, ``str`` the name.

    Examples
    --------
    >>> lr.Status.CONVERGED.value
    'The certified error bound meets the tolerance; nothing to do.'
    """

    CONVERGED = "The certified error bound meets the tolerance; nothing to do."
    ESTIMATED = "The estimated error meets the tolerance, but no bound exists; the reason says what it lacks."
    MAX_STEPS = "The step limit was reached before the tolerance; raise max_steps or the tolerance."
    STAGNATED = "The error bound no longer falls; loosen the tolerance, or smooth the potential more."
    INDEFINITE = "The energy curves downwards at x, where no minimum is; use a larger ridge or a convex regularizer."
    NOT_FINITE = "Iterates became NaN or infinite; check the parameters, and your own operators with learnreg.testing."
    TOO_FEW_STEPS = "The steps of the method miss the tolerance; give it more steps, or take corrected_gradient."
    METHOD_ERROR = "The method's own approximation misses the tolerance; see its options, or take corrected_gradient."
    PRECISION = "Rounding errors dominate the residual; use float64 data or a larger tolerance."

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Status.{self.name}"

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

    @classmethod
    def joined(cls, histories: Sequence[History], indices: Sequence[Tensor]) -> History:
        """Of groups of samples that were solved one after the other, as if side by side: a group that is done stays as
        it was."""
        longest = max(map(len, histories))
        order = torch.cat([index.cpu() for index in indices]).argsort()

        def rows(values: Tensor) -> Tensor:
            return torch.cat([values, values[-1:].expand(longest - len(values), *values.shape[1:])])

        steps, applications = (
            torch.stack([rows(getattr(h, name)) for h in histories]).amax(0)
            for name in ("steps", "operator_applications")
        )
        bounds, residuals = (
            torch.cat([rows(getattr(h, name)) for h in histories], 1)[:, order.to(histories[0].residual.device)]
            for name in ("error_bound", "residual")
        )
        return cls(steps, applications, bounds, residuals)

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        return f"History(checks={len(self)})"


@dataclass(frozen=True, repr=False)
class Solution(Brief):
    """The result of :func:`learnreg.solve`.

    x: (batch, *domain_shape). y: the dual point f'(Kx), (batch, *K's range), of large images computed when it is asked
    for. error_bound: (batch,) root-mean-square error of x, in units of x; what kind of number it is says
    ``bound_kind``. steps: iterations of the slowest sample. operator_applications: calls of K or K^T on the batch.
    solver: the algorithm that ran. reason: why the bound is an estimate, or none.

    certified_scope: what ``minimiser`` the problem asked for. With "local" ``error_bound`` is about the minimiser in
    the ball of ``radius`` around x, a 2-norm, (batch,), where there is exactly one: a rigorous bound if
    ``locally_certified``. The radius is 0 where no ball was certified, which leaves an infinite ``error_bound`` or an
    estimate, and infinite where the minimiser is the global one, as always with "global".

    Parameters
    ----------
    history: what the solver saw at each look: steps, applications, bounds, residuals.
    status: why the solver stopped, a :class:`learnreg.Status`.
    dual: y, or a function that computes it.

    Examples
    --------
    >>> A, R = lr.operators.Identity((1, 8, 8)), lr.regularizers.TotalVariation(0.1)
    >>> problem, b = lr.LowerLevelProblem(A, R), torch.zeros(1, 1, 8, 8)
    >>> solution = lr.solve(problem, b, tolerance=1e-3)
    >>> solution.certified, bool(solution.error_bound.max() <= 1e-3), solution.status.name
    (True, True, 'CONVERGED')
    """

    x: Tensor
    dual: Tensor | Callable[[], Tensor] = field(repr=False)
    error_bound: Tensor
    bound_kind: BoundKind
    status: Status
    steps: int
    operator_applications: int
    solver: str
    reason: str = ""
    history: History = field(default_factory=lambda: History.of([], 0), repr=False)
    certified_scope: Minimiser = "global"
    radius: Tensor = field(default_factory=lambda: torch.tensor([math.inf]))

    @cached_property
    def y(self) -> Tensor:
        return self.dual if isinstance(self.dual, Tensor) else self.dual()

    @property
    def certified(self) -> bool:
        """Whether ``error_bound`` is a rigorous bound for the global minimiser, and finite for every sample."""
        return self.locally_certified and holds_globally(self.bound_kind, self.radius)

    @property
    def locally_certified(self) -> bool:
        """Whether ``error_bound`` is a rigorous bound for the minimiser in the ball, and finite for every sample."""
        return self.bound_kind == "rigorous" and bool(torch.isfinite(self.error_bound).all())

    @property
    def known_error(self) -> KnownError:
        """Of x; of a chain without a bound of its own that of the last problem, given its weights."""
        return KnownError(self.error_bound, self.bound_kind, self.certified_scope)

    @property
    def error_given_weights(self) -> KnownError:
        """Of x as the solution of the problem that was solved last; of what is no chain all there is."""
        return self.known_error


@dataclass(frozen=True, repr=False)
class ChainSolution(Solution):
    """The result of :func:`learnreg.solve` for a chain of convex problems (``regularizers.Reweighted``).

    x: the last iterate; y, solver, history: of the last solve. error_bound: (batch,) root-mean-square distance of x to
    the last iterate of the exact chain, or for a fixed point to an exact one; infinite where constants do not allow a
    bound. chain: the iterates x_0, x_1, ... in order. step_error_bound: (batch,) distance of x to the minimiser given
    the ``weights`` (batch, *places) that were computed for the last solve (None of a chain of one problem), of the kind
    ``step_bound_kind``. steps, operator_applications: of all solves.
    """

    chain: tuple[Tensor, ...] = ()
    step_error_bound: Tensor = field(default_factory=lambda: torch.tensor([math.inf]))
    step_bound_kind: BoundKind = "none"
    weights: Tensor | None = None

    @property
    def known_error(self) -> KnownError:
        return self.error_given_weights if self.bound_kind == "none" else super().known_error

    @property
    def error_given_weights(self) -> KnownError:
        return KnownError(self.step_error_bound, self.step_bound_kind, "given weights")


@dataclass(frozen=True, repr=False)
class Hypergradient(Brief):
    """The result of :func:`learnreg.hypergradient`.

    gradient: by parameter name. error_bound: ‖gradient - exact‖_2 over all parameters; a rigorous bound when
    ``certified``, otherwise what ``bound_kind`` and ``reason`` say. loss: the upper-level loss at x. loss_interval:
    contains the loss at the exact minimiser ((-inf, inf) without a certificate). x, X: lower-level solution and adjoint
    state. state_error_bound, adjoint_error_bound: 2-norms, (batch,). corrected_gradient, corrected_error_bound: the
    certified gradient that one of the method's own was compared with, and its bound; else gradient and error_bound.
    rung: the certificate that decided, "published", "frobenius" or "sharp"; empty where none did. accuracy: relative
    error of the state and relative residual of the adjoint equation that should satisfy a tolerance of 1, in proportion
    for others. normed: a filter bank at this theta or an earlier one whose norm was found, from which those nearby
    follow; None of other operators. ``Start.after`` hands both on.

    certified_scope, radius, locally_certified: as those of ``Solution``. With "local" the gradient is that of the
    branch of the minimiser in the ball, and so are its bound and the interval of the loss; ``certified`` is about the
    global minimiser all the same.

    Parameters
    ----------
    status: why the method stopped, a :class:`learnreg.Status`.
    steps: iterations of the lower-level and the adjoint solver together.
    operator_applications: calls of K or K^T on the batch, those of the certificate included.

    Examples
    --------
    >>> A, R = lr.operators.Identity((1, 8, 8)), lr.regularizers.TotalVariation(0.1)
    >>> problem, b = lr.LowerLevelProblem(A, R), torch.zeros(1, 1, 8, 8)
    >>> hg = lr.hypergradient(problem, torch.rand(1, 1, 8, 8), lr.SquaredError(b), tolerance=0.1)
    >>> hg.certified, sorted(hg.gradient)
    (True, ['log_weight'])
    >>> hg.loss_interval[0] <= hg.loss <= hg.loss_interval[1]
    True
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
    rung: str = ""
    accuracy: tuple[float, float] | None = field(default=None, repr=False)
    normed: Any = field(default=None, repr=False)
    certified_scope: Minimiser = "global"
    radius: Tensor = field(default_factory=lambda: torch.tensor([math.inf]))

    @property
    def locally_certified(self) -> bool:
        """Whether ``error_bound`` is rigorous for the minimiser in the ball, and finite."""
        return self.bound_kind == "rigorous" and math.isfinite(self.error_bound)

    @property
    def relative_error_bound(self) -> float:
        """error_bound over the norm of the gradient."""
        norm = self.norm
        return self.error_bound / norm if norm > 0 else float("inf")

    @property
    def norm(self) -> float:
        """‖gradient‖_2 over all parameters."""
        return math.sqrt(sum(float(g.double().square().sum()) for g in self.gradient.values()))


@dataclass(frozen=True, repr=False)
class Certificate(Brief):
    """The result of :func:`learnreg.certify`: what can be said of somebody's x and X.

    error_bound: (batch,) root-mean-square error of x, in units of x. gradient: formed from exactly these x, X.
    gradient_error_bound: ‖gradient - exact‖_2 over all parameters. Both are *rigorous bounds* when ``certified``; else
    ``bound_kind`` and ``reason`` say what they are. loss: at x. loss_interval: contains the loss at the exact minimiser
    ((-inf, inf) without a certificate). adjoint_error_bound: 2-norm error of X, (batch,).

    gradient_error_estimate: distance to the corrected gradient, an *estimate* of the error. loss_estimate: the loss
    corrected by the dual-weighted residual <X, ∇E(x)>, an *estimate* of the loss at the exact minimiser.
    corrected_gradient and its corrected_error_bound, like gradient_error_bound: a better answer, at a corrected point.
    certified_scope, radius, locally_certified: as those of ``Solution``.

    Parameters
    ----------
    X: the adjoint state that the gradient was formed from.
    operator_applications: what the certificate cost, in calls of K or K^T on the batch.

    Examples
    --------
    >>> A, R = lr.operators.Identity((1, 8, 8)), lr.regularizers.TotalVariation(0.1)
    >>> problem, b = lr.LowerLevelProblem(A, R), torch.zeros(1, 1, 8, 8)
    >>> cert = lr.certify(problem, b + 0.1, lr.SquaredError(b), x=torch.full_like(b, 0.1))
    >>> cert.certified, bool(cert.error_bound.max() < 1e-3)
    (True, True)
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
    certified_scope: Minimiser = "global"
    radius: Tensor = field(default_factory=lambda: torch.tensor([math.inf]))

    @property
    def locally_certified(self) -> bool:
        """Whether the bounds are rigorous for the minimiser in the ball, and that of the gradient finite."""
        return self.bound_kind == "rigorous" and math.isfinite(self.gradient_error_bound)
