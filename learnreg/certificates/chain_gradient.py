"""How far the hypergradient of a chain is from the exact one, from the last problem back to the first.

The k-th problem has exact weights w^ within delta of the computed w. At the computed x and X, and for any w^ there,

    ∇E(x; w^) = ∇E(x; w) + K^T (w^ - w) f'(K x),         H(x; w^) X + v^ = rho + K^T (w^ - w) f''(K x) K X + (v^ - v),
    G(x, X; w^) = G(x, X; w) + C(X, (w^ - w) f') + C(x, (w^ - w) f'' K X) + ...,

so that Lemmas 1, 3 and 4 hold about the problem at w^ with residuals larger by ‖K‖ ‖delta f'‖ and ‖K‖ ‖delta f'' K X‖ +
‖v^ - v‖, with (w ± delta) f'' for f'', and the gradient's own change added. What weights hand on, v_{k-1} = (∂M/∂x)^T
p_k with p_k = <f'(K x_k), K X_k> place by place, moves as ``SolutionWeights.pull_change`` says. *Rigorous bounds.*
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.certificates.assumptions import constraint_decided, missing_assumption
from learnreg.certificates.frobenius import FrobeniusBound
from learnreg.certificates.groups import group_norm
from learnreg.certificates.obstacle import Hindrance, Obstacle
from learnreg.certificates.point_bound import StateError
from learnreg.certificates.split import GlobalSplit
from learnreg.certificates.state import rounding_floor, state_residual
from learnreg.linear.parameter_groups import Density, LinearCost, OwnBound, Pairing
from learnreg.linear.samples import expand, norm_samples, sum_samples
from learnreg.losses import UpperLoss
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.chain import PullChange, WeightChange
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.pairing import evaluate_pairing
from learnreg.lower_level.point import Point
from learnreg.lower_level.saddle_terms import SaddleTerms
from learnreg.lower_level.stages import stage_at
from learnreg.potentials.proximal import ProximalPotential

__all__ = ["ChainCertificate", "Link", "certify_chain"]

_ROUNDING = 1e-13


@dataclass(frozen=True)
class Link:
    """A solved problem of a chain with its adjoint, float64. places: its weights, None of the first. X: H X = -v, but
    for a residual. error: of x, to the iterate of the exact chain, 2-norms (batch,)."""

    x: Tensor
    X: Tensor
    v: Tensor
    error: Tensor
    places: Tensor | None = None


@dataclass(frozen=True)
class ChainCertificate:
    """error_bound: of the gradient, over all parameters, infinite with a hindrance. adjoint_error: of the last X,
    (batch,)."""

    error_bound: float
    adjoint_error: Tensor
    hindrance: Hindrance | None = None
    applications: int = 0


class _UnboundedError(Exception):
    """There is no bound."""

    def __init__(self, hindrance: Hindrance) -> None:
        super().__init__(hindrance.reason)
        self.hindrance = hindrance


@torch.no_grad()
def certify_chain(frozen: FrozenProblem, b: Tensor, loss: UpperLoss, links: Sequence[Link]) -> ChainCertificate:
    """The bound for the gradient formed from these, first to last, of a chain with a given number of steps."""
    nothing = torch.full_like(links[-1].error, math.inf)
    try:
        return _Certificate(frozen, b, loss).of(links)
    except _UnboundedError as found:
        return ChainCertificate(math.inf, nothing, found.hindrance)


class _Certificate:
    """Adds up, from the last problem back."""

    def __init__(self, frozen: FrozenProblem, b: Tensor, loss: UpperLoss) -> None:
        assert frozen.chain is not None
        self.frozen, self.b, self.loss, self.weights = frozen, b, loss, frozen.chain.weights
        first = frozen.first_stage
        self.terms = SaddleTerms(first.fixed.operator, first.potential(torch.float64))
        self.groups: dict[int, float] = {}
        self.own: dict[int, float] = {}
        self.magnitude, self.applications = 0.0, 0

    def of(self, links: Sequence[Link]) -> ChainCertificate:
        if self.frozen.data_term.dualised:
            raise _UnboundedError(Obstacle.CHAIN.met(why="a data term that is no square joins the regularizer's terms"))
        for found, obstacle in (
            (self.frozen.reparametrized, Obstacle.REPARAMETRIZED),
            (self.frozen.tied, Obstacle.TIED),
        ):
            if found:
                raise _UnboundedError(obstacle.met(names=", ".join(found)))
        if self.loss.gradient_lipschitz is None:
            raise _UnboundedError(Obstacle.LOSS_CONSTANT.met())
        moved = self.loss.gradient_change(links[-1].x, links[-1].error)
        assert moved is not None
        last: Tensor | None = None
        for k in reversed(range(len(links))):
            stage = _Stage(self, links[k], links[k - 1] if k else None, moved)
            last = stage.E if last is None else last
            for j, bound in enumerate(stage.groups()):
                self.groups[j] = self.groups.get(j, 0.0) + float(bound.sum())
            self.magnitude += stage.magnitude()
            if k:
                pull = stage.pull()
                moved = pull.pulled
                for j, bound in enumerate(pull.own):
                    self.own[j] = self.own.get(j, 0.0) + float(bound.sum())
            self.applications += stage.instance.counter.applications
        total = math.sqrt(sum(s * s for s in (*self.groups.values(), *self.own.values()))) * (1.0 + 1e-12)
        total += _ROUNDING * self.magnitude
        assert last is not None
        return ChainCertificate(total if math.isfinite(total) else math.inf, last, None, self.applications)


class _Stage:
    """One problem, with weights within ``change`` of its own; v: how far v is from the exact one, (batch,)."""

    def __init__(self, chain: _Certificate, link: Link, before: Link | None, v: Tensor) -> None:
        self.chain, self.link, self.before, self.terms = chain, link, before, chain.terms
        self.change: WeightChange | None = None
        frozen, x, X = chain.frozen, link.x, link.X
        if before is None or link.places is None:
            self.stage = frozen.first_stage
        else:
            t = self.terms.operator(before.x)
            self.change = chain.weights.change(self.terms, before.x, t, _beyond_rounding(before))
            self.stage = stage_at(frozen, link.places, self.change.alone)
        self.instance = instance = self.stage.at(chain.b)
        if hindrance := missing_assumption(self.stage, instance, chain.loss, x):
            raise _UnboundedError(hindrance)
        self.point = Point(self.stage, instance, chain.b, chain.loss, x, X)
        self.responses = r = evaluate_pairing(self.point)[1]
        self._doubts()
        self.L, mu = instance.analysis.norm_bound() * (1.0 + 1e-12), instance.strong_convexity
        pullback = instance.adjoint(r.y)
        residual, hidden = state_residual(instance, x, pullback), instance.potential.hidden_rounding
        state = norm_samples(residual) + rounding_floor(instance, x, pullback, y=r.y) + hidden(x)
        doubt = self.L * self.slope_doubt
        state = state + doubt
        self.e = torch.minimum(link.error, state / mu)
        equation, bent = AdjointEquation.at(instance, x, r.t, link.v), instance.adjoint(r.Y)
        adjoint = norm_samples(equation.project(instance.quadratic(X) + bent) - equation.rhs)
        adjoint = adjoint + rounding_floor(instance, X, bent, link.v) + hidden(x, X)
        adjoint = adjoint + self.L * self.bent_doubt + v
        held = equation.free.held_norm(X)
        self.bound = bound = FrobeniusBound(
            self.stage, instance, x, X, r, StateError(state, self.e, GlobalSplit(mu)), pullback, held
        )
        if not bool((norm_samples(r.t) <= self.L * norm_samples(x)).all()):
            raise _UnboundedError(Obstacle.STALE_NORM.met(operator="analysis"))
        if not bool(bound.smooth.all()):
            raise _UnboundedError(Obstacle.KINK.met())
        if not constraint_decided(instance, x, r.t, state, self.e, bound.largest_curvature, doubt):
            raise _UnboundedError(Obstacle.ACTIVE_SET.met())
        self.E = bound.adjoint_error() + adjoint / mu
        self.energy = torch.minimum(
            bound.energy_adjoint_error() + adjoint / (2.0 * math.sqrt(mu)), bound.stiffness * self.E
        )

    def _doubts(self) -> None:
        """delta |f'| and delta |f'' V| place by place, and their norms."""
        f, (t, V) = self.potential, (self.responses.t, self.responses.V)
        self.slope, self.V_size = f.size(f.grad(t)), f.size(V)
        bent = f.size(f.bent(f.linearised(t), V))
        if self.change is None:
            self.slope_alone, self.bent_alone = torch.zeros_like(self.slope), torch.zeros_like(bent)
            self.slope_doubt = self.bent_doubt = torch.zeros_like(self.link.error)
            return
        self.slope_alone, self.bent_alone = self.change.alone * self.slope, self.change.alone * bent
        self.slope_doubt, self.bent_doubt = self.change.norm(self.slope), self.change.norm(bent)

    @property
    def potential(self) -> ProximalPotential:
        """f, without weights."""
        f = self.terms.potential
        assert isinstance(f, ProximalPotential)
        return f

    def magnitude(self) -> float:
        return self.bound.magnitude()

    def groups(self) -> list[Tensor]:
        """Of all groups of parameters of the problem, (batch,) each; what weights of the exact chain may change of the
        gradient itself, and what its second part, through the weights, adds, included."""
        found = [group.at(self.E, self.energy) for group in self.bound.groups()]
        learned, jacobian = self.stage.learned_groups, self.bound.jacobian
        own = [group for group in self.terms.parameter_groups() if group.name in learned]
        for j, group in enumerate(own if self.change is not None else ()):
            through = self.pull().of_group(group)
            if through is None:
                raise _UnboundedError(Obstacle.CHAIN.met(why=f"no bound is known for {group.name!r} in its weights"))
            found[j] = found[j] + jacobian.get(group.name, 1.0) * (group.judged(self) + through)
        return found

    # ---- G(x, X; w^) - G(x, X; w), and what Lemma 4 says of duals at w^ more than at w -------------------------------

    def of_operator(self, group: Pairing) -> Tensor:
        def norm(u: Tensor, alone: Tensor, together: Tensor) -> Tensor:
            by_norm = group.lipschitz * norm_samples(u) * together
            return torch.minimum(by_norm, group.perturbation_norm(u, alone))

        moved = norm(self.link.X, self.slope_alone, self.slope_doubt)
        moved = moved + norm(self.link.x, self.bent_alone, self.bent_doubt)
        return moved + group.lipschitz * (self.E * self.slope_doubt + self.e * self.bent_doubt)

    def of_density(self, group: Density) -> Tensor:
        assert self.change is not None
        t, y = self.responses.t, self.potential.grad(self.responses.t)
        size = self.change.alone * self.potential.size(group.size(t, y))
        return _sums(size * self.V_size, group.shape) + group_norm(size, group.shape) * self.L * self.E

    def of_own(self, group: OwnBound) -> Tensor:
        return torch.full_like(self.e, math.inf)

    def of_cost(self, group: LinearCost) -> Tensor:
        return torch.full_like(self.e, math.inf)

    # ---- through the weights -----------------------------------------------------------------------------------------

    def pull(self) -> PullChange:
        """Of the adjoint of M at the iterate before."""
        if self._pull is None:
            assert self.before is not None
            f, r, x = self.potential, self.responses, self.before.x
            p = f.gather(f.grad(r.t) * r.V)
            found = self.chain.weights.pull_change(
                self.terms, x, self.terms.operator(x), _beyond_rounding(self.before), p, self._moved
            )
            if found is None:
                raise _UnboundedError(Obstacle.CHAIN.met(why="how its weights move with the image is not known"))
            self.chain.magnitude += float(found.magnitude.sum())
            self._pull = found
        return self._pull

    _pull: PullChange | None = None

    def _moved(self, factors: Tensor) -> Tensor:
        """‖(a_i (p^_i - p_i))‖, p = <f', V>: f' is at most its size here and |f''| rho more."""
        f, radius = self.potential, self.terms.potential.reach(self.terms.operator) * expand(self.e, self.responses.t)
        high = f.curvature_size(self.responses.t, radius)
        steep, bent = factors * (self.slope + high * radius), factors * high * self.V_size
        along = torch.minimum(norm_samples(bent * radius), _largest(bent) * self.L * self.e)
        return _largest(steep) * self.L * self.E + along + _ROUNDING * norm_samples(steep * self.V_size)


def _beyond_rounding(link: Link) -> Tensor:
    """The error of x, and what K x may be rounded by."""
    return link.error + 16.0 * torch.finfo(torch.float64).eps * norm_samples(link.x)


def _largest(t: Tensor) -> Tensor:
    """Of each sample, (batch,)."""
    return t.flatten(1).amax(1)


def _sums(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The norm of what one entry of a parameter of this shape each multiplies, added up: of t >= 0, (batch,)."""
    aligned = (1,) * (t.dim() - 1 - len(shape)) + shape
    shared = [axis + 1 for axis, size in enumerate(aligned) if size == 1]
    return sum_samples((t.sum(shared, keepdim=True) if shared else t) ** 2).sqrt()
