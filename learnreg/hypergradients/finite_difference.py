"""Central differences of the upper-level loss in every learned number: a reference without any derivative.

    g_i = (ell(x(theta + h_i e_i)) - ell(x(theta - h_i e_i))) / (2 h_i) + O(h_i²)        (1)

Losses of states with relative errors e add e/h, so that h ~ e^⅓ is best.

Source: Nocedal and Wright, Numerical Optimization (2006), 8.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from learnreg.errors import ConfigError
from learnreg.hypergradients.base import Goal, HypergradientMethod, Outcome
from learnreg.linear.arguments import real_number
from learnreg.linear.samples import norm_samples
from learnreg.lower_level.elsewhere import is_nonnegative, with_parameters
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.point import Point
from learnreg.result import Status
from learnreg.solvers.choice import make_solver
from learnreg.solvers.loop import LoopResult
from learnreg.solvers.solve import run_state_solver

__all__ = ["FiniteDifference"]

_MOST = 1000
"""Learned numbers; each takes two lower-level solutions."""

_REACHABLE = 48.0
"""Norms of residuals in units of rounding of the data that solvers reach."""

_COARSEST, _LEAST_STEP = 1e-3, 8.0
"""The largest error of the states, relative to the image, and the smallest step in units of a number's rounding."""


class FiniteDifference(HypergradientMethod):
    """Central differences of the upper-level loss, two warm-started lower-level solutions for each learned number, in
    float64: a reference for a few numbers, up to 1,000.

    Parameters
    ----------
    step: relative to a number's size, or to the root mean square of its parameter where that is larger (1 where both
        are 0), 0 < step < 1. None: e^⅓ for the error e of the states, relative to the image, that is asked for.

    The ridge and weights of the data term have no values below 0; there differences of the same order are taken from
    inside. ``max_steps`` limits each solution. The certificate says how far off the gradient is, and ``hypergradient``
    asks for more accuracy until the tolerance is met, which a ``step`` given here may keep it from.

    Raises
    ------
    ConfigError: a step outside (0, 1); when it runs, more learned numbers than 1,000.

    Examples
    --------
    >>> lr.FiniteDifference(step=1e-4).step
    0.0001
    """

    name = "finite-difference"
    improves = True
    miss = Status.METHOD_ERROR

    def __init__(self, step: float | None = None) -> None:
        self.step = None if step is None else real_number(step, "FiniteDifference(step)", above=0.0)
        if self.step is not None and not self.step < 1.0:
            raise ConfigError(f"FiniteDifference(step={step!r}): expected one below 1, relative to a number.")

    def __repr__(self) -> str:
        return f"FiniteDifference(step={self.step})"

    @torch.no_grad()
    def run(self, start: Point, goal: Goal) -> Outcome:
        frozen, counter, double = start.frozen, start.instance.counter, torch.float64
        count = sum(p.numel() for p in frozen.parameters.values())
        if count > _MOST:
            raise ConfigError(
                f"FiniteDifference: {count} learned numbers would take {2 * count} lower-level solutions, at most "
                f"{_MOST} numbers are accepted; use Implicit(), or requires_grad_(False) for most parameters."
            )
        start = start.on(start.instance if start.x.dtype == double else frozen.at(start.b.double(), counter))
        goal = goal.within(double, goal.max_state_steps, goal.max_adjoint_steps)
        error = _error(start, goal)
        free = _solved(start, frozen, error, goal.max_state_steps)
        start, ended, steps = start.at(free.x, start.X), [free.status], [free.steps]

        def loss(name: str, value: Tensor) -> float:
            def work(moved: FrozenProblem) -> LoopResult:
                return _solved(start, moved, error, goal.max_state_steps)

            found = with_parameters(frozen, {name: value}, work)
            ended.append(found.status)
            steps.append(found.steps)
            return float(start.loss.value(found.x))

        relative = self.step or float((error / norm_samples(free.x).clamp_min(1e-6)).max()) ** (1.0 / 3.0)
        gradient = {}
        for name, p in frozen.parameters.items():
            slopes = [sum(w * loss(name, v) for v, w in nodes) for nodes in _differences(name, p.detach(), relative)]
            gradient[name] = torch.tensor(slopes, dtype=p.dtype, device=p.device).reshape(p.shape)
        status = next((s for s in ended if s is not Status.CONVERGED), Status.CONVERGED)
        return Outcome(free.x, None, gradient, status, max(steps), 0)


def _error(start: Point, goal: Goal) -> Tensor:
    """That of states, (batch,): what is asked for of x, or of a gradient of the adjoint state's accuracy, e^⅔; above
    what rounding leaves."""
    size, slope = (norm_samples(v).clamp_min(1e-300) for v in (start.x, start.loss_gradient))
    share = torch.minimum(goal.state / size, (goal.adjoint / slope) ** 1.5).clamp_max(_COARSEST)
    mu, rounding = start.instance.strong_convexity, _REACHABLE * torch.finfo(torch.float64).eps
    least = rounding * norm_samples(start.instance.q) / mu if mu > 0 else rounding * size
    return torch.maximum(share * size, least).clamp_min(1e-300)


def _solved(start: Point, frozen: FrozenProblem, error: Tensor, max_steps: int | None) -> LoopResult:
    """The state of the problem at some parameters, from the start."""
    instance = frozen.at(start.b.double(), start.instance.counter)
    return run_state_solver(make_solver("auto", instance, warm=True), instance, start.x, error, max_steps)


def _differences(name: str, p: Tensor, relative: float) -> Iterator[list[tuple[Tensor, float]]]:
    """For each number of a parameter the values it takes, and their weights in the difference quotient."""
    typical = float(p.double().square().mean().sqrt()) if p.numel() else 1.0
    for index in range(p.numel()):
        value = float(p.flatten()[index])
        size = max(abs(value), typical) or 1.0
        h = max(relative, _LEAST_STEP * torch.finfo(p.dtype).eps) * size
        inside = is_nonnegative(name) and value < h
        moved = [_moved(p, index, value + k * h) for k in ((0, 1, 2) if inside else (-1, 1))]
        at = [float(v.flatten()[index]) for v in moved]  # as rounded
        yield list(zip(moved, _weights(at, value), strict=True))


def _moved(p: Tensor, index: int, value: float) -> Tensor:
    found = p.clone()
    found.view(-1)[index] = value
    return found


def _weights(at: list[float], value: float) -> list[float]:
    """Of the function at two or three points, in the derivative at ``value`` of the polynomial through them."""
    if len(at) == 2:
        return [-1.0 / (at[1] - at[0]), 1.0 / (at[1] - at[0])]
    first, second = at[1] - value, at[2] - value
    weights = [second / (first * (second - first)), -first / (second * (second - first))]
    return [-math.fsum(weights), *weights]
