"""MAID, the method of adaptive inexact descent, by its published rules.

At theta with accuracies (eps, delta) of lower level and adjoint equation, alpha = beta:

    z with ‖z - ∇ell‖ <= omega <= (1 - eta) ‖z‖                                                     (1)
    upper(theta - alpha z) <= lower(theta) - c alpha ‖z‖²,    else alpha <- rho alpha               (2)
    accepted: beta <- rho' alpha, (eps, delta) <- nu' (eps, delta)                                  (3)
    after J trials: (eps, delta) <- nu (eps, delta), J <- J + 1, and again from theta               (4)

(2) implies that the exact loss falls by c alpha ‖z‖², 0 < c < eta. eps and delta are relative here, as in
:class:`learnreg.upper_level.objective.Accuracy`, and [lower, upper] and omega the library's intervals and bounds in
place of the published ones; constants are those of the authors' code.

Source: Salehi, Mukherjee, Roberts and Ehrhardt, An adaptively inexact first-order method for bilevel optimization with
application to hyperparameter learning, arXiv 2308.10098, algorithms 3.1 and 3.2.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from learnreg.errors import AssumptionError, ConfigError
from learnreg.linear.arguments import real_number, whole_number
from learnreg.linear.grad_mode import outside_inference
from learnreg.upper_level.adaptive_descent import DescentStep
from learnreg.upper_level.directions import Flat
from learnreg.upper_level.objective import Accuracy, CertifiedGradient, Objective, Trial

__all__ = ["MAID"]


class MAID:
    """Gradient descent with a line search on inexact values, and accuracies that follow it.

    Parameters
    ----------
    step_size: of the first trial, beta.
    state, adjoint: first accuracies, relative: eps and delta.
    eta, decrease: eta and c of (1) and (2), 0 < c < eta < 1; None for c: eta², as the authors have it.
    shrink, grow: rho and rho', of the step size.
    tighten, relax: nu and nu', of the accuracies.
    backtracks, attempts: J to begin with, and how often (4) may happen in a step.

    Where the constraints of theta cut a step s = theta+ - theta short, (2) asks for a decrease of c ‖s‖²/alpha.
    :class:`learnreg.AdaptiveDescent` is the library's own: it preconditions, and narrows intervals as decisions take.

    Raises
    ------
    ConfigError: numbers out of these ranges.

    Examples
    --------
    >>> problem = lr.LowerLevelProblem(lr.operators.Identity((1, 8, 8)), lr.regularizers.TotalVariation(0.1))
    >>> objective = lr.BatchObjective(problem, torch.rand(1, 1, 8, 8), lr.SquaredError(torch.full((1, 1, 8, 8), 0.5)))
    >>> descent = lr.MAID(step_size=0.1)  # step = descent.step(objective) takes one step
    >>> descent.step_size
    0.1
    """

    def __init__(
        self,
        step_size: float = 0.1,
        state: float = 0.1,
        adjoint: float = 0.1,
        eta: float = 1e-4,
        decrease: float | None = None,
        *,
        shrink: float = 0.9,
        grow: float = 10.0 / 9.0,
        tighten: float = 0.5,
        relax: float = 1.05,
        backtracks: int = 10,
        attempts: int = 3,
    ) -> None:
        positive = {"step_size": step_size, "state": state, "adjoint": adjoint, "eta": eta}
        for name, value in positive.items():
            real_number(value, f"MAID({name})", above=0.0)
        c = eta * eta if decrease is None else real_number(decrease, "MAID(decrease)", above=0.0)
        if not c < eta < 1:
            raise ConfigError(f"MAID(eta={eta}, decrease={c}): expected 0 < decrease < eta < 1.")
        for names, low, high in ((("shrink", "grow"), shrink, grow), (("tighten", "relax"), tighten, relax)):
            if not 0 < low < 1 <= high < math.inf:
                given, expected = f"{names[0]}={low}, {names[1]}={high}", f"0 < {names[0]} < 1 <= {names[1]}"
                raise ConfigError(f"MAID({given}): expected {expected}.")
        self.eta, self.decrease, self.shrink, self.grow = eta, c, shrink, grow
        self.tighten, self.relax = tighten, relax
        self.backtracks = whole_number(backtracks, "MAID(backtracks)")
        self.attempts = whole_number(attempts, "MAID(attempts)")
        self.step_size, self.accuracy = float(step_size), Accuracy(state, adjoint)

    def __repr__(self) -> str:
        return f"MAID(step_size={self.step_size:g}, state={self.accuracy.state:g}, adjoint={self.accuracy.adjoint:g})"

    def state_dict(self) -> dict[str, Any]:
        """What later steps depend on."""
        return {"step_size": self.step_size, "accuracy": (self.accuracy.state, self.accuracy.adjoint)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as after ``state_dict``."""
        self.step_size, self.accuracy = state["step_size"], Accuracy(*state["accuracy"])

    @outside_inference
    def step(self, objective: Objective) -> DescentStep:
        """Take one step on the parameters of ``objective.problem``; they stay as they are when none is accepted.
        ``certified`` of the result: intervals and the gradient's bound are rigorous."""
        flat, before = Flat(objective.problem.learnable()), objective.operator_applications
        for attempt in range(self.attempts):
            here = objective.evaluate(self.accuracy)
            found = objective.certified_gradient(1.0 - self.eta)  # (1)
            z = flat.vector(found.gradient)
            if not float(z.norm()) > 0:
                return self._result(here, here, found, 0.0, 0, objective.operator_applications - before, True)
            searched = self._search(objective, flat, here, z, self.backtracks + attempt)
            if searched is not None:
                size, after, trials = searched
                used = (here, after, found, size, trials, objective.operator_applications - before, False)
                self.step_size, self.accuracy = self.grow * size, self.accuracy.scaled(self.relax)  # (3)
                return self._result(*used)
            self.accuracy = self.accuracy.scaled(self.tighten)  # (4)
        count = self.backtracks + self.attempts - 1
        return self._result(here, None, found, 0.0, count, objective.operator_applications - before, False)

    def _search(
        self, objective: Objective, flat: Flat, here: Trial, z: Tensor, most: int
    ) -> tuple[float, Trial, int] | None:
        """Step size, trial and number of cuts of the first trial that satisfies (2), from the present parameters."""
        origin, alpha, started = flat.point(), self.step_size, objective.snapshot()
        try:
            for cuts in range(most):
                flat.move_to(origin - alpha * z)
                objective.problem.project_()
                asked = self.decrease * float((flat.point() - origin).square().sum()) / alpha
                try:
                    trial = objective.evaluate(self.accuracy)
                except AssumptionError:  # too far: no solution there
                    trial = None
                if trial is not None and trial.upper <= here.lower - asked:
                    return alpha, trial, cuts
                flat.move_to(origin)
                objective.restore(started)
                alpha *= self.shrink
        except BaseException:
            flat.move_to(origin)
            objective.restore(started)
            raise
        return None

    def _result(
        self,
        here: Trial,
        after: Trial | None,
        found: CertifiedGradient,
        size: float,
        backtracks: int,
        applications: int,
        stationary: bool,
    ) -> DescentStep:
        accepted = after is not None and not stationary
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in found.gradient.values()))
        supported = found.certified and found.error_bound <= (1.0 - self.eta) * norm
        return DescentStep(
            accepted=accepted,
            certified=accepted and after is not None and here.certified and after.certified and supported,
            step_size=size,
            loss=here.loss,
            loss_interval=(here.lower, here.upper),
            decrease=here.lower - after.upper if accepted and after is not None else 0.0,
            gradient_norm=norm,
            gradient_bound=found.error_bound,
            backtracks=backtracks,
            operator_applications=applications,
            stationary=stationary,
            audited=True,
        )
