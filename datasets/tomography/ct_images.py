"""CT images to train on, by name: phantoms, a folder of image files, a folder of DICOM files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from learnreg.datasets.files.dicom import is_dicom
from learnreg.datasets.files.dicom_series import CT_WINDOW, read_dicom_series
from learnreg.datasets.files.folder import ImageFolder
from learnreg.datasets.tomography.phantoms import ellipse_phantom
from learnreg.datasets.tomography.slices import resize_slice
from learnreg.errors import ConfigError, DataError

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
    """Training and held-out images (1, size, size) in [0, 1] by name, which have no image in common.

    Parameters
    ----------
    source: "ellipses" (see `ellipse_phantom`), or a folder of PNG, TIFF, JPEG or BMP files, or one of DICOM files.
    size: images of another size are cut and resized, see `resize_slice`.
    count: at most as many training images; None: 256 phantoms, or all that the folder holds.
    seed: of the phantoms, or of the choice of held-out images. Of a folder of image files at most 8 and at most a
        quarter are held out; of a DICOM series, whose neighbours resemble each other, the last slices along the body.
    window, series_uid: for DICOM files, see `read_dicom_series`.

    Raises
    ------
    ConfigError: ``size`` or ``count`` out of range. DataError: fewer than two images, or unreadable ones.
    """
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise ConfigError(f"count={count!r} must be a positive integer, or None for all.")
    if str(source) == "ellipses":
        return ellipse_split(size, count, seed)
    folder = Path(source)
    if folder.is_dir() and _holds_dicom(folder):
        training, held_out = _split_series(folder, count, series_uid, window)
    else:
        training, held_out = _split_files(folder, count, seed)
    return _resized(training, size), _resized(held_out, size)


def _resized(images: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    return {name: resize_slice(image, size) for name, image in images.items()}


def ellipse_split(
    size: int = 128, count: int | None = None, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Training phantoms, 256 by default, and 8 held-out ones, which do not depend on their number."""
    count = 256 if count is None else count
    training = {f"ellipses {i}": ellipse_phantom(i, size, seed) for i in range(count)}
    held_out = {f"held-out ellipses {i}": ellipse_phantom(i, size, seed, held_out=True) for i in range(_HELD_OUT)}
    return training, held_out


def _holds_dicom(folder: Path) -> bool:
    return any(path.is_file() and is_dicom(path) for path in folder.iterdir())


def _split_series(
    folder: Path, count: int | None, series_uid: str | None, window: tuple[float, float]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    series = read_dicom_series(folder, series_uid, window)
    images = {path.name: image for path, image in zip(series.paths, series.images, strict=True)}
    names = list(images)
    first = len(names) - _held_out_count(len(names), folder)
    return {n: images[n] for n in names[:first][:count]}, {n: images[n] for n in names[first:]}


def _split_files(folder: Path, count: int | None, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    files = ImageFolder(folder)
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = _held_out_count(len(files), folder)
    first, last = sorted(order[held_out:])[:count], sorted(order[:held_out])
    return {files.names[i]: files[i] for i in first}, {files.names[i]: files[i] for i in last}


def _held_out_count(total: int, folder: Path) -> int:
    if total < 2:
        raise DataError("this folder holds one image, training needs another to be held out.", folder, "Add images.")
    return min(_HELD_OUT, max(1, total // 4))
