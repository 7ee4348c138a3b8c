"""Lower-level solutions that the upper-level loss nudges: minimisers of E + c beta ell for a few numbers c."""

from __future__ import annotations

import cmath
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from learnreg.linear.samples import expand, norm_samples
from learnreg.lower_level.instance import Counter
from learnreg.lower_level.pairing import energy_gradient
from learnreg.lower_level.point import Point
from learnreg.result import Status
from learnreg.solvers.choice import make_solver
from learnreg.solvers.solve import residual_tolerance, run_state_solver

__all__ = ["Nudged", "Nudges", "solve_nudged"]

_TURNS, _CONTRACTION = 60, 0.9
"""Linearisations of the loss at most, and what each has to leave of the last one's change."""


@dataclass(frozen=True)
class Nudges:
    """at: the numbers c. weights: of a function at them over beta, whose sum's real part is its derivative with respect
    to beta up to O(beta^order)."""

    at: tuple[complex, ...]
    weights: tuple[complex, ...]
    order: int

    @classmethod
    def of(cls, count: int) -> Nudges:
        """One-sided, symmetric, or on a circle; there one of two conjugate numbers stands for both."""
        if count == 1:
            return cls((1.0, 0.0), (1.0, -1.0), 1)
        if count == 2:
            return cls((1.0, -1.0), (0.5, -0.5), 2)
        circle = [cmath.exp(2j * cmath.pi * k / count) for k in range(count // 2 + 1)]
        shares = [1.0 if k in (0, count / 2) else 2.0 for k in range(count // 2 + 1)]
        weights = tuple(share / count * c.conjugate() for share, c in zip(shares, circle, strict=True))
        return cls(tuple(circle), weights, count)

    def numbers(self, values: tuple[complex, ...], like: Tensor) -> Tensor:
        """As a tensor, of a precision such as that of ``like``."""
        return torch.tensor(values, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class Nudged:
    """The states at each nudge, (count, batch, ...), how their solves ended, and in how many steps."""

    nudges: Nudges
    beta: float
    states: Tensor
    status: Status
    steps: int

    def weights(self) -> Tensor:
        return self.nudges.numbers(self.nudges.weights, self.states) / self.beta

    def adjoint(self) -> Tensor:
        """The difference of the states, which approximates the adjoint state."""
        return torch.einsum("k,kb...->b...", self.weights(), self.states).real.contiguous()

    def gradient(self, point: Point) -> dict[str, Tensor]:
        """The difference of the energy's derivatives, which approximates the hypergradient."""
        return energy_gradient(point, self.states, self.weights()[:, None])


def solve_nudged(
    point: Point, nudges: Nudges, beta: float, X: Tensor, residual: Tensor, max_steps: int | None
) -> Nudged:
    """At real nudges, from x + c beta X, to gradients of these norms, (batch,): all in one batch, with the loss
    linearised at the latest states until that changes no more."""
    count, batch = len(nudges.at), point.instance.batch
    c = beta * nudges.numbers(nudges.at, point.x)
    index = torch.arange(batch, device=point.x.device).repeat(count)
    many = replace(point.instance.select(index), counter=Counter())
    size, goal = expand(c.repeat_interleave(batch), many.q), residual.repeat(count)
    error = goal / residual_tolerance(many, torch.ones_like(goal))
    x = many.box.prox((point.x + torch.einsum("k,b...->kb...", c, X)).flatten(0, 1))

    def slopes(x: Tensor) -> Tensor:
        return torch.cat([point.loss.gradient(own) for own in x.reshape(count, batch, *x.shape[1:])])

    slope, before, steps = slopes(x), torch.full_like(goal, torch.inf), 0
    for _ in range(_TURNS):
        left = None if max_steps is None else max_steps - steps
        linearised = replace(many, q=many.q - size * slope)
        found = run_state_solver(make_solver("auto", linearised, warm=True), linearised, x, error, left)
        x, after, steps, status = found.x, slopes(found.x), steps + found.steps, found.status
        change = norm_samples(size * (after - slope))
        slope = after
        if bool((change <= goal).all()) or status is not Status.CONVERGED:
            break
        if not bool((change <= _CONTRACTION * before.clamp_min(1e-300)).any()):
            status = Status.METHOD_ERROR
            break
        before = change
    else:
        status = Status.METHOD_ERROR
    point.instance.counter.applications += count * many.counter.applications
    return Nudged(nudges, beta, x.reshape(count, batch, *x.shape[1:]), status, steps)
