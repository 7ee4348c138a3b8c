"""Bilevel stochastic gradient descent: a few projected gradient steps on minibatches of the lower level, then a step of
theta along a hypergradient estimated on another minibatch.

At step k, from x and theta, with J lower-level steps:

    x <- P(x - beta_k g),  g = ∇_x lower on a minibatch, J times                                    (1)
    theta <- Pi(theta - alpha_k d),  d the method's number at x on a minibatch                      (2)
    alpha_k = a / (k + 1)^p,  beta_k = b / (k + 1)^q                                                (3)
    J <- J + 1 where the upper loss, averaged over the last ``patience`` steps, did not improve     (4)

With linear constraints P is the projection, and d is formed in the tangent space of those that hold x.

Source: Giovannelli, Kent and Vicente, Inexact bilevel stochastic gradient methods for constrained and unconstrained
lower-level problems, arXiv 2110.00604: (1) to (3), and the idea of (4), increasing accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from learnreg.errors import ConfigError, SolverError
from learnreg.hypergradients.base import Goal, HypergradientMethod, evaluate
from learnreg.hypergradients.implicit import chosen_method
from learnreg.hypergradients.stochastic import BSG1
from learnreg.linear.arguments import check_type, real_number, whole_number
from learnreg.linear.grad_mode import outside_inference
from learnreg.lower_level.constraints import Box
from learnreg.lower_level.linear_constraints import Polyhedron
from learnreg.lower_level.point import Point
from learnreg.result import Brief
from learnreg.upper_level.bilevel_problem import BilevelProblem, PosedProblem, Variable
from learnreg.upper_level.trees import Tree, Variables

__all__ = ["StochasticDescent", "StochasticRun"]

Sampler = Callable[[torch.Generator, int], Any]


@dataclass(frozen=True, repr=False)
class StochasticRun(Brief):
    """What :meth:`StochasticDescent.run` did.

    theta, x: at last, in the form that was given. losses: the upper loss on the minibatch of each step, before it.
    lower_steps, step_sizes: of each step.
    """

    theta: Variable
    x: Variable
    losses: list[float] = field(default_factory=list)
    lower_steps: list[int] = field(default_factory=list)
    step_sizes: list[float] = field(default_factory=list)


class StochasticDescent:
    """Stochastic training of a bilevel problem with few lower-level steps, without bounds.

    Parameters
    ----------
    problem: whose functions take what ``sampler`` returns as data.
    sampler: sampler(generator, step) -> data of a minibatch; asked once for each lower-level step and once for each
        step of theta. None: data is None.
    method: of the hypergradient at the present x: ``lr.BSG1()`` (default), ``lr.BSGNewtonFD()``, ``lr.BSGHessian()``
        or any other one, ``lr.Implicit()``. Lower-level steps of its own do not move x.
    step_size, decay: alpha_k = step_size / (k + 1)^decay. lower_step_size, lower_decay: likewise of the lower level.
    lower_steps: to begin with. most_lower_steps: where increasing ends; None: no increase.
    patience: steps between looks whether the upper loss improved, by a relative ``threshold``.
    adjoint_steps: at most, of methods with an adjoint state; None: as many as the method takes.
    project: called with the tensors of theta, which it changes in place, after each step.

    Everything is computed in the precision of theta and x, and nothing is certified: hold results against
    ``problem.hypergradient``.

    Raises
    ------
    ConfigError: numbers out of range, or arguments of another kind.

    Examples
    --------
    >>> problem = lr.BilevelProblem(
    ...     lambda x, theta, data: 0.5 * (x - theta).square().sum(),
    ...     lambda x, theta, data: 0.5 * x.square().sum(),
    ...     strong_convexity=1.0,
    ... )
    >>> descent = lr.StochasticDescent(problem, lambda generator: None)
    """

    def __init__(
        self,
        problem: BilevelProblem,
        sampler: Sampler | None = None,
        method: HypergradientMethod | None = None,
        *,
        step_size: float = 0.1,
        decay: float = 0.5,
        lower_step_size: float = 0.1,
        lower_decay: float = 0.0,
        lower_steps: int = 1,
        most_lower_steps: int | None = None,
        patience: int = 20,
        threshold: float = 1e-3,
        adjoint_steps: int | None = None,
        project: Callable[[Any], Any] | None = None,
    ) -> None:
        name = "StochasticDescent"
        check_type(problem, BilevelProblem, f"{name}(problem)", "an lr.BilevelProblem")
        if sampler is not None and not callable(sampler):
            raise ConfigError(f"{name}(sampler): expected a function of (generator, step) that returns data.")
        self.problem, self.project = problem, project
        self.sampler: Sampler = sampler if sampler is not None else lambda generator, step: None
        self.method = chosen_method(BSG1() if method is None else method)
        self.step_size = real_number(step_size, f"{name}(step_size)", above=0.0)
        self.lower_step_size = real_number(lower_step_size, f"{name}(lower_step_size)", above=0.0)
        self.decay = real_number(decay, f"{name}(decay)", least=0.0)
        self.lower_decay = real_number(lower_decay, f"{name}(lower_decay)", least=0.0)
        self.threshold = real_number(threshold, f"{name}(threshold)", least=0.0)
        self.lower_steps = whole_number(lower_steps, f"{name}(lower_steps)")
        most = lower_steps if most_lower_steps is None else most_lower_steps
        self.most_lower_steps = whole_number(most, f"{name}(most_lower_steps)", least=lower_steps)
        self.patience = whole_number(patience, f"{name}(patience)")
        most_adjoint = None if adjoint_steps is None else whole_number(adjoint_steps, f"{name}(adjoint_steps)")
        self.adjoint_steps = most_adjoint

    @outside_inference
    def run(
        self,
        theta: Variable,
        x: Variable,
        steps: int,
        generator: torch.Generator | None = None,
        callback: Callable[[int, Any, Any, float], None] | None = None,
    ) -> StochasticRun:
        """Take ``steps`` steps; theta changes in place, x does not. The callback gets the step, theta, x and the upper
        loss on the minibatch.

        Raises
        ------
        ConfigError, ShapeError: bad input. AssumptionError: constraints that nothing satisfies.
        """
        whole_number(steps, "StochasticDescent.run(steps)", least=0)
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        form = Variables(x, "x")
        state, adjoint = _Lower(self.problem, form), torch.zeros_like(form.flat()[None])
        losses: list[float] = []
        counts: list[int] = []
        sizes: list[float] = []
        count = self.lower_steps
        for k in range(steps):
            for _ in range(count):  # (1)
                data = self.sampler(generator, k)
                state.step(theta, data, self.lower_step_size / (k + 1) ** self.lower_decay)  # (3)
            posed = state.posed(theta, self.sampler(generator, k))
            gradient, adjoint, loss = self._hypergradient(posed, state.x, adjoint)
            if not math.isfinite(loss):
                raise SolverError(f"StochasticDescent: the upper loss is {loss} at step {k}; take smaller steps.")
            size = self.step_size / (k + 1) ** self.decay  # (3)
            losses.append(loss)
            counts.append(count)
            sizes.append(size)
            for name, t in Variables(theta, "theta").tensors.items():
                t.detach().sub_(gradient[name].to(t), alpha=size)  # (2)
            if self.project is not None:
                with torch.no_grad():
                    self.project(theta)
            if callback is not None:
                callback(k, theta, form.shaped(state.x[0]), loss)
            count = self._next_count(count, losses)
        return StochasticRun(theta, form.shaped(state.x[0]), losses, counts, sizes)

    @torch.no_grad()
    def _hypergradient(self, posed: PosedProblem, x: Tensor, X: Tensor) -> tuple[dict[str, Tensor], Tensor, float]:
        """The method's number at (x, X) with the direct term, the adjoint state it led to, and the loss."""
        point = Point.of(posed.problem, posed.b, posed.loss, x, posed.function.face.tangent(X))
        nothing, exactly = (torch.full((1,), value).to(x) for value in (math.inf, 0.0))
        found = evaluate(self.method, point, Goal(nothing, exactly, None, self.adjoint_steps))
        X = X if found.outcome.X is None else found.outcome.X
        return posed.with_direct(found.gradient, x), X, float(posed.loss.value(x))

    def _next_count(self, count: int, losses: list[float]) -> int:
        """One more lower-level step where the loss did not improve, (4)."""
        n = self.patience
        if len(losses) % n or len(losses) < 2 * n or count >= self.most_lower_steps:
            return count
        latest, before = math.fsum(losses[-n:]) / n, math.fsum(losses[-2 * n : -n]) / n
        return count if latest < before - self.threshold * abs(before) else count + 1


