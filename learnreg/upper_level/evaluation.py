"""Loss interval and gradient of one batch: a run of the method, judged by Lemma V."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from learnreg.certificates.loss_enclosure import enclose_loss
from learnreg.hypergradients.base import Goal, HypergradientMethod, Outcome
from learnreg.hypergradients.compute import Start
from learnreg.hypergradients.implicit import tightening
from learnreg.hypergradients.search import LIMITED
from learnreg.linear.samples import norm_samples
from learnreg.losses import UpperLoss
from learnreg.lower_level.blame import blame_operators
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.point import Point
from learnreg.solvers.solve import initial_point, solve
from learnreg.upper_level.objective import Accuracy, Trial

__all__ = ["evaluate_batch"]


@torch.no_grad()
def evaluate_batch(
    frozen: FrozenProblem,
    b: Tensor,
    loss: UpperLoss,
    method: HypergradientMethod,
    start: Start | None,
    accuracy: Accuracy,
) -> tuple[Trial, Start, int]:
    """The trial, where it was formed, and the operator applications it took. Solves are in the dtype of b as far as
    its rounding allows; residuals in float64."""
    tightening(method)
    instance = frozen.at(b)
    joint = instance.latent.loss(loss)
    if start is None:
        x = initial_point(instance, b)
        point = Point(frozen, instance, b, joint, x, torch.zeros_like(x))
    else:
        point = Point(frozen, instance, b, joint, *start.in_all(instance), warm=True)
    joint.examine(point.x)
    goal = Goal(accuracy.state * _sizes(point.x), accuracy.adjoint * _sizes(point.loss_gradient))
    exact = instance if b.dtype == torch.float64 else frozen.at(b.double(), instance.counter)
    outcome = method.run(point, goal)
    if outcome.status in LIMITED and exact is not instance:
        point = outcome.after(point).on(exact)
        outcome = method.run(point, goal.within(torch.float64, None, None))
    point = outcome.after(point)
    found = Start.of(instance, point.x.to(b), point.X.to(b))
    trial = _judged(replace(point, instance=exact), outcome)
    if not math.isfinite(math.fsum(float(g.double().sum()) for g in trial.gradient.values())):
        blame_operators(exact, point.x.double())
    if not trial.certified and loss.gradient_lipschitz is not None:
        trial, applications = _estimated(trial, frozen, b, loss, found.x, accuracy)
        instance.counter.applications += applications
    return trial, found, instance.counter.applications


def _judged(point: Point, outcome: Outcome) -> Trial:
    found = enclose_loss(point)
    return Trial(
        lower=found.lower,
        upper=found.upper,
        certified=found.certified,
        gradient=found.gradient if outcome.gradient is None else outcome.gradient,
        state_part=found.state_part,
        adjoint_part=found.adjoint_part,
        first_order=found.first_order,
        limited=outcome.status in LIMITED,
    )


def _estimated(
    trial: Trial, frozen: FrozenProblem, b: Tensor, loss: UpperLoss, x: Tensor, accuracy: Accuracy
) -> tuple[Trial, int]:
    """Where no bound exists: the interval that the estimated error of x gives, and what that took."""
    pixels = math.sqrt(x[0].numel())
    solution = solve(frozen, b, accuracy.state * float(_sizes(x).min()) / pixels, start=x)
    lower, upper = loss.interval(solution.x.double(), pixels * solution.error_bound.double())
    estimate = replace(trial, lower=lower, upper=upper, first_order=True, limited=not solution.status.converged)
    return estimate, solution.operator_applications


def _sizes(t: Tensor) -> Tensor:
    """‖t‖ per sample, (batch,); of samples that are 0 that of the largest one, 1 where all are."""
    sizes = norm_samples(t.double()).to(t)
    largest = sizes.max()
    return torch.where(sizes > 0, sizes, torch.where(largest > 0, largest, torch.ones_like(largest)))
