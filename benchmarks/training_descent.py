"""Certified descent against Adam: loss and held-out PSNR against CPU seconds, from the same start.

    python benchmarks/training_descent.py --record

Denoising of the photographs that come with scikit-image, as ``learnreg train denoise`` does it, and a full batch of a
few small patches.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from training_runs import UpdatesClock

import learnreg as lr
from learnreg.commands.common import initial_regularizer, tune_total_variation
from learnreg.commands.denoise import scenario
from learnreg.commands.options import DenoiseConfig
from learnreg.hypergradients import METHODS
from learnreg.training.optimizers import make_upper_level
from learnreg.training.options import TrainingOptions
from learnreg.training.schedule import is_milestone, step_factor
from learnreg.training.session import Session
from learnreg.training.start_tuning import tune_start

RUNS: dict[str, dict[str, Any]] = {
    "Adam, implicit": {"optimizer": "adam"},
    "certified, growing sample, implicit": {"optimizer": "adaptive"},
    "certified, growing sample, piggyback": {"optimizer": "adaptive", "method": "piggyback"},
    "certified, minibatches, implicit": {"optimizer": "adaptive", "sampling": "minibatch"},
}
PATCH, PATCHES, SAMPLES, FILTERS = 64, 512, 512, 24
SMALL_PATCH, SMALL_PATCHES, ADAM_UPDATES = 32, 4, 500
TRUE_TOLERANCE = 1e-6


@dataclass
class Curve:
    """A run: CPU seconds, logged loss and PSNR of held-out images (nan where not asked for) after its updates."""

    name: str
    seconds: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    samples: int = 0
    rejected: int = 0

    def time_to(self, loss: float) -> float:
        """CPU seconds until the loss is that small; infinite if it never is."""
        return next((s for s, value in zip(self.seconds, self.loss, strict=True) if value <= loss), math.inf)


def run(
    name: str,
    problem: lr.LowerLevelProblem,
    data: Any,
    options: TrainingOptions,
    stop: Callable[[Curve], bool],
    measure: Callable[[lr.LowerLevelProblem], tuple[float | None, float]],
) -> Curve:
    """Update until ``stop``; the clock runs during updates alone. ``measure``: the loss in place of the logged one, and
    the PSNR, at milestones."""
    session, curve = Session.of(problem, data, lr.SquaredError, options), Curve(name)
    session.clock = clock = UpdatesClock()
    try:
        if options.tune_start:
            clock.timed(lambda: tune_start(session))
        upper = make_upper_level(session, options)
        while not stop(curve):
            row: dict[str, Any] = {}
            update = len(curve.seconds)
            clock.timed(lambda: row.update(upper.update(step_factor(update, options.updates))))  # noqa: B023
            loss, psnr = measure(problem) if is_milestone(update + 1) else (None, math.nan)
            curve.seconds.append(clock.cpu)
            curve.loss.append(row["loss"] if loss is None else loss)
            curve.psnr.append(psnr)
            curve.samples = row.get("samples", options.batch_size)
            curve.rejected += not row.get("accepted", True)
            if not math.isnan(psnr):
                print(
                    f"{name}: {update + 1} updates, {clock.cpu:.0f} s, loss {row['loss']:.4f}, {psnr:.3f} dB, "
                    f"{curve.samples} samples",
                    file=sys.stderr,
                    flush=True,
                )
    finally:
        session.close()
    return curve


def denoising(seconds: float, seed: int) -> tuple[list[Curve], float]:
    """All runs on patches of photographs; the PSNR of total variation on the same held-out images."""
    config = DenoiseConfig(patch=PATCH, patches=PATCHES, filters=FILTERS, seed=seed)
    made = scenario(config)
    tv = made.problem(lr.regularizers.TotalVariation(weight=made.tv_weight))
    tune_total_variation(tv, made.pairs, min(64, PATCHES), made.tv_tolerance)
    curves = []
    for name, chosen in RUNS.items():
        torch.manual_seed(seed)
        method = METHODS[chosen.get("method", "implicit")]()
        rest = {key: value for key, value in chosen.items() if key != "method"}
        options = TrainingOptions(
            minutes=1e4, batch_size=16, method=method, step_size=config.step_size, samples=SAMPLES, seed=seed, **rest
        )
        curves.append(
            run(
                name,
                made.problem(initial_regularizer(config)),
                made.pairs,
                options,
                lambda curve: bool(curve.seconds) and curve.seconds[-1] > seconds,
                lambda problem: (None, made.validate(problem)),
            )
        )
    return curves, made.validate(tv)


def main() -> None:
    pass
