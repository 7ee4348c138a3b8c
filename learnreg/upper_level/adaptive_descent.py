"""Descent on certified values: every accepted step provably lowers the loss of its samples.

At theta with a gradient z and a direction p, <z, p> > 0. Where z has an error bound e <= (1 - eta) <z, p>/‖p‖, -p
descends: <∇ell, p> >= <z, p> - e ‖p‖ >= eta <z, p>, so that backtracking ends. The decrease of a step is proven by the
intervals of both losses alone (``line_search``), whatever led to p; so gradients may be certified at every step or at
every tenth, and are where backtracking fails.

Source: Salehi, Mukherjee, Roberts, Ehrhardt, MAID (2023); Bogensperger, Ehrhardt, Pock, Salehi, Wong (2025), section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from learnreg.errors import ConfigError
from learnreg.linear.arguments import check_one_of, real_number, whole_number
from learnreg.linear.grad_mode import outside_inference
from learnreg.upper_level.directions import SCALINGS, Directions, Flat
from learnreg.upper_level.line_search import LineSearch, Step
from learnreg.upper_level.objective import Accuracy, Objective, Trial

__all__ = ["AdaptiveDescent", "DescentStep"]

_LEAST_TOLERANCE = 1e-9
"""Of gradients, relative: beyond, rounding decides."""

_LONGER = 10.0
"""How much longer than the last step one may be, in the metric of ``scaling``."""


@dataclass(frozen=True)
class DescentStep:
    """One call of ``step``. loss_interval: before the step. decrease: certified decrease of the loss (0 when rejected;
    with a window it may be below 0). certified: the decrease is proven, and the direction where that was asked for.
    gradient_norm, gradient_bound: of the direction's gradient; the bound is infinite where none was asked for.
    direction: "quasi-newton", "scaled" or "gradient"."""

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
    direction: str = "gradient"
    audited: bool = False


@dataclass(frozen=True)
class _Plan:
    """A gradient z with its bound (infinite where none was asked for), and the direction p. proven: -p descends."""

    z: Tensor
    p: Tensor
    kind: str
    norm: float
    bound: float
    proven: bool
    audited: bool

    @property
    def slope(self) -> float:
        return float(self.z @ self.p)


class AdaptiveDescent:
    """Descent that only takes steps whose decrease is proven.

    Parameters
    ----------
    eta, c: 0 < c < eta < 1: relative accuracy of the gradient (1 - eta), and the share of the predicted decrease that
        must be certified.
    shrink, grow: largest factor of the step size at a backtrack, and factor after an accepted step without curvature.
    max_backtracks: then the gradient is certified more accurately and the step is tried again along it; where that
        fails, too, the next step begins with the smallest size that was tried.
    stop: stationary when ‖z‖ + e <= stop.
    scaling: "parameters" divides gradients by the root of their running mean square, as Adam does, "groups" those of
        each group by its running norm (so filters, weights and smoothings move at comparable speed), "none" by nothing.
    first_step: size of the first step, and of all until there is curvature to go by.
    memory: pairs of L-BFGS, in the metric of ``scaling``; 0: scaled gradients with Barzilai-Borwein steps.
    window: iterates whose largest loss a step has to undercut: 1, every step lowers the loss; more, it may rise now and
        then.
    audit_every: gradients are certified at every so many steps, from the first one on, and after backtracking failed;
        None: after that alone. A quasi-Newton direction that the bound does not support gives way to the scaled
        gradient, that to the gradient.

    Intervals are as narrow as decisions take: accuracies follow the predicted decrease down and up.

    Raises
    ------
    ConfigError: an argument that is out of its range, or of the wrong kind.

    Examples
    --------
    >>> problem = lr.LowerLevelProblem(lr.operators.Identity((1, 8, 8)), lr.regularizers.TotalVariation(0.1))
    >>> objective = lr.BatchObjective(problem, torch.rand(1, 1, 8, 8), lr.SquaredError(torch.full((1, 1, 8, 8), 0.5)))
    >>> descent = lr.AdaptiveDescent()
    >>> step = descent.step(objective)
    >>> step.certified, step.decrease > 0
    (True, True)
    """

    def __init__(
        self,
        eta: float = 0.5,
        c: float = 0.1,
        shrink: float = 0.5,
        grow: float = 2.0,
        max_backtracks: int = 8,
        stop: float = 0.0,
        scaling: str = "parameters",
        first_step: float = 1e-2,
        *,
        memory: int = 20,
        window: int = 1,
        audit_every: int | None = 10,
    ) -> None:
        for name, value in (("eta", eta), ("c", c), ("shrink", shrink), ("grow", grow), ("stop", stop)):
            real_number(value, f"AdaptiveDescent({name})", least=0.0)
        real_number(first_step, "AdaptiveDescent(first_step)", above=0.0)
        counts = (("memory", memory, 0), ("window", window, 1), ("audit_every", audit_every or 1, 1))
        for name, count, least in counts:
            if not isinstance(count, int) or isinstance(count, bool) or count < least:
                raise ConfigError(f"AdaptiveDescent({name}={count!r}): expected an integer >= {least}.")
        if not 0 < c < eta < 1:
            raise ConfigError(f"AdaptiveDescent(eta={eta}, c={c}): expected 0 < c < eta < 1.")
        if not 0 < shrink < 1 < grow:
            raise ConfigError(f"AdaptiveDescent(shrink={shrink}, grow={grow}): expected 0 < shrink < 1 < grow.")
        check_one_of(scaling, SCALINGS, "AdaptiveDescent(scaling)")
        whole_number(max_backtracks, "AdaptiveDescent(max_backtracks)", least=0)
        self.eta, self.grow, self.stop, self.first_step = eta, grow, stop, first_step
        self.window, self.audit_every = window, audit_every
        self.directions = Directions(memory, scaling)
        self._search = LineSearch(eta, c, shrink, max_backtracks)
        self.tolerance = 1.0 - eta
        self.accuracy, self._ceiling = Accuracy(), Accuracy()
        self.step_size: float | None = None
        self._length = math.inf  # of the last step
        self._steps = 0
        self._lower_ends: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        """What later steps depend on."""
        return {
            "step_size": self.step_size,
            "tolerance": self.tolerance,
            "accuracy": (self.accuracy.state, self.accuracy.adjoint),
            "ceiling": (self._ceiling.state, self._ceiling.adjoint),
            "length": self._length,
            "steps": self._steps,
            "lower_ends": list(self._lower_ends),
            "directions": self.directions.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as after ``state_dict``."""
        self.step_size, self.tolerance = state["step_size"], state["tolerance"]
        if "directions" not in state:  # of earlier versions: curvature is found anew
            return
        self.accuracy, self._ceiling = Accuracy(*state["accuracy"]), Accuracy(*state["ceiling"])
        self._length, self._steps = state["length"], state["steps"]
        self._lower_ends = list(state["lower_ends"])
        self.directions.load_state_dict(state["directions"])

    def other_samples(self) -> None:
        """The objective is about other samples from now on: losses of the earlier ones are no reference."""
        self._lower_ends = []

    # ---- one step --------------------------------------------------------------------------------------------------

    @outside_inference
    def step(self, objective: Objective, longest: float = math.inf) -> DescentStep:
        """Take one step on the parameters of ``objective.problem``; they stay as they are when none is accepted.

        Parameters
        ----------
        longest: the step's length at most, in the metric of ``scaling``, where 1 moves every parameter by about 1.
        """
        flat, before = Flat(objective.problem.learnable()), objective.operator_applications
        audit = self.audit_every is not None and self._steps % self.audit_every == 0
        self._steps += 1
        for attempt in range(2):
            here = objective.latest or objective.evaluate(self.accuracy)
            plan = self._plan(objective, flat, here, audit or attempt > 0)
            if plan.norm + (plan.bound if plan.audited else 0.0) <= self.stop or not plan.slope > 0:
                return self._result(plan, here, before, objective, stationary=True)
            size = self._first_trial(flat, plan, longest)
            earlier = self._lower_ends[-self.window + 1 :] if self.window > 1 else []
            step = self._search.search(objective, flat, here, plan.p, plan.slope, size, self.accuracy, earlier)
            if step is not None:
                self._accept(flat, plan, step)
                return self._result(plan, step.before, before, objective, step)
            self.tolerance = max(0.1 * self.tolerance, _LEAST_TOLERANCE)
            self.directions.forget()
            self.accuracy = self.accuracy.scaled(0.3)
        self.step_size = size * self._search.shrink**self._search.max_backtracks  # goes on from there
        return self._result(plan, here, before, objective)

    def _plan(self, objective: Objective, flat: Flat, here: Trial, audit: bool) -> _Plan:
        """Gradient and direction, certified if asked for."""
        z, bound, certified = flat.vector(here.gradient), math.inf, False
        for _ in range(3 if audit else 1):
            if audit:
                found = objective.certified_gradient(self.tolerance)
                exact = flat.vector(found.gradient)
                self.hold(float((exact - z).norm()) / (float(exact.norm()) or 1.0))
                z, bound, certified = exact, found.error_bound, found.certified
            norm = float(z.norm())
            self.directions.observe(flat, z)
            p, kind, needed = self._supported(flat, z, bound if audit else 0.0)
            if not audit or bound <= needed or norm + bound <= self.stop or not found.reached:
                break
            self.tolerance = 0.5 * min(self.tolerance, needed / norm)
        return _Plan(z, p, kind, norm, bound, certified and bound <= needed, audit)

    def _supported(self, flat: Flat, z: Tensor, bound: float) -> tuple[Tensor, str, float]:
        """The first direction that descends for every gradient within the bound of z, or else z, with the bound that
        takes: (1 - eta) <z, p>/‖p‖."""
        options = [("scaled", self.directions.scaled(flat, z)), ("gradient", z)]
        quasi_newton = self.directions.quasi_newton(flat, z)
        if quasi_newton is not None:
            options.insert(0, ("quasi-newton", quasi_newton))
        for kind, p in options:
            length = float(p.norm())
            needed = (1.0 - self.eta) * float(z @ p) / length if length > 0 else 0.0
            if bound <= needed:
                return p, kind, needed
        return z, "gradient", needed

    def hold(self, error: float) -> None:
        """Let the accuracy of gradients that are not certified follow the relative error of one, where it is known."""
        if error > 0.5 * (1.0 - self.eta):
            self._ceiling = self._ceiling.scaled(0.5)
        elif error < 0.1 * (1.0 - self.eta):
            self._ceiling = self._ceiling.scaled(1.4).within(Accuracy())
        self.accuracy = self.accuracy.within(self._ceiling)

    def _first_trial(self, flat: Flat, plan: _Plan, longest: float) -> float:
        """1 for quasi-Newton steps, Barzilai-Borwein in the metric of ``scaling`` for scaled ones, within limits."""
        last = self.first_step if self.step_size is None else self.step_size
        size = 1.0
        if plan.kind != "quasi-newton":
            quotient = self.directions.barzilai_borwein(flat) if plan.kind == "scaled" else None
            size = last if quotient is None else min(max(quotient, 0.1 * last), _LONGER * last)
        length = self.directions.length(flat, plan.p)
        return min(size, min(longest, _LONGER * self._length) / length) if length > 0 else size

    def _accept(self, flat: Flat, plan: _Plan, step: Step) -> None:
        moved = -step.size * plan.p
        self.directions.learn(flat, moved, flat.vector(step.after.gradient) - plan.z)
        self._length = self.directions.length(flat, moved)
        if plan.kind != "quasi-newton":
            self.step_size = step.size * (1.0 if step.backtracks else self.grow)
        self._lower_ends = [*self._lower_ends, step.before.lower][-self.window :]
        self.tolerance = min(1.0 - self.eta, self.tolerance * self.grow)
        predicted = (self.eta - self._search.c) * step.size * plan.slope
        self.accuracy = step.after.relaxed(step.accuracy, predicted).within(self._ceiling)

    def _result(
        self,
        plan: _Plan,
        here: Trial,
        before: int,
        objective: Objective,
        step: Step | None = None,
        stationary: bool = False,
    ) -> DescentStep:
        proven = step is not None and here.certified and step.after.certified and (plan.proven or not plan.audited)
        backtracks = 0 if stationary else self._search.max_backtracks
        return DescentStep(
            accepted=step is not None,
            certified=proven,
            step_size=0.0 if step is None else step.size,
            loss=here.loss,
            loss_interval=(here.lower, here.upper),
            decrease=0.0 if step is None else step.decrease,
            gradient_norm=plan.norm,
            gradient_bound=plan.bound,
            backtracks=backtracks if step is None else step.backtracks,
            operator_applications=objective.operator_applications - before,
            stationary=stationary,
            direction=plan.kind,
            audited=plan.audited,
        )
