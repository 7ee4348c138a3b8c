"""What every training command does: training with a progress bar, a baseline, and the figures of its summary."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from learnreg.commands.options import TrainingConfig
from learnreg.commands.process import large_blocks_kept, threads
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.hypergradients.implicit import Implicit
from learnreg.hypergradients.piggyback import Piggyback
from learnreg.losses import SquaredError
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.regularizers import TotalVariation
from learnreg.report.comparison import Comparison
from learnreg.solvers.solve import solve
from learnreg.training.options import TrainingOptions
from learnreg.training.run_folder import RunFolder
from learnreg.training.sampler import PairedDataset
from learnreg.training.train import Trainer, TrainResult

__all__ = [
    "comparison_figures",
    "learn",
    "training_figures",
    "tune_total_variation",
]

_WEIGHT_STEP, _LARGEST_SEARCH = 1.6, 12

_METHODS: dict[str, Callable[[], HypergradientMethod]] = {"implicit": Implicit, "piggyback": Piggyback}


def learn(
    config: TrainingConfig,
    problem: LowerLevelProblem,
    pairs: PairedDataset,
    folder: RunFolder,
    resume: bool,
    described: Mapping[str, Any],
    validate: Callable[[], float],
) -> TrainResult:
    """Train with a progress bar on stderr. ``described``: goes into the model file beside the options."""
    options = TrainingOptions(
        config.minutes,
        config.batch_size,
        _METHODS[config.method](),
        config.tolerance,
        config.optimizer,  # type: ignore[arg-type]
        config.step_size,
        config.samples,
        config.seed,
        config.max_updates or None,
        workers=torch.get_num_threads(),
    )
    with (
        tqdm(total=round(60 * config.minutes), unit="s", file=sys.stderr, desc="training") as bar,
        threads(1),  # audits and held-out images are small, too: several cores only slow them
        large_blocks_kept(),
    ):
        trainer = Trainer(
            problem,
            pairs,
            SquaredError,
            options,
            config={**described, "training": dataclasses.asdict(config)},
            validate=validate,
            on_update=partial(_advance, bar),
        )
        return trainer.run(folder, resume)


@torch.no_grad()
def tune_total_variation(problem: LowerLevelProblem, pairs: PairedDataset, samples: int, tolerance: float) -> float:
    """Set the weight of the problem's TotalVariation to the one with the least squared error on the first samples:
    steps by a factor of 1.6 until they bracket it, then the vertex of the parabola through the bracket, in the
    logarithm of the weight. Each reconstruction to ``tolerance``, started from the last one. Returns the weight."""
    regularizer = problem.regularizer
    assert isinstance(regularizer, TotalVariation)
    b, x_true = (torch.stack(column) for column in zip(*(pairs[i] for i in range(samples)), strict=True))
    losses: dict[float, float] = {}
    start: Tensor | None = None

    def loss(log_weight: float) -> float:
        nonlocal start
        if log_weight not in losses:
            regularizer.log_weight.fill_(log_weight)
            start = solve(problem, b, tolerance, start=start).x
            losses[log_weight] = float((start - x_true).double().square().sum())
        return losses[log_weight]

    step, middle = math.log(_WEIGHT_STEP), float(regularizer.log_weight)
    for _ in range(_LARGEST_SEARCH):
        best = min((middle - step, middle, middle + step), key=loss)
        if best == middle:
            break
        middle = best
    low, high = loss(middle - step) - loss(middle), loss(middle + step) - loss(middle)
    vertex = middle + (0.5 * step * (low - high) / (low + high) if low + high > 0 else 0.0)
    regularizer.log_weight.fill_(min(losses, key=losses.__getitem__) if loss(vertex) > loss(middle) else vertex)
    return float(regularizer.weight)


def comparison_figures(comparison: Comparison, input_key: str) -> dict[str, Any]:
    """Means of a comparison, for the summary; ``input_key`` names the PSNR of the inputs."""
    means = {what: comparison.mean(what) for what in ("input", "tv", "learned")}
    return {
        input_key: means["input"].psnr,
        "psnr_tv": means["tv"].psnr,
        "psnr_learned": means["learned"].psnr,
        "gain_over_tv": means["learned"].psnr - means["tv"].psnr,
        "ssim_tv": means["tv"].ssim,
        "ssim_learned": means["learned"].ssim,
    }


def training_figures(result: TrainResult) -> dict[str, Any]:
    """Totals of a run, for the summary."""
    audits = [row for row in result.rows if "relative_error_bound" in row]
    last = audits[-1] if audits else {}
    return {
        "updates": result.updates,
        "seconds": result.seconds,
        "operator_applications": result.operator_applications,
        "hypergradient_relative_error_bound": last.get("relative_error_bound"),
        "hypergradient_certified": last.get("certified"),
    }


def _advance(bar: Any, row: Mapping[str, Any]) -> None:
    bar.n = min(round(row["seconds"]), bar.total)
    shown = {"loss": f"{row['loss']:.4g}"}
    if "psnr" in row:
        shown["held-out PSNR"] = f"{row['psnr']:.2f}"
    bar.set_postfix(shown, refresh=True)
