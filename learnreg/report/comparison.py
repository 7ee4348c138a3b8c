"""A learned regularizer beside total variation, on images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean

from torch import Tensor

from learnreg.errors import DataError
from learnreg.models.extras import require
from learnreg.progress import counted
from learnreg.result import History, Solution

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

    tv: None where there is no total variation to compare with. error_bound: root-mean-square error bound of the learned
    reconstruction; certified: whether it is rigorous. histories: of the solves, by "tv" and "learned". minimiser: the
    learned reconstruction as it was solved, complex ones with two channels.
    """

    name: str
    clean: Tensor
    input: Tensor
    tv: Tensor | None
    learned: Tensor
    quality: Mapping[str, Quality]
    error_bound: float
    certified: bool
    histories: Mapping[str, History] = field(default_factory=dict)
    minimiser: Tensor | None = None

    def pictures(self) -> dict[str, Tensor]:
        """What was compared, by the keys of ``quality``, in order."""
        return {what: getattr(self, what) for what in self.quality}


@dataclass(frozen=True)
class Comparison:
    """input_name: what ``input`` is ("noisy"). setting: how the measurements were made, a phrase. seed: of the noise of
    the first image; None where it was given with the images. tolerance: what both
    reconstructions were asked for."""

    images: tuple[Compared, ...]
    input_name: str
    setting: str
    seed: int | None
    tolerance: float

    def mean(self, what: str) -> Quality:
        """Mean quality of "input", "tv" or "learned"."""
        found = [image.quality[what] for image in self.images]
        return Quality(fmean(q.psnr for q in found), fmean(q.ssim for q in found))

    @property
    def methods(self) -> tuple[str, ...]:
        """What was compared: "input", "tv" and "learned", or the first and the last of them."""
        return tuple(self.images[0].quality)


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
    tv: Reconstruct | None,
    scenes: Iterable[Scene],
    *,
    input_name: str = "noisy",
    setting: str = "",
    seed: int | None = 0,
    tolerance: float = 1e-4,
    measure: Callable[[Tensor, Tensor, str], Quality] = quality,
) -> Comparison:
    """Reconstruct each scene by two methods, or by the first alone, which map a batch of measurements to a Solution,
    such as ``functools.partial(solve, problem, tolerance=...)``. ``seed`` and ``tolerance`` are what the scenes and
    methods were made with. ``measure``: another :func:`quality`.

    Raises
    ------
    DataError: no scenes.
    """
    compared = [_compare(learned, tv, scene, measure) for scene in counted(scenes, "reconstructing")]
    if not compared:
        raise DataError("there are no images to compare on.", hint="Pass at least one image.")
    return Comparison(tuple(compared), input_name, setting, seed, tolerance)


def _compare(
    learned: Reconstruct,
    tv: Reconstruct | None,
    scene: Scene,
    measure: Callable[[Tensor, Tensor, str], Quality],
) -> Compared:
    solution, clean = learned(scene.b[None]), scene.shown(scene.clean)
    baseline = None if tv is None else tv(scene.b[None])
    results = {"input": scene.shown(scene.input), "tv": None, "learned": scene.shown(solution.x[0])}
    histories = {"learned": solution.history}
    if baseline is not None:
        results["tv"], histories["tv"] = scene.shown(baseline.x[0]), baseline.history
    return Compared(
        name=scene.name,
        clean=clean,
        **results,  # type: ignore[arg-type]
        quality={what: measure(x, clean, scene.name) for what, x in results.items() if x is not None},
        error_bound=float(solution.error_bound[0]),
        certified=solution.certified,
        histories=histories,
        minimiser=solution.x[0].detach().cpu(),
    )