class _Lower:
    """The lower-level iterate x, a vector (1, n), and the linear constraints that hold it."""

    def __init__(self, problem: BilevelProblem, form: Variables) -> None:
        self.problem, self.form = problem, form
        given, flat = problem.constraint, form.flat()
        self._box = given if isinstance(given, Box) else None
        self._polyhedron = None if given is self._box else Polyhedron.of(given, len(flat))
        self._held: tuple[int, ...] = ()
        self.x = self._projected(flat)[None]

    def _projected(self, v: Tensor) -> Tensor:
        if self._polyhedron is not None:
            found = self._polyhedron.nearest(v.double().cpu().numpy())
            self._held = found.held
            return torch.from_numpy(found.point).to(v)
        return v if self._box is None else self._box.prox(v[None])[0]

    def step(self, theta: Variable, data: Any, size: float) -> None:
        """A projected gradient step on a minibatch."""
        with torch.enable_grad():
            v = self.x[0].clone().requires_grad_()
            tree, dtype = Tree.of(data), v.dtype
            data = tree.built([t.to(dtype) if t.is_floating_point() else t for t in tree.leaves.values()])
            value = self.problem.functions.lower(self.form.shaped(v), theta, data)
            (g,) = torch.autograd.grad(value.sum(), v, materialize_grads=True)
        self.x = self._projected(self.x[0] - size * g)[None]

    def posed(self, theta: Variable, data: Any) -> PosedProblem:
        """The problem on a minibatch, in the tangent space of what holds x."""
        posed = self.problem.at(theta, self.form.shaped(self.x[0]), data)
        posed.function.examine = False
        if posed.faces is not None:
            posed.function.restrict(posed.faces.polyhedron.face(self._held))
        return posed
