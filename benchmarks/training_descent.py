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
from pathlib import Path
from typing import Any

import torch
from harness import ROOT, Table, arguments, finish
from training_runs import UpdatesClock

import learnreg as lr
from learnreg.commands.common import initial_regularizer, tune_total_variation
from learnreg.commands.denoise import scenario
from learnreg.commands.options import DenoiseConfig
from learnreg.commands.process import large_blocks_kept
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


def full_batch(seed: int) -> tuple[list[Curve], float]:
    """Adam's updates on a small full batch against certified steps until the true loss is that of Adam's end; the
    loss."""
    config = DenoiseConfig(patch=SMALL_PATCH, patches=SMALL_PATCHES, filters=FILTERS, seed=seed)
    made = scenario(config)
    b, x_true = (torch.stack(column) for column in zip(*made.pairs, strict=True))
    state: list[torch.Tensor] = []

    def true_loss(problem: lr.LowerLevelProblem) -> tuple[float, float]:
        """Of accurate solutions."""
        solution = lr.solve(problem, b.double(), TRUE_TOLERANCE, start=state[-1] if state else None)
        state[:] = [solution.x]
        return float(lr.SquaredError(x_true.double()).value(solution.x)), math.nan

    curves: list[Curve] = []
    for name, optimizer in (("Adam, full batch", "adam"), ("certified, full batch", "adaptive")):
        torch.manual_seed(seed)
        options = TrainingOptions(
            updates=ADAM_UPDATES,
            batch_size=SMALL_PATCHES,
            samples=SMALL_PATCHES,
            step_size=config.step_size,
            sampling="fixed",
            optimizer=optimizer,
            tune_start=False,
            seed=seed,
        )
        goal = min(curves[0].loss) if curves else -math.inf
        curves.append(
            run(
                name,
                made.problem(initial_regularizer(config)),
                made.pairs,
                options,
                lambda c: len(c.loss) >= ADAM_UPDATES or bool(c.loss and c.loss[-1] <= goal),  # noqa: B023
                true_loss,
            )
        )
    return curves, min(curves[0].loss)


def to_table(curves: list[Curve], tv: float, small: list[Curve], goal: float, seconds: float) -> Table:
    adam = next(c for c in curves if c.name.startswith("Adam"))
    table = Table(
        name="training_descent",
        order=9,
        title="Certified descent against Adam",
        command="python benchmarks/training_descent.py --record",
        text=f"""Denoising of the photographs that come with scikit-image as `learnreg train denoise` does it ({PATCHES}
patches of {PATCH}² pixels, {FILTERS} filters 5x5, sigma 25/255, tuned start, up to {SAMPLES} samples), {seconds:.0f}
CPU seconds of updates each: PSNR on central crops of held-out images, total variation {tv:.2f} dB. *Full batch*:
{SMALL_PATCHES} patches of {SMALL_PATCH}², {ADAM_UPDATES} updates of Adam, and certified steps until the loss that Adam
reached at best ({goal:.4f}), start not tuned. Every accepted step of the certified runs provably lowers the loss of its
samples.""",
    )
    for curve in [*curves, *small]:
        known = [p for p in curve.psnr if not math.isnan(p)]
        table.rows.append(
            {
                "run": curve.name,
                "updates": len(curve.seconds),
                "rejected": curve.rejected,
                "CPU s": curve.seconds[-1],
                "samples at the end": curve.samples,
                "PSNR": f"{known[-1]:.2f}" if known else None,
                "over TV, dB": known[-1] - tv if known else None,
                "behind Adam, dB": [p for p in adam.psnr if not math.isnan(p)][-1] - known[-1] if known else None,
                "CPU s to the loss of Adam": curve.time_to(goal) if curve in small else None,
            }
        )
    first, certified = small
    table.tracked["certified over Adam, full batch, CPU seconds"] = certified.time_to(goal) / first.time_to(goal)
    table.notes.append("![loss and PSNR against CPU seconds](training_descent.png)")
    return table


def draw(curves: list[Curve], tv: float, small: list[Curve], path: Path) -> None:
    """PSNR, and the loss of the full batch, against CPU seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    for curve in curves:
        points = [(s, p) for s, p in zip(curve.seconds, curve.psnr, strict=True) if not math.isnan(p)]
        left.plot(*zip(*points, strict=True), "-o", ms=3, lw=1.2, label=curve.name)
    left.axhline(tv, color="grey", lw=0.8, label="total variation")
    left.set(xlabel="CPU seconds", ylabel="held-out PSNR in dB")
    for curve in small:
        right.plot(curve.seconds, curve.loss, lw=1.2, label=curve.name)
    right.set(xlabel="CPU seconds", ylabel="loss of the full batch", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)


@large_blocks_kept()
def main() -> None:
    options = arguments(
        __doc__ or "",
        quick={
            "seconds": 0.5,
            "PATCH": 16,
            "PATCHES": 16,
            "SAMPLES": 16,
            "FILTERS": 2,
            "SMALL_PATCH": 16,
            "ADAM_UPDATES": 4,
        },
        seconds={"type": float, "default": 300.0, "help": "CPU seconds of updates in each run"},
        seed={"type": int, "default": 0, "help": "of images, noise and filters"},
        figure={"default": None, "help": "where to draw (default docs/training_descent.png on record)"},
    )
    curves, tv = denoising(options.seconds, options.seed)
    small, goal = full_batch(options.seed)
    path = options.figure or (ROOT / "docs" / "training_descent.png" if options.record else None)
    if path:
        draw(curves, tv, small, Path(path))
    finish(to_table(curves, tv, small, goal, options.seconds), options)


if __name__ == "__main__":
    main()
