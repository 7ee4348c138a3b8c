"""How good a model is: PSNR and SSIM on clean images with simulated, seeded measurements."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from torch import Tensor

from learnreg.commands.fitness import in_grey_levels
from learnreg.commands.kspace_scenes import kspace_scenes
from learnreg.commands.scenes import measured_scene, measured_scenes, noise_model, noisy_scenes
from learnreg.commands.waiting import Waiting
from learnreg.datasets import (
    GaussianNoise,
    LoDoPaB,
    PhotonNoise,
    RelativeNoise,
    list_images,
    read_image,
    resize_slice,
    with_smooth_phase,
)
from learnreg.errors import ConfigError
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.models.cards import SCOPES
from learnreg.models.extras import require
from learnreg.models.model import Model
from learnreg.operators import CartesianMRI, FanBeam2D, Identity, ParallelBeam2D
from learnreg.report.comparison import Scene, quality
from learnreg.result import Solution
from learnreg.solvers.solve import SolveCertificate, check_tolerance, solve

__all__ = ["EvaluatedImage", "Evaluation", "denoise", "evaluate"]

_DEFAULT_SIGMA = 25 / 255


@dataclass(frozen=True)
class EvaluatedImage:
    """One image, by the name of its file: the same figures. certified_scope: for what the bound is certified and within
    the tolerance, of ``learnreg.models.cards.SCOPES``; "global" where ``certified``."""

    name: str
    psnr: float
    ssim: float
    psnr_input: float
    error_bound: float
    certified: bool
    certified_scope: str
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """Means over n images. ``psnr_input`` is that of the noisy images or of filtered back-projections, which are
    ``psnr_fbp``, too (None for denoising). ``sigma``: the noise level, for CT relative to the mean of the sinogram, nan
    of measurements. ``seconds_per_image`` is the reconstruction alone; ``error_bound`` the largest root-mean-square
    error bound; ``certified`` whether every image's is rigorous and within the tolerance. ``rows``: the images one by
    one. ``notes``: what a user has to know of the noise level."""

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

    @property
    def certified_scope(self) -> str:
        """The weakest of the images'."""
        return max((row.certified_scope for row in self.rows), key=SCOPES.index)


