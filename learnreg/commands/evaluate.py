"""How good a model is: PSNR and SSIM on clean images with simulated, seeded measurements."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from torch import Tensor

from learnreg.commands.scenes import measured_scenes, noise_model, noisy_scenes
from learnreg.datasets import PhotonNoise, RelativeNoise, list_images, read_image, resize_slice
from learnreg.errors import ConfigError
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.models.model import Model
from learnreg.operators import FanBeam2D, Identity, ParallelBeam2D
from learnreg.regularizers import Regularizer
from learnreg.report.comparison import Quality, Scene, quality
from learnreg.result import Solution
from learnreg.solvers.solve import check_tolerance, solve

__all__ = ["Evaluation", "denoise", "evaluate"]

_DEFAULT_SIGMA = 25 / 255


@dataclass(frozen=True)
class Evaluation:
    """Means over n images. ``psnr_input`` is that of the noisy images or of filtered back-projections, which are
    ``psnr_fbp``, too (None for denoising). ``sigma``: the noise level, for CT relative to the mean of the sinogram.
    ``seconds_per_image`` is the reconstruction alone; ``error_bound`` the largest root-mean-square error bound;
    ``certified`` whether every image's is rigorous and within the tolerance."""

    psnr: float
    ssim: float
    psnr_input: float
    psnr_fbp: float | None
    n: int
    sigma: float
    seed: int
    seconds_per_image: float
    tolerance: float
    error_bound: float
    certified: bool


def denoise(regularizer: Regularizer, noisy: Tensor, tolerance: float = 1e-4) -> Solution:
    """argmin ½‖x - noisy‖² + R(x) for noisy images (batch, 1, height, width)."""
    return solve(LowerLevelProblem(Identity(tuple(noisy.shape[1:])), regularizer), noisy, tolerance=tolerance)


def evaluate(
    model: Model, folder: str | Path, sigma: float | None = None, seed: int = 0, tolerance: float = 1e-4
) -> Evaluation:
    """Measure the clean images of a folder, reconstruct them in float32, and compare.

    The images are taken in the order of their names; the noise of image i has the seed ``seed + i``. Denoisers get them
    at full size with noise of level ``sigma``, 25/255 by default; a model for CT gets them in its size, with its own
    geometry and noise (of level ``sigma``, if given).

    Raises
    ------
    DataError: no folder, no images, or an unreadable one. ConfigError: sigma or tolerance out of range, or a model
    whose measurements cannot be simulated.
    """
    check_tolerance(tolerance)
    paths = list_images(folder)
    images = ((str(path), read_image(path)) for path in paths)
    tomography = not model.denoises
    if tomography:
        level = float(model.config.get("noise", 0.01)) if sigma is None else sigma
        photons = float(model.config.get("photons", 0.0)) if sigma is None else 0.0
        attenuation = float(model.config.get("attenuation", PhotonNoise().attenuation))
        scenes = _tomography_scenes(model, images, noise_model(level, photons, attenuation), seed)
    else:
        level = _DEFAULT_SIGMA if sigma is None else sigma
        scenes = noisy_scenes(images, level, seed)
    rows = [_measure(scene, model, tolerance) for scene in scenes]
    psnr_input = fmean(row.input.psnr for row in rows)
    return Evaluation(
        psnr=fmean(row.output.psnr for row in rows),
        ssim=fmean(row.output.ssim for row in rows),
        psnr_input=psnr_input,
        psnr_fbp=psnr_input if tomography else None,
        n=len(rows),
        sigma=level,
        seed=seed,
        seconds_per_image=fmean(row.seconds for row in rows),
        tolerance=tolerance,
        error_bound=max(row.error_bound for row in rows),
        certified=all(row.certified for row in rows),
    )


def _tomography_scenes(
    model: Model, images: Iterator[tuple[str, Tensor]], noise: RelativeNoise | PhotonNoise, seed: int
) -> Iterator[Scene]:
    operator = model.operator
    if not isinstance(operator, (ParallelBeam2D, FanBeam2D)):
        raise ConfigError(f"evaluate: measurements of {type(operator).__name__} cannot be simulated from images.")
    size = operator.geometry.image_size
    resized = ((name, resize_slice(image, size)) for name, image in images)
    return measured_scenes(operator, resized, noise, seed)


@dataclass(frozen=True)
class _Row:
    input: Quality
    output: Quality
    seconds: float
    error_bound: float
    certified: bool


def _measure(scene: Scene, model: Model, tolerance: float) -> _Row:
    before = quality(scene.input, scene.clean, scene.name)
    started = time.perf_counter()
    solution = model.solve(scene.b[None], tolerance)
    seconds = time.perf_counter() - started
    return _Row(
        input=before,
        output=quality(solution.x[0], scene.clean, scene.name),
        seconds=seconds,
        error_bound=float(solution.error_bound[0]),
        certified=solution.certified and solution.status.converged,
    )
