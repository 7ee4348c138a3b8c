"""State, adjoint state and dual points of a lower level with an l1-norm, from the sign pattern of its responses.

    M x + K_B^T y_B = q - K_A^T y_A - K_D^T y_D,    K_B x = 0
    M X + K_B^T Y_B = -∇ell(x),                     K_B X = 0        (1)

Source: Vaiter, Deledalle, Peyré, Dossal and Fadili, Local behavior of sparse analysis regularization (2013).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learnreg.hypergradients.base import Goal
from learnreg.linear.samples import norm_samples
from learnreg.lower_level.blame import blame_operators
from learnreg.lower_level.instance import Instance
from learnreg.lower_level.pairing import SignedDuals
from learnreg.lower_level.point import Point
from learnreg.lower_level.sign_pattern import DenseAnalysis, ReducedSystem
from learnreg.result import Status
from learnreg.solvers.active_set import PatternState, settle
from learnreg.solvers.choice import make_solver
from learnreg.solvers.solve import run_state_solver

__all__ = ["SignedStates", "signed_states"]

_ACCURACIES = (1e-3, 1e-5, 1e-7)
"""Relative ones of the state, from which the pattern is looked for, one after the other."""


@dataclass(frozen=True)
class SignedStates:
    """point: x and X to rounding, in float64, for the signs and dual points of ``duals``; where something contradicts
    the pattern the solver's x. systems: (1) for each sample. y: the dual point of the solver that led there. status:
    CONVERGED where nothing contradicts any pattern."""

    point: Point
    duals: SignedDuals
    systems: list[ReducedSystem]
    y: Tensor
    status: Status
    steps: int


@torch.no_grad()
def signed_states(start: Point, goal: Goal) -> SignedStates:
    """From a point, whatever the accuracies of the goal, within its steps."""
    instance = start.instance
    if instance.q.dtype != torch.float64:
        instance = start.frozen.at(start.b.double(), instance.counter)
    point = start.on(instance)
    dense = DenseAnalysis.of(instance)
    states, rough, y, status, steps = _patterns(instance, dense, point, goal.max_state_steps)
    best = [state.x if state.settled else near.flatten() for state, near in zip(states, rough, strict=True)]
    x = torch.stack(best).reshape(point.x.shape)
    point = point.at(x, point.X)
    slope = point.loss_gradient.flatten(1)
    solved = [state.system.solve(-g) for state, g in zip(states, slope, strict=True)]
    X = torch.stack([X for X, _ in solved]).reshape(x.shape)
    responses = (instance.batch, *instance.analysis.range_shape)
    signs, dual, Y = (
        torch.stack(v).reshape(responses)
        for v in ([s.signs for s in states], [s.y for s in states], [Y for _, Y in solved])
    )
    duals = SignedDuals(signs, dual, Y)
    return SignedStates(point.at(x, X), duals, [state.system for state in states], y, status, steps)


def _patterns(
    instance: Instance, dense: list[DenseAnalysis], point: Point, max_steps: int | None
) -> tuple[list[PatternState], Tensor, Tensor, Status, int]:
    """Those of all samples, the solver's last pairs of points, how it ended and the steps that took."""
    solver = make_solver("auto", instance)
    x, y, steps = point.x, point.t, 0
    found: dict[int, PatternState] = {}
    duals = x.new_zeros(instance.batch, *instance.analysis.range_shape)
    for accuracy in _ACCURACIES:
        open_ = [i for i in range(instance.batch) if i not in found or not found[i].settled]
        index = torch.tensor(open_, device=x.device)
        part, left = instance.select(index), None if max_steps is None else max(max_steps - steps, 1)
        error = accuracy * norm_samples(x[index]).clamp_min(1e-6)
        result = run_state_solver(solver, part, x[index], error, left, None if y is None else y[index])
        steps += result.steps
        if result.t is None:  # nothing finite
            blame_operators(instance, x)
        else:
            duals[index] = result.t
        x, y = x.index_copy(0, index, result.x), duals
        for i in open_:
            found[i] = settle(dense[i], duals[i].flatten())
        if all(state.settled for state in found.values()):
            return [found[i] for i in range(instance.batch)], x, duals, Status.CONVERGED, steps
        if result.status is not Status.CONVERGED or steps == max_steps:
            break
    status = Status.MAX_STEPS if max_steps is not None and steps >= max_steps else Status.STAGNATED
    return [found[i] for i in range(instance.batch)], x, duals, status, steps
