"""Equilibrium propagation: the gradient from lower-level solutions that the upper-level loss nudges a little.

With x_c(beta) the minimiser of E + c beta ell, the derivative of ∂_theta E(x_c(beta)) with respect to beta at 0 is the
hypergradient (for c = 1), and that of x_c(beta) the adjoint state: H x' = -∇ell. Finite differences of N solutions give

    one-sided     (∂E(x_1) - ∂E(x_0)) / beta               + O(beta)        (1)
    symmetric     (∂E(x_1) - ∂E(x_-1)) / (2 beta)          + O(beta²)       (2)
    holomorphic   sum_k w^-k ∂E(x_{w^k}) / (N beta)        + O(beta^N),     w = exp(2πi/N)      (3)

and states with errors e add e/beta: beta ~ e^½, e^⅓ and e^(1/(N+1)) are best.

Source: Scellier and Bengio, Equilibrium propagation (2017); Zucchet and Sacramento, Beyond backpropagation: bilevel
optimization through implicit differentiation and equilibrium propagation (2022); symmetric: Laborieux, Ernoult,
Scellier, Bengio, Grollier and Querlioz (2021); holomorphic: Laborieux and Zenke (2022).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.errors import ConfigError
from learnreg.hypergradients.base import Goal, HypergradientMethod, Outcome
from learnreg.hypergradients.holomorphic import can_continue, solve_continued
from learnreg.hypergradients.nudged import Nudged, Nudges, solve_nudged
from learnreg.linear.arguments import is_whole, real_number, shown
from learnreg.linear.samples import norm_samples
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.point import Point
from learnreg.result import Status
from learnreg.solvers.choice import make_solver
from learnreg.solvers.solve import run_state_solver

__all__ = ["EquilibriumPropagation"]

_SHARE, _ROUNDING = 0.3, 48.0
"""Of the adjoint residual asked for, what inexact states may add; norms of residuals that solvers reach, in units of
rounding of the data."""

_FIRST, _ROUNDS, _LEAST, _MOST = 0.1, 5, 1e-3, 0.7
"""The first beta moves the image by about this share at an accuracy of 1; so many at most, each smaller than the last
one by a factor between these."""

_INWARDS, _MOST_INWARDS = 0.2, 20
"""Factor of a complex nudge that led out of the strip, and how often."""

_LIMIT = 0.5
"""Of mu/L, where beta is chosen here."""

_TINY = torch.finfo(torch.float64).tiny


class EquilibriumPropagation(HypergradientMethod):
    """Finite differences of nudged lower-level solutions: no second derivatives, and for a given ``beta`` no linear
    solve unless nudges are complex.

    Parameters
    ----------
    beta: the nudge's size, > 0, in units of lower-level energy over upper-level loss. None: such that the adjoint
        state (x_1 - x_-1)/(2 beta) has the residual asked for, which one Hessian product shows, from
        beta ~ accuracy^(1/order) downwards, but not below what rounding allows, and with beta L <= ½ mu where the
        loss's Lipschitz constant L and the modulus mu are known.
    nudges: 1 (one-sided, of order 1 in beta), 2 (symmetric, of order 2), or N > 2 on a circle in the complex plane
        (holomorphic, of order N).

    The nudged problem is solved by the lower-level solvers from the free solution, in float64 whatever the data's
    precision, with the loss linearised around the latest point, again and again: a contraction by beta L / mu. Complex
    nudges take Newton's method on the continued stationarity condition, with the loss linearised at the free solution
    (which has the same derivative at beta = 0) and conjugate orthogonal conjugate gradients.

    The gradient is that of finite differences, and its certificate says how far off it is: ``hypergradient`` asks for
    more accuracy until the tolerance is met, which a ``beta`` given here may keep it from.

    Raises
    ------
    ConfigError: a beta that is not positive, nudges that are no positive integer; when it runs, a beta with
        beta L >= mu, where E - beta ell need not have a minimum (real nudges); complex nudges for potentials other than
        ``PseudoHuber``, ``LogCosh``, ``Square`` and sums of them, with a constraint or latent variables, or beyond the
        strip where f' is holomorphic.

    Examples
    --------
    >>> problem = lr.LowerLevelProblem(lr.operators.Identity((1, 8, 8)), lr.regularizers.FieldsOfExperts(2, 3))
    >>> b, loss = torch.rand(1, 1, 8, 8), lr.SquaredError(torch.zeros(1, 1, 8, 8))
    >>> lr.hypergradient(problem, b, loss, method=lr.EquilibriumPropagation(), tolerance=0.1).certified
    True
    """

    name = "equilibrium-propagation"
    improves = True
    miss = Status.METHOD_ERROR

    def __init__(self, beta: float | None = None, nudges: int = 2) -> None:
        self.beta = None if beta is None else real_number(beta, "EquilibriumPropagation(beta)", above=0.0)
        if not is_whole(nudges):
            raise ConfigError(f"EquilibriumPropagation(nudges={shown(nudges)}): expected a positive integer.")
        self.nudges = nudges

    def __repr__(self) -> str:
        return f"EquilibriumPropagation(beta={self.beta}, nudges={self.nudges})"

    def fits(self, instance: Instance) -> bool:
        return self.nudges <= 2 or can_continue(instance)

    @torch.no_grad()
    def run(self, start: Point, goal: Goal) -> Outcome:
        if not self.fits(start.instance):
            raise ConfigError(
                f"EquilibriumPropagation(nudges={self.nudges}): complex nudges take PseudoHuber, LogCosh, Square and "
                "sums of them, no constraint and no latent variables; use nudges=2."
            )
        frozen, counter = start.frozen, start.instance.counter
        start = start.on(start.instance if start.x.dtype == torch.float64 else frozen.at(start.b.double(), counter))
        goal = goal.within(torch.float64, goal.max_state_steps, goal.max_adjoint_steps)
        solver = make_solver("auto", start.instance, start.warm)
        free = run_state_solver(solver, start.instance, start.x, goal.state, goal.max_state_steps, start.t)
        trial, steps = self._best(_Free(start.at(free.x, start.X), Nudges.of(self.nudges), goal))
        status = free.status if free.status is not Status.CONVERGED else trial.nudged.status
        gradient = {name: g.to(frozen.parameters[name]) for name, g in trial.nudged.gradient(start).items()}
        return Outcome(free.x, trial.X, gradient, status, free.steps, steps)

    def _best(self, free: _Free) -> tuple[_Trial, int]:
        """The nudges with the least adjoint residual, and the steps of all that were tried."""
        limit, X, steps = free.largest_beta(), free.point.X, 0
        if self.beta is not None and self.beta >= limit:
            raise ConfigError(
                f"{self!r}: E - beta ell need not have a minimum, and the linearised loss need not contract; use a "
                f"beta below {limit:.3g}, the modulus of the lower level over the Lipschitz constant of ∇ell."
            )
        beta, best = self.beta or min(free.first_beta(), _LIMIT * limit), None
        for _ in range(_ROUNDS):
            nudged = self._inside(free, beta, X, steps)
            trial, steps = free.judge(nudged), steps + nudged.steps
            gained = best is None or trial.miss < best.miss
            best = trial if gained or best is None else best
            factor = free.factor(trial)
            if self.beta is not None or not gained or factor > _MOST or free.left(steps) == 0:
                break
            beta, X = max(_LEAST, factor) * nudged.beta, trial.X
        assert best is not None
        return best, steps

    def _inside(self, free: _Free, beta: float, X: Tensor, steps: int) -> Nudged:
        """States at nudges of this size, or of a smaller one where that leads complex ones too far."""
        for _ in range(1 if self.beta is not None else _MOST_INWARDS):
            nudged = free.solve(beta, X, steps)
            if nudged is not None:
                return nudged
            beta = _INWARDS * beta
        raise ConfigError(
            f"{self!r}: at beta={beta / _INWARDS:.3g} complex responses leave the strip where f' is holomorphic, "
            "|Im Kx| < the smoothing, or π/2 of it for LogCosh; use a smaller beta, or nudges=2."
        )


@dataclass(frozen=True)
class _Trial:
    """Nudged states, the adjoint state that their difference is, its residual, (batch,), and the largest of those over
    what was asked for."""

    nudged: Nudged
    X: Tensor
    residual: Tensor
    miss: float


class _Free:
    """Where nudges start, the free solution, and what is asked of them."""

    def __init__(self, point: Point, nudges: Nudges, goal: Goal) -> None:
        self.point, self.nudges, self.max_steps = point, nudges, goal.max_adjoint_steps
        x, instance = point.x, point.instance
        self.slope = norm_samples(point.loss_gradient)
        rounding = torch.finfo(torch.float64).eps
        self.wanted = torch.maximum(goal.adjoint, rounding * self.slope.max()).clamp_min(_TINY)
        self.equation = AdjointEquation.at(instance, x, instance.apply(x), point.loss_gradient)
        self.curvature = max(instance.quadratic.norm(), instance.strong_convexity) or self._met_curvature()
        size = torch.maximum(norm_samples(instance.q), self.curvature * norm_samples(x))
        self.floor = _ROUNDING * rounding * size.clamp_min(_TINY)

    def _met_curvature(self) -> float:
        """Of the energy along the loss's gradient, where it has no quadratic part and no known modulus."""
        d = self.point.loss_gradient
        bent, size = norm_samples(self.equation.hessian(d)), norm_samples(d)
        return float((bent / size.clamp_min(_TINY)).max()) or 1.0

    def left(self, steps: int) -> int | None:
        return None if self.max_steps is None else max(0, self.max_steps - steps)

    def largest_beta(self) -> float:
        """mu/L, where E - beta ell loses its strong convexity; infinite where one of them is unknown, and for complex
        nudges, whose loss is linear."""
        if self.nudges.order > 2:
            return math.inf
        mu = self.point.instance.strong_convexity
        slope = self.point.loss.gradient_change(self.point.x, torch.ones_like(self.slope))
        steepest = 0.0 if slope is None else float(slope.max())
        return mu / steepest if mu > 0 and steepest > 0 else math.inf

    def first_beta(self) -> float:
        """accuracy^(1/order) times what moves the image by a share of itself, at the curvature of the data term."""
        slope = float(self.slope.max())
        if not slope > 0:
            return 1.0
        accuracy = min(1.0, float((self.wanted / self.slope.clamp_min(_TINY)).min()))
        size = float(norm_samples(self.point.x).max()) or 1.0
        unit = self.curvature * size / slope
        return float(_FIRST * accuracy ** (1.0 / self.nudges.order) * unit)

    def solve(self, beta: float, X: Tensor, steps: int) -> Nudged | None:
        """The nudged states, as accurate as the difference needs them and rounding lets them be."""
        residual = torch.maximum(_SHARE * beta * self.wanted, self.floor)
        solve = solve_nudged if self.nudges.order <= 2 else solve_continued
        return solve(self.point, self.nudges, beta, X, residual, self.left(steps))

    def judge(self, nudged: Nudged) -> _Trial:
        """By the residual of the adjoint equation, a Hessian product."""
        X = nudged.adjoint()
        residual = self.equation.residual_norm(X)
        return _Trial(nudged, X, residual, float((residual / self.wanted).max()))

    def factor(self, trial: _Trial) -> float:
        """Of beta, to meet what is asked for; not below the best compromise between the difference's error, which falls
        with beta^order, and rounding over beta."""
        order, residual = self.nudges.order, trial.residual.clamp_min(_TINY)
        meets = float(((1.0 - _SHARE) * self.wanted / residual).min()) ** (1.0 / order)
        balance = float((self.floor / (residual * trial.nudged.beta)).min()) ** (1.0 / (order + 1))
        return float(max(meets, balance))
