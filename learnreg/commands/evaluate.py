"""How good a model is: PSNR and SSIM on clean images with simulated, seeded measurements."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from torch import Tensor

from learnreg.commands.fitness import in_grey_levels
from learnreg.commands.kspace_scenes import kspace_scenes
from learnreg.commands.scenes import measured_scenes, noise_model, noisy_scenes
from learnreg.commands.waiting import Waiting
from learnreg.datasets import (
    GaussianNoise,
    PhotonNoise,
    RelativeNoise,
    list_images,
    read_image,
    resize_slice,
    with_smooth_phase,
)
from learnreg.errors import ConfigError
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.models.extras import require
from learnreg.models.model import Model
from learnreg.operators import CartesianMRI, FanBeam2D, Identity, ParallelBeam2D
from learnreg.regularizers import Regularizer
from learnreg.report.comparison import Scene, quality
from learnreg.result import Solution
from learnreg.solvers.solve import check_tolerance, solve

__all__ = ["EvaluatedImage", "Evaluation", "denoise", "evaluate"]

_DEFAULT_SIGMA = 25 / 255


@dataclass(frozen=True)
class EvaluatedImage:
    """One image, by the name of its file: the same figures."""

    name: str
    psnr: float
    ssim: float
    psnr_input: float
    error_bound: float
    certified: bool
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """Means over n images. ``psnr_input`` is that of the noisy images or of filtered back-projections, which are
    ``psnr_fbp``, too (None for denoising). ``sigma``: the noise level, for CT relative to the mean of the sinogram.
    ``seconds_per_image`` is the reconstruction alone; ``error_bound`` the largest root-mean-square error bound;
    ``certified`` whether every image's is rigorous and within the tolerance. ``rows``: the images one by one.
    ``notes``: what a user has to know of the noise level."""

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
    rows: tuple[EvaluatedImage, ...]
    notes: tuple[str, ...]


def denoise(regularizer: Regularizer, noisy: Tensor, tolerance: float = 1e-4) -> Solution:
    """argmin ½‖x - noisy‖² + R(x) for noisy images (batch, channels, height, width)."""
    return solve(LowerLevelProblem(Identity(tuple(noisy.shape[1:])), regularizer), noisy, tolerance=tolerance)


def evaluate(
    model: Model, folder: str | Path, sigma: float | None = None, seed: int = 0, tolerance: float = 1e-4
) -> Evaluation:
    """Measure the clean images of a folder, reconstruct them in float32, and compare.

    The images are taken in the order of their names; the noise of image i has the seed ``seed + i``. Denoisers get them
    at full size, in colour where the model is for three channels and as luma otherwise, with noise of level ``sigma``,
    by default that of the model (25/255 where its file does not say any); one that adapts to the noise is told the
    level. A model for CT gets them in its size, with its own geometry and noise (of level ``sigma``, if given). A model
    for MRI gets them as magnitudes, resized, with a synthetic smooth phase of the seed ``seed + i``; magnitudes are
    compared.

    Raises
    ------
    DataError: no folder, no images, or an unreadable one. ConfigError: sigma or tolerance out of range, or a model
    whose measurements cannot be simulated; scikit-image is missing.
    """
    check_tolerance(tolerance)
    require("skimage.metrics", "measuring SSIM", "scikit-image")  # now, not after the first reconstruction
    paths = list_images(folder)
    images = ((str(path), read_image(path, colour=model.regularizer.image_channels == 3)) for path in paths)
    noise_level = None
    tomography = not model.denoises and not model.for_mri
    notes: list[str] = []
    if tomography:
        level = float(model.config.get("noise", 0.01)) if sigma is None else sigma
        photons = float(model.config.get("photons", 0.0)) if sigma is None else 0.0
        attenuation = float(model.config.get("attenuation", PhotonNoise().attenuation))
        scenes = _tomography_scenes(model, images, noise_model(level, photons, attenuation), seed)
    elif model.for_mri:
        level = float(model.config.get("noise", GaussianNoise().sigma)) if sigma is None else sigma
        scenes = _kspace_scenes(model, images, GaussianNoise(level), seed)
    else:
        level, notes = _noise_level(model, sigma)
        noise_level = level if model.conditioned else None
        scenes = noisy_scenes(images, level, seed)
    rows: list[EvaluatedImage] = []
    with Waiting("evaluate", len(paths)) as waiting:
        for scene in scenes:  # one at a time in memory
            rows.append(_measure(scene, model, tolerance, noise_level))
            with waiting.finished():
                pass
    psnr_input = fmean(row.psnr_input for row in rows)
    return Evaluation(
        psnr=fmean(row.psnr for row in rows),
        ssim=fmean(row.ssim for row in rows),
        psnr_input=psnr_input,
        psnr_fbp=psnr_input if tomography else None,
        n=len(rows),
        sigma=level,
        seed=seed,
        seconds_per_image=fmean(row.seconds for row in rows),
        tolerance=tolerance,
        error_bound=max(row.error_bound for row in rows),
        certified=all(row.certified for row in rows),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _noise_level(model: Model, sigma: float | None) -> tuple[float, list[str]]:
    """The noise level for a denoiser, and what to say of it."""
    own = model.noise_level
    if sigma is None and own is None:
        return _DEFAULT_SIGMA, [f"the model does not say its noise level; {in_grey_levels(_DEFAULT_SIGMA)} is used"]
    level = sigma if sigma is not None else own
    assert level is not None
    if own is None or model.conditioned or math.isclose(level, own, rel_tol=1e-3):
        return level, []
    return level, [f"the model was learned for {in_grey_levels(own)}, not for {in_grey_levels(level)}"]


def _tomography_scenes(
    model: Model, images: Iterator[tuple[str, Tensor]], noise: RelativeNoise | PhotonNoise, seed: int
) -> Iterator[Scene]:
    operator = model.operator
    if not isinstance(operator, (ParallelBeam2D, FanBeam2D)):
        raise ConfigError(f"evaluate: measurements of {type(operator).__name__} cannot be simulated from images.")
    size = operator.geometry.image_size
    resized = ((name, resize_slice(image, size)) for name, image in images)
    return measured_scenes(operator, resized, noise, seed)


def _kspace_scenes(
    model: Model, images: Iterator[tuple[str, Tensor]], noise: GaussianNoise, seed: int
) -> Iterator[Scene]:
    operator = model.operator
    assert isinstance(operator, CartesianMRI)
    size = operator.domain_shape[-1]
    resized = ((name, with_smooth_phase(resize_slice(image, size), seed + i)) for i, (name, image) in enumerate(images))
    return kspace_scenes(operator, resized, noise, seed)


def _measure(scene: Scene, model: Model, tolerance: float, noise_level: float | None) -> EvaluatedImage:
    clean = scene.shown(scene.clean)
    before = quality(scene.shown(scene.input), clean, scene.name)
    started = time.perf_counter()
    solution = model.solve(scene.b[None], tolerance, noise_level=noise_level)
    seconds = time.perf_counter() - started
    after = quality(scene.shown(solution.x[0]), clean, scene.name)
    return EvaluatedImage(
        name=Path(scene.name).name,
        psnr=after.psnr,
        ssim=after.ssim,
        psnr_input=before.psnr,
        error_bound=float(solution.error_bound[0]),
        certified=solution.certified and solution.status.converged,
        seconds=seconds,
    )