def denoise(
    problem: LowerLevelProblem,
    sigma: float,
    noisy: Tensor,
    tolerance: float = 1e-4,
    certificate: SolveCertificate = "auto",
) -> Solution:
    """argmin ½‖x - noisy‖² + R(x) with the regularizer of the problem at this noise level, for noisy images (batch,
    channels, height, width) of any size; local where the problem says so."""
    identity, regularizer = Identity(tuple(noisy.shape[1:])), problem.regularizer.at(sigma)
    lower = LowerLevelProblem(identity, regularizer, minimiser=problem.minimiser)
    return solve(lower, noisy, tolerance=tolerance, certificate=certificate)


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

    A folder in the layout of LoDoPaB has measurements: those of its test part, or of the validation part where there is
    none, are reconstructed slice by slice and compared with their ground truth; one slice is in memory at any time.

    Raises
    ------
    DataError: no folder, no images, or an unreadable one. ConfigError: sigma or tolerance out of range, a model whose
    measurements cannot be simulated, or of another geometry than measurements; scikit-image is missing.
    """
    check_tolerance(tolerance)
    require("skimage.metrics", "measuring SSIM", "scikit-image")  # now, not after the first reconstruction
    source = _measured(model, folder, sigma) if LoDoPaB.is_one(folder) else _simulated(model, folder, sigma, seed)
    rows: list[EvaluatedImage] = []
    with Waiting("evaluate", source.count) as waiting:
        for scene in source.scenes:  # one at a time in memory
            rows.append(_measure(scene, model, tolerance, source.told))
            with waiting.finished():
                pass
    psnr_input = fmean(row.psnr_input for row in rows)
    return Evaluation(
        psnr=fmean(row.psnr for row in rows),
        ssim=fmean(row.ssim for row in rows),
        psnr_input=psnr_input,
        psnr_fbp=psnr_input if _is_tomography(model) else None,
        n=len(rows),
        sigma=source.level,
        seed=seed,
        seconds_per_image=fmean(row.seconds for row in rows),
        tolerance=tolerance,
        error_bound=max(row.error_bound for row in rows),
        certified=all(row.certified for row in rows),
        rows=tuple(rows),
        notes=tuple(source.notes),
    )


def _is_tomography(model: Model) -> bool:
    return not model.denoises and not model.for_mri


@dataclass(frozen=True)
class _Source:
    """Scenes one after the other, and how many; their noise level, nan where they are measured; told: the level that a
    model which adapts to it is told."""

    scenes: Iterator[Scene]
    count: int
    level: float
    told: float | None = None
    notes: Sequence[str] = ()


def _simulated(model: Model, folder: str | Path, sigma: float | None, seed: int) -> _Source:
    paths = list_images(folder)
    images = ((str(path), read_image(path, colour=model.regularizer.image_channels == 3)) for path in paths)
    if _is_tomography(model):
        level = float(model.config.get("noise", 0.01)) if sigma is None else sigma
        photons = float(model.config.get("photons", 0.0)) if sigma is None else 0.0
        attenuation = float(model.config.get("attenuation", PhotonNoise().attenuation))
        scenes = _tomography_scenes(model, images, noise_model(level, photons, attenuation), seed)
        return _Source(scenes, len(paths), level)
    if model.for_mri:
        level = float(model.config.get("noise", GaussianNoise().sigma)) if sigma is None else sigma
        return _Source(_kspace_scenes(model, images, GaussianNoise(level), seed), len(paths), level)
    level, notes = _noise_level(model, sigma)
    return _Source(noisy_scenes(images, level, seed), len(paths), level, level if model.conditioned else None, notes)


def _measured(model: Model, folder: str | Path, sigma: float | None) -> _Source:
    if sigma is not None:
        raise ConfigError(f"--sigma: the measurements in {folder} have a noise of their own; leave it out.")
    part = next((part for part in ("test", "validation") if LoDoPaB.is_one(folder, part)), "test")
    data = LoDoPaB.of_files(folder, part)
    operator = model.operator if _is_tomography(model) else None
    if not isinstance(operator, ParallelBeam2D) or operator.geometry != data.geometry:
        raise ConfigError(
            f"{folder}: {len(data.geometry.angles)} views of {data.geometry.detectors} detectors, of images of "
            f"{data.geometry.image_size} pixels in the geometry of LoDoPaB, which is not that of the model; train one "
            "with learnreg train ct --data on such a folder."
        )
    scenes = (measured_scene(operator, f"{part} {i}", *reversed(data[i])) for i in range(len(data)))
    return _Source(scenes, len(data), math.nan, notes=(f"the measurements of its {part} part; no noise is simulated",))


def _noise_level(model: Model, sigma: float | None) -> tuple[float, list[str]]:
    """The noise level for a denoiser, and what to say of it."""
    own, known = model.usual_noise_level, model.noise_range
    if sigma is None and own is None:
        return _DEFAULT_SIGMA, [f"the model does not say its noise level; {in_grey_levels(_DEFAULT_SIGMA)} is used"]
    level = sigma if sigma is not None else own
    assert level is not None
    if known is not None and sigma is None:
        span = " to ".join(map(in_grey_levels, known))
        return level, [f"the model was learned for noise from {span}; {in_grey_levels(level)} is used"]
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
    error, certified = solution.known_error, solution.certified and solution.status.converged
    other = error.scope != "global" and error.kind == "rigorous" and float(error.bound[0]) <= tolerance
    return EvaluatedImage(
        name=Path(scene.name).name,
        psnr=after.psnr,
        ssim=after.ssim,
        psnr_input=before.psnr,
        error_bound=float(error.bound[0]),
        certified=certified,
        certified_scope="global" if certified else error.scope if other else "no",
        seconds=seconds,
    )
