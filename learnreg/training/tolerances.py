"""How accurately a training run solves its lower level, set by certified errors of its hypergradients.

At every tenth update an audit takes a few samples of the batch and goes on from the states that training used for them
until the certificate meets the tolerance of training, and so bounds the relative error of the hypergradient that was
used: ‖g - exact‖ <= ‖g - g_audit‖ + bound(g_audit). Where training was accurate enough, that is a judgement and no
second search. The tolerances of state and adjoint follow the first term, which estimates the error: the second is a
bound, and far above it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from learnreg.certificates.judgement import gradient_norm
from learnreg.hypergradients.base import Goal, HypergradientMethod, evaluate
from learnreg.hypergradients.chain import chain_gradient, implicit_method
from learnreg.hypergradients.compute import Start, hypergradient
from learnreg.hypergradients.implicit import Implicit
from learnreg.losses import UpperLoss
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.pairing import pairing_gradient
from learnreg.lower_level.point import Point
from learnreg.lower_level.problem import LowerLevelProblem

__all__ = ["Audit", "BatchGradient", "Tolerances", "audit", "improve_batch"]

_TIGHTEST, _LOOSEST = 1e-6, 1e-2
_USUAL_NOISE = 25.0 / 255.0


@dataclass(frozen=True)
class Tolerances:
    """state: certified root-mean-square error of x, in image units. adjoint: residual of the adjoint equation relative
    to the gradient of the loss."""

    state: float = 1e-3
    adjoint: float = 3e-2

    def at(self, sigma: float | None) -> Tolerances:
        """For samples of a noise level, of which reconstructions have errors about in proportion to it."""
        if sigma is None:
            return self
        return replace(self, state=min(max(self.state * sigma / _USUAL_NOISE, _TIGHTEST), _LOOSEST))

    def adapted(self, error: float, target: float) -> Tolerances:
        """Tighter where the relative error of the hypergradient is above the target, looser where it is far below."""
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
    """Hypergradient of one batch as training uses it, formed at ``state``, or the method's own. applications: operator
    applications it took."""

    gradient: dict[str, Tensor]
    loss: float
    state: Start
    steps: int
    applications: int
    own: bool


@dataclass(frozen=True)
class Audit:
    """relative_error: of the training gradient on the audited samples, a *rigorous bound* if ``certified``, else an
    *estimate*. reference_bound: relative error bound of the audit's own gradient. distance: to that gradient, over its
    norm, which *estimates* the error."""

    relative_error: float
    reference_bound: float
    distance: float
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
    if frozen.chain is not None:
        return _improve_chain(frozen, b, loss, method, start, tolerances)
    instance = frozen.at(b)
    pixels = b.new_full((b.shape[0],), float(start.x[0].numel()))
    slope = loss.gradient(start.x).flatten(1).norm(dim=1)
    goal = Goal(tolerances.state * pixels.sqrt(), tolerances.adjoint * slope)
    warm = start.z is not None or not instance.latent.channels
    joint = instance.latent.loss(loss)
    found = evaluate(method, Point(frozen, instance, b, joint, *start.in_all(instance), warm=warm), goal)
    state = Start.of(instance, found.point.x, found.point.X)
    return BatchGradient(
        gradient=found.gradient,
        loss=float(loss.value(state.x)),
        state=state,
        steps=max(found.outcome.state_steps, found.outcome.adjoint_steps),
        applications=instance.counter.applications,
        own=found.outcome.gradient is not None,
    )


def _improve_chain(
    frozen: FrozenProblem,
    b: Tensor,
    loss: UpperLoss,
    method: HypergradientMethod,
    start: Start,
    tolerances: Tolerances,
) -> BatchGradient:
    """The same of a chain of problems, whose gradient is no pairing of one state and its adjoint."""
    accuracy = (tolerances.state, tolerances.adjoint)
    found = chain_gradient(frozen, b, loss, implicit_method(method), accuracy, [start.x.to(b)], start.X)
    return BatchGradient(
        gradient=found.gradient,
        loss=float(loss.value(found.x)),
        state=Start(found.x, found.X),
        steps=found.steps,
        applications=found.applications,
        own=True,
    )


@torch.no_grad()
def audit(
    problem: LowerLevelProblem | FrozenProblem,
    b: Tensor,
    loss: UpperLoss,
    used: BatchGradient | Start,
    target: float,
    max_steps: int = 3000,
) -> Audit:
    """Bound the relative error of a hypergradient by a certified float64 one of the same samples: of ``used``, or of
    the one formed at that state."""
    frozen = problem.frozen()
    if isinstance(used, Start):
        instance = frozen.at(b)
        gradient = pairing_gradient(Point(frozen, instance, b, loss, *used.in_all(instance)))
        state, applications = used, instance.counter.applications
    else:
        gradient, state, applications = used.gradient, used.state, used.applications
    exact = hypergradient(
        frozen,
        b.double(),
        loss,
        Implicit() if frozen.differentiable else None,
        tolerance=target,
        max_steps=max_steps,
        start=state,
    )
    difference = gradient_norm({name: g - exact.gradient[name] for name, g in gradient.items()})
    smallest = exact.norm - exact.error_bound
    relative = (difference + exact.error_bound) / smallest if smallest > 0 else float("inf")
    return Audit(
        relative_error=relative,
        reference_bound=exact.relative_error_bound,
        distance=difference / exact.norm if exact.norm > 0 else float("inf"),
        certified=exact.certified,
        applications=applications + exact.operator_applications,
    )
