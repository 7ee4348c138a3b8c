"""The family of bilevel stochastic gradients: a few projected gradient steps for the state, x <- P(x - ∇E(x)/L), and at
the state they lead to, with g = ∇E(x) and u = ∇ell(x),

    BSG-1       -(<g, u> / ‖g‖²) ∂_theta E(x)                                           no second derivatives   (1)
    BSG-N-FD    (∂_theta E(x + tX) - ∂_theta E(x - tX)) / 2t,   H X = -u by CG with
                H p = (∇E(x + tp) - ∇E(x - tp)) / 2t                                    differences alone       (2)
    BSG-H       <∂_theta ∇E(x), X>,   H X = -u by CG                                    exact Hessians          (3)

(1) replaces H by g g^T and ∂_theta ∇E by g ∂_theta E, so that it is no approximation of the hypergradient that gets
better with x: g tends to 0 there, and (1) to 0/0. With constraints, g, u and X are projected onto the tangent space of
those that hold x, which turns g into the gradient of the Lagrangian.

Source: Giovannelli, Kent and Vicente, Inexact bilevel stochastic gradient methods for constrained and unconstrained
lower-level problems, arXiv 2110.00604.
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from learnreg.errors import ConfigError
from learnreg.hypergradients.base import Goal, HypergradientMethod, Outcome
from learnreg.linear.arguments import real_number, whole_number
from learnreg.linear.samples import expand, inner_samples, norm_samples
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.pairing import energy_gradient, pairing_gradient
from learnreg.lower_level.point import Point
from learnreg.result import Status
from learnreg.solvers.conjugate_gradient import ConjugateGradient
from learnreg.solvers.loop import iterate

__all__ = ["BSG1", "BSGHessian", "BSGNewtonFD"]

_DIFFERENCE = 1.0 / 3.0
"""Power of the precision by which central differences err least."""


class _Stochastic(HypergradientMethod):
    """A few steps, and a gradient from where they end. steps: lower-level steps; none where the goal asks nothing."""

    adaptive = False

    def __init__(self, steps: int) -> None:
        self.steps = whole_number(steps, f"{type(self).__name__}(steps)", least=0)

    def fits(self, instance: Instance) -> bool:
        return not instance.latent.channels and math.isfinite(instance.gradient_lipschitz())

    def _descended(self, start: Point, goal: Goal) -> tuple[Point, int]:
        """Where the lower-level steps lead, and how many there were."""
        name, instance = type(self).__name__, start.instance
        if instance.latent.channels:
            raise ConfigError(f"{name}: it takes energies of the image alone, no latent variables; use Implicit().")
        count = 0 if bool(torch.isinf(goal.state).all()) else self.steps
        count = count if goal.max_state_steps is None else min(count, goal.max_state_steps)
        x = instance.box.prox(start.x)
        if count:
            bound = instance.gradient_lipschitz()
            if not math.isfinite(bound):
                raise ConfigError(f"{name}: gradient steps take a smooth energy, and a bound of its curvature.")
            for _ in range(count):
                x = instance.box.prox(x - instance.full_gradient(x) / bound)
        return start.at(x, start.X), count


class BSG1(_Stochastic):
    """Rank-one bilevel stochastic gradients: no second derivatives at all.

    Parameters
    ----------
    steps: lower-level gradient steps, few.
    clip: the largest quotient <g, u>/‖g‖² in size, of each sample; larger ones are cut, with a warning: the lower level
        is solved too accurately for this method.

    The number is a descent direction of stochastic training at best, never accurate: relative errors grow without bound
    as the lower level converges. So no search asks it for more; the certificate judges what it returned (Lemma 5), and
    the status is METHOD_ERROR where that misses the tolerance.

    Raises
    ------
    ConfigError: numbers that are not positive.

    Examples
    --------
    >>> lr.BSG1(steps=3).steps
    3
    """

    name = "bsg-1"
    miss = Status.METHOD_ERROR

    def __init__(self, steps: int = 1, clip: float = 10.0) -> None:
        super().__init__(steps)
        self.clip = real_number(clip, "BSG1(clip)", above=0.0)

    @torch.no_grad()
    def run(self, start: Point, goal: Goal) -> Outcome:
        end, count = self._descended(start, goal)
        instance = end.instance
        free = instance.box.interior(end.x)
        g, u = free.restrict(instance.full_gradient(end.x)), free.restrict(end.loss_gradient)
        size = inner_samples(g, g)
        quotient = len(u) * inner_samples(g, u) / size.clamp_min(torch.finfo(size.dtype).tiny)
        kept = quotient.nan_to_num(0.0).clamp(-self.clip, self.clip)
        if bool((kept != quotient).any()):
            self._warn(instance, float(norm_samples(g).max()))
        gradient = energy_gradient(end, end.x[None], -kept[None] / len(u))  # (1)
        return Outcome(end.x, None, gradient, state_steps=count)

    def _warn(self, instance: Instance, slope: float) -> None:
        mu = instance.strong_convexity
        error = f"within {slope / mu:.2g} of its solution" if mu > 0 else f"solved to a gradient of norm {slope:.2g}"
        warnings.warn(
            f"BSG1: the lower level is {error}, where its quotient <g, u>/‖g‖² tends to 0/0; it was cut at "
            f"{self.clip:g}. Take fewer lower-level steps, or BSGHessian().",
            UserWarning,
            stacklevel=3,
        )

    def __repr__(self) -> str:
        return f"BSG1(steps={self.steps}, clip={self.clip:g})"


class _Newton(_Stochastic):
    """A few steps of the state, and a few of CG for its adjoint equation."""

    def __init__(self, steps: int = 1, adjoint_steps: int = 3) -> None:
        super().__init__(steps)
        self.adjoint_steps = whole_number(adjoint_steps, f"{type(self).__name__}(adjoint_steps)")

    @torch.no_grad()
    def run(self, start: Point, goal: Goal) -> Outcome:
        end, count = self._descended(start, goal)
        instance = end.instance
        equation = self._equation(end, AdjointEquation.at(instance, end.x, instance.apply(end.x), end.loss_gradient))
        limit = goal.max_adjoint_steps
        most = self.adjoint_steps if limit is None else min(self.adjoint_steps, limit)
        never = torch.zeros_like(goal.adjoint)
        solver = ConjugateGradient(check_every=max(1, most), precondition=False)
        found = iterate(solver, equation, equation.project(start.X), never, never, most)
        status = Status.CONVERGED if found.status is Status.MAX_STEPS else found.status
        end = end.at(end.x, found.x)
        return Outcome(end.x, end.X, self._gradient(end), status, count, found.steps)

    @abstractmethod
    def _equation(self, point: Point, exact: AdjointEquation) -> AdjointEquation:
        """The adjoint equation as the method knows it."""

    @abstractmethod
    def _gradient(self, point: Point) -> dict[str, Tensor]:
        """<∂_theta ∇E(x), X> as the method knows it."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(steps={self.steps}, adjoint_steps={self.adjoint_steps})"


