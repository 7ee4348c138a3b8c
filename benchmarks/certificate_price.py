"""What a certified hypergradient costs over an uncertified one, in CPU seconds and operator applications.

    python benchmarks/certificate_price.py --record

float32, default options; the photographs that the package holds.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from harness import Table, arguments, finish
from torch import Tensor

import learnreg as lr
from learnreg.certificates.judgement import gradient_distance, gradient_norm, judge
from learnreg.commands.process import large_blocks_kept
from learnreg.datasets import natural_images
from learnreg.hypergradients.base import Goal, HypergradientMethod, evaluate
from learnreg.linear.samples import norm_samples
from learnreg.lower_level.point import Point
from learnreg.operators import Blur, Identity, ParallelBeam2D
from learnreg.regularizers import FieldsOfExperts, InputConvexNetwork, TotalVariation

SIDE, CT_SIDE, VIEWS = 64, 128, 60
BATCHES, TARGETS = (1, 4, 16), (0.5, 0.1, 0.01)
LARGE = 16
"""A batch whose calls are timed twice at most, and without the network: its exact gradient takes too long."""

STATES = [10.0 ** (-k / 2) for k in range(2, 11)]
ADJOINTS = [1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4]
MOVED = 1e-3
"""Relative change of all parameters between a start and the problem that it starts."""


@dataclass(frozen=True)
class Problem:
    """A lower-level problem with measurements, and the loss of the true images."""

    name: str
    problem: lr.LowerLevelProblem
    b: Tensor
    x_true: Tensor

    @property
    def loss(self) -> lr.SquaredError:
        return lr.SquaredError(self.x_true)

    def exact(self) -> dict[str, Tensor]:
        """The hypergradient to a certified relative error of 1e-6, in float64."""
        loss = lr.SquaredError(self.x_true.double())
        return lr.hypergradient(self.problem, self.b.double(), loss, tolerance=1e-6, on_failure="raise").gradient


def crops(count: int, side: int) -> Tensor:
    """So many parts of the photographs."""
    generator, found = torch.Generator().manual_seed(0), []
    photographs = list(natural_images().values())
    for k in range(count):
        image = photographs[k % len(photographs)].float()
        top, left = (int(torch.randint(0, n - side + 1, (), generator=generator)) for n in image.shape[-2:])
        found.append(image[:, top : top + side, left : left + side])
    return torch.stack(found)


def problems(batch: int) -> Iterator[Problem]:
    torch.manual_seed(0)
    x = crops(batch, SIDE)
    shape, noisy = x.shape[1:], x + 25 / 255 * torch.randn(x.shape)
    yield Problem("Fields of Experts", lr.LowerLevelProblem(Identity(shape), FieldsOfExperts()), noisy, x)
    taps = torch.hann_window(7, periodic=False)[1:-1]
    blur = Blur(torch.outer(taps, taps) / taps.sum() ** 2, shape, boundary="reflect")
    blurred = blur(x) + 0.02 * torch.randn(x.shape)
    yield Problem("Fields of Experts, blur", lr.LowerLevelProblem(blur, FieldsOfExperts(), ridge=1e-2), blurred, x)
    yield Problem("total variation", lr.LowerLevelProblem(Identity(shape), TotalVariation(0.07, 1e-3)), noisy, x)
    if batch < LARGE:
        yield Problem("input-convex network", lr.LowerLevelProblem(Identity(shape), InputConvexNetwork()), noisy, x)
    if batch > 1:
        return  # the exact hypergradient of several scans takes tens of minutes
    x = crops(batch, CT_SIDE)
    scan = ParallelBeam2D(CT_SIDE, VIEWS)
    measured = scan(x) + 0.01 * torch.randn(batch, *scan.range_shape)
    yield Problem("Fields of Experts, CT", lr.LowerLevelProblem(scan, FieldsOfExperts(), ridge=1e-2), measured, x)


@torch.no_grad()
def moved(problem: lr.LowerLevelProblem) -> Callable[[], None]:
    """Change all parameters; returns what undoes it."""
    parameters, generator = problem.learnable().values(), torch.Generator().manual_seed(1)
    before = [p.detach().clone() for p in parameters]
    for p in parameters:
        p.mul_(1.0 + MOVED * torch.randn(p.shape, generator=generator).to(p))

    def undo() -> None:
        with torch.no_grad():
            for p, old in zip(parameters, before, strict=True):
                p.copy_(old)

    return undo


def timed(call: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """The fewest CPU seconds, and the result."""
    seconds, result = [], None
    for _ in range(rounds):
        began = time.process_time()
        result = call()
        seconds.append(time.process_time() - began)
    return min(seconds), result


def plain(
    case: Problem, method: HypergradientMethod, state: float, adjoint: float, start: lr.Start | None
) -> tuple[dict[str, Tensor], int]:
    """The gradient at a state and an adjoint state of these relative accuracies, without a certificate, and the
    operator applications it took."""
    frozen = case.problem.frozen()
    instance, loss = frozen.at(case.b), case.loss
    if start is None:
        x = frozen.operator.adjoint(case.b) if case.b.shape != case.x_true.shape else case.b
        begin = Point(frozen, instance, case.b, loss, x, torch.zeros_like(case.x_true))
    else:
        begin = Point(frozen, instance, case.b, loss, *start.in_all(instance), warm=True)
    slope = norm_samples(begin.loss_gradient)
    found = evaluate(method, begin, Goal(state * norm_samples(case.x_true), adjoint * slope))
    return found.gradient, instance.counter.applications


@dataclass(frozen=True)
class Setting:
    """A plain gradient: its method and accuracies, its relative true error, and what it took."""

    method: HypergradientMethod
    state: float
    adjoint: float
    error: float
    seconds: float
    applications: int

    def __str__(self) -> str:
        return f"{self.method.name} {self.state:.0e} {self.adjoint:.0e}"


def settings(case: Problem, exact: dict[str, Tensor], start: lr.Start | None, limit: float) -> list[Setting]:
    """All of the grid that take no more CPU seconds than the limit."""
    found = []
    for method in (lr.Implicit(), lr.Piggyback()):
        for adjoint in ADJOINTS:
            for state in STATES:
                seconds, (gradient, count) = timed(partial(plain, case, method, state, adjoint, start), 1)
                error = gradient_distance(gradient, exact) / gradient_norm(exact)
                found.append(Setting(method, state, adjoint, error, seconds, count))
                if seconds > limit:
                    break
    return found


def cheapest(case: Problem, found: list[Setting], target: float, start: lr.Start | None) -> Setting:
    """The one of the least time whose true error is below the target, timed again."""
    reached = sorted((s for s in found if s.error <= target), key=lambda s: s.seconds)[:3]
    if not reached:
        return Setting(lr.Implicit(), math.nan, math.nan, math.inf, math.inf, 0)
    again = [timed(partial(plain, case, s.method, s.state, s.adjoint, start), 2)[0] for s in reached]
    seconds, best = min(zip(again, reached, strict=True), key=lambda pair: pair[0])
    return replace(best, seconds=min(seconds, best.seconds))


def judging(case: Problem, found: lr.Hypergradient, rounds: int) -> float:
    """CPU seconds of one judgement at what a hypergradient ended in."""
    frozen = case.problem.frozen()
    instance = frozen.at(case.b.double())
    start = lr.Start(found.x.double(), found.X.double()).in_all(instance)
    point = Point(frozen, instance, case.b, instance.latent.loss(case.loss), *start)
    return timed(lambda: judge(point, "frobenius"), rounds)[0]


def rows(case: Problem, rounds: int) -> Iterator[dict[str, Any]]:
    before = lr.hypergradient(case.problem, case.b, case.loss, tolerance=min(TARGETS))
    for start, kind in ((None, "cold"), (lr.Start.after(before), "warm")):
        undo = moved(case.problem) if start else lambda: None
        exact, found = case.exact(), {}
        for target in TARGETS:
            call = partial(lr.hypergradient, case.problem, case.b, case.loss, tolerance=target, start=start)
            found[target] = timed(call, rounds)
        grid = settings(case, exact, start, 2.0 * max(seconds for seconds, _ in found.values()))
        for target, (seconds, hg) in found.items():
            error = gradient_distance(hg.gradient, exact) / gradient_norm(exact)
            assert hg.certified, hg
            assert hg.status.converged, hg
            assert error <= hg.relative_error_bound + 1e-6
            least, same = (cheapest(case, grid, goal, start) for goal in (target, max(error, 1e-5)))
            entry = {
                "problem": case.name,
                "batch": case.b.shape[0],
                "start": kind,
                "relative error": target,
                "certified, CPU s": seconds,
                "plain, CPU s": least.seconds,
                "ratio": seconds / least.seconds,
                "true error": error,
                "plain at that error, CPU s": same.seconds,
                "ratio at that error": seconds / same.seconds,
                "applications": hg.operator_applications,
                "plain, applications": least.applications,
                "ratio of applications": hg.operator_applications / max(least.applications, 1),
                "judging / plain": judging(case, hg, rounds) / least.seconds,
                "rung": hg.rung,
                "cheapest plain": str(least),
            }
            print(entry, file=sys.stderr, flush=True)
            yield entry
        undo()


@large_blocks_kept()
def main() -> None:
    small = {"SIDE": 16, "CT_SIDE": 16, "VIEWS": 12, "BATCHES": (1,), "TARGETS": (0.5,)}
    small |= {"STATES": STATES[::3], "ADJOINTS": ADJOINTS[::4]}
    options = arguments(__doc__ or "", quick=small)
    table = Table(
        name="certificate_price",
        order=6,
        title="Certified over uncertified",
        command="python benchmarks/certificate_price.py --record",
        text=f"""CPU seconds (one thread, the fewest of {options.rounds} runs) of `lr.hypergradient` until the relative
error is certified, over those of the cheapest gradient without a certificate: solver tolerances from a grid with the
truth known, the better of `Implicit` and `Piggyback`. *At that error*: the plain gradient is asked for the true error
that the certified one has. Warm: from the result for parameters that differ by a relative {MOVED:g}. 24 filters
5x5, {SIDE}² pixels, CT {CT_SIDE}² with {VIEWS} views. Batches of {LARGE}: of 2 runs, without the network.""",
    )
    for batch in BATCHES:
        for case in problems(batch):
            table.rows.extend(rows(case, min(options.rounds, 2) if batch >= LARGE else options.rounds))
    for kind in ("cold", "warm"):
        for column in ("ratio", "ratio at that error", "ratio of applications", "judging / plain"):
            ratios = [float(r[column]) for r in table.rows if r["start"] == kind and 0 < float(r[column]) < math.inf]
            table.tracked[f"{kind}: median {column}"] = statistics.median(ratios)
    table.notes.append(", ".join(f"{name} {value:.2f}" for name, value in table.tracked.items()) + ".")
    finish(table, options)


if __name__ == "__main__":
    main()
