"""Unrolling: the derivative of a fixed number of lower-level iterations, in reverse.

The iteration is Nesterov's accelerated projected gradient method on E, with step size s = 1/L, L from norm bounds:

    v_k = x_k + beta_k (x_k - x_{k-1})                    (1)
    x_{k+1} = P(v_k - s ∇E(v_k))                           (2)

Its derivative in reverse, from p_n = ∇ell(x_n), with P' the projection onto the pixels off the bounds at x_{k+1}:

    X_k = -s P' p_{k+1},    gradient += <∂_theta ∇E(v_k), X_k>          (3)
    w_k = P' p_{k+1} + ∇²E(v_k) X_k                                     (4)
    p_k += (1 + beta_k) w_k,    p_{k-1} -= beta_k w_k                   (5)

which autograd through the iteration gives, too, at the cost of keeping the responses of every step.

Source: Nesterov, Introductory Lectures on Convex Optimization (2004), 2.2; Griewank and Walther, Evaluating
Derivatives (2008), 3; truncated: Shaban, Cheng, Hatch and Boots (2019).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learnreg.errors import ConfigError
from learnreg.hypergradients.base import Goal, HypergradientMethod, Outcome
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.pairing import evaluate_pairing
from learnreg.lower_level.point import Point

__all__ = ["Unrolled"]


class Unrolled(HypergradientMethod):
    """Reverse-mode differentiation through the last ``last`` of ``steps`` accelerated gradient steps.

    Parameters
    ----------
    steps: from the usual starting point, or from a warm start.
    last: steps that are differentiated; None for all. What came before counts as fixed.

    The gradient is that of the iteration, not of the solution; its certificate says how far off that is. Both errors
    fall linearly in the number of steps where the energy is strongly convex.

    Raises
    ------
    ConfigError: numbers that are not positive integers, or ``last`` above ``steps``.
    """

    name = "unrolled"

    def __init__(self, steps: int, last: int | None = None) -> None:
        for name, value in (("steps", steps), ("last", steps if last is None else last)):
            if not (isinstance(value, int) and 1 <= value <= steps):
                raise ConfigError(f"Unrolled({name}={value!r}): expected an integer from 1 to steps, {steps!r}.")
        self.steps, self.last = steps, steps if last is None else last

    def fits(self, instance: Instance) -> bool:
        return not instance.latent.channels and math.isfinite(instance.gradient_lipschitz())

    @torch.no_grad()
    def run(self, start: Point, goal: Goal) -> Outcome:
        instance = start.instance
        if not self.fits(instance):
            raise ConfigError("Unrolled: gradient steps take a smooth energy of the image alone; use Implicit().")
        count = self.steps if goal.max_state_steps is None else min(self.steps, goal.max_state_steps)
        size, beta = 1.0 / instance.gradient_lipschitz(), _momenta(instance, count)
        x = before = instance.box.prox(start.x)
        kept: list[tuple[Tensor, Tensor]] = []
        for k in range(count):
            v = x + beta[k] * (x - before)  # (1)
            before, x = x, instance.box.prox(v - size * instance.full_gradient(v))  # (2)
            if k >= count - self.last:
                kept.append((v, x))
        end, adjoint = start.at(x, start.X), torch.zeros_like(x)
        p, carried = end.loss_gradient, torch.zeros_like(x)  # p_{k+1}, and what (5) has added to p_k so far
        total = {name: torch.zeros_like(q, dtype=torch.float64) for name, q in start.frozen.parameters.items()}
        for k in reversed(range(count - len(kept), count)):
            v, following = kept.pop()
            p = instance.box.prox_jvp(following, 1.0, p)
            X = -size * p
            gradient, bent = _linearised(start.at(v, X))  # (3)
            for name, g in gradient.items():
                total[name] += g
            w = p + bent  # (4)
            p, carried = carried + (1.0 + beta[k]) * w, -beta[k] * w  # (5)
            adjoint = adjoint + X
        found = {name: g.to(start.frozen.parameters[name]) for name, g in total.items()}
        return Outcome(x, adjoint, found, state_steps=count, adjoint_steps=min(self.last, count))

    def __repr__(self) -> str:
        return f"Unrolled(steps={self.steps}, last={self.last})"


def _momenta(instance: Instance, count: int) -> list[float]:
    """beta_k: constant with a modulus, growing as for convex functions without."""
    if instance.strong_convexity > 0:
        root = math.sqrt(instance.condition_bound())
        return [(root - 1.0) / (root + 1.0)] * count
    return [k / (k + 3.0) for k in range(count)]


def _linearised(point: Point) -> tuple[dict[str, Tensor], Tensor]:
    """<∂_theta ∇E(x), X> by parameter, in float64, and ∇²E(x) X; part by part, to save memory."""
    sums: dict[str, Tensor] = {}
    bent = []
    for part, _ in point.parts():
        gradient, responses = evaluate_pairing(part)
        sums = {name: g.double() + sums.get(name, 0.0) for name, g in gradient.items()}
        bent.append(part.instance.quadratic(part.X) + part.instance.adjoint(responses.Y))
    return sums, torch.cat(bent)
