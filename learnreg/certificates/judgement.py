"""Judge (x, X) from any method: the gradient formed from exactly these iterates, and bounds on all that is reported.

Residuals are recomputed in float64 whatever the dtype of the solver, so that nothing a solver says is trusted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.adjoint import AdjointEquation
from learnreg.certificates import published
from learnreg.certificates.adjoint import adjoint_bound, curvature_interval
from learnreg.certificates.assumptions import constraint_decided, missing_assumption
from learnreg.certificates.state import rounding_floor, state_residual
from learnreg.convex import sum_samples
from learnreg.hypergradients.pairing import Responses, evaluate_pairing
from learnreg.losses import UpperLoss
from learnreg.problem import Instance, LowerLevelProblem

__all__ = ["Judgement", "judge"]


@dataclass(frozen=True)
class Judgement:
    """Everything known about (x, X). Bounds are infinite where ``reason`` is not empty.

    state_share, adjoint_share: the parts of ``error_bound`` that come from the error of x and from the linear residual
    of X alone; they tell which tolerance to tighten. state_residual, adjoint_residual: norms per sample, (batch,).
    """

    x: Tensor
    X: Tensor
    gradient: dict[str, Tensor]
    error_bound: float
    reason: str
    loss: float
    loss_interval: tuple[float, float]
    state_error: Tensor
    adjoint_error: Tensor
    state_residual: Tensor
    adjoint_residual: Tensor
    state_share: float
    adjoint_share: float

    @property
    def norm(self) -> float:
        return gradient_norm(self.gradient)


def gradient_norm(gradient: dict[str, Tensor]) -> float:
    """‖gradient‖_2 over all parameters, in float64."""
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradient.values()))


@torch.no_grad()
def judge(
    problem: LowerLevelProblem, instance: Instance, b: Tensor, loss: UpperLoss, x: Tensor, X: Tensor
) -> Judgement:
    """Form the hypergradient at (x, X) in float64 and bound its error by the published-style certificate.

    Costs 4 applications, 6 with learnable operators. ``instance`` is in float64. The batch goes through in parts, so
    that the memory for responses stays bounded; only what couples its samples, the loss, sees all of it.
    """
    x, X = x.double() if instance.box is None else instance.box.exactly(x), X.double()
    reason = missing_assumption(problem, instance, loss)
    loss_gradient = loss.gradient(x)
    parts = [
        _judge_part(problem, part, b[index], x[index], X[index], loss_gradient[index], bounded=not reason)
        for part, index in instance.parts()
    ]
    gradient = {name: torch.stack([p.gradient[name] for p in parts]).sum(0) for name in parts[0].gradient}
    e, state_norm = torch.cat([p.e for p in parts]), torch.cat([p.state_norm for p in parts])
    adjoint_norm = torch.cat([p.adjoint_norm for p in parts])
    reason = reason or next((p.reason for p in parts if p.reason), "")
    E, error_bound, state_share, adjoint_share = torch.full_like(e, math.inf), math.inf, math.inf, math.inf
    if not reason:
        rounding = sum(torch.finfo(g.dtype).eps * gradient_norm({"": g}) for g in gradient.values())
        rounding += 1e-13 * sum(p.magnitude for p in parts) if gradient else 0.0
        change = loss.gradient_change(x, e)
        assert change is not None  # missing_assumption() has seen to it
        bend, L, mu = (
            torch.cat([p.change_norm for p in parts]),
            instance.analysis.norm_bound(),
            instance.strong_convexity,
        )
        E = adjoint_bound(adjoint_norm, change, bend, L, mu)
        inexact = adjoint_bound(torch.zeros_like(adjoint_norm), change, bend, L, mu)
        groups = [_joined(pairs) for pairs in zip(*(p.groups for p in parts), strict=True)]
        error_bound, state_share = _total(groups, E) + rounding, _total(groups, inexact) + rounding
        adjoint_share = error_bound - state_share
    return Judgement(
        x=x,
        X=X,
        gradient=gradient,
        error_bound=error_bound if math.isfinite(error_bound) else math.inf,
        reason=reason,
        loss=float(loss.value(x)),
        loss_interval=loss.interval(x, e),
        state_error=e,
        adjoint_error=E,
        state_residual=state_norm,
        adjoint_residual=adjoint_norm,
        state_share=state_share,
        adjoint_share=adjoint_share,
    )


def _joined(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    constants, slopes = zip(*pairs, strict=True)
    return torch.cat(constants), torch.cat(slopes)


def _total(groups: list[tuple[Tensor, Tensor]], E: Tensor) -> float:
    """Root of the sum of squares over the parameter groups of (constant + slope E), each summed over the batch; the
    factors cover the rounding of the slope, which is a difference."""
    sums = [float((constant * (1.0 + 1e-15 * E) + slope * E).sum()) for constant, slope in groups]
    return math.sqrt(sum(s * s for s in sums)) * (1.0 + 1e-12)


@dataclass(frozen=True)
class _Part:
    """What the bound needs of some samples, per sample: residual norms, the error e of x, the norm of what e changes in
    f''(Kx) K X, and for each group of parameters the bound as (constant, slope) in the error of X."""

    gradient: dict[str, Tensor]
    state_norm: Tensor
    e: Tensor
    adjoint_norm: Tensor
    reason: str
    change_norm: Tensor
    groups: list[tuple[Tensor, Tensor]]
    magnitude: float


def _judge_part(
    problem: LowerLevelProblem,
    instance: Instance,
    b: Tensor,
    x: Tensor,
    X: Tensor,
    loss_gradient: Tensor,
    bounded: bool,
) -> _Part:
    gradient, responses = evaluate_pairing(problem, instance, b, x, X)
    pullback = instance.adjoint(responses.y)
    residual = state_residual(instance, x, pullback)
    state_norm = sum_samples(residual**2).sqrt() + rounding_floor(instance, x, pullback)
    equation = AdjointEquation.at(instance, x, responses.t, loss_gradient)
    bent = instance.adjoint(responses.Y)
    adjoint_residual = equation.project(instance.quadratic(X) + bent) - equation.rhs
    adjoint_norm = sum_samples(adjoint_residual**2).sqrt() + rounding_floor(instance, X, bent, loss_gradient)
    mu = instance.strong_convexity
    e = state_norm / mu if mu > 0 else torch.full_like(state_norm, math.inf)
    reason, change_norm, magnitude = "", torch.zeros_like(e), 0.0
    groups: list[tuple[Tensor, Tensor]] = []
    if bounded:
        bound = _Published(problem, instance, x, X, responses, state_norm, e)
        if not bool(bound.interval.smooth.all()):
            reason = (
                "a kink of the potential lies within the error of x; solve more accurately or use a smooth potential"
            )
        elif instance.box is not None and not constraint_decided(instance, x, residual, e, bound.interval.high_max):
            reason = "the active set of the constraint is undecided within the error of x; solve more accurately"
        if equation.free is not None:
            adjoint_norm = adjoint_norm + bound.boundary_residual(X - equation.project(X))
        change_norm, magnitude = bound.interval.change_norm, bound.magnitude()
        groups = bound.groups()
    return _Part(gradient, state_norm, e, adjoint_norm, reason, change_norm, groups, magnitude)


class _Published:
    """The published-style bound, its adjoint error left open."""

    def __init__(
        self,
        problem: LowerLevelProblem,
        instance: Instance,
        x: Tensor,
        X: Tensor,
        responses: Responses,
        state_norm: Tensor,
        e: Tensor,
    ) -> None:
        self.problem, self.instance, self.x, self.X, self.responses, self.e = problem, instance, x, X, responses, e
        self.mu, self.L = instance.strong_convexity, instance.analysis.norm_bound()
        self.energy_error = state_norm / (2.0 * math.sqrt(self.mu))
        potential = instance.potential
        row_norms = instance.analysis.row_norms(potential.grouped)
        self.interval = curvature_interval(potential, responses.t, responses.V, row_norms, e)

    def boundary_residual(self, X_active: Tensor) -> Tensor:
        """mu times the share of X on active pixels, where X^ = 0, in its error: by the Schur complement,
        (1 + sqrt(‖H_AA‖ / mu)) ‖X_A‖."""
        data_norm = float(self.instance.data_weights.max()) * self.instance.forward.norm_bound() ** 2
        hessian_norm = data_norm + self.instance.ridge + self.interval.high_max * self.L**2
        return self.mu * (1.0 + (hessian_norm / self.mu).sqrt()) * sum_samples(X_active**2).sqrt()

    def magnitude(self) -> float:
        """Size of the terms summed in the gradient: the scale of its rounding errors."""
        r = self.responses
        norms = [sum_samples(t * t).sqrt() for t in (self.x, r.Y, self.X, r.y)]
        return float((norms[0] * norms[1] + norms[2] * norms[3]).sum())

    def groups(self) -> list[tuple[Tensor, Tensor]]:
        """The bound of each parameter group as (constant, slope) in the error E of X: it is affine in E."""
        zero = torch.zeros_like(self.e)
        constants, sums = self._groups_at(zero), self._groups_at(zero + 1.0)
        return [(constant, (s - constant).clamp_min(0.0)) for constant, s in zip(constants, sums, strict=True)]

    def _groups_at(self, E: Tensor) -> list[Tensor]:
        r, instance = self.responses, self.instance
        terms = published.error_terms(self.x, self.X, r.y, r.Y, self.e, E, self.energy_error, self.interval, self.L)
        own = self.problem.parameter_roles()
        roles = {own[n] for n, p in self.problem.regularizer.named_parameters() if p.requires_grad}
        parts: list[Tensor] = []
        if "operator" in roles and instance.analysis_lipschitz is not None:
            parts.append(published.operator_bound(terms, instance.analysis_lipschitz))
        if "log_weight" in roles:
            shape = _shape(instance.potential.weight)
            parts.append(published.weight_bound(r.y, r.V, self.interval, terms, self.L, shape))
        if "log_smoothing" in roles:
            shape = _shape(instance.potential.smoothing)
            sensitivity = instance.potential.smoothing_gradient(r.t)
            parts.append(published.smoothing_bound(sensitivity, r.V, self.interval, terms, self.L, shape))
        if isinstance(self.problem.ridge, Tensor) and self.problem.ridge.requires_grad:
            parts.append(published.ridge_bound(terms))
        parts.extend(self._data_parts(terms))
        return parts

    def _data_parts(self, terms: published.ErrorTerms) -> list[Tensor]:
        residual, forward_X = self.responses.residual, self.responses.forward_X
        if residual is None or forward_X is None:
            return []
        parts, forward = [], self.problem.operator
        forward_norm = forward.norm_bound()
        if any(p.requires_grad for p in self.problem.data_term.parameters()):
            shape = _shape(self.problem.data_term.weights_for(residual))
            parts.append(published.data_weight_bound(residual, forward_X, terms, forward_norm, shape))
        lipschitz = forward.parameter_lipschitz()
        if lipschitz and any(p.requires_grad for p in forward.parameters()):
            weight_max = self.problem.data_term.weight_range()[1]
            parts.append(
                published.forward_operator_bound(residual, forward_X, terms, forward_norm, lipschitz, weight_max)
            )
        return parts


def _shape(value: float | Tensor) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()
