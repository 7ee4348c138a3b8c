"""How accurately a training run solves its lower level, set by measured and certified errors of its hypergradients.

Now and then an audit takes a few samples of the batch, computes their hypergradient in float64 with a rigorous bound,
and so bounds the relative error of the hypergradient that training used: ‖g - exact‖ <= ‖g - g_audit‖ + bound(g_audit).
The tolerances of state and adjoint follow that number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from learnreg.certificates.judgement import gradient_norm
from learnreg.hypergradients.base import Accuracy, HypergradientMethod, Iterates
from learnreg.hypergradients.compute import Start, hypergradient
from learnreg.hypergradients.implicit import Implicit
from learnreg.losses import UpperLoss
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.pairing import pairing_gradient
from learnreg.lower_level.point import Point
from learnreg.lower_level.problem import LowerLevelProblem

__all__ = ["Audit", "BatchGradient", "Tolerances", "audit", "improve_batch"]

_TIGHTEST, _LOOSEST = 1e-6, 1e-2


@dataclass(frozen=True)
class Tolerances:
    """state: certified root-mean-square error of x, in image units. adjoint: residual of the adjoint equation relative
    to the gradient of the loss."""

    state: float = 1e-3
    adjoint: float = 3e-2

    def adapted(self, error: float, target: float) -> Tolerances:
        """Tighter where the audited relative error of the hypergradient is above the target, looser where it is far
        below."""
        if error > target:
            factor = max(0.25, 0.7 * target / error)
        elif error < 0.3 * target:
            factor = 1.4
        else:
            return self
        return replace(
            self,
            state=min(max(self.state * factor, _TIGHTEST), _LOOSEST),
            adjoint=min(max(self.adjoint * factor, 1e-5), 0.3),
        )


@dataclass(frozen=True)
class BatchGradient:
    """Hypergradient of one batch as training uses it, formed at ``state``. applications: operator applications it
    took."""

    gradient: dict[str, Tensor]
    loss: float
    state: Start
    steps: int
    applications: int


@dataclass(frozen=True)
class Audit:
    """relative_error: of the training gradient on the audited samples, a *rigorous bound* if ``certified``, else an
    *estimate*. reference_bound: relative error bound of the audit's own gradient."""

    relative_error: float
    reference_bound: float
    certified: bool
    applications: int


@torch.no_grad()
def improve_batch(
    problem: LowerLevelProblem | FrozenProblem,
    b: Tensor,
    loss: UpperLoss,
    method: HypergradientMethod,
    start: Start,
    tolerances: Tolerances,
) -> BatchGradient:
    """State, adjoint state and hypergradient of a batch at the given tolerances, in the dtype of b."""
    frozen = problem.frozen()
    instance = frozen.at(b)
    pixels = b.new_full((b.shape[0],), float(start.x[0].numel()))
    slope = loss.gradient(start.x).flatten(1).norm(dim=1)
    goal = Accuracy(tolerances.state * pixels.sqrt(), tolerances.adjoint * slope)
    iterates = Iterates(*start.in_all(instance), warm=start.z is not None or not instance.latent.channels)
    result = method.improve(instance, instance.latent.loss(loss), iterates, goal, None, None)
    state = Start.of(instance, result.x, result.X)
    gradient = pairing_gradient(Point(frozen, instance, b, loss, result.x, result.X))
    return BatchGradient(
        gradient=gradient,
        loss=float(loss.value(state.x)),
        state=state,
        steps=max(result.state_steps, result.adjoint_steps),
        applications=instance.counter.applications,
    )


@torch.no_grad()
def audit(
    problem: LowerLevelProblem | FrozenProblem,
    b: Tensor,
    loss: UpperLoss,
    state: Start,
    target: float,
    max_steps: int = 3000,
) -> Audit:
    """Bound the relative error of the hypergradient formed at a state by a certified float64 one of the same
    samples."""
    frozen = problem.frozen()
    instance = frozen.at(b)
    used = pairing_gradient(Point(frozen, instance, b, loss, *state.in_all(instance)))
    exact = hypergradient(
        frozen,
        b.double(),
        loss,
        Implicit(),
        tolerance=0.3 * target,
        max_steps=max_steps,
        start=state,
    )
    difference = gradient_norm({name: g - exact.gradient[name] for name, g in used.items()})
    smallest = exact.norm - exact.error_bound
    relative = (difference + exact.error_bound) / smallest if smallest > 0 else float("inf")
    applications = instance.counter.applications + exact.operator_applications
    return Audit(relative, exact.relative_error_bound, exact.certified, applications)
