"""What every training command does: a regularizer from its options, training with a progress bar, a baseline, and the
report."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm

from learnreg.errors import ConfigError
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.hypergradients.implicit import Implicit
from learnreg.hypergradients.piggyback import Piggyback
from learnreg.losses import SquaredError
from learnreg.problem import LowerLevelProblem
from learnreg.regularizers import (
    FieldsOfExperts,
    InputConvexNetwork,
    LearnedTotalVariation,
    MultivariateExperts,
    Regularizer,
    RidgeRegularizer,
    TotalVariation,
)
from learnreg.regularizers.base import potential_from_config
from learnreg.solvers.solve import solve
from learnreg.training.comparison import Comparison
from learnreg.training.config import TrainingConfig
from learnreg.training.run_folder import RunFolder
from learnreg.training.session import PairedDataset
from learnreg.training.train import TrainResult, train

__all__ = [
    "comparison_figures",
    "initial_regularizer",
    "learn",
    "training_figures",
    "tune_total_variation",
]

_WEIGHT_STEP, _LARGEST_SEARCH = 1.6, 12

_RIDGE_WEIGHT = 0.5
"""Initial weight of a ridge regularizer relative to a field of experts."""

_GROUPED_WEIGHT = 0.4
"""Initial weight of multivariate experts relative to a field of experts."""

_RIDGE_SPACING = 2.0
"""Distance of a ridge regularizer's knots in initial smoothings of a field of experts: with ten of them f'' reaches the
responses to noise."""

_NETWORK_WEIGHT = 0.4
"""Initial weight of an input-convex network relative to a field of experts."""

_METHODS: dict[str, Callable[[], HypergradientMethod]] = {"implicit": Implicit, "piggyback": Piggyback}


def initial_regularizer(config: TrainingConfig) -> Regularizer:
    """The regularizer that training starts from."""
    if config.regularizer == "tv":
        return TotalVariation(weight=config.weight / 3.0)
    if config.regularizer == "ridge":
        return RidgeRegularizer(
            convexity=config.convexity,  # type: ignore[arg-type]
            nonconvexity=config.nonconvexity,
            weight=_RIDGE_WEIGHT * config.weight,
            smoothing=_RIDGE_SPACING * config.smoothing,
            generator=torch.Generator().manual_seed(config.seed),
        )
    if config.regularizer == "learned-tv":
        return LearnedTotalVariation(
            config.positions,
            config.filter_side,
            weight=config.weight / 3.0,
            smoothing=config.smoothing,
            generator=torch.Generator().manual_seed(config.seed),
        )
    if config.regularizer == "multivariate":
        if config.filters % config.group_size:
            raise ConfigError(
                f"filters={config.filters}, group_size={config.group_size}: expected whole groups; choose a multiple."
            )
        return MultivariateExperts(
            config.filters // config.group_size,
            config.group_size,
            config.filter_side,
            _GROUPED_WEIGHT * config.weight,
            config.smoothing,
            minimum_smoothing=config.minimum_smoothing,
            generator=torch.Generator().manual_seed(config.seed),
        )
    if config.regularizer == "icnn":
        return InputConvexNetwork(
            form=cast(Any, config.form),
            weight=_NETWORK_WEIGHT * config.weight,
            smoothing=config.smoothing,
            minimum_smoothing=config.minimum_smoothing,
            generator=torch.Generator().manual_seed(config.seed),
        )
    kind = type(potential_from_config(config.potential))
    return FieldsOfExperts(
        config.filters,
        config.filter_side,
        kind(config.smoothing, config.weight),
        minimum_smoothing=config.minimum_smoothing,
        generator=torch.Generator().manual_seed(config.seed),
    )


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
    with tqdm(total=round(60 * config.minutes), unit="s", file=sys.stderr, desc="training") as bar:
        return train(
            problem,
            pairs,
            SquaredError,
            folder,
            config.minutes,
            config.batch_size,
            method=_METHODS[config.method](),
            tolerance=config.tolerance,
            optimizer=config.optimizer,  # type: ignore[arg-type]
            step_size=config.step_size,
            samples=config.samples,
            seed=config.seed,
            max_updates=config.max_updates or None,
            resume=resume,
            config={**described, "training": dataclasses.asdict(config)},
            validate=validate,
            on_update=partial(_advance, bar),
        )


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
