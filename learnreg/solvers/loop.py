"""The loop around every lower-level solver, written once: checks, per-sample stopping, compaction of the batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learnreg.result import Status
from learnreg.solvers.base import Iteration, Selectable, select_samples

__all__ = ["LoopResult", "iterate"]

_PATIENCE = 150
"""Steps without a 10 % lower residual after which a sample counts as stagnated."""

_DEFAULT_MAX_STEPS = 20_000

_RUNNING, _CONVERGED, _STAGNATED, _AT_FLOOR = range(4)


@dataclass(frozen=True)
class LoopResult:
    """Best point of each sample with its dual pull-back (if the solver has one), residual and bound (2-norm), the
    status of the batch, and steps taken."""

    x: Tensor
    t: Tensor | None
    residual: Tensor
    bound: Tensor
    status: Status
    steps: int


@torch.no_grad()
def iterate(
    solver: Iteration[Any, Any],
    problem: Selectable,
    x: Tensor,
    residual_tolerance: Tensor,
    bound_tolerance: Tensor,
    max_steps: int | None = None,
) -> LoopResult:
    """Iterate until each sample has residual <= residual_tolerance or bound <= bound_tolerance, (batch,) each.

    The host looks at the iterates every ``solver.check_every`` steps only. Samples that are done leave the batch.
    """
    limit = _DEFAULT_MAX_STEPS if max_steps is None else max_steps
    part, state, steps = problem, solver.init(problem, x), 0
    report = solver.report(part, state)
    infinite = torch.full_like(residual_tolerance, math.inf)
    best_x, best_t = report.x.clone(), None if report.t is None else report.t.clone()
    best_residual, best_bound, milestone = infinite.clone(), infinite.clone(), infinite.clone()
    milestone_step = torch.zeros(x.shape[0], dtype=torch.float32, device=x.device)
    stopped = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    active = torch.arange(x.shape[0], device=x.device)
    while True:
        measure = torch.where(torch.isfinite(report.bound), report.bound, report.residual)
        known = torch.where(torch.isfinite(best_bound[active]), best_bound[active], best_residual[active])
        better = measure < known
        chosen = active[better]
        best_x[chosen], best_residual[chosen] = report.x[better], report.residual[better]
        best_bound[chosen] = report.bound[better]
        if best_t is not None and report.t is not None:
            best_t[chosen] = report.t[better]
        progressed = report.residual < 0.9 * milestone[active]
        milestone[active] = torch.where(progressed, report.residual, milestone[active])
        milestone_step[active] = torch.where(progressed, float(steps), milestone_step[active])
        converged = (best_residual <= residual_tolerance) | (best_bound <= bound_tolerance)
        codes = torch.where(report.residual <= report.floor, _AT_FLOOR, _RUNNING)
        codes = torch.where(steps - milestone_step[active] >= _PATIENCE, _STAGNATED, codes)
        stopped[active] = torch.where(converged[active], _CONVERGED, codes)
        running = stopped[active] == _RUNNING
        remaining = int(running.sum())
        if remaining == 0 or steps >= limit:
            break
        if remaining <= 0.75 * len(running):
            index = running.nonzero()[:, 0]
            active, part, state = active[index], part.select(index), select_samples(state, index)
        if steps:
            state = solver.adapt(part, state)
        for _ in range(min(solver.check_every, limit - steps)):
            state = solver.step(part, state)
            steps += 1
        report = solver.report(part, state)
    return LoopResult(best_x, best_t, best_residual, best_bound, _status(stopped), steps)


def _status(stopped: Tensor) -> Status:
    codes = stopped.tolist()
    for code, status in ((_RUNNING, Status.MAX_STEPS), (_STAGNATED, Status.STAGNATED), (_AT_FLOOR, Status.PRECISION)):
        if code in codes:
            return status
    return Status.CONVERGED
