"""``learnreg train denoise``: from images to a run folder with a model, a report and a comparison with total
variation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from learnreg.commands.common import comparison_figures, learn, training_figures, tune_total_variation
from learnreg.commands.evaluate import denoise
from learnreg.commands.initial import initial_regularizer
from learnreg.commands.options import DenoiseConfig
from learnreg.commands.scenes import noisy_scenes
from learnreg.datasets import DenoisingPatches, add_noise, load_training_images, natural_images
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.operators import Identity
from learnreg.regularizers import Regularizer, TotalVariation
from learnreg.report.comparison import compare
from learnreg.report.report import write_report
from learnreg.training.run_folder import RunFolder

__all__ = ["run", "split_images"]

_HELD_OUT = 4
_CROP = 128
_COMPARISON_TOLERANCE = 5e-4
_BASELINE_TOLERANCE = 1e-3


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
    """Train, compare with total variation whose weight was tuned on the same patches, and write the report.

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
    problem = LowerLevelProblem(Identity(shape), initial_regularizer(config), noise_level=sigma)
    validate = partial(_crop_psnr, problem.regularizer, held_out, sigma, config.seed)
    result = learn(config, problem, patches, folder, resume, {"sigma": sigma}, validate)
    baseline_problem = LowerLevelProblem(Identity(shape), TotalVariation(weight=0.8 * sigma))
    samples = min(len(patches), max(config.samples, 64))
    tv_weight = tune_total_variation(baseline_problem, patches, samples, _BASELINE_TOLERANCE)
    compared, setting = held_out, f"at noise level {sigma:.4g} ({255 * sigma:.4g}/255)"
    if problem.saddle_terms(torch.float32).latent is not None:  # whose solves take too long on photographs
        compared = {name: _central_crop(image) for name, image in held_out.items()}
        setting += f", central crops of {_CROP}²"
    comparison = compare(
        partial(denoise, problem.regularizer.at(sigma), tolerance=_COMPARISON_TOLERANCE),
        partial(denoise, baseline_problem.regularizer, tolerance=_COMPARISON_TOLERANCE),
        noisy_scenes(compared.items(), sigma, config.seed),
        setting=setting,
        seed=config.seed,
        tolerance=_COMPARISON_TOLERANCE,
    )
    summary = {
        **comparison_figures(comparison, "psnr_noisy"),
        "tv_weight": tv_weight,
        "held_out": sorted(held_out),
        **training_figures(result),
        "model": str(folder.model_path),
    }
    report = write_report(folder, comparison, problem.regularizer, options, summary)
    return summary | {"report": str(report)}


def _crop_psnr(regularizer: Regularizer, images: Mapping[str, Tensor], sigma: float, seed: int) -> float:
    """Mean PSNR on the central crops of held-out images, for the learning curve."""
    total = 0.0
    for i, image in enumerate(images.values()):
        clean = _central_crop(image)
        x = denoise(regularizer.at(sigma), add_noise(clean, sigma, seed + i)[None], tolerance=2e-3).x[0]
        total += float(-10.0 * torch.log10((x - clean).double().square().mean()))
    return total / len(images)


def _central_crop(image: Tensor) -> Tensor:
    top, left = (max(0, (n - _CROP) // 2) for n in image.shape[-2:])
    return image[:, top : top + _CROP, left : left + _CROP]
