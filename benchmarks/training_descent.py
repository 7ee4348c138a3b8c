"""Certified descent against Adam: loss and held-out PSNR against CPU seconds, from the same start.

    python benchmarks/training_descent.py --record
    python benchmarks/training_descent.py --task ct --record

Denoising or tomography as ``learnreg train denoise`` and ``learnreg train ct`` do them, on the data that need no
download, and beside denoising a full batch of a few small patches. Runs are processes of one thread, two at a time.
"""

from __future__ import annotations

import math
import multiprocessing
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from harness import ROOT, Table, arguments, finish
from training_runs import UpdatesClock

import learnreg as lr
from learnreg.commands.common import Scenario, initial_regularizer
from learnreg.commands.denoise import scenario as denoising
from learnreg.commands.options import DenoiseConfig
from learnreg.commands.process import large_blocks_kept
from learnreg.commands.tasks import TASKS
from learnreg.hypergradients import METHODS
from learnreg.training.baseline import tune_total_variation
from learnreg.training.optimizers import make_upper_level
from learnreg.training.options import TrainingOptions
from learnreg.training.schedule import is_validated, step_factor
from learnreg.training.session import Session
from learnreg.training.start_tuning import tune_start

RUNS: dict[str, dict[str, Any]] = {
    "Adam, implicit": {"optimizer": "adam"},
    "certified, implicit": {"optimizer": "adaptive"},
    "certified, piggyback": {"optimizer": "adaptive", "method": "piggyback"},
}
TINY: dict[str, dict[str, Any]] = {
    "denoise": {"filters": 2, "batch_size": 2, "tune": False, "patch": 16, "patches": 4},
    "ct": {"filters": 2, "batch_size": 2, "tune": False, "size": 16, "angles": 8, "images": 4},
}
"""The tasks, and options of their smallest runs."""

TOO_SLOW = ("ct", "certified, piggyback")
"""Primal-dual iterations on projections take thousands of steps: no first update within 12 minutes."""

SMALL_PATCH, SMALL_PATCHES, SMALL_FILTERS, ADAM_UPDATES = 32, 4, 24, 500
TRUE_TOLERANCE = 1e-6


@dataclass
class Curve:
    """A run: CPU seconds, logged loss and PSNR of held-out images (nan where not asked for) after its updates.
    baseline: PSNR of total variation on the same images."""

    task: str
    name: str
    seed: int
    baseline: float = math.nan
    seconds: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    samples: int = 0

    @property
    def known(self) -> list[tuple[float, float]]:
        """CPU seconds and PSNR where it was asked for."""
        return [(s, p) for s, p in zip(self.seconds, self.psnr, strict=True) if not math.isnan(p)]

    def time_to(self, loss: float) -> float:
        """CPU seconds until the loss is that small; infinite if it never is."""
        return next((s for s, value in zip(self.seconds, self.loss, strict=True) if value <= loss), math.inf)


def run(
    curve: Curve,
    problem: lr.LowerLevelProblem,
    data: Any,
    options: TrainingOptions,
    stop: Callable[[Curve], bool],
    measure: Callable[[lr.LowerLevelProblem], tuple[float | None, float]],
) -> Curve:
    """Update until ``stop``; the clock runs during updates alone. ``measure``: the loss in place of the logged one, and
    the PSNR, at milestones."""
    session = Session.of(problem, data, lr.SquaredError, options)
    session.clock = clock = UpdatesClock()
    try:
        if options.tune_start:
            clock.timed(lambda: tune_start(session))
        upper = make_upper_level(session, options)
        while not stop(curve):
            row: dict[str, Any] = {}
            update = len(curve.seconds)
            clock.timed(lambda: row.update(upper.update(step_factor(update, options.updates))))  # noqa: B023
            loss, psnr = measure(problem) if is_validated(update + 1) else (None, math.nan)
            curve.seconds.append(clock.cpu)
            curve.loss.append(row["loss"] if loss is None else loss)
            curve.psnr.append(psnr)
            curve.samples = row.get("samples", options.batch_size)
            if not math.isnan(psnr):
                print(
                    f"{curve.task} {curve.name} {curve.seed}: {update + 1} updates, {clock.cpu:.0f} s, loss "
                    f"{row['loss']:.4f}, {psnr:.3f} dB, {curve.samples} samples",
                    file=sys.stderr,
                    flush=True,
                )
    finally:
        session.close()
    return curve


