"""Hypergradients through chains of convex problems, by the adjoint chain.

With G_k(x; w, theta) = ∇_x E at weights w, x_k solves G_k(x_k; M(x_{k-1}; theta), theta) = 0. From v_K = ∇ell(x_K) on,

    H_k X_k = -v_k,   p_k = (<f_i'(K x_k), (K X_k)_i>)_i over places i,   v_{k-1} = (∂M/∂x)^T p_k,

H_k the Hessian of the k-th problem on the pixels off its constraint, and the gradient is the sum over k of ∂_theta
<G_k, X_k> at fixed weights and of ∂_theta <M(x_{k-1}; theta), p_k>. At a fixed point the adjoint chain is one itself: v
= ∇ell + (∂M/∂x)^T p.

Every solve is certified given its weights and its right-hand side; what they make together is bounded by
``certificates.chain_gradient``. Of fixed points, and where that knows no bound, there is an estimate, the change of the
gradient when all accuracies become ten times finer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from learnreg.certificates.chain_gradient import ChainCertificate, Link, certify_chain
from learnreg.certificates.judgement import gradient_distance, gradient_norm
from learnreg.errors import ConfigError
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.hypergradients.implicit import Implicit
from learnreg.hypergradients.search import Request, Start
from learnreg.linear.samples import norm_samples, sum_samples
from learnreg.losses import UpperLoss, check_loss
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.pairing import pairing_gradient, parameter_gradient, sum_gradients
from learnreg.lower_level.point import Point
from learnreg.lower_level.saddle_terms import SaddleTerms
from learnreg.lower_level.stages import stage_at
from learnreg.result import BoundKind, Hypergradient, Solution, Status
from learnreg.solvers.chain import ChainRun, computed_weights
from learnreg.solvers.choice import make_adjoint_solver
from learnreg.solvers.loop import iterate
from learnreg.solvers.solve import initial_point, solve

__all__ = ["ChainGradient", "chain_gradient", "chain_hypergradient", "implicit_method"]

Gradient = dict[str, Tensor]

_STATE_SHARE, _ADJOINT_SHARE = 0.01, 0.1
_COARSEST = 1e-3
_FINER, _ROUNDS = 0.1, 7
_MOST_ADJOINTS = 300

_ESTIMATED = "the error is estimated by what the gradient changed when all accuracies became ten times finer"
_FIXED_POINT = f"the hypergradient at a fixed point of a chain of reweighted problems has no bound: {_ESTIMATED}"
_PROGRESS, _FINEST = 0.9, 1e-4
"""What a round must leave of the bound of the one before for another one to be worth it; by which accuracies get finer
at most, where a bound tells how much is missing."""


@dataclass(frozen=True)
class ChainGradient:
    """The gradient of a chain as it was computed; X: the adjoint state of its last problem. links: all problems with
    their adjoints, of a chain that ends. error: of x, 2-norms (batch,), infinite where no bound is known. converged:
    whether all solves were."""

    gradient: Gradient
    x: Tensor
    X: Tensor
    iterates: tuple[Tensor, ...]
    links: tuple[Link, ...]
    error: Tensor
    converged: bool
    steps: int
    applications: int


def implicit_method(method: HypergradientMethod | None) -> Implicit:
    """The method, ``Implicit()`` for None; ConfigError for one that has no adjoint chain."""
    chosen = Implicit() if method is None else method
    if not isinstance(chosen, Implicit):
        raise ConfigError(f"method={chosen!r}: hypergradients of a chain of problems are lr.Implicit()'s.")
    return chosen


@torch.no_grad()
def chain_gradient(
    frozen: FrozenProblem,
    b: Tensor,
    loss: UpperLoss,
    method: Implicit,
    accuracy: tuple[float, float],
    before: Sequence[Tensor] = (),
    X: Tensor | None = None,
    max_steps: int | None = None,
    carried: bool = False,
) -> ChainGradient:
    """The chain and its adjoint, in the dtype of b.

    Parameters
    ----------
    accuracy: root-mean-square error of each solve, and relative residual of each adjoint equation. before: iterates to
        start from. X: an adjoint state of the last problem to start from. carried: whether errors of x are wanted.
    """

    def stage_solver(stage: FrozenProblem, tolerance: float, left: int | None, start: Tensor | None) -> Solution:
        return solve(stage, b, tolerance, max_steps=left, solver=method.state_solver, start=start)

    run = ChainRun(frozen, b, stage_solver, max_steps, carried)
    error = run.to_end(accuracy[0], before)
    backward = _Backward(run, loss, method, accuracy[1])
    adjoint = backward.fixed_point if run.chain.steps is None else backward.chain
    gradient, state = adjoint(torch.zeros_like(run.iterates[-1]) if X is None else X.to(b))
    return ChainGradient(
        gradient=gradient,
        x=run.iterates[-1],
        X=state,
        iterates=tuple(run.iterates),
        links=tuple(reversed(backward.links)),
        error=error,
        converged=all(s.status.converged for s in run.solutions) and backward.converged,
        steps=max(run.steps, backward.steps),
        applications=run.applications + backward.applications,
    )


@dataclass
class _Backward:
    """The adjoint chain of a run. links: what it solved, last to first."""

    run: ChainRun
    loss: UpperLoss
    method: Implicit
    accuracy: float
    links: list[Link] = field(default_factory=list)
    converged: bool = True
    steps: int = 0
    applications: int = 0

    @property
    def _frozen(self) -> FrozenProblem:
        return self.run.frozen

    def chain(self, X: Tensor) -> tuple[Gradient, Tensor]:
        """The gradient, and the adjoint state of the last problem, from a guess of it on."""
        iterates = self.run.iterates
        v, parts, last = self.loss.gradient(iterates[-1]), [], X
        for k in reversed(range(len(iterates))):
            stage, instance, places = self._stage(iterates[k - 1] if k else None)
            X = self._adjoint(instance, iterates[k], v, X if k + 1 == len(iterates) else torch.zeros_like(X))
            self.links.append(Link(iterates[k], X, v, self.run.errors[k], places))
            last = X if k + 1 == len(iterates) else last
            parts.append(self._given_weights(stage, instance, iterates[k], X))
            if k:
                through, v = self._through_weights(iterates[k - 1], self._products(iterates[k], X))
                parts.append(through)
        return sum_gradients(parts), last

    def fixed_point(self, X: Tensor) -> tuple[Gradient, Tensor]:
        """The same at a fixed point, where the adjoint chain goes on until it moves no more."""
        x = self.run.iterates[-1]
        stage, instance, _ = self._stage(x)
        slope = v = self.loss.gradient(x)
        for _ in range(_MOST_ADJOINTS):
            X = self._adjoint(instance, x, v, X)
            through, pulled = self._through_weights(x, self._products(x, X))
            moved, v = slope + pulled - v, slope + pulled
            if bool((norm_samples(moved) <= self.accuracy * norm_samples(v)).all()):
                break
        else:
            self.converged = False
        return sum_gradients([self._given_weights(stage, instance, x, X), through]), X

    def _stage(self, before: Tensor | None) -> tuple[FrozenProblem, Instance, Tensor | None]:
        """The problem with weights of the iterate before, and these; the first one without."""
        stage, places = self._frozen.first_stage, None
        if before is not None:
            places = computed_weights(self._frozen, self.run.terms, before)
            stage = stage_at(self._frozen, places)
            self.applications += 1
        return stage, stage.at(self.run.b), places

    def _adjoint(self, instance: Instance, x: Tensor, v: Tensor, start: Tensor) -> Tensor:
        """X with H X = -v, from a guess."""
        before = instance.counter.applications
        equation = AdjointEquation.at(instance, x, instance.apply(x), v)
        size = sum_samples(equation.rhs**2).sqrt()
        goal = self.accuracy * size
        solver = make_adjoint_solver(self.method.solver, instance, True, self.accuracy)
        found = iterate(solver, equation, equation.project(start), goal, torch.zeros_like(goal), self.run.max_steps)
        self.converged = self.converged and bool((found.residual <= goal).all())
        self.steps = max(self.steps, found.steps)
        self.applications += instance.counter.applications - before
        return found.x

    def _given_weights(self, stage: FrozenProblem, instance: Instance, x: Tensor, X: Tensor) -> Gradient:
        """∂_theta <∇_x E, X> at fixed weights."""
        before = instance.counter.applications
        gradient = pairing_gradient(Point(stage, instance, self.run.b, self.loss, x, X))
        self.applications += instance.counter.applications - before
        return gradient

    def _products(self, x: Tensor, X: Tensor) -> Tensor:
        """<f_i'(K x), (K X)_i> of each place, in float64."""
        terms = self.run.terms
        t, V = terms.operator(torch.cat([x, X]).double()).split(len(x))
        self.applications += 2
        return terms.potential.gather(terms.potential.grad(t) * V)

    def _through_weights(self, x: Tensor, p: Tensor) -> tuple[Gradient, Tensor]:
        """∂_theta <M(x; theta), p>, and ∂_x of it."""
        terms = self._frozen.first_stage.terms
        with torch.enable_grad():
            at = x.detach().double().requires_grad_()
            exact = SaddleTerms(terms.operator, terms.potential.to(torch.float64))
            weights = self.run.chain.weights.of(exact, at, exact.operator(at))
            (pulled,) = torch.autograd.grad(weights, at, p, retain_graph=True)
            gradient = parameter_gradient(self._frozen, [(weights, p)])
        self.applications += 3
        return gradient, pulled.to(x.dtype)


