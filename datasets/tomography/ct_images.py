"""CT images to train on, by name: phantoms, a folder of image files, a folder of DICOM files."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from learnreg.datasets.files.dicom import is_dicom
from learnreg.datasets.files.dicom_series import CT_WINDOW, DicomSeries, read_dicom_series
from learnreg.datasets.files.folder import ImageFolder, read_all
from learnreg.datasets.tomography.phantoms import ellipse_phantom
from learnreg.datasets.tomography.slices import resize_slice
from learnreg.errors import DataError
from learnreg.linear.arguments import whole_number
from learnreg.linear.paths import files_in, given_path
from learnreg.progress import counted

__all__ = ["ellipse_split", "load_ct_images"]

_HELD_OUT = 8


def load_ct_images(
    source: str | Path,
    size: int = 128,
    count: int | None = None,
    seed: int = 0,
    window: tuple[float, float] = CT_WINDOW,
    series_uid: str | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Training and held-out images (1, size, size) in [0, 1] by name, which have no image in common. Training images
    equal to held-out ones are left out with a warning; another tells what `DicomSeries.notes` says.

    Parameters
    ----------
    source: "ellipses" (see `ellipse_phantom`), or a folder of PNG, TIFF, JPEG or BMP files, or one of DICOM files.
    size: images of another size are cut and resized, see `resize_slice`; DICOM slices by their PixelSpacing, so that
        pixels become square.
    count: at most as many training images; None: 256 phantoms, or all that the folder holds.
    seed: of the phantoms, or of the choice of held-out images. Of a folder of image files at most 8 and at most a
        quarter are held out; of a DICOM series, whose neighbours resemble each other, the last slices along the body.
    window, series_uid: for DICOM files, see `read_dicom_series`.

    Raises
    ------
    ConfigError: ``size`` or ``count`` out of range. DataError: fewer than two different images, or unreadable ones.
    """
    if count is not None:
        whole_number(count, "load_ct_images(count)")
    if str(source) == "ellipses":
        return ellipse_split(size, count, seed)
    folder = given_path(source, "load_ct_images(source)")
    if not any(map(is_dicom, files_in(folder))):
        training, held_out = _split_files(folder, size, count, seed)
        return _without_held_out(training, held_out, folder), held_out
    series = read_dicom_series(folder, series_uid, window)
    if series.notes:
        warnings.warn(f"{folder}: {' '.join(series.notes)}", stacklevel=2)
    training, held_out = _split_series(series, folder, size, count)
    return _without_held_out(training, held_out, folder, apart=series.sorted_by == "position"), held_out


def _without_held_out(
    training: dict[str, Tensor], held_out: dict[str, Tensor], folder: Path, apart: bool = False
) -> dict[str, Tensor]:
    """The training images that differ from all held-out ones; where none does, those that are known to be ``apart``,
    measured at different places, are kept."""
    contents = {image.numpy().tobytes(): name for name, image in held_out.items()}
    equal = {name: contents[key] for name, image in training.items() if (key := image.numpy().tobytes()) in contents}
    if not equal:
        return training
    name, other = next(iter(equal.items()))
    what = f"{len(equal)} of {len(training)} training images are equal to held-out ones, such as {name} to {other}"
    different = {name: image for name, image in training.items() if name not in equal}
    if not different and not apart:
        raise DataError(f"{what}.", folder, "Remove the copies, and add other images.")
    outcome = "they are left out" if different else "figures of held-out images say little"
    warnings.warn(f"{folder}: {what}; {outcome}.", stacklevel=3)
    return different or training


def ellipse_split(
    size: int = 128, count: int | None = None, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Training phantoms, 256 by default, and 8 held-out ones, which do not depend on their number."""
    count = 256 if count is None else count
    training = {f"ellipses {i}": ellipse_phantom(i, size, seed) for i in counted(range(count), "drawing phantoms")}
    held_out = {f"held-out ellipses {i}": ellipse_phantom(i, size, seed, held_out=True) for i in range(_HELD_OUT)}
    return training, held_out


def _split_series(
    series: DicomSeries, folder: Path, size: int, count: int | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    repeated = len(set(series.paths)) < len(series.paths)
    names = [
        f"{path.name} frame {frame}" if repeated else path.name
        for path, frame in zip(series.paths, series.frames, strict=True)
    ]
    first = len(names) - _held_out_count(len(names), folder)
    images = {
        name: resize_slice(image, size, series.pixel_spacing) for name, image in zip(names, series.images, strict=True)
    }
    return {n: images[n] for n in names[:first][:count]}, {n: images[n] for n in names[first:]}


def _split_files(folder: Path, size: int, count: int | None, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    files = ImageFolder(folder)
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = _held_out_count(len(files), folder)
    training, last = sorted(order[held_out:])[:count], sorted(order[:held_out])
    chosen = [*training, *last]
    names = [files.names[i] for i in chosen]
    images = read_all(names, lambda k: resize_slice(files[chosen[k]], size))
    first = names[: len(training)]
    return {name: images[name] for name in first}, {name: images[name] for name in names[len(training) :]}


def _held_out_count(total: int, folder: Path) -> int:
    if total < 2:
        raise DataError("this folder holds one image, training needs another to be held out.", folder, "Add images.")
    return min(_HELD_OUT, max(1, total // 4))
