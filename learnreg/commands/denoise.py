"""``learnreg train denoise``: patches of photographs, compared on whole ones."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from learnreg.commands.common import Scenario, announce
from learnreg.commands.evaluate import denoise
from learnreg.commands.options import DenoiseConfig
from learnreg.commands.scenes import noisy_scenes, warn_of_overlap
from learnreg.datasets import DATASETS, DenoisingPatches, add_noise, load_training_images, natural_images
from learnreg.errors import ConfigError
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.operators import Identity
from learnreg.report.comparison import Comparison, compare
from learnreg.solvers.solve import SolveCertificate
from learnreg.training.baseline import WEIGHT_OF_NOISE

__all__ = ["scenario", "split_images", "validation_levels"]

_CROP = 128
_MOST_COMPARED = 4
_COMPARED = 25.0 / 255.0
"""The level of a range at which the learned regularizer is compared, or the one next to it."""

_COMPARISON_TOLERANCE = 5e-4
_BASELINE_TOLERANCE = 1e-3


def split_images(
    data: str, seed: int, colour: bool = False, held_out: int = 4, held_out_of: str = "all"
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Training and held-out images, grey or coloured: those of a data set by its name, or of a folder, where some of a
    seeded order are held out, at most so many and at most a quarter, of those whose names begin with ``held_out_of``;
    a folder of one image is split into its left and right halves.

    Raises
    ------
    ConfigError: no name begins so.
    """
    if data in DATASETS:
        if colour and data == "natural":
            return natural_images("train", colour=True), natural_images("test", colour=True)
        return DATASETS[data](seed=seed)
    images = load_training_images(data, colour)
    names = sorted(images)
    if len(names) == 1:
        whole = images[names[0]]
        middle = whole.shape[-1] // 2
        return {f"{names[0]} (left)": whole[..., :middle]}, {f"{names[0]} (right)": whole[..., middle:]}
    candidates = [name for name in names if held_out_of == "all" or name.startswith(held_out_of)]
    if not candidates:
        raise ConfigError(
            f"held_out_of={held_out_of!r}: no image in {data} has such a name, but {names[0]!r} and others."
        )
    count = min(held_out, max(1, len(names) // 4))
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed)).tolist()
    apart = {candidates[i] for i in order[:count]}
    return ({n: images[n] for n in names if n not in apart}, {n: images[n] for n in names if n in apart})


def scenario(config: DenoiseConfig) -> Scenario:
    """Denoising of patches, compared on whole photographs.

    Raises
    ------
    DataError, ConfigError: bad data.
    """
    announce(f"reading {config.data}")
    training, held_out = split_images(
        config.data, config.seed, config.channels == "colour", config.held_out, config.held_out_of
    )
    warn_of_overlap(training, held_out)
    sigma, shape = config.noise_level, (config.image_kind.get("channels", 1), config.patch, config.patch)
    patches = partial(DenoisingPatches, training, patch=config.patch, count=config.patches, seed=config.seed)
    if isinstance(sigma, tuple):
        levels, compared = validation_levels(*sigma), min(max(_COMPARED, sigma[0]), sigma[1])
        pairs = patches(sigma, levels=config.levels)
    else:
        levels, compared = (sigma,), sigma
        pairs = patches(sigma)
    return Scenario(
        config=config,
        pairs=pairs,
        lower_level=lambda regularizer, minimiser: LowerLevelProblem(
            Identity(shape),
            regularizer,
            noise_level=None if isinstance(sigma, tuple) else sigma,
            minimiser=minimiser,
        ),
        described={"sigma": list(sigma) if isinstance(sigma, tuple) else sigma},
        validate=partial(_crop_psnr, held_out, levels, config.seed),
        tv_pairs=patches(compared),
        tv_weight=WEIGHT_OF_NOISE * compared,
        tv_samples=min(len(pairs), max(config.samples, 64)),
        tv_tolerance=_BASELINE_TOLERANCE,
        compare=partial(_compare, held_out, compared, config.seed),
        input_key="psnr_noisy",
        title="Learned denoiser",
    )


def validation_levels(lowest: float, highest: float) -> tuple[float, ...]:
    """The noise levels of a range that take turns on held-out images: four, evenly spread from end to end."""
    return tuple(lowest + (highest - lowest) * k / 3.0 for k in range(4))


def _compare(
    images: Mapping[str, Tensor], sigma: float, seed: int, problem: LowerLevelProblem, baseline: LowerLevelProblem
) -> Comparison:
    images = dict(itertools.islice(images.items(), _MOST_COMPARED))
    setting = f"at noise level {sigma:.4g} ({255 * sigma:.4g}/255)"
    if problem.saddle_terms(torch.float32).latent.channels:  # whose solves take too long on photographs
        images = {name: _central_crop(image) for name, image in images.items()}
        setting += f", central crops of {_CROP}²"
    learned, tv = (partial(denoise, p, sigma, tolerance=_COMPARISON_TOLERANCE) for p in (problem, baseline))
    scenes = noisy_scenes(images.items(), sigma, seed)
    return compare(learned, tv, scenes, setting=setting, seed=seed, tolerance=_COMPARISON_TOLERANCE)


def _crop_psnr(images: Mapping[str, Tensor], levels: Sequence[float], seed: int, problem: LowerLevelProblem) -> float:
    """Mean PSNR on the central crops of held-out images, which take turns with the noise levels, for the learning
    curve; of more than a few images crops are smaller."""
    dear: SolveCertificate = "none" if problem.minimiser == "local" else "auto"
    total, side = 0.0, _CROP if len(images) <= _MOST_COMPARED else _CROP // 2
    for i, image in enumerate(images.values()):
        clean, sigma = _central_crop(image, side), levels[i % len(levels)]
        x = denoise(problem, sigma, add_noise(clean, sigma, seed + i)[None], 2e-3, dear).x[0]
        total += float(-10.0 * torch.log10((x - clean).double().square().mean()))
    return total / len(images)


def _central_crop(image: Tensor, side: int = _CROP) -> Tensor:
    top, left = (max(0, (n - side) // 2) for n in image.shape[-2:])
    return image[:, top : top + side, left : left + side]
