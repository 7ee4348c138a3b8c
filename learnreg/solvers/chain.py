"""Chains of convex problems, one solve after the other, with the error that each hands on to the next.

A computed x_k is within s_k of the minimiser given its computed weights, which its certificate says, and that one
within m_k of the minimiser given the exact weights: the weights are those of x_{k-1}, which is within e_{k-1} of the
exact iterate (``certificates.chain_error``). So e_k = s_k + m_k.

Fixed points: where the map T from an image to the next iterate takes the ball of radius r around x_{k-1} into itself,
it has a fixed point there by Brouwer's theorem, and x_k is within s_k + m of it, m for weights of images in that ball.
Those of a majorising chain are the critical points of its energy, which a ball around x_k may be known to hold, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from learnreg.certificates.assumptions import missing_state_assumption
from learnreg.certificates.chain_error import moved_by_weights
from learnreg.certificates.standing import stand
from learnreg.certificates.state import smallest_bound
from learnreg.linear.samples import norm_samples
from learnreg.lower_level.chain import Chain
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.regularizer import Regularizer
from learnreg.lower_level.saddle_terms import SaddleTerms
from learnreg.lower_level.stages import energy_of_chain, stage_at
from learnreg.result import BoundKind, ChainSolution, Solution, Status
from learnreg.solvers.noise_levels import worst_kind, worst_status

__all__ = ["ChainRun", "StageSolver", "computed_weights", "exact_terms", "solve_chain"]

StageSolver = Callable[[FrozenProblem, float, int | None, Tensor | None], Solution]
"""Solves one problem of the chain: from a tolerance, the steps that are left, and where to start."""

_SHARE, _PASSES, _FINER = 0.4, 4, 0.1
"""What solves reach at first, of the tolerance; passes at most; by which solves get finer where no bound tells how
much."""

_PROGRESS = 0.7
"""What a pass must leave of the bound of the one before for another one to be worth it."""

_UNSURE = "the norm of the regularizer's operator, on which errors along the chain rest, is known with a probability"

_MOST_ITERATES = 300
_ROUNDS, _WIDER = 40, 1.02
_ROUNDING = 16.0 * torch.finfo(torch.float64).eps


def exact_terms(frozen: FrozenProblem) -> SaddleTerms:
    """The terms of a chain without weights, in float64."""
    first = frozen.first_stage
    return SaddleTerms(first.fixed.operator, first.potential(torch.float64))


@torch.no_grad()
def computed_weights(frozen: FrozenProblem, terms: SaddleTerms, x: Tensor) -> Tensor:
    """M(x) in float64; an application of K."""
    assert frozen.chain is not None
    exact = x.double()
    return frozen.chain.weights.of(terms, exact, terms.operator(exact))


@dataclass
class ChainRun:
    """A chain at data: what was solved so far. iterates: x_0, x_1, ... errors: e_k, 2-norms (batch,), infinite unless
    they are to be ``carried``. places: the weights of the last solve."""

    frozen: FrozenProblem
    b: Tensor
    solve: StageSolver
    max_steps: int | None
    carried: bool = True
    iterates: list[Tensor] = field(default_factory=list)
    errors: list[Tensor] = field(default_factory=list)
    solutions: list[Solution] = field(default_factory=list)
    places: Tensor | None = None
    steps: int = 0
    applications: int = 0

    @cached_property
    def chain(self) -> Chain[Regularizer]:
        assert self.frozen.chain is not None
        return self.frozen.chain

    @cached_property
    def terms(self) -> SaddleTerms:
        """Without weights, in float64."""
        return exact_terms(self.frozen)

    @property
    def scale(self) -> float:
        """The root of the number of pixels, between root mean squares and norms."""
        return math.sqrt(math.prod(self.frozen.operator.domain_shape))

    @property
    def spent(self) -> bool:
        return self.max_steps is not None and self.steps >= self.max_steps

    def to_end(self, tolerance: float, before: Sequence[Tensor]) -> Tensor:
        """The whole chain with solves of this tolerance, or on from where it is to the fixed point; the error of the
        last iterate. ``before``: iterates of an earlier run, to start from."""
        if self.chain.steps is None:
            return self._to_fixed_point(tolerance, before)
        self._begin()
        for k in range(self.chain.steps + 1):
            known = before[k] if k < len(before) else self.iterates[-1] if self.iterates else None
            self._advance(tolerance, known)
        return self.errors[-1]

    def _to_fixed_point(self, tolerance: float, before: Sequence[Tensor]) -> Tensor:
        """Until iterates move by less than the tolerance."""
        if not self.iterates:
            self._begin()
            self._advance(tolerance, before[0] if before else None)
        for _ in range(_MOST_ITERATES):
            self._advance(tolerance, self.iterates[-1])
            if self.spent or not self.solutions[-1].status.converged:
                break
            if float(self.distance().max()) / self.scale <= tolerance:
                break
        return self._fixed_point_error()

    def _begin(self) -> None:
        self.iterates, self.errors, self.solutions, self.places = [], [], [], None

    def _advance(self, tolerance: float, start: Tensor | None) -> None:
        """The next iterate, and its error."""
        stage = self.frozen.first_stage
        if self.iterates:
            self.places = computed_weights(self.frozen, self.terms, self.iterates[-1])
            self.applications += 1
            stage = stage_at(self.frozen, self.places)
        left = None if self.max_steps is None else max(1, self.max_steps - self.steps)
        found = self.solve(stage, tolerance, left, start)
        self.steps += found.steps
        self.applications += found.operator_applications
        self.solutions.append(found)
        own = self._own_error(found)
        moved = self._moved(stage, found.x, self.errors[-1], own) if self.iterates else torch.zeros_like(own)
        self.iterates.append(found.x)
        self.errors.append(own + moved)

    def _own_error(self, found: Solution) -> Tensor:
        bound = found.error_bound.double() * self.scale * (1.0 + 1e-12)
        return bound if found.certified else torch.full_like(bound, math.inf)

    def _moved(self, stage: FrozenProblem, x: Tensor, before: Tensor, own: Tensor) -> Tensor:
        """m_k, for weights of images within ``before`` of the last iterate."""
        assert self.places is not None
        if not self.carried or not bool(torch.isfinite(before).any() & torch.isfinite(own).any()):
            return torch.full_like(own, math.inf)
        last = self.iterates[-1].double()
        within = before + _ROUNDING * norm_samples(last)
        K = self.terms.operator
        change = self.chain.weights.change(self.terms, last, K(last), within)
        self.applications += 2
        mu = stage.at(self.b.double()).strong_convexity
        moved = moved_by_weights(self.terms, K(x.double()), own, self.places, change, mu)
        return torch.where(torch.isfinite(before) & torch.isfinite(own), moved, math.inf)

    def distance(self) -> Tensor:
        """Between the last two iterates, 2-norms."""
        return norm_samples(self.iterates[-1].double() - self.iterates[-2].double())

    def _fixed_point_error(self) -> Tensor:
        """s_k + m of the last iterate, where a ball around the one before is taken into itself; else infinite."""
        own, last = self._own_error(self.solutions[-1]), self.iterates.pop()
        stage = stage_at(self.frozen, self.places) if self.places is not None else self.frozen.first_stage
        apart = norm_samples(last.double() - self.iterates[-1].double())
        radius, found = 2.0 * (own + apart), torch.full_like(own, math.inf)
        for _ in range(_ROUNDS):
            error = own + self._moved(stage, last, radius, own)
            inside = error + apart <= radius
            found = torch.where(inside, torch.minimum(found, error), found)
            radius = torch.where(inside, radius, _WIDER * (error + apart))
            if bool((inside | torch.isinf(radius)).all()):
                break
        self.iterates.append(last)
        certain = self.carried and self.solutions[-1].certified
        return torch.minimum(found, self._critical_point_error(last)) if certain else found

    def _critical_point_error(self, x: Tensor) -> Tensor:
        """How far x is from a critical point of the energy that a majorising chain lowers."""
        problem = energy_of_chain(self.frozen, self.chain)
        if problem is None:
            return torch.full_like(self.errors[-1], math.inf)
        instance = problem.at(self.b.double())
        exact = instance.box.exactly(x).double()
        if missing_state_assumption(instance, exact) is not None:
            return torch.full_like(self.errors[-1], math.inf)
        state = smallest_bound(instance, exact)
        standing = stand(instance, exact, instance.apply(exact), state.residual + state.floor, split=False)
        self.applications += instance.counter.applications
        rigorous = standing.hindrance is None and not standing.failure
        error = standing.error + norm_samples(x.double() - exact)
        return error if rigorous else torch.full_like(error, math.inf)


def solve_chain(
    frozen: FrozenProblem, b: Tensor, target: float, max_steps: int | None, start: Tensor | None, solve: StageSolver
) -> ChainSolution:
    """All solves of a chain, until the root-mean-square error of the last iterate is below the target, or what is left
    is not due to their accuracy."""
    run = ChainRun(frozen, b, solve, max_steps, frozen.chain is None or frozen.chain.carry_errors)
    before: list[Tensor] = [] if start is None else [start]
    share, error, moved, best = _SHARE, torch.full((len(b),), math.inf), math.inf, math.inf
    for attempt in range(_PASSES):
        error = run.to_end(share * target, before)
        worst = float(error.max()) / run.scale
        if attempt:
            last, earlier = run.iterates[-1].double(), before[-1].double()
            moved = float(norm_samples(last - earlier).max()) / run.scale
        ended = not all(s.status.converged for s in run.solutions)
        stuck = attempt > 0 and not worst < _PROGRESS * best
        if worst <= target or ended or run.spent or stuck:
            break
        best = worst
        before = list(run.iterates)
        share *= min(0.3, 0.5 * target / worst) if math.isfinite(worst) else _FINER
    return _solution(run, error, target, moved)


def _solution(run: ChainRun, error: Tensor, target: float, moved: float) -> ChainSolution:
    """``moved``: how far the last pass moved the last iterate, an estimate of the error."""
    last, scale = run.solutions[-1], run.scale
    bound = (error / scale).to(last.x.dtype) * (1.0 + 2.0 * torch.finfo(last.x.dtype).eps)
    kinds = worst_kind([s.bound_kind for s in run.solutions])
    finite = bool(torch.isfinite(bound).all())
    kind: BoundKind = "rigorous" if kinds == "rigorous" and finite else "none"
    probable = run.terms.operator.norm_bound_kind == "probabilistic"  # the lemmas need ‖K‖, which solves do not
    kind = "estimate" if probable and kind == "rigorous" else kind
    status = worst_status([s.status for s in run.solutions])
    fixed = run.chain.steps is None
    wandering = fixed and float(run.distance().max()) / scale > target
    if status.converged:
        reached = float(bound.max()) <= target
        estimated = moved <= target and not wandering
        certain = Status.ESTIMATED if probable else Status.CONVERGED
        status = certain if reached else Status.ESTIMATED if estimated else Status.STAGNATED
    reason = next((s.reason for s in run.solutions if s.reason), "")
    if not reason and status is not Status.CONVERGED:
        reason = _UNSURE if probable and finite else _why(run, finite, wandering)
    return ChainSolution(
        x=last.x,
        dual=last.dual,
        error_bound=bound,
        bound_kind=kind,
        reason=reason,
        status=status,
        steps=run.steps,
        operator_applications=run.applications,
        solver=last.solver,
        history=last.history,
        certified_scope=last.certified_scope,
        radius=last.radius,
        chain=tuple(run.iterates),
        step_error_bound=last.error_bound,
        step_bound_kind=last.bound_kind,
        weights=None if run.places is None else run.places.to(last.x.dtype),
    )


def _why(run: ChainRun, finite: bool, wandering: bool) -> str:
    """What stands between the bound of the last solve and that of the chain."""
    if wandering:
        return f"the iterates still move after {_MOST_ITERATES} solves: there may be no fixed point that attracts"
    if not run.carried:
        return "errors are not carried along the chain (carry_errors=False): step_error_bound is that of the last solve"
    if run.chain.steps is None and not finite:
        return "no ball is known to hold a fixed point: only the last solve, given its weights, has a bound"
    return "errors grow along the chain, as weights depend on solutions: step_error_bound is that of the last solve"