def chain_hypergradient(
    frozen: FrozenProblem,
    b: Tensor,
    loss: UpperLoss,
    method: HypergradientMethod | None,
    request: Request,
    start: Start | None,
) -> Hypergradient:
    """The hypergradient of a chain, in float64, with accuracies that become ten times finer until it is certified; or,
    where no certificate is asked for or none is known, until it changes by less than the tolerance: an *estimate*."""
    chosen, exact = implicit_method(method), b.double()
    check_loss(loss)
    guess = initial_point(frozen.first_stage.at(exact), exact) if start is None else start.x.detach().double()
    loss.examine(guess)
    size = max(float(guess.square().mean().sqrt()), 1e-12)
    finest = min(request.tolerance, 1.0)
    accuracy = (min(_STATE_SHARE * finest, _COARSEST) * size, _ADJOINT_SHARE * finest)
    before: Sequence[Tensor] = [] if start is None else [guess] * (1 + (frozen.chain.steps or 0) if frozen.chain else 1)
    X = None if start is None else start.X.detach().double()
    outcome: _Outcome | None = None
    for _ in range(_ROUNDS):
        left = request.steps_left(0 if outcome is None else outcome.steps)
        latest = chain_gradient(frozen, exact, loss, chosen, accuracy, before, X, left, carried=True)
        outcome = _Outcome.of(frozen, exact, loss, latest, request, outcome)
        before, X = latest.iterates, latest.X
        if outcome.status is not None:
            break
        missing = 0.3 * request.enough(gradient_norm(latest.gradient)) / outcome.bound  # bounds fall about linearly
        finer = max(_FINEST, min(_FINER, missing)) if missing > 0 else _FINER
        accuracy = (finer * accuracy[0], finer * accuracy[1])
    assert outcome is not None
    return _result(outcome, loss, b)