class BSGHessian(_Newton):
    """Bilevel stochastic gradients with exact Hessians and inexact adjoint states.

    Parameters
    ----------
    steps: lower-level gradient steps. adjoint_steps: of conjugate gradients, from the adjoint state of the start.

    Raises
    ------
    ConfigError: numbers that are no integers, or too small.

    Examples
    --------
    >>> lr.BSGHessian(steps=3, adjoint_steps=5).adjoint_steps
    5
    """

    name = "bsg-hessian"

    def _equation(self, point: Point, exact: AdjointEquation) -> AdjointEquation:
        return exact

    def _gradient(self, point: Point) -> dict[str, Tensor]:
        return pairing_gradient(point)  # (3)


class BSGNewtonFD(_Newton):
    """The same with finite differences of gradients for all second derivatives, of relative error about the precision
    of the data to the power 2/3.

    Parameters
    ----------
    steps: lower-level gradient steps. adjoint_steps: of conjugate gradients, from the adjoint state of the start.

    Raises
    ------
    ConfigError: numbers that are no integers, or too small.

    Examples
    --------
    >>> lr.BSGNewtonFD(steps=3, adjoint_steps=5).adjoint_steps
    5
    """

    name = "bsg-newton-fd"

    def _equation(self, point: Point, exact: AdjointEquation) -> AdjointEquation:
        return _Differenced(exact.instance, exact.at_response, exact.rhs, exact.free, point.x)

    def _gradient(self, point: Point) -> dict[str, Tensor]:
        t = _step(point.x, point.X)  # (2)
        move, half = expand(t, point.X) * point.X, 0.5 / t
        return energy_gradient(point, torch.stack([point.x + move, point.x - move]), torch.stack([half, -half]))


@dataclass(frozen=True)
class _Differenced(AdjointEquation):
    """H p by central differences of ∇E at x."""

    x: Tensor

    def hessian(self, p: Tensor, memory: Tensor | None = None) -> Tensor:
        t = expand(_step(self.x, p), p)
        change = self.instance.full_gradient(self.x + t * p) - self.instance.full_gradient(self.x - t * p)
        return self.project(change / (2.0 * t))

    def select(self, index: Tensor) -> Self:
        part = super().select(index)
        return replace(part, x=self.x[index])  # type: ignore[return-value, call-arg]


def _step(x: Tensor, p: Tensor) -> Tensor:
    """How far to go along p, (batch,)."""
    length = norm_samples(p)
    size = torch.finfo(x.dtype).eps ** _DIFFERENCE * (1.0 + norm_samples(x))
    return torch.where(length > 0, size / length.clamp_min(torch.finfo(x.dtype).tiny), 1.0)
