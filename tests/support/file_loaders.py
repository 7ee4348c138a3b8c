"""Every loader of files: whole files that it reads, what reads them, and what it may raise for damaged ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from support.file_seeds import (
    DATA,
    GEOMETRIES,
    Files,
    array,
    bmps,
    checkpoints,
    complex_array,
    dicom_series,
    dicom_slices,
    fastmri_files,
    hdf5_arrays,
    ismrmrd_files,
    jpegs,
    lodopab_pairs,
    models,
    npys,
    pngs,
    published_ridges,
    run_files,
    tiff_stacks,
    tiffs,
)
from support.mutations import mutated

import learnreg as lr
from learnreg import datasets
from learnreg.commands.image_inputs import read_input
from learnreg.commands.options import DenoiseConfig
from learnreg.commands.sources import merge_config
from learnreg.datasets.files.sinograms import SinogramStack
from learnreg.errors import CheckpointError, ConfigError, DataError, LearnregError, OperatorError, ShapeError
from learnreg.operators.tomography.geometry_file import read_geometry
from learnreg.regularizers import import_ridge
from learnreg.training.run_folder import RunFolder

__all__ = ["LOADERS", "Files", "Loader", "damaged_files"]


@dataclass(frozen=True, eq=False)
class Loader:
    """seeds: folders of whole files, by their names. kinds: how the files are changed, by the end of their names.
    read: the folder. may_raise: for a damaged file; nothing else, no warnings of other packages, and nothing on
    stderr."""

    seeds: Callable[[], list[Files]]
    read: Callable[[Path], Any]
    kinds: Mapping[str, str] = field(default_factory=dict)
    may_raise: tuple[type[LearnregError], ...] = (DataError,)


def damaged_files(loader: Loader, order: random.Random) -> Files:
    """A folder of which one file, rarely two, is damaged."""
    seeds = _seeds(loader)
    files = dict(order.choice(seeds))
    for _ in range(order.choice((1, 1, 1, 2))):
        name = order.choice(list(files))
        alike = [other[name] for other in seeds if name in other]
        files[name] = mutated(loader.kinds.get(Path(name).suffix, ""), [files[name], *alike], order)
    return files


@cache
def _seeds(loader: Loader) -> list[Files]:
    return loader.seeds()


def _read_both(name: str) -> Callable[[Path], Any]:
    """As every command reads it: clean images, and inputs of denoisers."""

    def read(folder: Path) -> None:
        read_input(folder / name)
        datasets.read_image(folder / name)

    return read


def _use(model: lr.Model) -> None:
    """What a command looks at before it solves."""
    kind = model.regularizer
    _ = (model.denoises, model.for_mri, model.noise_level, model.conditioned)
    if model.config["operator"].get("name") not in (None, "parallel-beam", "fan-beam"):  # matrices take their time
        model.problem((kind.image_channels,) + (16,) * kind.image_dimensions)


def _options(folder: Path) -> None:
    merge_config(DenoiseConfig, file=folder / "a.toml")


_CONFIGS = (ConfigError, DataError)
LOADERS: dict[str, Loader] = {
    "image PNG": Loader(pngs, _read_both("a.png"), {".png": "png"}),
    "image JPEG": Loader(jpegs, _read_both("a.jpg"), {".jpg": "jpeg"}),
    "image BMP": Loader(bmps, _read_both("a.bmp")),
    "image TIFF": Loader(tiffs, _read_both("a.tif"), {".tif": "tiff"}),
    "array npy": Loader(
        npys(array(8, 9), array(1, 8, 9).astype("f4")), lambda f: read_input(f / "a.npy"), {".npy": "npy"}
    ),
    "sinogram npy": Loader(
        npys(array(8, 9), (99 * array(3, 8, 9)).astype("u2")),
        lambda f: datasets.read_sinogram(f / "a.npy"),
        {".npy": "npy"},
        (DataError, ShapeError),
    ),
    "sinogram TIFF": Loader(
        tiff_stacks,
        lambda f: (datasets.read_sinogram(f / "a.tif"), list(SinogramStack(f / "a.tif"))),
        {".tif": "tiff"},
        (DataError, ShapeError),
    ),
    "sinogram HDF5": Loader(
        hdf5_arrays,
        lambda f: (datasets.read_sinogram(f / "a.h5"), list(SinogramStack(f / "a.h5"))),
        {},
        (DataError, ShapeError),
    ),
    "LoDoPaB pair": Loader(lodopab_pairs, lambda f: datasets.LoDoPaB.of_files(f)[1]),
    "k-space npy": Loader(
        npys(complex_array(8, 6), complex_array(2, 3, 8, 6)),
        lambda f: datasets.read_kspace(f / "a.npy"),
        {".npy": "npy"},
        (DataError, ShapeError),
    ),
    "k-space fastMRI": Loader(fastmri_files, lambda f: datasets.read_kspace(f / "a.h5"), {}, (DataError, ShapeError)),
    "k-space ISMRMRD": Loader(ismrmrd_files, lambda f: datasets.read_kspace(f / "a.h5"), {}, (DataError, ShapeError)),
    "DICOM slice": Loader(dicom_slices, lambda f: datasets.read_dicom(f / "a.dcm"), {".dcm": "dicom"}),
    "DICOM series": Loader(dicom_series, datasets.read_dicom_series, {".dcm": "dicom"}),
    "model": Loader(
        models,
        lambda f: _use(lr.load(f / "model.safetensors")),
        {".safetensors": "safetensors"},
        (CheckpointError, ConfigError, OperatorError),
    ),
    "checkpoint": Loader(
        checkpoints,
        lambda f: RunFolder(f, resume=True).load_checkpoint(),
        {".safetensors": "safetensors"},
        (CheckpointError,),
    ),
    "metrics.jsonl": Loader(
        run_files("metrics.jsonl"), lambda f: RunFolder(f, resume=True).rows(), {".jsonl": "text"}, (CheckpointError,)
    ),
    "config TOML": Loader(
        lambda: [{"a.toml": (DATA / "run" / "config.toml").read_bytes()}], _options, {".toml": "text"}, _CONFIGS
    ),
    "geometry TOML": Loader(
        lambda: [{"a.toml": text.encode()} for text in GEOMETRIES],
        lambda f: read_geometry(f / "a.toml"),
        {".toml": "text"},
        (*_CONFIGS, ShapeError),
    ),
    "published ridge": Loader(
        published_ridges, import_ridge, {".pth": "zip", ".json": "json"}, (CheckpointError, ConfigError)
    ),
}