@dataclass(frozen=True)
class _Outcome:
    """A round: the gradient, what is known of its error, all steps and applications so far. status: None where finer
    accuracies may help."""

    found: ChainGradient
    certificate: ChainCertificate | None
    estimate: float
    steps: int
    applications: int
    status: Status | None

    @classmethod
    def of(
        cls,
        frozen: FrozenProblem,
        b: Tensor,
        loss: UpperLoss,
        found: ChainGradient,
        request: Request,
        earlier: _Outcome | None,
    ) -> _Outcome:
        certificate = certify_chain(frozen, b, loss, found.links) if request.rungs and found.links else None
        bound = math.inf if certificate is None else certificate.error_bound
        estimate = math.inf if earlier is None else gradient_distance(found.gradient, earlier.found.gradient)
        steps = found.steps + (0 if earlier is None else earlier.steps)
        applications = found.applications + (0 if certificate is None else certificate.applications)
        applications += 0 if earlier is None else earlier.applications
        enough = request.enough(gradient_norm(found.gradient))
        hindrance = None if certificate is None else certificate.hindrance
        stuck = earlier is not None and not bound < _PROGRESS * earlier.bound
        hopeless = stuck and (hindrance is None or not hindrance.curable)
        status = None
        if bound <= enough:
            status = Status.CONVERGED
        elif not found.converged:
            status = Status.STAGNATED
        elif request.max_steps is not None and steps >= request.max_steps:
            status = Status.MAX_STEPS
        elif hopeless and estimate <= enough:
            status = Status.ESTIMATED
        return cls(found, certificate, estimate, steps, applications, status)

    @property
    def bound(self) -> float:
        """Rigorous; infinite where none is known."""
        return math.inf if self.certificate is None else self.certificate.error_bound

    @property
    def reason(self) -> str:
        """Why the gradient is not certified."""
        if self.status is Status.CONVERGED:
            return ""
        if self.certificate is None:
            return _FIXED_POINT if not self.found.links else f"no certificate was asked for: {_ESTIMATED}"
        hindrance = self.certificate.hindrance
        return "errors grow along the chain, as weights depend on solutions" if hindrance is None else hindrance.reason


def _result(outcome: _Outcome, loss: UpperLoss, b: Tensor) -> Hypergradient:
    found, bound, certificate = outcome.found, outcome.bound, outcome.certificate
    certified = outcome.status is Status.CONVERGED
    error = bound if certified else min(bound, outcome.estimate) if math.isinf(bound) else bound
    kind: BoundKind = "rigorous" if math.isfinite(bound) else "estimate" if math.isfinite(error) else "none"
    x, X = found.x.to(b.dtype), found.X.to(b.dtype)
    return Hypergradient(
        gradient=found.gradient,
        error_bound=error,
        certified=certified,
        bound_kind=kind,
        reason=outcome.reason,
        loss=float(loss.value(found.x)),
        loss_interval=loss.interval(found.x, found.error),
        x=x,
        X=X,
        state_error_bound=found.error + norm_samples(x.double() - found.x),
        adjoint_error_bound=torch.full_like(found.error, math.inf)
        if certificate is None
        else certificate.adjoint_error,
        status=outcome.status or Status.STAGNATED,
        steps=outcome.steps,
        operator_applications=outcome.applications,
        corrected_gradient=found.gradient,
        corrected_error_bound=error,
    )
