"""``learnreg train mri``: k-space of complex images, compared with the zero-filled inverse transform, too."""

from __future__ import annotations

from functools import partial

import torch

from learnreg.commands.common import Scenario, announce
from learnreg.commands.kspace_scenes import kspace_scenes, magnitude_psnr
from learnreg.commands.options import MriConfig
from learnreg.commands.scenes import warn_of_overlap
from learnreg.datasets import GaussianNoise, KSpacePairs, cartesian_mask, load_mri_images, simulate_coil_maps
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.operators import CartesianMRI
from learnreg.report.comparison import Comparison, Scene, compare
from learnreg.solvers.solve import solve

__all__ = ["scenario"]

_COMPARISON_TOLERANCE, _VALIDATION_TOLERANCE, _BASELINE_TOLERANCE = 1e-3, 4e-3, 1e-2
_VALIDATED = 4
_BASELINE_PIXELS, _BASELINE_WEIGHT = 8 * 128**2, 3e-3


def scenario(config: MriConfig) -> Scenario:
    """Reconstruction of complex images from lines of k-space.

    Raises
    ------
    DataError, ConfigError: bad data or options.
    """
    announce(f"reading {config.data}")
    training, held_out = load_mri_images(config.data, config.size, config.images, config.seed)
    warn_of_overlap(training, held_out)
    operator, noise = _operator(config), GaussianNoise(config.noise)
    pairs = KSpacePairs(operator, training, noise, config.seed)
    scenes = list(kspace_scenes(operator, held_out.items(), noise, config.seed + 1))
    measured = float(operator.mask.double().mean())
    setting = f"from {100 * measured:.0f} % of the lines of k-space, {config.coils} coil{'s' * (config.coils > 1)}"
    return Scenario(
        config=config,
        pairs=pairs,
        lower_level=lambda regularizer, minimiser: LowerLevelProblem(
            operator, regularizer, ridge=config.ridge, minimiser=minimiser
        ),
        described={"noise": config.noise},
        validate=partial(_psnr, scenes[:_VALIDATED]),
        tv_weight=_BASELINE_WEIGHT,
        tv_samples=min(len(pairs), max(3, _BASELINE_PIXELS // config.size**2)),
        tv_tolerance=_BASELINE_TOLERANCE,
        compare=partial(_compare, scenes, setting, config.seed + 1),
        input_key="psnr_zero_filled",
        title="Learned MRI reconstruction",
    )


def _operator(config: MriConfig) -> CartesianMRI:
    generator = torch.Generator().manual_seed(config.seed)
    mask = cartesian_mask(
        config.size,
        config.acceleration,
        config.center_fraction,
        config.lines,  # type: ignore[arg-type]
        generator,
    )
    coils = None if config.coils == 1 else simulate_coil_maps(config.coils, config.size, config.size)
    return CartesianMRI(mask, coils, (2, config.size, config.size))


def _compare(
    scenes: list[Scene], setting: str, seed: int, problem: LowerLevelProblem, baseline: LowerLevelProblem
) -> Comparison:
    learned, tv = (partial(solve, p, tolerance=_COMPARISON_TOLERANCE) for p in (problem, baseline))
    return compare(
        learned,
        tv,
        scenes,
        input_name="zero-filled",
        setting=setting,
        seed=seed,
        tolerance=_COMPARISON_TOLERANCE,
    )


def _psnr(scenes: list[Scene], problem: LowerLevelProblem) -> float:
    """Mean PSNR of magnitudes on held-out images, for the learning curve."""
    b = torch.stack([scene.b for scene in scenes])
    x = solve(problem, b, _VALIDATION_TOLERANCE).x
    return magnitude_psnr(x, torch.stack([scene.clean for scene in scenes]))
