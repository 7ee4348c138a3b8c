"""Unrolling: the derivative of a fixed number of lower-level iterations, in reverse or forwards.

The iteration is that of ``gradient_steps``: v_k from x_k and x_{k-1} with a momentum beta_k, then
x_{k+1} = P(v_k - s ∇E(v_k)). Its derivative in reverse, from p_n = ∇ell(x_n), with P' the projection onto the pixels
off the bounds at x_{k+1}:

    X_k = -s P' p_{k+1},    gradient += <∂_theta ∇E(v_k), X_k>          (1)
    w_k = P' p_{k+1} + ∇²E(v_k) X_k                                     (2)
    p_k += (1 + beta_k) w_k,    p_{k-1} -= beta_k w_k                   (3)

which autograd through the iteration gives, too, at the cost of keeping the responses of every step. And forwards, for
one entry theta_j at a time, from 0:

    V_k = X_k + beta_k (X_k - X_{k-1}),    X_{k+1} = P' (V_k - s (∇²E(v_k) V_k + ∂_j ∇E(v_k)))      (4)

and <∇ell(x_n), X_n> in the end.

Source: Griewank and Walther, Evaluating Derivatives (2008), 3; forwards and in reverse for hyperparameters: Franceschi,
Donini, Frasconi and Pontil (2017); truncated: Shaban, Cheng, Hatch and Boots (2019).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from learnreg.errors import ConfigError
from learnreg.hypergradients.base import Goal, HypergradientMethod, Outcome
from learnreg.hypergradients.gradient_steps import GradientSteps, Passed, Position
from learnreg.linear.arguments import check_one_of, whole_number
from learnreg.linear.samples import inner_samples
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.pairing import cross_derivatives, evaluate_pairing
from learnreg.lower_level.point import Point

__all__ = ["Unrolled", "check_smooth", "reverse"]

_MOST_TANGENTS = 64
"""Entries of parameters that forward mode carries an image for each."""


class Unrolled(HypergradientMethod):
    """Differentiation through the last ``last`` of ``steps`` accelerated gradient steps.

    Parameters
    ----------
    steps: from the usual starting point, or from a warm start.
    last: steps that are differentiated; None for all. What came before counts as fixed.
    mode: "reverse", for any number of parameters, keeps two images for each step differentiated. "forward" keeps no
        step, but carries two images for each entry of the parameters, 64 at most, and each takes a step of its own.
    checkpoints: of "reverse", positions of the iteration that are kept, two images each; the steps between them are
        taken again on the way back. None keeps every step. The gradient is the same, to the last bit.

    The gradient is that of the iteration, not of the solution; its certificate says how far off that is. Both errors
    fall linearly in the number of steps where the energy is strongly convex.

    Raises
    ------
    ConfigError: numbers that are not positive integers, or ``last`` above ``steps``; checkpoints in forward mode. When
    it runs: more than 64 entries of parameters there; latent variables, or a Hessian without a known bound.

    Examples
    --------
    >>> problem = lr.LowerLevelProblem(lr.operators.Identity((1, 8, 8)), lr.regularizers.FieldsOfExperts(2, 3))
    >>> b, loss = torch.rand(1, 1, 8, 8), lr.SquaredError(torch.zeros(1, 1, 8, 8))
    >>> lr.hypergradient(problem, b, loss, method=lr.Unrolled(steps=60), tolerance=0.1).certified
    True
    """

    name = "unrolled"

    def __init__(
        self,
        steps: int,
        last: int | None = None,
        mode: Literal["reverse", "forward"] = "reverse",
        checkpoints: int | None = None,
    ) -> None:
        self.steps = whole_number(steps, "Unrolled(steps)")
        self.last = self.steps if last is None else whole_number(last, "Unrolled(last)", most=self.steps)
        check_one_of(mode, ("reverse", "forward"), "Unrolled(mode)")
        self.mode = mode
        self.checkpoints = None if checkpoints is None else whole_number(checkpoints, "Unrolled(checkpoints)")
        if mode == "forward" and checkpoints is not None:
            raise ConfigError("Unrolled(mode='forward', checkpoints=...): forward mode keeps no steps; leave it out.")

    def fits(self, instance: Instance) -> bool:
        return not instance.latent.channels and math.isfinite(instance.gradient_lipschitz())

    @torch.no_grad()
    def run(self, start: Point, goal: Goal) -> Outcome:
        instance = start.instance
        check_smooth(self, instance)
        count = self.steps if goal.max_state_steps is None else min(self.steps, goal.max_state_steps)
        steps, first = GradientSteps.of(instance, count), max(0, count - self.last)
        if self.mode == "forward":
            _check_tangents(start)
        at = steps.advance(steps.start(start.x), 0, first)
        if self.mode == "forward":
            return _forward(start, steps, at, first)
        return reverse(start, steps, steps.backwards(at, first, count, self.checkpoints))

    def __repr__(self) -> str:
        more = "" if self.mode == "reverse" else f", mode={self.mode!r}"
        more += "" if self.checkpoints is None else f", checkpoints={self.checkpoints}"
        return f"Unrolled(steps={self.steps}, last={self.last}{more})"


def check_smooth(method: HypergradientMethod, instance: Instance) -> None:
    """ConfigError where the problem is none for gradient steps."""
    if not method.fits(instance):
        kind = type(method).__name__
        raise ConfigError(f"{kind}: gradient steps take a smooth energy of the image alone; use Implicit().")


def reverse(start: Point, steps: GradientSteps, passed: Iterator[Passed]) -> Outcome:
    """The derivative through these steps, the last one first."""
    box = start.instance.box
    final = next(passed)
    end, count, number = start.at(final.x, start.X), final.k + 1, 0
    p, carried = end.loss_gradient, torch.zeros_like(final.x)  # p_{k+1}, and what (3) has added to p_k so far
    adjoint = torch.zeros_like(final.x)
    total = {name: torch.zeros_like(q, dtype=torch.float64) for name, q in start.frozen.parameters.items()}
    step: Passed | None = final
    while step is not None:
        p = box.prox_jvp(step.x, 1.0, p)
        X = -steps.size * p
        gradient, bent = _linearised(start.at(step.v, X))  # (1)
        for name, g in gradient.items():
            total[name] += g
        w, beta = p + bent, steps.beta[step.k]  # (2)
        p, carried = carried + (1.0 + beta) * w, -beta * w  # (3)
        adjoint, number = adjoint + X, number + 1
        step = next(passed, None)
    found = {name: g.to(start.frozen.parameters[name]) for name, g in total.items()}
    return Outcome(final.x, adjoint, found, state_steps=count, adjoint_steps=number)


def _linearised(point: Point) -> tuple[dict[str, Tensor], Tensor]:
    """<∂_theta ∇E(x), X> by parameter, in float64, and ∇²E(x) X; part by part, to save memory."""
    sums: dict[str, Tensor] = {}
    bent = []
    for part, _ in point.parts():
        gradient, responses = evaluate_pairing(part)
        sums = {name: g.double() + sums.get(name, 0.0) for name, g in gradient.items()}
        bent.append(part.instance.quadratic(part.X) + part.instance.adjoint(responses.Y))
    return sums, torch.cat(bent)


def _check_tangents(start: Point) -> None:
    number = sum(p.numel() for p in start.frozen.parameters.values())
    if number > _MOST_TANGENTS:
        raise ConfigError(
            f"Unrolled(mode='forward'): it carries an image for each of the {number} entries of the parameters, and "
            f"takes {_MOST_TANGENTS} at most; use mode='reverse', with checkpoints= where memory is short."
        )


def _forward(start: Point, steps: GradientSteps, at: Position, first: int) -> Outcome:
    """The derivative of steps first to the last, forwards."""
    instance, count = start.instance, len(steps.beta)
    number = sum(p.numel() for p in start.frozen.parameters.values())
    tangents = [torch.zeros_like(at.x)] * number
    earlier = tangents
    for k in range(first, count):
        passed, at = steps.step(at, k)
        curvature = instance.potential.linearised(instance.apply(passed.v))
        later, driving = [], cross_derivatives(start.at(passed.v, start.X), curvature)
        for X, before, driven in zip(tangents, earlier, driving, strict=True):
            V = X + steps.beta[k] * (X - before)
            bent = instance.quadratic(V) + instance.adjoint(instance.potential.bent(curvature, instance.apply(V)))
            later.append(instance.box.prox_jvp(passed.x, 1.0, V - steps.size * (bent + driven)))  # (4)
        tangents, earlier = later, tangents
    slope = start.at(at.x, start.X).loss_gradient.double()
    entries = iter(tangents)
    found = {}
    for name, p in start.frozen.parameters.items():
        slopes = [inner_samples(slope, X.double()).sum() for X in islice(entries, p.numel())]
        found[name] = torch.stack(slopes).reshape(p.shape).to(p)
    return Outcome(at.x, None, found, state_steps=count, adjoint_steps=count - first)
