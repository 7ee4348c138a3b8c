"""The loop around every lower-level solver, written once: checks, per-sample stopping, compaction of the batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learnreg.linear.samples import expand
from learnreg.result import Status
from learnreg.solvers.base import Iteration, Report, Selectable, front_rows, select_samples
from learnreg.solvers.replay import Blocks

__all__ = ["LoopResult", "Record", "iterate"]

_NEAR_FLOOR, _PATIENCE_AT_FLOOR = 32.0, 40
"""Within this factor of the rounding floor, so many steps without progress tell that rounding rules."""

_DEFAULT_MAX_STEPS = 20_000

_OPTIMISM, _LONGEST_PAUSE = 0.7, 6
"""Share of the predicted steps that pass before the next costly check, and the most multiples of ``check_every``."""

_RUNNING, _CONVERGED, _STAGNATED, _AT_FLOOR, _NOT_FINITE, _INDEFINITE = range(6)


_STATUSES = {
    _NOT_FINITE: Status.NOT_FINITE,
    _INDEFINITE: Status.INDEFINITE,
    _RUNNING: Status.MAX_STEPS,
    _STAGNATED: Status.STAGNATED,
    _AT_FLOOR: Status.PRECISION,
}
"""Of a batch, whose samples may have ended in different ways: the first that occurs."""


Record = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True)
class LoopResult:
    """Best point of each sample with its residual and bound (2-norm), the latest dual pull-back (if the solver has
    one), the status of the batch, and steps taken.

    Parameters
    ----------
    x, t: the iterate, and what the solver keeps beside it.
    residual, bound: of each sample, (batch,).
    status: of each sample.
    steps: of the slowest sample.
    """

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
    state: Any = None,
    record: Record | None = None,
) -> LoopResult:
    """Iterate until each sample has residual <= residual_tolerance or bound <= bound_tolerance, (batch,) each.

    The host looks at the iterates every ``solver.check_every`` steps at most; where looking costs operator
    applications, it waits for most of the steps that the rate so far predicts. Samples that are done leave the batch;
    so do those with NaN or infinite residuals, from which nothing returns, with their best point or the start.
    ``state``: where to start, instead of at x. ``record`` gets the steps, and bounds and residuals of the best points,
    at each look.

    Parameters
    ----------
    problem: the instance, or the adjoint equation.
    x: where to begin, (batch, *domain_shape).
    residual_tolerance, bound_tolerance: (batch,), of which either ends a sample.
    max_steps: at most; None stops when the residual stagnates.
    """
    limit = _DEFAULT_MAX_STEPS if max_steps is None else max_steps
    part, steps, blocks = problem, 0, Blocks(solver)
    state = solver.init(problem, x) if state is None else state
    pause = solver.check_every * (2 if solver.report_applications else 1)
    if solver.report_applications:  # a costly look at the start would rarely end anything
        state, steps = _advance(blocks, part, state, 0, min(pause, limit))
    report = solver.report(part, state)
    samples = _Samples(x, report, residual_tolerance, bound_tolerance)
    buffer, rows = report.t, samples.active  # all pull-backs, as the state keeps them, and whose they are
    while True:
        running = samples.judge(report, steps, solver.patience)
        if record is not None:
            record(steps, samples.best_bound.clone(), samples.best_residual.clone())
        remaining = int(running.sum())
        if remaining == 0 or steps >= limit:
            break
        if solver.report_applications:
            pause = _next_check(solver.check_every, pause, *samples.shortfall(report, running))
        if remaining <= 0.75 * len(running):
            index = running.nonzero()[:, 0]
            rows = rows.clone()
            front_rows(rows, index)
            samples.keep(index)
            part, state = part.select(index), select_samples(state, index)
        state, steps = _advance(blocks, part, state, steps, min(steps + pause, limit))
        report = solver.report(part, state)
    del state, report
    status = _status(samples.stopped)
    if status is Status.NOT_FINITE:
        buffer = None  # of no use to anybody
    elif buffer is not None and len(samples.active) < x.shape[0]:
        buffer = buffer[rows.argsort()]
    return LoopResult(samples.best_x, buffer, samples.best_residual, samples.best_bound, status, steps)


class _Samples:
    """What is known of each sample of a batch: its best point, its latest progress, and how it ended. ``active``: the
    samples that still iterate, by index."""

    def __init__(self, x: Tensor, report: Report, residual_tolerance: Tensor, bound_tolerance: Tensor) -> None:
        self.residual_tolerance, self.bound_tolerance = residual_tolerance, bound_tolerance
        infinite = torch.full_like(residual_tolerance, math.inf)
        self.best_x = _finite_points(report.x, x)
        self.best_residual, self.best_bound, self._milestone = infinite.clone(), infinite.clone(), infinite.clone()
        self._milestone_step = torch.zeros(x.shape[0], dtype=torch.float32, device=x.device)
        self.stopped = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        self.active = torch.arange(x.shape[0], device=x.device)
        self._shortfall = infinite

    def judge(self, report: Report, steps: int, patience: int) -> Tensor:
        """Take in a report of the active samples; which of them go on."""
        active = self.active
        self._improve(report)
        progressed = report.residual < 0.9 * self._milestone[active]
        self._milestone[active] = torch.where(progressed, report.residual, self._milestone[active])
        self._milestone_step[active] = torch.where(progressed, float(steps), self._milestone_step[active])
        converged = (self.best_residual <= self.residual_tolerance) | (self.best_bound <= self.bound_tolerance)
        idle = steps - self._milestone_step[active]
        near_floor = (report.residual <= _NEAR_FLOOR * report.floor) & (idle >= _PATIENCE_AT_FLOOR)
        codes = torch.where((report.residual <= report.floor) | near_floor, _AT_FLOOR, _RUNNING)
        codes = torch.where((codes == _RUNNING) & (idle >= patience), _STAGNATED, codes)
        if report.indefinite is not None:
            codes = torch.where(report.indefinite, _INDEFINITE, codes)
        codes = torch.where(torch.isfinite(report.residual), codes, _NOT_FINITE)
        self.stopped[active] = torch.where(converged[active], _CONVERGED, codes)
        return self.stopped[active] == _RUNNING

    def _improve(self, report: Report) -> None:
        """Keep the points that are better than the best so far, by bounds where there are any."""
        active = self.active
        measure = torch.where(torch.isfinite(report.bound), report.bound, report.residual)
        best = self.best_bound[active]
        better = measure < torch.where(torch.isfinite(best), best, self.best_residual[active])
        chosen = active[better]
        if len(chosen) == len(self.best_x):
            self.best_x.copy_(report.x)  # without the copies that an index makes
        else:
            self.best_x[chosen] = report.x[better]
        self.best_residual[chosen], self.best_bound[chosen] = report.residual[better], report.bound[better]

    def shortfall(self, report: Report, running: Tensor) -> tuple[Tensor, Tensor]:
        """Powers of e by which the samples that go on missed their goals at the latest check, and miss them now."""
        active = self.active
        now = _shortfall(report, self.residual_tolerance[active], self.bound_tolerance[active])
        before = self._shortfall[active]
        self._shortfall = self._shortfall.index_copy(0, active, now)
        return before[running], now[running]

    def keep(self, index: Tensor) -> None:
        """Only these of the active samples stay active."""
        self.active = self.active[index]


def _finite_points(found: Tensor, start: Tensor) -> Tensor:
    """The first points of a solver, in memory of their own; of samples where they are not finite, the start."""
    if found.shape != start.shape:  # a point with its adjoint state
        return torch.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0)
    finite = torch.isfinite(found).flatten(1).all(1)
    return torch.where(expand(finite, found), found, start)


def _advance(blocks: Blocks, part: Selectable, state: Any, steps: int, aim: int) -> tuple[Any, int]:
    """Steps until their number is ``aim``, with an adjustment of step sizes every ``check_every``."""
    solver = blocks.solver
    while steps < aim:
        if steps:
            state = solver.adapt(part, state)
        count = min(solver.check_every, aim - steps)
        state, steps = blocks.steps(part, state, count), steps + count
    return state, steps


def _shortfall(report: Report, residual_tolerance: Tensor, bound_tolerance: Tensor) -> Tensor:
    """Powers of e by which each sample misses its goal, (batch,)."""
    tiny = torch.finfo(report.residual.dtype).tiny
    by_residual = report.residual / residual_tolerance.clamp_min(tiny)
    by_bound = report.bound / bound_tolerance.clamp_min(tiny)
    return torch.minimum(by_residual, by_bound).log()


def _next_check(check_every: int, pause: int, before: Tensor, now: Tensor) -> int:
    """Steps until the next check: what the median sample still needs at its latest rate, less a margin."""
    rate = (before - now) / pause
    predicted = torch.where(torch.isfinite(rate) & (rate > 0), now / rate, 2.0 * pause)
    steps = _OPTIMISM * float(predicted.median())
    return int(min(max(steps, 0.5 * check_every), _LONGEST_PAUSE * check_every))


def _status(stopped: Tensor) -> Status:
    codes = stopped.tolist()
    return next((status for code, status in _STATUSES.items() if code in codes), Status.CONVERGED)
