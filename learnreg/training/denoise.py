"""``learnreg train denoise``: from images to a run folder with a model, a report and a comparison with total
variation."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from learnreg.datasets import DenoisingPatches, add_noise, load_training_images, natural_images
from learnreg.hypergradients.base import HypergradientMethod
from learnreg.hypergradients.implicit import Implicit
from learnreg.hypergradients.piggyback import Piggyback
from learnreg.losses import SquaredError
from learnreg.operators import Identity
from learnreg.potentials import Potential
from learnreg.problem import LowerLevelProblem
from learnreg.regularizers import FieldsOfExperts, Regularizer, TotalVariation
from learnreg.regularizers.base import potential_from_config
from learnreg.training.comparison import compare
from learnreg.training.config import DenoiseConfig
from learnreg.training.evaluate import denoise, noisy_scenes
from learnreg.training.report import write_report
from learnreg.training.run_folder import RunFolder
from learnreg.training.train import TrainResult, train

__all__ = ["run", "split_images"]

_HELD_OUT = 4
_CROP = 128
_BASELINE_MINUTES = 0.5
_BASELINE_UPDATES = 10
_COMPARISON_TOLERANCE = 5e-4

_METHODS: dict[str, Callable[[], HypergradientMethod]] = {"implicit": Implicit, "piggyback": Piggyback}


def split_images(data: str, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Training and held-out images. "natural": its fixed split. A folder: the fourth to last of a seeded order are held
    out, at most a quarter; a folder of one image is split into its left and right halves."""
    if data == "natural":
        return natural_images("train"), natural_images("test")
    images = load_training_images(data)
    names = sorted(images)
    if len(names) == 1:
        whole = images[names[0]]
        middle = whole.shape[-1] // 2
        return {f"{names[0]} (left)": whole[..., :middle]}, {f"{names[0]} (right)": whole[..., middle:]}
    count = min(_HELD_OUT, max(1, len(names) // 4))
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = {names[i] for i in order[:count]}
    return ({n: images[n] for n in names if n not in held_out}, {n: images[n] for n in names if n in held_out})


def run(config: DenoiseConfig, resume: bool = False) -> dict[str, Any]:
    """Train, compare with total variation whose weight was learned on the same patches, and write the report.

    Returns the figures of the summary.

    Raises
    ------
    DataError, ConfigError: bad input. CheckpointError: the run folder cannot be used.
    """
    training, held_out = split_images(config.data, config.seed)
    sigma = config.noise_level
    patches = DenoisingPatches(training, sigma, patch=config.patch, count=config.patches, seed=config.seed)
    folder = RunFolder(config.out, resume)
    options = dataclasses.asdict(config)
    folder.save_config(options)
    torch.manual_seed(config.seed)
    shape = (1, config.patch, config.patch)
    problem = LowerLevelProblem(Identity(shape), _regularizer(config), noise_level=sigma)
    with tqdm(total=round(60 * config.minutes), unit="s", file=sys.stderr, desc="training") as bar:
        result = train(
            problem,
            patches,
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
            config={"sigma": sigma, "training": options},
            validate=partial(_crop_psnr, problem.regularizer, held_out, sigma, config.seed),
            on_update=partial(_advance, bar),
        )
    baseline = _learn_tv(config, patches)
    comparison = compare(
        partial(denoise, problem.regularizer.at(sigma), tolerance=_COMPARISON_TOLERANCE),
        partial(denoise, baseline, tolerance=_COMPARISON_TOLERANCE),
        noisy_scenes(held_out, sigma, config.seed),
        setting=f"at noise level {sigma:.4g} ({255 * sigma:.4g}/255)",
        seed=config.seed,
        tolerance=_COMPARISON_TOLERANCE,
    )
    means = {what: comparison.mean(what) for what in ("input", "tv", "learned")}
    summary = {
        "psnr_noisy": means["input"].psnr,
        "psnr_tv": means["tv"].psnr,
        "psnr_learned": means["learned"].psnr,
        "gain_over_tv": means["learned"].psnr - means["tv"].psnr,
        "ssim_tv": means["tv"].ssim,
        "ssim_learned": means["learned"].ssim,
        "tv_weight": float(baseline.weight.detach()),
        "held_out": sorted(held_out),
        **_training_figures(result),
        "model": str(folder.model_path),
    }
    report = write_report(folder, comparison, problem.regularizer, options, summary)
    return summary | {"report": str(report)}


def _training_figures(result: TrainResult) -> dict[str, Any]:
    audits = [row for row in result.rows if "relative_error_bound" in row]
    last = audits[-1] if audits else {}
    return {
        "updates": result.updates,
        "seconds": result.seconds,
        "operator_applications": result.operator_applications,
        "hypergradient_relative_error_bound": last.get("relative_error_bound"),
        "hypergradient_certified": last.get("certified"),
    }


def _regularizer(config: DenoiseConfig) -> Regularizer:
    if config.regularizer == "tv":
        return TotalVariation()
    kind: type[Potential] = type(potential_from_config(config.potential))
    return FieldsOfExperts(
        config.filters,
        config.size,
        kind(config.smoothing, config.weight),
        minimum_smoothing=config.minimum_smoothing,
        generator=torch.Generator().manual_seed(config.seed),
    )


def _learn_tv(config: DenoiseConfig, patches: DenoisingPatches) -> TotalVariation:
    """Total variation with its weight learned on the samples that quasi-Newton training would see."""
    baseline = TotalVariation(weight=0.8 * config.noise_level)
    problem = LowerLevelProblem(Identity((1, config.patch, config.patch)), baseline)
    train(
        problem,
        patches,
        minutes=_BASELINE_MINUTES,
        batch_size=config.batch_size,
        optimizer="lbfgs",
        samples=max(config.samples, 64),
        seed=config.seed,
        max_updates=_BASELINE_UPDATES,
    )
    return baseline


def _crop_psnr(regularizer: Regularizer, images: Mapping[str, Tensor], sigma: float, seed: int) -> float:
    """Mean PSNR on the central crops of held-out images, for the learning curve."""
    total = 0.0
    for i, image in enumerate(images.values()):
        top, left = (max(0, (n - _CROP) // 2) for n in image.shape[-2:])
        clean = image[:, top : top + _CROP, left : left + _CROP]
        x = denoise(regularizer.at(sigma), add_noise(clean, sigma, seed + i)[None], tolerance=2e-3).x[0]
        total += float(-10.0 * torch.log10((x - clean).double().square().mean()))
    return total / len(images)


def _advance(bar: Any, row: Mapping[str, Any]) -> None:
    bar.n = min(round(row["seconds"]), bar.total)
    shown = {"loss": f"{row['loss']:.4g}"}
    if "psnr" in row:
        shown["held-out PSNR"] = f"{row['psnr']:.2f}"
    bar.set_postfix(shown, refresh=True)
