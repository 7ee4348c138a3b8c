"""The Berkeley segmentation data set BSDS500 in its original folder layout, and images to train on by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from learnreg.datasets.files.folder import ImageFolder, list_images, read_all
from learnreg.datasets.files.images import read_image
from learnreg.datasets.photographs.natural import natural_images
from learnreg.errors import ConfigError, DataError
from learnreg.linear.arguments import check_one_of
from learnreg.linear.paths import folder_trouble, given_path

__all__ = ["BSDS500", "load_training_images"]

_SPLITS = ("train", "val", "test")
_LAYOUTS = (Path("BSDS500/data/images"), Path("data/images"), Path("images"), Path())


class BSDS500(Dataset[Tensor]):
    """The images of BSDS500; item i is a tensor (1, height, width) in [0, 1], luma of the colour image, or with
    ``colour`` (3, height, width), the image itself.

    ``root`` is the folder that holds BSDS500/data/images, or any folder further down that path. Only the folders of
    the splits asked for have to exist. The split "val" contains most of the usual test images BSD68 and is therefore
    not part of the default.

    Source: Arbelaez, Maire, Fowlkes, Malik, "Contour Detection and Hierarchical Image Segmentation", TPAMI 33 (2011).

    Parameters
    ----------
    splits: of "train", "val" and "test".

    Raises
    ------
    ConfigError: a split other than "train", "val" and "test".
    DataError: no known layout below ``root``, or a split without images.
    """

    def __init__(self, root: str | Path, splits: Sequence[str] = ("train", "test"), colour: bool = False) -> None:
        self.colour = colour
        root = given_path(root, "BSDS500(root)")
        self.splits = tuple(splits) if isinstance(splits, (tuple, list)) else (splits,)
        for split in self.splits:
            _check_split(split)
        self.folder = _find_layout(root, self.splits)
        self.paths = [path for split in self.splits for path in list_images(self.folder / split)]

    @property
    def names(self) -> list[str]:
        """Names such as "train/100075.jpg", in the order of the items."""
        return [f"{path.parent.name}/{path.name}" for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return read_image(self.paths[index], colour=self.colour)

    def images(self, split: str | None = None) -> dict[str, Tensor]:
        """The images of one split, or of all splits of this object, in memory by name."""
        if split is not None:
            _check_split(split)
            if split not in self.splits:
                raise ConfigError(f"split={split!r} was not opened, BSDS500(splits={self.splits!r}) was.")
        wanted = self.splits if split is None else (split,)
        chosen = [i for i, path in enumerate(self.paths) if path.parent.name in wanted]
        return read_all([self.names[i] for i in chosen], lambda k: self[chosen[k]])


def load_training_images(source: str | Path, colour: bool = False) -> dict[str, Tensor]:
    """Images to train on, each (1, height, width) in [0, 1], or with ``colour`` (3, height, width), by name.

    ``source`` is "natural" (photographs installed with scikit-image), a folder with BSDS500 in its original layout
    (its train and test images), or a folder of image files.

    Raises
    ------
    DataError: the folder or the images in it are missing or unreadable.
    """
    if str(source) == "natural":
        return natural_images("train", colour)
    root = given_path(source, "load_training_images(source)")
    if _is_bsds500(root):
        return BSDS500(root, colour=colour).images()
    return ImageFolder(root, colour).images()


def _check_split(split: str) -> None:
    check_one_of(split, tuple(_SPLITS), "split")


def _find_layout(root: Path, splits: Sequence[str]) -> Path:
    for layout in _LAYOUTS:
        if all(os.path.isdir(root / layout / split) for split in splits):
            return root / layout
    if trouble := folder_trouble(root):
        raise DataError(trouble.reason, root, trouble.hint)
    tried = ", ".join(str(layout / f"{{{','.join(splits)}}}") for layout in _LAYOUTS)
    raise DataError("BSDS500 was not found here.", root, f"Layouts tried below this folder: {tried}.")


def _is_bsds500(root: Path) -> bool:
    """Only the original folder names count, so that the test images of another data set are never trained on."""
    try:
        folder = _find_layout(root, ("train", "test"))
    except DataError:
        return False
    return Path(os.path.abspath(folder)).parts[-2:] == ("data", "images")
