"""How good a denoiser is: PSNR and SSIM on clean images with seeded noise."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from torch import Tensor

from learnreg.datasets import add_noise, list_images, read_image
from learnreg.errors import DataError
from learnreg.operators import Identity
from learnreg.problem import LowerLevelProblem
from learnreg.regularizers import Regularizer
from learnreg.result import Solution
from learnreg.solvers.solve import check_tolerance, solve
from learnreg.training.extras import require
from learnreg.training.model import Model

__all__ = ["Compared", "Comparison", "Evaluation", "Quality", "compare", "denoise", "evaluate", "quality"]

_SSIM_WINDOW = 7  # the default of skimage.metrics.structural_similarity

Reconstruct = Callable[[Tensor], Solution]


@dataclass(frozen=True)
class Quality:
    """Agreement of an image with the clean one; psnr in dB for the data range 1, infinite for equal images."""

    psnr: float
    ssim: float


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


@dataclass(frozen=True)
class Compared:
    """One image, (1, height, width) each, and its quality by "noisy", "tv", "learned".

    error_bound: root-mean-square error bound of the learned reconstruction; certified: whether it is rigorous.
    """

    name: str
    clean: Tensor
    noisy: Tensor
    tv: Tensor
    learned: Tensor
    quality: Mapping[str, Quality]
    error_bound: float
    certified: bool


@dataclass(frozen=True)
class Comparison:
    """A learned regularizer beside total variation on images it has not seen."""

    images: tuple[Compared, ...]
    sigma: float
    seed: int
    tolerance: float

    def mean(self, what: str) -> Quality:
        """Mean quality of "noisy", "tv" or "learned"."""
        found = [image.quality[what] for image in self.images]
        return Quality(fmean(q.psnr for q in found), fmean(q.ssim for q in found))


def quality(x: Tensor, clean: Tensor, name: str = "image") -> Quality:
    """PSNR and SSIM of x against the clean image, (1, height, width) each, data range 1, not clipped.

    Raises
    ------
    DataError: an image smaller than SSIM's window of 7 pixels. ConfigError: scikit-image is not installed.
    """
    if min(clean.shape[-2:]) < _SSIM_WINDOW:
        raise DataError(
            f"the image has {clean.shape[-2]} x {clean.shape[-1]} pixels; SSIM needs at least "
            f"{_SSIM_WINDOW} x {_SSIM_WINDOW}.",
            name,
        )
    metrics = require("skimage.metrics", "measuring SSIM", "scikit-image")
    reference, image = clean[0].double().numpy(), x.detach()[0].double().cpu().numpy()
    if not (reference != image).any():
        return Quality(float("inf"), 1.0)
    return Quality(
        float(metrics.peak_signal_noise_ratio(reference, image, data_range=1.0)),
        float(metrics.structural_similarity(reference, image, data_range=1.0)),
    )


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


def compare(
    learned: Reconstruct,
    tv: Reconstruct,
    images: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    sigma: float,
    seed: int = 0,
    tolerance: float = 1e-4,
) -> Comparison:
    """Denoise each image by two methods, such as ``functools.partial(denoise, regularizer, tolerance=...)``.

    ``images``: (1, height, width) in [0, 1] by name; the noise of image i has the seed ``seed + i``. ``tolerance`` is
    what the two methods were asked for.
    """
    named = images.items() if isinstance(images, Mapping) else images
    compared = [_compare(learned, tv, name, clean, sigma, seed + i) for i, (name, clean) in enumerate(named)]
    if not compared:
        raise DataError("there are no images to compare on.", hint="Pass at least one image.")
    return Comparison(tuple(compared), sigma, seed, tolerance)


def _compare(learned: Reconstruct, tv: Reconstruct, name: str, clean: Tensor, sigma: float, seed: int) -> Compared:
    noisy = add_noise(clean, sigma, seed)
    solution, baseline = learned(noisy[None]), tv(noisy[None]).x[0]
    results = {"noisy": noisy, "tv": baseline, "learned": solution.x[0]}
    return Compared(
        name=name,
        clean=clean,
        noisy=noisy,
        tv=baseline,
        learned=solution.x[0],
        quality={what: quality(x, clean, name) for what, x in results.items()},
        error_bound=float(solution.error_bound[0]),
        certified=solution.certified,
    )


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
