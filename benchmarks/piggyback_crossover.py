"""Where the piggyback iteration wins: smoothing by smoothing, for three kinds of regularizers and inexact states.

python benchmarks/piggyback_crossover.py --record
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from harness import Table, arguments, finish, interleave
from torch import Tensor

import learnreg as lr
from learnreg.certificates.judgement import gradient_distance, gradient_norm
from learnreg.datasets import natural_images
from learnreg.hypergradients.automatic import better_method
from learnreg.hypergradients.base import Goal, HypergradientMethod, evaluate
from learnreg.lower_level.point import Point
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts, InputConvexNetwork, Regularizer, TotalVariation
from learnreg.solvers.solve import initial_point

SIDE, LIFTED_SIDE, COUNT, SIGMA = 32, 12, 1, 25 / 255
SMOOTHINGS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 0.0)
TOLERANCE, TRUTH, MOST_STEPS = 0.1, 1e-4, 10_000
INEXACT = (1e-2, 1e-3)
"""State errors over ‖x‖, certified by the solver; adjoint residuals ten times as much, over the right-hand side's."""
LONG = 3.0
"""CPU seconds above which a call is not repeated."""

METHODS: dict[str, HypergradientMethod] = {"Implicit": lr.Implicit(), "Piggyback": lr.Piggyback()}


def experts(smoothing: float) -> Regularizer:
    filters = FieldsOfExperts(filters=24, size=5, generator=torch.Generator().manual_seed(0)).filters.detach()
    return FieldsOfExperts.from_arrays(filters, torch.full((24,), 0.0133), torch.full((24,), smoothing))


def network(smoothing: float) -> Regularizer:
    generator = torch.Generator().manual_seed(0)
    return InputConvexNetwork(1, 8, 2, 5, "lifted", smoothing=smoothing, generator=generator)


KINDS: dict[str, tuple[Callable[[float], Regularizer], bool]] = {
    "Field of Experts": (experts, False),
    "total variation": (lambda smoothing: TotalVariation(0.0666, smoothing), False),
    "lifted network": (network, True),
}
"""Regularizer by its smoothing, and whether the image is small."""


def images(small: bool) -> tuple[Tensor, Tensor]:
    """Noisy and clean images, float32."""
    side, count = (LIFTED_SIDE, 1) if small else (SIDE, COUNT)
    photographs = list(natural_images("train").values())[:count]
    x_true = torch.stack([image[:, 100 : 100 + side, 100 : 100 + side] for image in photographs]).float()
    noise = torch.randn(x_true.shape, generator=torch.Generator().manual_seed(0))
    return x_true + SIGMA * noise, x_true


class Case:
    """A kind at a smoothing: the problem, its data, and the hypergradient with a certified bound."""

    def __init__(self, kind: str, smoothing: float) -> None:
        make, small = KINDS[kind]
        self.b, x_true = images(small)
        self.loss = lr.SquaredError(x_true)
        operator = Identity(tuple(self.b.shape[1:]))
        self.problem = lr.LowerLevelProblem(operator, make(smoothing).float())
        exact = lr.LowerLevelProblem(operator, make(smoothing).float().double())
        self.truth = lr.hypergradient(
            exact,
            self.b.double(),
            lr.SquaredError(x_true.double()),
            METHODS["Piggyback"],
            TRUTH,
            max_steps=2 * MOST_STEPS,
        )

    def error(self, gradient: dict[str, Tensor]) -> float:
        """True relative error."""
        return gradient_distance(gradient, self.truth.gradient) / gradient_norm(self.truth.gradient)

    def certified(self, method: HypergradientMethod) -> lr.Hypergradient:
        return lr.hypergradient(self.problem, self.b, self.loss, method, TOLERANCE, max_steps=MOST_STEPS)

    def inexact(self, method: HypergradientMethod, accuracy: float) -> dict[str, Tensor]:
        """From x = b and X = 0, without a certificate of the gradient."""
        frozen = self.problem.frozen()
        instance = frozen.at(self.b)
        x = initial_point(instance, self.b)
        start = Point(frozen, instance, self.b, instance.latent.loss(self.loss), x, torch.zeros_like(x))
        size, slope = self.b.flatten(1).norm(dim=1), start.loss_gradient.flatten(1).norm(dim=1)
        return evaluate(method, start, Goal(accuracy * size, 10.0 * accuracy * slope)).gradient


