"""Certified descent, which chooses its accuracies, against the same descent at fixed ones, over condition numbers.

    python benchmarks/descent_accuracy.py --record

float64, images that come with the package.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from harness import Table, arguments, finish
from torch import Tensor
from truth.matrices import Dense

import learnreg as lr
from learnreg.datasets import natural_images
from learnreg.hypergradients.base import Goal, evaluate
from learnreg.hypergradients.compute import Start
from learnreg.linear.samples import norm_samples
from learnreg.lower_level.point import Point
from learnreg.operators import Blur
from learnreg.regularizers import FieldsOfExperts
from learnreg.solvers.solve import initial_point
from learnreg.upper_level.objective import Accuracy, CertifiedGradient, Objective, Trial

SIDE, COUNT, FILTERS, SIZE = 16, 2, 4, 3
CONDITIONS = (1e1, 1e2, 1e3, 1e4, 1e5)
ACCURACIES = tuple(10.0**-k for k in range(1, 9))
SAFE = 1e-6
STEPS, REJECTED, SHARE = 10, 3, 0.95
"""Steps of each run, rejected ones in a row that end it, and how much of the decrease of the tightest run is asked
for."""

ADAPTIVE: dict[str, int | None] = {"adaptive": 1, "adaptive, losses alone": None}
"""At how many steps gradients are certified, too; None: after a line search failed."""


@dataclass(frozen=True)
class Problem:
    """How a lower-level problem of about a condition number starts; the images and their measurements."""

    make: Callable[[], lr.LowerLevelProblem]
    b: Tensor
    x_true: Tensor

    @property
    def loss(self) -> lr.SquaredError:
        return lr.SquaredError(self.x_true)

    def exact_loss(self, problem: lr.LowerLevelProblem, start: Tensor) -> tuple[float, Tensor]:
        """Of the solution to rounding, which is the next start."""
        x = Dense(problem, self.b).solve(start.flatten(1))[0].view(self.x_true.shape)
        return float(self.loss.value(x)), x

    def condition(self, problem: lr.LowerLevelProblem, x: Tensor) -> float:
        """The largest of the samples' condition numbers of the Hessian at x."""
        spectra = torch.linalg.eigvalsh(Dense(problem, self.b).hessian(x.flatten(1)))
        return float((spectra[:, -1] / spectra[:, 0]).max())


def images() -> Tensor:
    photographs = [image.double() for image in natural_images("train").values()][:COUNT]
    crops = torch.stack([image[:, 100 : 100 + 4 * SIDE : 4, 100 : 100 + 4 * SIDE : 4] for image in photographs])
    return crops - crops.mean((1, 2, 3), keepdim=True)


def experts(weight: float) -> FieldsOfExperts:
    """Filters and weights are learned, the smoothing is not."""
    generator = torch.Generator().manual_seed(0)
    made = FieldsOfExperts(FILTERS, SIZE, lr.PseudoHuber(0.1, weight), generator=generator).double()
    made.log_smoothing.requires_grad_(False)
    return made


