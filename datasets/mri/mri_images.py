"""Complex images to train on, by name: phantoms, grey image files, files of fully sampled k-space."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from learnreg.datasets.mri.coil_maps import estimate_coil_maps
from learnreg.datasets.mri.kspace_files import KSpace, is_kspace_file, read_kspace
from learnreg.datasets.mri.phantoms import with_smooth_phase
from learnreg.datasets.tomography.ct_images import ellipse_split, load_ct_images
from learnreg.errors import DataError
from learnreg.linear.arguments import whole_number
from learnreg.linear.complex_channels import as_channels
from learnreg.linear.paths import files_in, given_path
from learnreg.operators.mri import from_kspace, to_kspace

__all__ = ["combined_images", "load_mri_images"]

_HELD_OUT = 8
_CALIBRATION = 24


def load_mri_images(
    source: str | Path, size: int = 128, count: int | None = None, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Training and held-out complex images (2, size, size) by name, magnitudes in [0, 1], none in common.

    Parameters
    ----------
    source: "phantoms": those of ``learnreg.datasets.ellipse_phantom`` with a synthetic smooth phase; a folder of grey
        images, which get such a phase, too; or a folder of fully sampled k-space, see ``read_kspace``, whose coils are
        combined (:func:`combined_images`) and whose files are scaled to the largest magnitude 1.
    size: images of another size are resized; k-space is cut or padded with zeros.
    count: at most as many training images.
    seed: of phantoms and phases, or of the choice of held-out images; of k-space the last quarter of the files is held
        out, of a single file the last quarter of its slices.

    Raises
    ------
    ConfigError: ``size`` or ``count`` out of range. DataError: fewer than two images, unreadable ones, k-space with
        lines that were not measured.
    """
    size = whole_number(size, "load_mri_images(size)", least=16)
    if str(source) == "phantoms":
        parts = ellipse_split(size, count, seed)
    else:
        folder = given_path(source, "load_mri_images(source)")
        files = [path for path in files_in(folder) if is_kspace_file(path)]
        if files:
            return _of_kspace(files, folder, size, count)
        parts = load_ct_images(folder, size, count, seed)
    places = {name: i for i, name in enumerate((*parts[0], *parts[1]))}
    training, held_out = (
        {name: with_smooth_phase(image, seed=seed + places[name]) for name, image in part.items()} for part in parts
    )
    return training, held_out


def combined_images(kspace: KSpace, size: int) -> Tensor:
    """Fully sampled slices as complex images (slices, 2, size, size): coils combined with the sensitivities that
    :func:`estimate_coil_maps` finds, the middle square of the image that the scanner means, resized in k-space.

    Parameters
    ----------
    kspace: what :func:`learnreg.datasets.read_kspace` returned.
    size: sides of the images; None keeps those of the file.

    Raises
    ------
    DataError: lines were not measured.
    """
    data = kspace.data
    missing = int((~kspace.lines).sum())
    if missing:
        raise DataError(
            f"{missing} of {len(kspace.lines)} lines were not measured.",
            hint="Train on fully sampled k-space; undersampled files are for learnreg reconstruct.",
        )
    images = from_kspace(data)
    if data.shape[1] > 1:
        maps = torch.stack([estimate_coil_maps(k, min(_CALIBRATION, k.shape[-1])) for k in data])
        images = (maps.conj() * images).sum(1, keepdim=True)
    side = min(kspace.image_sides)
    square = _middle(images[:, 0], side)
    resized = from_kspace(_middle(to_kspace(square), size)) * (size / side)
    return as_channels(resized)


def _middle(array: Tensor, side: int) -> Tensor:
    """The middle (..., side, side) of an array around its centre (H // 2, W // 2), with zeros where it ends."""
    for axis in (-2, -1):
        n = array.shape[axis]
        first, keep = n // 2 - side // 2, min(n, side)
        if first >= 0:
            array = array.narrow(axis, first, keep)
        else:
            before, after = -first, side - n + first
            shapes = [list(array.shape) for _ in range(2)]
            shapes[0][axis], shapes[1][axis] = before, after
            array = torch.cat([array.new_zeros(shapes[0]), array, array.new_zeros(shapes[1])], dim=axis)
    return array


def _of_kspace(
    files: list[Path], folder: Path, size: int, count: int | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    parts: list[dict[str, Tensor]] = []
    for path in files:
        images = combined_images(read_kspace(path), size)
        largest = images.square().sum(1).max().sqrt()
        scaled = (images / largest).float()
        parts.append({f"{path.name} {i}": image for i, image in enumerate(scaled)})
    if len(parts) == 1:
        rows = list(parts[0].items())
        parts = [dict(rows[: -(len(rows) // 4) or -1]), dict(rows[-(len(rows) // 4) or -1 :])]
    last = max(1, len(parts) // 4)
    training = {name: image for part in parts[:-last] for name, image in part.items()}
    held_out = {name: image for part in parts[-last:] for name, image in part.items()}
    if not training or not held_out:
        raise DataError("it holds one slice, training needs another to be held out.", folder, "Add files.")
    return dict(list(training.items())[:count]), dict(list(held_out.items())[:_HELD_OUT])
