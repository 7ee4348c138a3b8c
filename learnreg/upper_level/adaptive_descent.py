"""Adaptive inexact descent with backtracking on certified values.

At theta: a hypergradient z with bound e <= (1 - eta) <z,p>/‖p‖, so that the direction -p descends. Backtrack alpha
until upper(ell(theta - alpha p)) <= lower(ell(theta)) - c alpha <z,p>, 0 < c < eta < 1. Interval widths shrink with
alpha; too many backtracks mean too little accuracy, so both are tightened and the step is tried again from the same
theta.

Source: Salehi, Mukherjee, Roberts, Ehrhardt, MAID (2023); Bogensperger, Ehrhardt, Pock, Salehi, Wong (2025), section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from learnreg.errors import AssumptionError, ConfigError
from learnreg.linear.arguments import check_one_of, real_number, whole_number
from learnreg.linear.grad_mode import outside_inference
from learnreg.result import Hypergradient
from learnreg.upper_level.batch_objective import BatchObjective

__all__ = ["AdaptiveDescent", "DescentStep"]

Direction = dict[str, Tensor]

_LEAST_TOLERANCE = 1e-9
"""Of gradients, relative: beyond, rounding decides."""


@dataclass(frozen=True)
class DescentStep:
    """One call of ``step``. loss_interval: before the step. decrease: certified decrease of the loss (0 when rejected).
    certified: both the direction and the decrease are. gradient_norm, gradient_bound: of the direction's gradient."""

    accepted: bool
    certified: bool
    step_size: float
    loss: float
    loss_interval: tuple[float, float]
    decrease: float
    gradient_norm: float
    gradient_bound: float
    backtracks: int
    operator_applications: int
    stationary: bool = False


