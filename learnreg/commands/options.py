"""Options of a training run: dataclasses of defaults with their help and ranges."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, get_args

from learnreg.commands.option_checks import check_options
from learnreg.datasets import LoDoPaB, parse_sigmas
from learnreg.errors import ConfigError
from learnreg.hypergradients import METHODS
from learnreg.losses import LOSSES
from learnreg.potentials import POTENTIALS
from learnreg.regularizers import REGULARIZERS, trainable
from learnreg.regularizers.options import RegularizerOptions, again, option, options_of
from learnreg.result import Minimiser
from learnreg.training.optimizers import UPPER_LEVELS
from learnreg.training.options import NOISE_WEIGHTINGS, SAMPLINGS, SCHEDULES

__all__ = [
    "DeblurConfig",
    "DenoiseConfig",
    "MriConfig",
    "TomographyConfig",
    "TrainingConfig",
    "regularizers_with",
]

BEAMS = ("parallel", "fan")
_MOST_VIEWED_PIXELS = _MOST_SIMULATED = 10**9
_BLOCK = 16  # images that are measured at once
_COVERING = 1.5  # detectors that see all of an image, over its side

_main = partial(option, main=True)
ENDLESS = 1e6  # minutes


@dataclass(frozen=True)
class RunOptions:
    """Options of a run, whatever it learns."""

    regularizer: str = _main("fields-of-experts", "what is learned", choices=trainable())
    method: str = _main(next(iter(METHODS)), "hypergradient method", choices=tuple(METHODS))
    minutes: float = _main(
        5.0,
        "of upper-level training at most; with --updates alone: no limit",
        above=0.0,
        at_most=ENDLESS,
        resumable=True,
    )
    updates: int = _main(0, "updates at most; 0: what the minutes allow", at_least=0, at_most=10**12, resumable=True)
    epochs: float = option(
        0.0, "passes over the data at most; 0: any number", at_least=0.0, at_most=1e9, resumable=True
    )
    out: str = _main("runs/denoise", "run folder", resumable=True)
    seed: int = _main(0, "seed of images, noise and initial filters", at_least=0, at_most=2**62)
    init: str = _main("none", "model file whose parameters training starts from, such as that of an earlier run")
    device: str = _main("cpu", "where to compute: cpu, cuda, cuda:1 and so on, as torch has it", resumable=True)
    batch_size: int = option(16, "samples in a batch", at_least=1, at_most=10**5)
    chunk_size: int = option(
        0, "samples solved together; 0: the batch over the cores of a worker, 16 at most", at_least=0, at_most=10**5
    )


@dataclass(frozen=True)
class TrainingConfig(RegularizerOptions, RunOptions):
    """Options of every training run. Raises ConfigError for a value of the wrong type or out of range."""

    optimizer: str = option(
        "adam", "upper-level method: minibatches, or the first samples at once", choices=tuple(UPPER_LEVELS)
    )
    samples: int = option(
        0, "samples of lbfgs and adaptive at most; 0: 512 of a growing sample, else 64", at_least=0, at_most=10**6
    )
    sampling: str = option("growing", "what adaptive takes of them: docs/training.md", choices=SAMPLINGS)
    loss: str = option(
        "squared", "of reconstructions: squared errors, or absolute ones smoothed below 0.01", choices=tuple(LOSSES)
    )
    audit_every: int = option(10, "updates from one certified gradient to the next", at_least=1, at_most=10**6)
    step_size: float = option(3e-2, "initial upper-level step size of adam and adaptive", above=0.0, at_most=1e6)
    schedule: str = option(
        "steady", "of step sizes: needs no length, or falls to nothing over updates or epochs", choices=SCHEDULES
    )
    tolerance: float = option(
        1e-1, "relative error of the hypergradients, held by certified audits", above=0.0, at_most=1e6
    )
    validation: float = option(
        0.0, "share of the samples that is held out and measured now and then", at_least=0.0, at_most=0.9
    )
    patience: int = option(
        0,
        "with validation: the run ends so many updates after the best one, whose parameters are kept; 0: it does not",
        at_least=0,
        at_most=10**12,
        resumable=True,
    )
    minimiser: str = option(
        "global",
        "of the lower-level energy that is certified; local is for energies that are not convex, nonconvexity above 1",
        choices=get_args(Minimiser),
    )
    tensorboard: bool = option(False, "whether the run folder gets a folder tensorboard of event files", resumable=True)
    tune: bool = option(True, "whether training starts at the best factor of the initial regularizer")
    pretraining: int = option(
        0,
        "steps of score matching on the ground truths before training, which solve no problem",
        at_least=0,
        at_most=10**6,
    )

    def __post_init__(self) -> None:
        check_options(self)
        self.check_sizes()
        if self.patience and not self.validation:
            raise ConfigError(
                f"patience={self.patience}: nothing is measured on samples that are held out; set validation=0.1 too."
            )
        limited = self.regularizer in regularizers_with(type(self), "minimum_smoothing")
        if limited and self.smoothing <= self.minimum_smoothing:
            raise ConfigError(
                f"smoothing={self.smoothing:g}: expected a number > minimum_smoothing={self.minimum_smoothing:g}; "
                "lower minimum_smoothing too."
            )
        bent = self.regularizer in regularizers_with(type(self), "potential")
        if bent and not POTENTIALS[self.potential].differentiable and self.method != "closed-form":
            raise ConfigError(
                f"potential={self.potential!r}, method={self.method!r}: that potential has no derivative at 0, which "
                "only method='closed-form' does without, on images of up to 1,024 pixels and without a constraint; or "
                "take potential='pseudo-huber' with a small smoothing."
            )

    def idle(self) -> dict[str, str]:
        """Options that nothing reads, as the others are, and why: those of other regularizers, above all."""
        users = {f.name: regularizers_with(type(self), f.name) for f in dataclasses.fields(self)}
        found = {
            name: f"the regularizer {self.regularizer} has no such option; {_listed(names, 'has', 'have')} it"
            for name, names in users.items()
            if names and self.regularizer not in names
        }
        if self.optimizer == "lbfgs":
            for name in ("step_size", "schedule"):
                found[name] = "lbfgs searches its own steps; adam and adaptive have step sizes"
        if self.optimizer != "adaptive":
            found["sampling"] = f"{self.optimizer} has its own samples; adaptive can choose"
        return found

    @property
    def bounded(self) -> bool:
        """Whether something else than the time ends the run."""
        return bool(self.updates or self.epochs)

    def in_force(self) -> dict[str, Any]:
        """The options without those that are idle, and without a limit of time that is none."""
        idle = self.idle().keys() | ({"minutes"} if self.bounded and self.minutes == ENDLESS else set())
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in idle}


@dataclass(frozen=True)
class DenoiseConfig(TrainingConfig):
    """Options of ``learnreg train denoise``. Raises ConfigError for a value of the wrong type or out of range."""

    data: str = _main("natural", "'natural', photographs installed with scikit-image, or a folder of clean images")
    sigma: str = _main(
        "25/255",
        "noise level, the standard deviation for images in [0, 1], or with --noise-conditioned a range, 5/255:50/255",
        numeric_text=True,
    )
    noise_conditioned: bool = _main(
        False, "whether weights and smoothings follow the noise level, so that one model serves many"
    )
    levels: int = option(32, "noise levels of a range, each of which has batches of its own", at_least=1, at_most=10**5)
    noise_weighting: str = option(
        "inverse-sigma",
        "of a range: the loss of each level over 1, sigma or its square, lest high levels count most",
        choices=tuple(NOISE_WEIGHTINGS),
    )
    held_out: int = option(4, "images that are not trained on, at most a quarter of them", at_least=1, at_most=10**4)
    held_out_of: str = option("all", "beginning of the names of images that may be held out, such as train/; all: any")
    channels: str = _main("grey", "of the images: colour is red, green and blue", choices=("grey", "colour"))
    coupling: str = option(
        "joint", "of colours: filters across them, or the same ones for each", choices=("joint", "separate")
    )
    patch: int = option(64, "side of the training patches in pixels", at_least=8, at_most=4096)
    patches: int = option(512, "number of training patches", at_least=1, at_most=10**7)
    size: int = option(5, "side of the filters", at_least=2, at_most=64)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size > self.patch:
            raise ConfigError(f"size={self.size}: filters larger than the training patches, patch={self.patch}.")
        if isinstance(self.noise_level, tuple):
            self._check_range()

    def _check_range(self) -> None:
        if not self.noise_conditioned:
            raise ConfigError(
                f"sigma={self.sigma!r}: a range of noise levels is for a regularizer that adapts to them; add "
                "--noise-conditioned, or give one level."
            )
        if self.levels > self.patches:
            raise ConfigError(f"levels={self.levels}: more noise levels than training patches, patches={self.patches}.")

    @property
    def filter_side(self) -> int:
        return self.size

    @property
    def image_kind(self) -> dict[str, Any]:
        return {"channels": 3, "coupling": self.coupling} if self.channels == "colour" else {}

    def idle(self) -> dict[str, str]:
        found = super().idle()
        if self.channels == "grey" or "channels" in found:
            found["coupling"] = "it is for colours; set channels=colour too"
        if not isinstance(self.noise_level, tuple):
            why = "it is for a range of noise levels, such as --sigma 5/255:50/255 --noise-conditioned"
            found |= dict.fromkeys(("levels", "noise_weighting"), why)
        return found

    @property
    def noise_level(self) -> float | tuple[float, float]:
        """sigma as a number, or as a range of two."""
        return parse_sigmas(self.sigma)


@dataclass(frozen=True)
class TomographyConfig(TrainingConfig):
    """Options of ``learnreg train ct``. Raises ConfigError for a value of the wrong type or out of range."""

    data: str = _main("ellipses", "'ellipses', seeded phantoms, or a folder: PNG, TIFF or DICOM slices, or LoDoPaB")
    geometry: str = _main("parallel", "beam; a fan has its source two image sides from the centre", choices=BEAMS)
    angles: int = _main(
        60, "number of views, over the half turn (parallel) or the full one (fan)", at_least=1, at_most=10**5
    )
    size: int = _main(
        128, "side of the images in pixels; others are averaged or resized to it", at_least=16, at_most=2048
    )
    noise: float = _main(
        0.01,
        "standard deviation of the Gaussian noise, relative to the mean of the sinogram",
        at_least=0.0,
        at_most=1.0,
    )
    photons: float = option(
        0.0, "photons per ray, for Poisson noise in place of Gaussian; 0: Gaussian", at_least=0.0, at_most=1e15
    )
    attenuation: float = option(
        16.0, "with photons, what line integrals mean to them: docs/ct_data.md", above=0.0, at_most=1e6
    )
    statistical: bool = option(True, "with photons, whether each ray is weighted by the counts it left")
    data_term: str = _main(
        "weighted",
        "with photons: their likelihood, squares weighted by the counts, or plain squares",
        choices=("transmission", "weighted", "squares"),
    )
    images: int = option(64, "training images at most", at_least=1, at_most=10**6)
    ridge: float = option(
        1e-4, "r/2 ‖x‖² makes reconstructions unique and certifiable; more of it biases", above=0.0, at_most=1e6
    )
    nonnegative: bool = option(True, "whether reconstructions are constrained to be nonnegative")
    filter_size: int = option(5, "side of the filters", at_least=2, at_most=64)
    boundary: str = again(TrainingConfig, "boundary", "valid")
    out: str = again(TrainingConfig, "out", "runs/ct")
    minutes: float = again(TrainingConfig, "minutes", 8.0)
    batch_size: int = again(TrainingConfig, "batch_size", 8)
    weight: float = again(TrainingConfig, "weight", 3e-5)

    def __post_init__(self) -> None:
        super().__post_init__()
        pixels = self.angles * self.size**2
        if pixels > _MOST_VIEWED_PIXELS:
            raise ConfigError(
                f"size={self.size}, angles={self.angles}: the matrix of the scan would take about {pixels / 3e7:.0f} "
                f"GB; expected angles times size² <= {_MOST_VIEWED_PIXELS:.0e}."
            )
        views = self.angles * math.ceil(_COVERING * self.size)
        count = self.images if self.data == "ellipses" else min(self.images, _BLOCK)
        _check_simulated(self, count * (self.size**2 + views), "images", "size", "angles")
        if self.data_term == "transmission" and not (self.nonnegative and self.statistical):
            idle = "statistical" if self.nonnegative else "nonnegative"
            raise ConfigError(f"data_term='transmission' is a likelihood for images >= 0; leave {idle}=false out.")

    @property
    def filter_side(self) -> int:
        return self.filter_size

    def idle(self) -> dict[str, str]:
        found = super().idle()
        if LoDoPaB.is_one(self.data):
            found["noise"] = "the measurements of LoDoPaB have the noise of their photons"
        elif self.photons > 0:
            found["noise"] = f"the noise is that of photons={self.photons:g}; leave one of them out"
        else:
            found |= dict.fromkeys(("attenuation", "statistical", "data_term"), "it is for photons; set photons too")
        return found


@dataclass(frozen=True)
class DeblurConfig(TrainingConfig):
    """Options of ``learnreg train deblur``. Raises ConfigError for a value of the wrong type or out of range."""

    data: str = _main("natural", "'natural', photographs installed with scikit-image, or a folder of clean images")
    blur: float = _main(1.6, "standard deviation of the Gaussian blur, in pixels", above=0.0, at_most=16.0)
    noise: float = _main(0.01, "standard deviation of the noise of blurred images in [0, 1]", at_least=0.0, at_most=1e3)
    patch: int = option(64, "side of the training patches in pixels", at_least=8, at_most=4096)
    patches: int = option(256, "number of training patches", at_least=1, at_most=10**6)
    ridge: float = option(
        1e-3, "r/2 ‖x‖² makes reconstructions unique and certifiable; more of it biases", above=0.0, at_most=1e6
    )
    size: int = option(5, "side of the filters", at_least=2, at_most=64)
    out: str = again(TrainingConfig, "out", "runs/deblur")
    weight: float = again(TrainingConfig, "weight", 1e-2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size > self.patch:
            raise ConfigError(f"size={self.size}: filters larger than the training patches, patch={self.patch}.")
        _check_simulated(self, 2 * self.patches * self.patch**2, "patches", "patch")

    @property
    def filter_side(self) -> int:
        return self.size


@dataclass(frozen=True)
class MriConfig(TrainingConfig):
    """Options of ``learnreg train mri``. Raises ConfigError for a value of the wrong type or out of range."""

    data: str = _main(
        "phantoms", "'phantoms', or a folder: fully sampled k-space (npy, HDF5), or grey images, with synthetic phase"
    )
    acceleration: float = _main(4.0, "lines of k-space over measured ones", at_least=1.0, at_most=1e3)
    coils: int = _main(1, "receiver coils, simulated around the image; 1: it sees all alike", at_least=1, at_most=256)
    size: int = _main(128, "side of the images in pixels; others are resized to it", at_least=16, at_most=2048)
    noise: float = _main(
        0.01, "standard deviation of the noise of k-space, for magnitudes in [0, 1]", at_least=0.0, at_most=1e3
    )
    center_fraction: float = option(
        0.08, "share of the lines, in the middle, that are all measured", at_least=0.0, at_most=1.0
    )
    lines: str = option("random", "the others: drawn once, or spread evenly", choices=("random", "equispaced"))
    images: int = option(64, "training images at most", at_least=1, at_most=10**6)
    ridge: float = option(
        1e-3, "r/2 ‖x‖² makes reconstructions unique and certifiable; more of it biases", above=0.0, at_most=1e6
    )
    filter_size: int = option(5, "side of the filters", at_least=2, at_most=64)
    out: str = again(TrainingConfig, "out", "runs/mri")
    batch_size: int = again(TrainingConfig, "batch_size", 8)
    weight: float = again(TrainingConfig, "weight", 2e-2)

    def __post_init__(self) -> None:
        super().__post_init__()
        count = self.images if self.data == "phantoms" else min(self.images, _BLOCK)
        _check_simulated(self, count * 2 * self.size**2 * (1 + self.coils), "images", "size", "coils")

    @property
    def filter_side(self) -> int:
        return self.filter_size

    @property
    def image_kind(self) -> dict[str, Any]:
        return {"channels": 2, "coupling": "complex"}


def regularizers_with(kind: type[TrainingConfig], name: str) -> tuple[str, ...]:
    """The regularizers that have an option of that name; none for an option of every run."""
    return tuple(r for r in trainable() if name in _options_of(REGULARIZERS[r], kind))  # type: ignore[arg-type]


_options_of = cache(options_of)


def _check_simulated(config: Any, numbers: int, *names: str) -> None:
    """ConfigError for more numbers of images and measurements than memory is likely to hold, before the first is drawn;
    of a folder, which may hold few images, for a block of them. names: of the options to blame."""
    if numbers > _MOST_SIMULATED:
        raise ConfigError(
            f"{', '.join(f'{name}={getattr(config, name)}' for name in names)}: images and measurements of "
            f"{numbers:.1e} numbers, at most {_MOST_SIMULATED:.0e} are simulated. Choose fewer or smaller."
        )


def _listed(names: Sequence[str], one: str, many: str) -> str:
    return f"{', '.join(names)} {one if len(names) == 1 else many}"
