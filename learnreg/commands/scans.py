"""What ``learnreg train ct`` learns from: simulated scans of images, or the measurements of LoDoPaB."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.data import Subset

from learnreg.commands.options import TomographyConfig
from learnreg.commands.scenes import Projector, measured_scene, measured_scenes, noise_model, warn_of_overlap
from learnreg.datasets import DATASETS, LoDoPaB, TomographyPairs, load_ct_images
from learnreg.errors import ConfigError
from learnreg.lower_level.data_terms import DataTerm, LeastSquares, TransmissionLeastSquares
from learnreg.lower_level.likelihoods import TransmissionPoisson
from learnreg.operators import FanBeam2D, FanGeometry, ParallelBeam2D
from learnreg.operators.tomography.geometry import view_angles
from learnreg.report.comparison import Scene
from learnreg.training.sources import PairedDataset

__all__ = ["Scans", "projector", "scans_of"]

_SOURCE_TO_CENTER = 2.0  # image sides
_REFERENCE_PAIRS = 8
_COMPARED = 8


@dataclass(frozen=True)
class Scans:
    """Pairs of measurement and image to train on, and held-out scenes; ``config``: the options that hold for them."""

    config: TomographyConfig
    operator: Projector
    pairs: PairedDataset
    scenes: list[Scene]

    @property
    def data_term(self) -> DataTerm:
        """For counted photons their likelihood, or statistical weights: with a curvature of 1 at the mean line integral
        of some training pairs, so that weights of regularizers keep their scale."""
        config = self.config
        if config.photons == 0 or config.data_term == "squares" or not config.statistical:
            return LeastSquares()
        count = min(len(self.pairs), _REFERENCE_PAIRS)
        reference = sum(float(self.pairs[i][0].mean()) for i in range(count)) / count
        if config.data_term == "transmission":
            return TransmissionPoisson(config.photons, config.attenuation, reference, line_integrals=True)
        return TransmissionLeastSquares(config.photons, config.attenuation, reference=reference)

    @property
    def setting(self) -> str:
        """How the measurements were made, a phrase."""
        config = self.config
        noise = f"{config.photons:g} photons per ray" if config.photons > 0 else f"{100 * config.noise:g} % noise"
        return f"from {config.angles} views ({config.geometry} beam) with {noise}"


def scans_of(config: TomographyConfig) -> Scans:
    """The scans that the options ask for.

    Raises
    ------
    DataError, ConfigError: bad data or options, or astra-toolbox is missing.
    """
    if LoDoPaB.is_one(config.data):
        return _measured(config)
    if config.data in DATASETS:
        training, held_out = DATASETS[config.data](config.size, config.images, config.seed)
    else:
        training, held_out = load_ct_images(config.data, config.size, config.images, config.seed)
    warn_of_overlap(training, held_out)
    operator = projector(config)
    noise = noise_model(config.noise, config.photons, config.attenuation)
    pairs = TomographyPairs(operator, training, noise, config.seed)
    return Scans(config, operator, pairs, list(measured_scenes(operator, held_out.items(), noise, config.seed + 1)))


def projector(config: TomographyConfig) -> Projector:
    """The forward operator of the options; a fan beam's detector covers all of the image."""
    if config.geometry == "parallel":
        return ParallelBeam2D(config.size, config.angles)
    pixel = 1.0 / config.size
    narrow = FanGeometry(
        image_size=config.size,
        angles=view_angles(config.angles, FanGeometry.full_turn, "train ct"),
        detectors=1,
        pixel_size=pixel,
        detector_pitch=pixel,
        source_to_center=_SOURCE_TO_CENTER,
        source_to_detector=2.0 * _SOURCE_TO_CENTER,
    )
    return FanBeam2D.from_geometry(replace(narrow, detectors=narrow.covering_detectors()))


def _measured(config: TomographyConfig) -> Scans:
    """LoDoPaB: some pairs of its training part, chosen by seed, and slices all over its validation part."""
    folder = Path(config.data)
    training, validation = LoDoPaB.of_files(folder, "train"), LoDoPaB.of_files(folder, "validation")
    config = _of_the_data(config, training)
    operator = ParallelBeam2D.from_geometry(training.geometry)
    if validation.geometry != training.geometry:
        raise ConfigError(f"{folder}: the training and validation parts have different geometries.")
    generator = torch.Generator().manual_seed(config.seed)
    chosen = torch.randperm(len(training), generator=generator)[: config.images].sort().values
    count = min(_COMPARED, len(validation))
    scenes = []
    for index in (i * len(validation) // count for i in range(count)):
        b, clean = validation[index]
        scenes.append(measured_scene(operator, f"validation {index}", clean, b))
    return Scans(config, operator, Subset(training, chosen.tolist()), scenes)


def _of_the_data(config: TomographyConfig, data: LoDoPaB) -> TomographyConfig:
    """The options with what the data set says of itself.

    Raises
    ------
    ConfigError: an option was given that differs from it.
    """
    geometry = data.geometry
    own = {
        "geometry": "parallel",
        "angles": len(geometry.angles),
        "size": geometry.image_size,
        "photons": LoDoPaB.noise.photons,
        "attenuation": LoDoPaB.noise.attenuation,
    }
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for key, value in own.items():
        given = getattr(config, key)
        if given not in (value, defaults[key]):
            raise ConfigError(f"{key}={given!r}: the measurements of LoDoPaB have {value!r}; leave the option out.")
    return replace(config, **own)  # type: ignore[arg-type]