class AdaptiveDescent:
    """Gradient descent that only takes steps its certificates allow.

    Parameters
    ----------
    eta, c: 0 < c < eta < 1: relative accuracy of the gradient (1 - eta), and the share of the predicted decrease that
        must be certified.
    shrink, grow: factors of the step size at a backtrack and after an accepted step.
    max_backtracks: then the accuracies are tightened tenfold and the step is tried again; where that fails, too, the
        next step begins with the smallest size that was tried.
    stop: stationary when ‖z‖ + e <= stop.
    scaling: "groups" divides each parameter group's gradient by its running norm (so filters, weights and smoothings
        move at comparable speed), "none" is plain gradient descent.

    The first step size comes from the gradient, later ones from a Barzilai-Borwein quotient in the scaled metric.
    """

    def __init__(
        self,
        eta: float = 0.5,
        c: float = 0.1,
        shrink: float = 0.5,
        grow: float = 2.0,
        max_backtracks: int = 8,
        stop: float = 0.0,
        scaling: str = "groups",
        first_step: float = 1e-2,
    ) -> None:
        for name, value in (("eta", eta), ("c", c), ("shrink", shrink), ("grow", grow), ("stop", stop)):
            real_number(value, f"AdaptiveDescent({name})", least=0.0)
        real_number(first_step, "AdaptiveDescent(first_step)", above=0.0)
        if not 0 < c < eta < 1:
            raise ConfigError(f"AdaptiveDescent(eta={eta}, c={c}): expected 0 < c < eta < 1.")
        if not 0 < shrink < 1 < grow:
            raise ConfigError(f"AdaptiveDescent(shrink={shrink}, grow={grow}): expected 0 < shrink < 1 < grow.")
        check_one_of(scaling, ("groups", "none"), "AdaptiveDescent(scaling)")
        whole_number(max_backtracks, "AdaptiveDescent(max_backtracks)", least=0)
        self.eta, self.c, self.shrink, self.grow = eta, c, shrink, grow
        self.max_backtracks, self.stop, self.scaling, self.first_step = max_backtracks, stop, scaling, first_step
        self.tolerance = 1.0 - eta
        self.step_size: float | None = None
        self._previous: tuple[Direction, Direction] | None = None
        self._scale: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """What later steps depend on."""
        return {
            "step_size": self.step_size,
            "tolerance": self.tolerance,
            "previous": self._previous,
            "scale": dict(self._scale),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as after ``state_dict``."""
        self.step_size, self.tolerance = state["step_size"], state["tolerance"]
        self._previous, self._scale = state.get("previous"), dict(state.get("scale", {}))

    # ---- one step --------------------------------------------------------------------------------------------------

    @outside_inference
    def step(self, objective: BatchObjective) -> DescentStep:
        """Take one step on the parameters of ``objective.problem``; they stay as they are when none is accepted."""
        parameters = objective.problem.learnable()
        origin = {name: p.detach().clone() for name, p in parameters.items()}
        before = objective.operator_applications
        for _ in range(3):
            gradient = objective.gradient(self.tolerance)
            direction = self._direction(gradient.gradient)
            slope, needed = self._descent(gradient.gradient, direction)
            if gradient.norm + gradient.error_bound <= self.stop or slope == 0.0:
                return self._result(gradient, 0.0, 0, before, objective, stationary=True)
            if gradient.error_bound <= needed or not gradient.status.converged:
                break
            self.tolerance = 0.5 * min(self.tolerance, needed / gradient.norm)
        alpha = self._first_trial(origin, gradient.gradient, direction)
        for attempt in range(2):
            trial = self._search(objective, parameters, origin, gradient, direction, slope, alpha)
            if trial is not None:
                alpha, decrease, backtracks, certified = trial
                self._previous = (origin, gradient.gradient)
                self.step_size = alpha
                self.tolerance = min(1.0 - self.eta, self.tolerance * self.grow)
                certified = certified and gradient.certified and gradient.error_bound <= needed
                return self._result(gradient, alpha, backtracks, before, objective, decrease, certified, True)
            self.tolerance = max(0.1 * self.tolerance, _LEAST_TOLERANCE)
            if attempt == 0:
                gradient = objective.gradient(self.tolerance)
                direction = self._direction(gradient.gradient)
                slope, needed = self._descent(gradient.gradient, direction)
        self.step_size, self._previous = alpha * self.shrink**self.max_backtracks, None  # goes on from there
        return self._result(gradient, 0.0, self.max_backtracks, before, objective)

    def _search(
        self,
        objective: BatchObjective,
        parameters: dict[str, nn.Parameter],
        origin: Direction,
        gradient: Hypergradient,
        direction: Direction,
        slope: float,
        alpha: float,
    ) -> tuple[float, float, int, bool] | None:
        """Backtrack from alpha; None (parameters restored) when no certified decrease was found."""
        start = objective.start
        base = objective.value(0.2 * (self.eta - self.c) * alpha * slope)
        for backtracks in range(self.max_backtracks):
            predicted = alpha * slope
            if base.width > 0.25 * (self.eta - self.c) * predicted:
                base = objective.value(0.2 * (self.eta - self.c) * predicted)
            for name, p in parameters.items():
                p.copy_(origin[name] - alpha * direction[name])
            objective.problem.project_()
            value = None
            try:
                value = objective.value(0.2 * (self.eta - self.c) * predicted)
            except AssumptionError:
                pass  # a problem without a solution lies too far
            except BaseException:
                _restore(parameters, origin)
                raise
            if value is not None and value.upper <= base.lower - self.c * predicted:
                return alpha, base.lower - value.upper, backtracks, base.certified and value.certified
            alpha *= self.shrink
            _restore(parameters, origin)
        objective.start = start
        return None

    def _descent(self, gradient: Direction, direction: Direction) -> tuple[float, float]:
        """<z, p>, and the gradient error below which -p descends: (1 - eta) <z, p> / ‖p‖."""
        slope, length = _dot(gradient, direction), _norm(direction)
        return slope, (1.0 - self.eta) * slope / length if length > 0 else 0.0

    def _direction(self, gradient: Direction) -> Direction:
        """The gradient, each group divided by the running mean of its norm over the root of its size."""
        if self.scaling == "none":
            return gradient
        scaled = {}
        for name, g in gradient.items():
            size = float(g.double().norm()) / math.sqrt(g.numel())
            previous = self._scale.get(name, size)
            self._scale[name] = 0.7 * previous + 0.3 * size
            scaled[name] = g / max(self._scale[name], 1e-300)
        return scaled

    def _first_trial(self, origin: Direction, gradient: Direction, direction: Direction) -> float:
        """Barzilai-Borwein in the metric of the scaling, limited to a tenth and ten times the last step size."""
        if self._previous is None or self.step_size is None:
            return self.first_step if self.step_size is None else self.step_size
        old_point, old_gradient = self._previous
        moved = {n: origin[n] - old_point[n] for n in origin}
        change = {n: gradient[n] - old_gradient[n] for n in gradient}
        curvature = _dot(moved, change)
        if curvature <= 0:
            return self.grow * self.step_size
        scaled = {n: moved[n] * self._metric(n) for n in moved}
        quotient = _dot(moved, scaled) / curvature
        return min(max(quotient, 0.1 * self.step_size), 10.0 * self.step_size)

    def _metric(self, name: str) -> float:
        return 1.0 if self.scaling == "none" else max(self._scale[name], 1e-300)

    def _result(
        self,
        gradient: Hypergradient,
        alpha: float,
        backtracks: int,
        before: int,
        objective: BatchObjective,
        decrease: float = 0.0,
        certified: bool = False,
        accepted: bool = False,
        stationary: bool = False,
    ) -> DescentStep:
        return DescentStep(
            accepted=accepted,
            certified=certified,
            step_size=alpha,
            loss=gradient.loss,
            loss_interval=gradient.loss_interval,
            decrease=decrease,
            gradient_norm=gradient.norm,
            gradient_bound=gradient.error_bound,
            backtracks=backtracks,
            operator_applications=objective.operator_applications - before,
            stationary=stationary,
        )


def _restore(parameters: dict[str, nn.Parameter], origin: Direction) -> None:
    for name, p in parameters.items():
        p.copy_(origin[name])


def _dot(a: Direction, b: Direction) -> float:
    return math.fsum(float((a[n].double() * b[n].double()).sum()) for n in a)


def _norm(a: Direction) -> float:
    return math.sqrt(_dot(a, a))
