"""What unrolling costs in memory and time, in reverse, with few kept steps and forwards, against implicit
differentiation and the piggyback iteration at the same true error.

python benchmarks/unrolled_memory.py --record
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from harness import Table, arguments, finish, interleave, peak_bytes
from torch import Tensor
from unrolled import Descent, unrolled_hypergradient

import learnreg as lr
from learnreg.certificates.judgement import gradient_distance, gradient_norm
from learnreg.datasets import natural_images
from learnreg.hypergradients.base import Evaluation, Goal, HypergradientMethod, evaluate
from learnreg.lower_level.point import Point
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts
from learnreg.solvers.solve import initial_point

SIDE, COUNT, FILTERS, SIZE, SIGMA = 64, 2, 12, 5, 25 / 255
SMOOTHING, WEIGHT = 5e-3, 0.0266
TARGET, TRUTH = 1e-2, 1e-5
GROWTH, MOST_STEPS = 1.15, 2000
"""Steps are tried in this geometric sequence, up to so many."""

METHODS: dict[str, HypergradientMethod] = {
    "Implicit('cg')": lr.Implicit("cg"),
    "Implicit('minres')": lr.Implicit("minres"),
    "Implicit('neumann')": lr.Implicit("neumann"),
    "Implicit('nystrom')": lr.Implicit("nystrom"),
    "Piggyback()": lr.Piggyback(),
}


@dataclass(frozen=True)
class Case:
    """Denoising by a Field of Experts whose weights and smoothings are learned, float32."""

    b: Tensor
    x_true: Tensor
    filters: Tensor

    @classmethod
    def load(cls) -> Case:
        photographs = list(natural_images("train").values())[:COUNT]
        x_true = torch.stack([image[:, 60 : 60 + SIDE, 60 : 60 + SIDE] for image in photographs]).float()
        noise = torch.randn(x_true.shape, generator=torch.Generator().manual_seed(0))
        filters = FieldsOfExperts(FILTERS, SIZE, generator=torch.Generator().manual_seed(0)).filters.detach()
        return cls(x_true + SIGMA * noise, x_true, filters)

    def problem(self, dtype: torch.dtype = torch.float32) -> lr.LowerLevelProblem:
        weights, smoothings = torch.full((FILTERS,), WEIGHT), torch.full((FILTERS,), SMOOTHING)
        experts = FieldsOfExperts.from_arrays(self.filters.to(dtype), weights, smoothings)
        for name, p in experts.named_parameters():
            p.requires_grad_(name in ("log_weights", "log_smoothing"))
        return lr.LowerLevelProblem(Identity(tuple(self.b.shape[1:])), experts.to(dtype))

    @cached_property
    def truth(self) -> lr.Hypergradient:
        loss = lr.SquaredError(self.x_true.double())
        return lr.hypergradient(self.problem(torch.float64), self.b.double(), loss, lr.Implicit(), TRUTH)

    @property
    def image_bytes(self) -> int:
        return self.b.numel() * self.b.element_size()

    def error(self, gradient: dict[str, Tensor]) -> float:
        """True relative error."""
        return gradient_distance(gradient, self.truth.gradient) / gradient_norm(self.truth.gradient)

    def run(self, method: HypergradientMethod, accuracy: float = 0.0) -> Evaluation:
        """From x = b and X = 0: the state to ``accuracy`` of ‖x‖, the adjoint equation to ten times that of its
        right-hand side."""
        frozen = self.problem().frozen()
        instance = frozen.at(self.b)
        x = initial_point(instance, self.b)
        start = Point(frozen, instance, self.b, lr.SquaredError(self.x_true), x, torch.zeros_like(x))
        size, slope = self.b.flatten(1).norm(dim=1), start.loss_gradient.flatten(1).norm(dim=1)
        return evaluate(method, start, Goal(accuracy * size, 10.0 * accuracy * slope))

    def by_autograd(self, steps: int) -> dict[str, Tensor]:
        """The same steps in plain torch, differentiated by autograd."""
        instance = self.problem().instance(self.b)
        root = math.sqrt(instance.condition_bound())
        descent = Descent(1.0 / instance.gradient_lipschitz(), (root - 1.0) / (root + 1.0))
        theta = {name: p.detach() for name, p in self.problem().regularizer.named_parameters()}

        def loss(x: Tensor) -> Tensor:
            return 0.5 * ((x - self.x_true) ** 2).flatten(1).sum(1)

        found = unrolled_hypergradient(descent, theta, self.b, loss, steps)
        return {name: found[name] for name in self.truth.gradient}


def fewest(case: Case, make: Callable[[int], HypergradientMethod], least: int = 1) -> int:
    """The first number of the sequence from ``least`` on with which a method meets the target."""
    number = least
    while case.error(case.run(make(number)).gradient) > TARGET:
        number = max(number + 1, math.ceil(GROWTH * number))
        if number > MOST_STEPS:
            raise SystemExit(f"{make(number)!r} does not reach a relative error of {TARGET:g}")
    return number


def loosest(case: Case, method: HypergradientMethod) -> float:
    """The largest accuracy, of 10^(-k/4), with which a method meets the target."""
    for k in range(4, 30):
        accuracy: float = 10.0 ** (-k / 4)
        if case.error(case.run(method, accuracy).gradient) <= TARGET:
            return accuracy
    raise SystemExit(f"{method!r} does not reach a relative error of {TARGET:g}")


def calls(case: Case) -> dict[str, Callable[[], Any]]:
    """Every way at the least effort that meets the target."""
    n = fewest(case, lr.Unrolled)
    long = math.ceil(1.5 * n)
    last = fewest(case, lambda k: lr.Unrolled(long, min(k, long)))
    root = math.ceil(math.sqrt(n))
    ways: dict[str, HypergradientMethod] = {
        f"Unrolled({n})": lr.Unrolled(n),
        f"Unrolled({long}, last={last})": lr.Unrolled(long, last),
        f"Unrolled({n}, checkpoints={root})": lr.Unrolled(n, checkpoints=root),
        f"Unrolled({n}, checkpoints=4)": lr.Unrolled(n, checkpoints=4),
        f"Unrolled({n}, mode='forward')": lr.Unrolled(n, mode="forward"),
    }
    found: dict[str, Callable[[], Any]] = {name: partial(case.run, method) for name, method in ways.items()}
    found[f"autograd through {n} steps in plain torch"] = partial(case.by_autograd, n)
    for name, method in METHODS.items():
        found[name] = partial(case.run, method, loosest(case, method))
    found["OneStep()"] = partial(case.run, lr.OneStep(), 1e-4)
    return found


def rows(case: Case, ways: dict[str, Callable[[], Any]], rounds: int) -> Iterable[dict[str, Any]]:
    seconds = interleave(ways, rounds, warmup=0)
    for name, call in ways.items():
        found = call()
        own = found if isinstance(found, dict) else found.gradient
        applications = None if isinstance(found, dict) else found.point.instance.counter.applications
        yield {
            "method": name,
            "true error": case.error(own),
            "peak MB": peak_bytes(call) / 1e6,
            "CPU s": seconds[name],
            "applications": applications,
        }


def main() -> None:
    quick = {"SIDE": 24, "COUNT": 1, "FILTERS": 4, "SMOOTHING": 5e-2, "TARGET": 0.1}
    options = arguments(__doc__ or "", quick=quick)
    case = Case.load()
    ways = calls(case)
    measured = list(rows(case, ways, options.rounds))
    condition = case.problem().instance(case.b).condition_bound()
    table = Table(
        "unrolled_memory",
        "Unrolling: memory and time",
        "python benchmarks/unrolled_memory.py --record",
        f"Denoising of {COUNT} photographs of {SIDE}² pixels by a Field of Experts of {FILTERS} filters {SIZE}x{SIZE}, "
        f"smoothing {SMOOTHING:g}, condition number below {condition:.0f}; learned are its {2 * FILTERS} weights and "
        "smoothings. float32, from x = b. Each way with the fewest steps, or the loosest accuracies, that give a true "
        f"relative error of the hypergradient of at most {TARGET:g}, without a certificate; `OneStep()` does not get "
        f"there. Peak memory counts the tensors that a call allocates; an image of the batch takes "
        f"{case.image_bytes / 1e6:.2f} MB.",
        measured,
        order=23,
    )
    full, few, implicit = measured[0], measured[2], measured[6]
    table.tracked["CPU: Implicit('cg') / Unrolled"] = implicit["CPU s"] / full["CPU s"]
    table.tracked["peak memory: Implicit('cg') / Unrolled"] = implicit["peak MB"] / full["peak MB"]
    table.tracked["CPU: root of n checkpoints / all steps kept"] = few["CPU s"] / full["CPU s"]
    table.tracked["peak memory: root of n checkpoints / all steps kept"] = few["peak MB"] / full["peak MB"]
    finish(table, options)


if __name__ == "__main__":
    main()
