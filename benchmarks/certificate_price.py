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
from dataclasses import dataclass
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
STATES = [10.0 ** (-k / 2) for k in range(2, 13)]
ADJOINTS = [10.0 ** (-k / 2) for k in range(0, 9)]
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
    yield Problem("input-convex network", lr.LowerLevelProblem(Identity(shape), InputConvexNetwork()), noisy, x)
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


def cheapest(case: Problem, exact: dict[str, Tensor], target: float, start: lr.Start | None) -> tuple[float, int, str]:
    """CPU seconds, applications and settings of the cheapest plain gradient with a true error below the target."""
    best: tuple[float, int, str] = (math.inf, 0, "")
    for method in (lr.Implicit(), lr.Piggyback()):
        for adjoint in ADJOINTS:
            for state in STATES:
                call = partial(plain, case, method, state, adjoint, start)
                seconds, (gradient, applications) = timed(call, 1)
                if seconds > 1.5 * best[0]:
                    break
                if gradient_distance(gradient, exact) > target * gradient_norm(exact):
                    continue
                more, _ = timed(call, 2)
                if min(seconds, more) < best[0]:
                    best = (min(seconds, more), applications, f"{method.name} {state:.0e} {adjoint:.0e}")
                break
    return best


def judging(case: Problem, found: lr.Hypergradient, rounds: int) -> float:
    """CPU seconds of one judgement at what a hypergradient ended in."""
    frozen = case.problem.frozen()
    instance = frozen.at(case.b.double())
    start = lr.Start(found.x.double(), found.X.double()).in_all(instance)
    point = Point(frozen, instance, case.b, instance.latent.loss(case.loss), *start)
    return timed(lambda: judge(point, "frobenius"), rounds)[0]


def rows(case: Problem, rounds: int) -> Iterator[dict[str, Any]]:
    for target in TARGETS:
        before = lr.hypergradient(case.problem, case.b, case.loss, tolerance=target)
        for start, kind in ((None, "cold"), (lr.Start.after(before), "warm")):
            undo = moved(case.problem) if start else lambda: None
            exact = case.exact()

            def certified(start: lr.Start | None = start, target: float = target) -> lr.Hypergradient:
                return lr.hypergradient(case.problem, case.b, case.loss, tolerance=target, start=start)

            seconds, found = timed(certified, rounds)
            error = gradient_distance(found.gradient, exact) / gradient_norm(exact)
            assert found.certified, found
            assert found.status.converged, found
            assert error <= found.relative_error_bound + 1e-6
            least, applications, settings = cheapest(case, exact, target, start)
            same, _, _ = cheapest(case, exact, max(error, 1e-5), start)
            entry = {
                "problem": case.name,
                "batch": case.b.shape[0],
                "start": kind,
                "relative error": target,
                "certified, CPU s": seconds,
                "plain, CPU s": least,
                "ratio": seconds / least,
                "true error": error,
                "plain at that error, CPU s": same,
                "ratio at that error": seconds / same,
                "applications": found.operator_applications,
                "plain, applications": applications,
                "ratio of applications": found.operator_applications / max(applications, 1),
                "judging / plain": judging(case, found, rounds) / least,
                "rung": found.rung,
                "cheapest plain": settings,
            }
            print(entry, file=sys.stderr, flush=True)
            undo()
            yield entry


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
5x5, {SIDE}² pixels, CT {CT_SIDE}² with {VIEWS} views.""",
    )
    for batch in BATCHES:
        for case in problems(batch):
            table.rows.extend(rows(case, options.rounds))
    for kind in ("cold", "warm"):
        for column in ("ratio", "ratio at that error", "ratio of applications", "judging / plain"):
            ratios = [float(r[column]) for r in table.rows if r["start"] == kind and math.isfinite(float(r[column]))]
            table.tracked[f"{kind}: median {column}"] = statistics.median(ratios)
    table.notes.append(", ".join(f"{name} {value:.2f}" for name, value in table.tracked.items()) + ".")
    finish(table, options)


if __name__ == "__main__":
    main()
