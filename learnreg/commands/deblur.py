"""``learnreg train deblur``: blurred and noisy patches of photographs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from learnreg.commands.common import Scenario, announce
from learnreg.commands.denoise import split_images
from learnreg.commands.options import DeblurConfig
from learnreg.commands.scenes import warn_of_overlap
from learnreg.datasets import DenoisingPatches, GaussianNoise, MeasuredPairs
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.operators import Blur
from learnreg.report.comparison import Comparison, Scene, compare
from learnreg.result import Solution
from learnreg.solvers.solve import solve

__all__ = ["gaussian_kernel", "scenario"]

_CROP = 128
_COMPARISON_TOLERANCE, _VALIDATION_TOLERANCE, _BASELINE_TOLERANCE = 5e-4, 2e-3, 1e-3
_BASELINE_WEIGHT = 2e-3


def scenario(config: DeblurConfig) -> Scenario:
    """Deblurring of patches, compared on crops of whole photographs.

    Raises
    ------
    DataError, ConfigError: bad data.
    """
    announce(f"reading {config.data}")
    training, held_out = split_images(config.data, config.seed)
    warn_of_overlap(training, held_out)
    patches = DenoisingPatches(training, 1.0, patch=config.patch, count=config.patches, seed=config.seed)
    clean = [patches[i][1] for i in range(len(patches))]
    operator = _blur(config, (1, config.patch, config.patch))
    noise = GaussianNoise(config.noise)
    pairs = MeasuredPairs(operator, clean, noise, config.seed)
    scenes = [_scene(config, name, image, i) for i, (name, image) in enumerate(held_out.items())]
    return Scenario(
        config=config,
        pairs=pairs,
        lower_level=lambda regularizer, minimiser: LowerLevelProblem(
            operator, regularizer, ridge=config.ridge, minimiser=minimiser
        ),
        described={"noise": config.noise},
        validate=partial(_psnr, config, scenes),
        tv_weight=_BASELINE_WEIGHT,
        tv_samples=min(len(pairs), 16),
        tv_tolerance=_BASELINE_TOLERANCE,
        compare=partial(_compare, config, scenes),
        input_key="psnr_blurred",
        title="Learned deblurring",
    )


def gaussian_kernel(width: float) -> Tensor:
    """A Gaussian of this standard deviation in pixels, cut at three of them, of sum 1."""
    radius = max(1, round(3.0 * width))
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1).double() / width) ** 2)
    kernel = torch.outer(taps, taps)
    return (kernel / kernel.sum()).float()


def _blur(config: DeblurConfig, shape: tuple[int, ...]) -> Blur:
    return Blur(gaussian_kernel(config.blur), shape, boundary="reflect")


def _scene(config: DeblurConfig, name: str, image: Tensor, number: int) -> Scene:
    """The middle of an image, blurred and noisy."""
    top, left = (max(0, (n - _CROP) // 2) for n in image.shape[-2:])
    clean = image[:, top : top + _CROP, left : left + _CROP]
    generator = torch.Generator().manual_seed(config.seed + 1 + number)
    with torch.no_grad():
        b = GaussianNoise(config.noise).apply(_blur(config, tuple(clean.shape))(clean[None])[0], generator)
    return Scene(name, clean, b, b)


def _solver(config: DeblurConfig, problem: LowerLevelProblem, tolerance: float) -> Callable[[Tensor], Solution]:
    """Solves for images of any size."""

    def solver(b: Tensor) -> Solution:
        operator = _blur(config, tuple(b.shape[1:]))
        again = LowerLevelProblem(
            operator,
            problem.regularizer,
            ridge=config.ridge,
            noise_level=problem.noise_level,
            minimiser=problem.minimiser,
        )
        return solve(again, b, tolerance)

    return solver


def _compare(
    config: DeblurConfig, scenes: list[Scene], problem: LowerLevelProblem, baseline: LowerLevelProblem
) -> Comparison:
    return compare(
        _solver(config, problem, _COMPARISON_TOLERANCE),
        _solver(config, baseline, _COMPARISON_TOLERANCE),
        scenes,
        input_name="blurred",
        setting=f"blurred by a Gaussian of {config.blur:g} pixels, noise {config.noise:.4g}",
        seed=config.seed + 1,
        tolerance=_COMPARISON_TOLERANCE,
    )


def _psnr(config: DeblurConfig, scenes: list[Scene], problem: LowerLevelProblem) -> float:
    """Mean PSNR on held-out images, for the learning curve."""
    solver, total = _solver(config, problem, _VALIDATION_TOLERANCE), 0.0
    for scene in scenes:
        total += float(-10.0 * torch.log10((solver(scene.b[None]).x[0] - scene.clean).double().square().mean()))
    return total / len(scenes)