def seconds(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Medians of calls that take turns; of long ones a single run."""
    once, short = {}, {}
    for name, call in calls.items():
        began = time.process_time()
        call()
        once[name] = time.process_time() - began
        if once[name] < LONG:  # among them the first ones, which find kernels on disk
            short[name] = call
    return once | (interleave(short, rounds, warmup=0) if short else {})


def progress(stage: str) -> None:
    print(f"{time.process_time():6.1f} s: {stage}", file=sys.stderr, flush=True)


def rows(kind: str, rounds: int) -> Iterator[dict[str, Any]]:
    for smoothing in SMOOTHINGS:
        row: dict[str, Any] = {"regularizer": kind, "smoothing": f"{smoothing:g}"}
        progress(f"{kind}, {smoothing:g}")
        try:
            case = Case(kind, smoothing)
        except lr.ConfigError:
            yield row | {"auto": "refused by the constructor"}
            continue
        found: dict[str, Any] = {}

        def certify(name: str, case: Case = case, found: dict[str, Any] = found) -> None:
            found[name] = case.certified(METHODS[name])

        def stop(name: str, accuracy: float, case: Case = case, found: dict[str, Any] = found) -> None:
            found[f"{name} {accuracy:g}"] = case.inexact(METHODS[name], accuracy)

        calls = {name: lambda name=name: certify(name) for name in METHODS}
        for accuracy in INEXACT:
            for name in METHODS:
                calls[f"{name} {accuracy:g}"] = lambda name=name, accuracy=accuracy: stop(name, accuracy)
        taken = seconds(calls, rounds)
        for name in METHODS:
            result = found[name]
            row |= {f"{name}, s": taken[name], f"{name}, applications": result.operator_applications}
            row[f"{name}: certified"] = "yes" if result.certified and result.status.converged else result.status.name
        row["Piggyback / Implicit"] = taken["Piggyback"] / taken["Implicit"]
        for accuracy in INEXACT:
            for name in METHODS:
                key = f"{name} {accuracy:g}"
                row[f"{name}, state {accuracy:g}: s (error)"] = f"{taken[key]:.2g} ({case.error(found[key]):.0e})"
            ratio = taken[f"Piggyback {accuracy:g}"] / taken[f"Implicit {accuracy:g}"]
            row[f"Piggyback / Implicit, state {accuracy:g}"] = ratio
        row["auto"] = better_method(case.problem.instance(case.b)).name
        row["truth known to"] = f"{case.truth.relative_error_bound:.0e}"
        yield row


def main() -> None:
    small = {"SIDE": 12, "LIFTED_SIDE": 8, "SMOOTHINGS": (1e-2, 0.0), "TRUTH": 1e-3, "INEXACT": (1e-2,)}
    options = arguments(__doc__ or "", quick=small, kind={"choices": list(KINDS), "help": "one of them alone"})
    table = Table(
        "piggyback_crossover",
        "Where the piggyback iteration wins",
        "python benchmarks/piggyback_crossover.py --record",
        f"`lr.hypergradient(tolerance={TOLERANCE:g})` with `Implicit()` and `Piggyback()`, both with default options, "
        f"float32, from a cold start: denoising of {SIDE}² pixels of a photograph by a Field of Experts of 24 "
        f"filters of 5x5 and by total variation, and of {LIFTED_SIDE}² by a lifted network of 2 layers of 8 "
        "features (whose delta_y is its smoothing over the weights), sigma 25/255. Beside it what both take for "
        "states and adjoint states of lower accuracies, and the true errors of the gradients formed from them, "
        "without a certificate. auto: what `lr.hypergradient(method=None)` takes.",
        order=21,
        notes=[
            f"At most {MOST_STEPS:,} steps for each. Each kind in a process of its own (--kind).",
            "For total variation Implicit() itself runs the primal-dual method from a cold start, and the piggyback "
            "iteration on ill-conditioned problems.",
            "True errors are relative to a gradient whose own certified relative error is in the last column.",
        ],
    )
    for kind in KINDS if options.kind is None else [options.kind]:
        table.rows += rows(kind, min(options.rounds, 3))
    for row in table.rows:
        if "Piggyback / Implicit" in row:
            key = f"{row['regularizer']}, smoothing {row['smoothing']}: Piggyback / Implicit"
            table.tracked[key] = row["Piggyback / Implicit"]
    finish(table, options)


if __name__ == "__main__":
    main()