def trained(task: str, name: str, seed: int, seconds: float, changed: Mapping[str, Any]) -> Curve:
    """One run of a training command, and total variation on its held-out images."""
    torch.set_num_threads(1)
    chosen = TASKS[task]
    made: Scenario = chosen.scenario(chosen.config(**changed, seed=seed))
    config = made.config
    tv = made.problem(lr.regularizers.TotalVariation(weight=made.tv_weight))
    tune_total_variation(tv, made.pairs, min(64, made.tv_samples), made.tv_tolerance)
    options = TrainingOptions(
        minutes=1e4,
        batch_size=config.batch_size,
        method=METHODS[RUNS[name].get("method", "implicit")](),
        optimizer=RUNS[name]["optimizer"],
        step_size=config.step_size,
        tune_start=config.tune,
        seed=seed,
    )
    torch.manual_seed(seed)
    with large_blocks_kept():
        return run(
            Curve(task, name, seed, made.validate(tv)),
            made.problem(initial_regularizer(config)),
            made.pairs,
            options,
            lambda curve: bool(curve.seconds) and curve.seconds[-1] > seconds,
            lambda problem: (None, made.validate(problem)),
        )


def warm_up() -> None:
    """Load compiled kernels, which forked processes inherit."""
    for task, options in TINY.items():
        for name in RUNS:
            trained(task, name, 0, 0.1, options)


@large_blocks_kept()
def full_batch(seed: int) -> list[Curve]:
    """Adam's updates on a small full batch, and certified steps until the true loss is the least of Adam's."""
    torch.set_num_threads(1)
    config = DenoiseConfig(patch=SMALL_PATCH, patches=SMALL_PATCHES, filters=SMALL_FILTERS, seed=seed)
    made = denoising(config)
    b, x_true = (torch.stack(column) for column in zip(*made.pairs, strict=True))
    state: list[torch.Tensor] = []

    def true_loss(problem: lr.LowerLevelProblem) -> tuple[float, float]:
        """Of accurate solutions."""
        solution = lr.solve(problem, b.double(), TRUE_TOLERANCE, start=state[-1] if state else None)
        state[:] = [solution.x]
        return float(lr.SquaredError(x_true.double()).value(solution.x)), math.nan

    curves: list[Curve] = []
    for name, optimizer in (("Adam, implicit", "adam"), ("certified, implicit", "adaptive")):
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
                Curve("full batch", name, seed),
                made.problem(initial_regularizer(config)),
                made.pairs,
                options,
                lambda c: len(c.loss) >= ADAM_UPDATES or bool(c.loss and c.loss[-1] <= goal),  # noqa: B023
                true_loss,
            )
        )
    return curves


FIGURES = {"denoise": "training_descent", "ct": "training_descent_ct"}
"""Names of the tables and of their figures."""


def to_table(task: str, curves: list[Curve], small: list[Curve], options: Any) -> Table:
    name, title = FIGURES[task], "Certified descent against Adam"
    command = f"python benchmarks/training_descent.py{'' if task == 'denoise' else ' --task ct'} --record"
    data = "the photographs that come with scikit-image" if task == "denoise" else "phantoms"
    text = f"""`learnreg train {task}` with its defaults, on {data}: {options.seconds:.0f} CPU seconds of updates in one
thread, of each seed, {options.processes} runs at a time. PSNR in dB on held-out images where it was measured last
(updates about 1.2 times apart); *over TV*: over total variation of tuned weight on the same images, and *behind Adam*
at the same seed, the worst of the seeds. Every accepted step of the certified runs provably lowers the loss of its
samples."""
    if task == "ct":
        title = f"{title}, tomography"
        text += " Piggyback is left out: its first update is not done within 12 minutes."
    table = Table(name=name, order=9, title=title, command=command, text=text)
    adam = {c.seed: c for c in curves if c.name.startswith("Adam")}
    for run_name in RUNS:
        of = sorted((c for c in curves if c.name == run_name), key=lambda c: c.seed)
        if not of:
            continue
        behind = max(adam[c.seed].known[-1][1] - c.known[-1][1] for c in of)
        table.rows.append(
            {
                "run": run_name,
                "updates": " / ".join(str(c.seconds.index(c.known[-1][0]) + 1) for c in of),
                "samples at the end": " / ".join(str(c.samples) for c in of),
                "PSNR": " / ".join(f"{c.known[-1][1]:.2f}" for c in of),
                "over TV": f"{min(c.known[-1][1] - c.baseline for c in of):.2f}",
                "behind Adam": f"{behind:.2f}",
                "CPU s": " / ".join(f"{c.known[-1][0]:.0f}" for c in of),
            }
        )
        if not run_name.startswith("Adam"):
            table.tracked[f"{task}, {run_name}: dB behind Adam + 1"] = 1.0 + behind
    if small:
        add_full_batch(table, *small)
    table.notes.append(f"![held-out PSNR and loss against CPU seconds]({name}.png)")
    return table


