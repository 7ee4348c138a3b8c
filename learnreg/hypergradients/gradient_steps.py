"""Accelerated projected gradient steps on the energy, and the way back through them.

The iteration is Nesterov's accelerated projected gradient method on E, with step size s = 1/L, L from norm bounds:

    v_k = x_k + beta_k (x_k - x_{k-1})                    (1)
    x_{k+1} = P(v_k - s ∇E(v_k))                           (2)

Source: Nesterov, Introductory Lectures on Convex Optimization (2004), 2.2; few kept states: Griewank and Walther,
Algorithm 799: revolve, ACM Trans. Math. Softw. 26 (2000).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from torch import Tensor

from learnreg.lower_level.instance import Instance

__all__ = ["GradientSteps", "Passed", "Position"]


@dataclass(frozen=True)
class Position:
    """x_k and x_{k-1}."""

    x: Tensor
    before: Tensor


@dataclass(frozen=True)
class Passed:
    """Step k: from v_k to x_{k+1}."""

    k: int
    v: Tensor
    x: Tensor


@dataclass(frozen=True)
class GradientSteps:
    """The iteration on one problem. size: s. beta: of each step."""

    instance: Instance
    size: float
    beta: tuple[float, ...]

    @classmethod
    def of(cls, instance: Instance, number: int) -> GradientSteps:
        """So many steps; the momenta are constant with a modulus, growing as for convex functions without."""
        if instance.strong_convexity > 0:
            root = math.sqrt(instance.condition_bound())
            beta = ((root - 1.0) / (root + 1.0),) * number
        else:
            beta = tuple(k / (k + 3.0) for k in range(number))
        return cls(instance, 1.0 / instance.gradient_lipschitz(), beta)

    def start(self, x: Tensor) -> Position:
        """At rest at x, or at the nearest point that the constraint allows."""
        x = self.instance.box.prox(x)
        return Position(x, x)

    def step(self, at: Position, k: int) -> tuple[Passed, Position]:
        """Step k; counts 2."""
        v = at.x + self.beta[k] * (at.x - at.before)  # (1)
        x = self.instance.box.prox(v - self.size * self.instance.full_gradient(v))  # (2)
        return Passed(k, v, x), Position(x, at.x)

    def advance(self, at: Position, first: int, end: int) -> Position:
        """Steps first to end - 1."""
        for k in range(first, end):
            at = self.step(at, k)[1]
        return at

    def backwards(self, at: Position, first: int, end: int, checkpoints: int | None) -> Iterator[Passed]:
        """Steps end - 1 to first, from where the first one starts: all of them kept on the way there, or computed again
        from as many kept positions as told, that one among them."""
        if checkpoints is None or checkpoints >= end - first:
            passed = []
            for k in range(first, end):
                step, at = self.step(at, k)
                passed.append(step)
            while passed:
                yield passed.pop()
            return
        kept = [(first, at)]
        while end > first:
            k, at = kept[-1]
            spare = checkpoints - len(kept)
            if spare and k < end - 1:
                middle = k + _reach(end - k, spare)
                kept.append((middle, self.advance(at, k, middle)))
                continue
            end -= 1
            yield self.step(self.advance(at, k, end), end)[0]
            if k == end:
                kept.pop()


def _reach(steps: int, spare: int) -> int:
    """How far from the last position the next one is kept: binomially, by which no step is taken more often than
    needed with so many to spare."""
    often = next(t for t in count(1) if math.comb(spare + 1 + t, t) >= steps)
    return min(math.comb(spare + often, often - 1), steps - math.comb(spare + often - 1, often - 1))
