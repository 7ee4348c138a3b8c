"""A learned regularizer beside total variation, on images that neither has seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

from torch import Tensor

from learnreg.errors import DataError
from learnreg.models.extras import require
from learnreg.result import Solution

__all__ = ["Compared", "Comparison", "Quality", "Scene", "compare", "magnitude", "quality"]

_SSIM_WINDOW = 7  # the default of skimage.metrics.structural_similarity

Reconstruct = Callable[[Tensor], Solution]


@dataclass(frozen=True)
class Quality:
    """Agreement of an image with the clean one; psnr in dB for the data range 1, infinite for equal images."""

    psnr: float
    ssim: float


def magnitude(x: Tensor) -> Tensor:
    """Of a complex image (2, height, width): (1, height, width)."""
    return x.square().sum(0, keepdim=True).sqrt()


def _as_they_are(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Scene:
    """A clean image (channels, height, width), complex ones having two channels, its measurement b without batch axis,
    and the ``input`` image that a reconstruction has to beat: the noisy image, a filtered back-projection or a
    zero-filled inverse transform. shown: what of images is drawn and measured, :func:`magnitude` for complex ones."""

    name: str
    clean: Tensor
    b: Tensor
    input: Tensor
    shown: Callable[[Tensor], Tensor] = _as_they_are


@dataclass(frozen=True)
class Compared:
    """One image, (channels, height, width) each, and its quality by "input", "tv", "learned".

    error_bound: root-mean-square error bound of the learned reconstruction; certified: whether it is rigorous.
    """

    name: str
    clean: Tensor
    input: Tensor
    tv: Tensor
    learned: Tensor
    quality: Mapping[str, Quality]
    error_bound: float
    certified: bool


@dataclass(frozen=True)
class Comparison:
    """input_name: what ``input`` is ("noisy"). setting: how the measurements were made, a phrase. tolerance: what both
    reconstructions were asked for."""

    images: tuple[Compared, ...]
    input_name: str
    setting: str
    seed: int
    tolerance: float

    def mean(self, what: str) -> Quality:
        """Mean quality of "input", "tv" or "learned"."""
        found = [image.quality[what] for image in self.images]
        return Quality(fmean(q.psnr for q in found), fmean(q.ssim for q in found))


def quality(x: Tensor, clean: Tensor, name: str = "image") -> Quality:
    """PSNR and SSIM of x against the clean image, (channels, height, width) each, data range 1, not clipped; of several
    channels the PSNR of them together, and the mean of their SSIM.

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
    reference, image = clean.double().numpy(), x.detach().double().cpu().numpy()
    if not (reference != image).any():
        return Quality(float("inf"), 1.0)
    return Quality(
        float(metrics.peak_signal_noise_ratio(reference, image, data_range=1.0)),
        float(metrics.structural_similarity(reference, image, data_range=1.0, channel_axis=0)),
    )


def compare(
    learned: Reconstruct,
    tv: Reconstruct,
    scenes: Iterable[Scene],
    *,
    input_name: str = "noisy",
    setting: str = "",
    seed: int = 0,
    tolerance: float = 1e-4,
) -> Comparison:
    """Reconstruct each scene by two methods, which map a batch of measurements to a Solution, such as
    ``functools.partial(solve, problem, tolerance=...)``. ``seed`` and ``tolerance`` are what the scenes and methods
    were made with.

    Raises
    ------
    DataError: no scenes.
    """
    compared = [_compare(learned, tv, scene) for scene in scenes]
    if not compared:
        raise DataError("there are no images to compare on.", hint="Pass at least one image.")
    return Comparison(tuple(compared), input_name, setting, seed, tolerance)


def _compare(learned: Reconstruct, tv: Reconstruct, scene: Scene) -> Compared:
    solution, baseline, clean = learned(scene.b[None]), tv(scene.b[None]).x[0], scene.shown(scene.clean)
    found = {"input": scene.input, "tv": baseline, "learned": solution.x[0]}
    results = {what: scene.shown(x) for what, x in found.items()}
    return Compared(
        name=scene.name,
        clean=clean,
        **results,
        quality={what: quality(x, clean, scene.name) for what, x in results.items()},
        error_bound=float(solution.error_bound[0]),
        certified=solution.certified,
    )