def add_full_batch(table: Table, first: Curve, certified: Curve) -> None:
    """Rows of the full batch: Adam's updates, and certified steps until Adam's least loss."""
    goal = min(first.loss)
    table.text += f""" *full batch*: {SMALL_PATCHES} patches of {SMALL_PATCH}², {ADAM_UPDATES} updates of Adam, and
certified steps until the least loss of Adam ({goal:.4f}; both solved accurately), start not tuned."""
    for curve in (first, certified):
        table.rows.append(
            {
                "run": f"full batch, {curve.name}",
                "updates": str(len(curve.seconds)),
                "samples at the end": str(curve.samples),
                "CPU s": f"{curve.time_to(goal):.0f}",
            }
        )
    table.tracked["certified over Adam, full batch, CPU seconds"] = certified.time_to(goal) / first.time_to(goal)


def draw(task: str, curves: list[Curve], small: list[Curve], path: Path) -> None:
    """PSNR, and the loss of the full batch, against CPU seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = 1 + bool(small)
    figure, axes = pyplot.subplots(1, columns, figsize=(5 * columns, 4.2), layout="constrained", squeeze=False)
    colours = dict(zip(RUNS, ("tab:grey", "tab:blue", "tab:orange"), strict=True))
    axis = axes[0, 0]
    for curve in curves:
        label = curve.name if curve.seed == min(c.seed for c in curves) else None
        axis.plot(*zip(*curve.known, strict=True), "-o", ms=2.5, lw=1.1, color=colours[curve.name], label=label)
    baseline = [c.baseline for c in curves]
    axis.axhline(sum(baseline) / len(baseline), color="k", lw=0.8, ls=":", label="total variation")
    axis.set(xlabel="CPU seconds", ylabel="held-out PSNR in dB", title=f"learnreg train {task}")
    for curve in small:
        axes[0, -1].plot(curve.seconds, curve.loss, lw=1.2, color=colours[curve.name], label=curve.name)
    if small:
        axes[0, -1].set(xlabel="CPU seconds", ylabel="loss", yscale="log", title="full batch")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def main() -> None:
    options = arguments(
        __doc__ or "",
        quick={"seconds": 0.5, "seeds": 1, "SMALL_PATCH": 16, "SMALL_FILTERS": 2, "ADAM_UPDATES": 4},
        task={"choices": tuple(TINY), "default": "denoise", "help": "what is learned"},
        seconds={"type": float, "help": "CPU seconds of updates in each run (300, or 360 of tomography)"},
        seeds={"type": int, "default": 3, "help": "runs of each kind"},
        processes={"type": int, "default": 2, "help": "runs at a time"},
        figure={"default": None, "help": "where to draw (by default in docs, on record)"},
    )
    options.seconds = options.seconds or (300.0 if options.task == "denoise" else 360.0)
    warm_up()
    # of forked processes, which have this one's settings; one seed after the other, so that all kinds see the same load
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("fork")) as pool:
        full = pool.submit(full_batch, 0) if options.task == "denoise" else None
        jobs = [
            pool.submit(trained, options.task, name, seed, options.seconds, TINY[options.task] if options.quick else {})
            for seed in range(options.seeds)
            for name in RUNS
            if options.quick or (options.task, name) != TOO_SLOW
        ]
        curves, small = [job.result() for job in jobs], [] if full is None else full.result()
    path = options.figure or (ROOT / "docs" / f"{FIGURES[options.task]}.png" if options.record else None)
    if path:
        draw(options.task, curves, small, Path(path))
    finish(to_table(options.task, curves, small, options), options)


if __name__ == "__main__":
    main()