def deblurring(condition: float) -> Problem:
    """The modulus is the ridge's."""
    x_true = images()
    taps = torch.hann_window(7, periodic=False, dtype=torch.float64)[1:-1]
    blur = Blur(torch.outer(taps, taps) / taps.sum() ** 2, tuple(x_true.shape[1:]), boundary="reflect")
    noise = torch.randn(x_true.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    b = blur(x_true).detach() + 0.1 / math.sqrt(condition) * noise
    return Problem(lambda: lr.LowerLevelProblem(blur, experts(0.1 / condition), ridge=1.0 / condition), b, x_true)


class FixedAccuracy(Objective):
    """The loss and its gradient as they come out of solves of one accuracy, taken for exact."""

    def __init__(self, problem: lr.LowerLevelProblem, b: Tensor, loss: lr.UpperLoss, accuracy: float) -> None:
        self.problem, self.b, self.loss, self.relative = problem, b, loss, accuracy
        self.start: Start | None = None

    def _evaluate(self, accuracy: Accuracy) -> Trial:
        frozen = self.problem.frozen()
        instance = frozen.at(self.b)
        cold = self.start is None
        x = initial_point(instance, self.b) if self.start is None else self.start.x
        X = torch.zeros_like(x) if self.start is None else self.start.X
        begin = Point(frozen, instance, self.b, self.loss, x, X, warm=not cold)
        for _ in range(2 if cold else 1):  # sizes at a cold start say little
            goal = Goal(self.relative * norm_samples(begin.x), self.relative * norm_samples(begin.loss_gradient))
            found = evaluate(lr.Implicit(), begin, goal)
            begin = found.point
        self.start = Start(found.point.x, found.point.X)
        self.operator_applications += instance.counter.applications
        value = float(self.loss.value(found.point.x))
        return Trial(value, value, True, found.gradient, 0.0, 0.0, False, limited=True)

    def certified_gradient(self, tolerance: float) -> CertifiedGradient:
        trial = self.latest or self.evaluate(Accuracy())
        return CertifiedGradient(trial.gradient, 0.0, False, True)

    def starts(self) -> Start | None:
        return self.start

    def start_at(self, starts: Start | None) -> None:
        self.start = starts


@dataclass
class Run:
    """Exact loss, operator applications and CPU seconds after each step, those of the start first; the condition number
    at the end, and how many steps raised the exact loss."""

    loss: list[float]
    applications: list[int] = field(default_factory=lambda: [0])
    seconds: list[float] = field(default_factory=lambda: [0.0])
    condition: float = math.nan
    ascents: int = 0

    def work_to(self, target: float) -> tuple[int, float] | None:
        """Applications and CPU seconds until the exact loss was not above this one; None if it never was."""
        for value, applications, seconds in zip(self.loss, self.applications, self.seconds, strict=True):
            if value <= target:
                return applications, seconds
        return None


def descend(of: Problem, make: Callable[[lr.LowerLevelProblem], Objective], audit: int | None, target: float) -> Run:
    """Steps of ``AdaptiveDescent`` from the start until the exact loss is the target, or steps fail in a row."""
    problem = of.make()
    objective, descent = make(problem), lr.AdaptiveDescent(audit_every=audit)
    value, x = of.exact_loss(problem, of.b)
    run, failed = Run([value]), 0
    while len(run.loss) <= STEPS and failed < REJECTED and run.loss[-1] > target:
        began = time.process_time()
        step = descent.step(objective)
        run.seconds.append(run.seconds[-1] + time.process_time() - began)
        failed = 0 if step.accepted else failed + 1
        value, x = of.exact_loss(problem, x)
        run.ascents += value > run.loss[-1] * (1.0 + 1e-9)
        run.loss.append(value)
        run.applications.append(objective.operator_applications)
        if step.stationary:
            break
    run.condition = of.condition(problem, x)
    return run


def fixed(of: Problem, accuracy: float, target: float) -> Run:
    return descend(of, lambda problem: FixedAccuracy(problem, of.b, of.loss, accuracy), None, target)


def adaptive(of: Problem, audit: int | None, target: float) -> Run:
    return descend(of, lambda problem: lr.BatchObjective(problem, of.b, of.loss), audit, target)


def row(condition: float) -> dict[str, Any]:
    """All runs on one problem, to the loss that the tightest accuracy reached."""
    of = deblurring(condition)
    problem = of.make()
    start, x = of.exact_loss(problem, of.b)
    tightest = min(ACCURACIES)
    runs = {tightest: fixed(of, tightest, -math.inf)}
    target = start - SHARE * (start - min(runs[tightest].loss))
    runs = {r: fixed(of, r, target) if r > tightest else runs[r] for r in ACCURACIES}
    reached = {r: work for r, run in runs.items() if (work := run.work_to(target)) is not None}
    best = min(reached, key=lambda r: reached[r])
    entry: dict[str, Any] = {
        "aimed at": f"{condition:g}",
        "condition number at x, later": f"{of.condition(problem, x):.3g}, {runs[SAFE].condition:.3g}",
        "loss": f"{start:.4f} to {target:.4f}",
        "fixed, not reached": ", ".join(f"{r:.0e}" for r in ACCURACIES if r not in reached) or "none",
        "best fixed": f"{best:.0e}: {_work(reached[best])}",
        f"fixed {SAFE:.0e}": _work(reached.get(SAFE)),
        f"fixed {tightest:.0e}": _work(reached[tightest]),
    }
    raised = sum(run.ascents for run in runs.values())
    for name, audit in ADAPTIVE.items():
        run = adaptive(of, audit, target)
        work = run.work_to(target)
        raised += run.ascents
        entry[f"{name}: work"] = _work(work)
        if work is not None:
            entry[f"{name} / best fixed"] = work[0] / reached[best][0]
            entry[f"{name} / fixed {SAFE:.0e}"] = work[0] / reached[SAFE][0]
    return entry | {"steps that raised the exact loss": raised}


def _work(work: tuple[int, float] | None) -> str:
    return "not reached" if work is None else f"{work[0]:,} ({work[1]:.2g} s)"


def main() -> None:
    options = arguments(
        __doc__ or "", quick={"SIDE": 8, "CONDITIONS": (1e1, 1e2), "ACCURACIES": (1e-1, 1e-3, 1e-6), "STEPS": 3}
    )
    table = Table(
        name="descent_accuracy",
        order=51,
        title="Certified descent: adaptive against fixed accuracies, by condition number",
        command="python benchmarks/descent_accuracy.py --record",
        text=f"""Deblurring of {COUNT} images of {SIDE}² pixels (5x5 Hann window, zero mean, noise 0.1/√condition) by a
Field of Experts of {FILTERS} filters {SIZE}x{SIZE} with a ridge of 1/condition; filters and weights are learned in
float64. `AdaptiveDescent` from the same start until the exact loss (dense Newton to rounding, not counted) has fallen
by {100 * SHARE:.0f} % of what {STEPS} steps at {min(ACCURACIES):.0e} achieve. *fixed r*: the same directions and
backtracking, on losses and gradients that are taken for exact, from solves to a certified relative error r of x and a
relative residual r of the adjoint equation. *adaptive*: `audit_every=1`, every gradient and every decrease certified;
*losses alone*: every decrease certified, gradients where a line search fails (as `learnreg train` does it). Operator
applications (CPU seconds); ratios are of applications.""",
    )
    for condition in CONDITIONS:
        print(f"{time.process_time():6.1f} s: condition number {condition:g}", file=sys.stderr, flush=True)
        entry = row(condition)
        table.rows.append(entry)
        for name in ADAPTIVE:
            for other in ("best fixed", f"fixed {SAFE:.0e}"):
                if (ratio := entry.get(f"{name} / {other}")) is not None:
                    table.tracked[f"condition {condition:g}: {name} / {other}, applications"] = ratio
    table.text += "\n" + in_words(table.rows)
    finish(table, options)


def in_words(rows: list[dict[str, Any]]) -> str:
    """What the table says of the crossover."""

    def span(key: str) -> str:
        found = [row[key] for row in rows if key in row]
        return f"{min(found):.2f} to {max(found):.2f}" if found else "no"

    safe, words = f"fixed {SAFE:.0e}", []
    for name in ADAPTIVE:
        cheaper = [row["aimed at"] for row in rows if row.get(f"{name} / {safe}", math.inf) < 1.0]
        best = [row["aimed at"] for row in rows if row.get(f"{name} / best fixed", math.inf) < 1.0]
        words.append(
            f"*{name}* takes {span(f'{name} / best fixed')} times the applications of the best fixed accuracy in "
            f"hindsight (fewer at: {', '.join(best) or 'none'}) and {span(f'{name} / {safe}')} times those of {safe} "
            f"(fewer at: {', '.join(cheaper) or 'none'})."
        )
    return " ".join(words)


if __name__ == "__main__":
    main()
