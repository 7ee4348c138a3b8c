"""How good a denoiser is: PSNR and SSIM on clean images with seeded noise."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from torch import Tensor

from learnreg.datasets import add_noise, list_images, read_image
from learnreg.operators import Identity
from learnreg.problem import LowerLevelProblem
from learnreg.regularizers import Regularizer
from learnreg.result import Solution
from learnreg.solvers.solve import check_tolerance, solve
from learnreg.training.comparison import Quality, Scene, quality
from learnreg.training.model import Model

__all__ = ["Evaluation", "denoise", "evaluate", "noisy_scenes"]


@dataclass(frozen=True)
class Evaluation:
    """Means over n images. ``seconds_per_image`` is the reconstruction alone; ``error_bound`` the largest
    root-mean-square error bound; ``certified`` whether every image's is rigorous and within the tolerance."""

    psnr: float
    ssim: float
    psnr_input: float
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


def evaluate(model: Model, folder: str | Path, sigma: float, seed: int = 0, tolerance: float = 1e-4) -> Evaluation:
    """Denoise the clean images of a folder at full size, in float32, and measure the results.

    The images are taken in the order of their names; the noise of image i has the seed ``seed + i``.

    Raises
    ------
    DataError: no folder, no images, or an unreadable one. ConfigError: sigma or tolerance out of range.
    """
    check_tolerance(tolerance)
    paths = list_images(folder)
    named = ((str(path), read_image(path)) for path in paths)
    rows = [_measure(named_image, model, sigma, seed + i, tolerance) for i, named_image in enumerate(named)]
    return Evaluation(
        psnr=fmean(row.output.psnr for row in rows),
        ssim=fmean(row.output.ssim for row in rows),
        psnr_input=fmean(row.input.psnr for row in rows),
        n=len(rows),
        sigma=sigma,
        seed=seed,
        seconds_per_image=fmean(row.seconds for row in rows),
        tolerance=tolerance,
        error_bound=max(row.error_bound for row in rows),
        certified=all(row.certified for row in rows),
    )


def noisy_scenes(images: Mapping[str, Tensor], sigma: float, seed: int = 0) -> Iterator[Scene]:
    """Clean images (1, height, width) by name with added noise; that of image i has the seed ``seed + i``."""
    for i, (name, clean) in enumerate(images.items()):
        noisy = add_noise(clean, sigma, seed + i)
        yield Scene(name, clean, noisy, noisy)


@dataclass(frozen=True)
class _Row:
    input: Quality
    output: Quality
    seconds: float
    error_bound: float
    certified: bool


def _measure(named: tuple[str, Tensor], model: Model, sigma: float, seed: int, tolerance: float) -> _Row:
    name, clean = named
    noisy = add_noise(clean, sigma, seed)
    before = quality(noisy, clean, name)
    started = time.perf_counter()
    solution = model.solve(noisy[None], tolerance)
    seconds = time.perf_counter() - started
    return _Row(
        input=before,
        output=quality(solution.x[0], clean, name),
        seconds=seconds,
        error_bound=float(solution.error_bound[0]),
        certified=solution.certified and solution.status.converged,
    )
