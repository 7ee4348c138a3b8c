"""Folders of image files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from torch import Tensor
from torch.utils.data import Dataset

from learnreg.datasets.files.images import IMAGE_SUFFIXES, read_image
from learnreg.errors import DataError
from learnreg.linear.paths import files_in, folder_trouble, given_path
from learnreg.progress import counted

__all__ = ["ImageFolder", "list_images", "read_all"]

_NAMED = 10
T = TypeVar("T")


def list_images(folder: str | Path) -> list[Path]:
    """The image files directly inside ``folder``, sorted by name; sub-folders are not searched.

    Hidden files and files that are not images by their name (Thumbs.db, text files) are ignored.

    Raises
    ------
    DataError: the folder is missing, is a file, or holds no images.
    """
    folder = given_path(folder, "folder")
    images = _images_in(folder)
    if not images:
        raise DataError("this folder holds no images.", folder, _hint_for_empty(folder))
    return images


class ImageFolder(Dataset[Tensor]):
    """The images of a folder in the order of their names; item i is a tensor (1, height, width) in [0, 1], or
    with ``colour`` (3, height, width).

    Images are read when they are asked for, see `learnreg.datasets.read_image`.

    Parameters
    ----------
    folder: with PNG, JPEG, TIFF or BMP files, not recursive.

    Raises
    ------
    DataError: the folder is missing, is a file, or holds no images.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("L", (12, 10), 128).save(f"{folder}/grey.png")
    ...     images = lr.datasets.ImageFolder(folder)
    ...     print(len(images))
    1
    """

    def __init__(self, folder: str | Path, colour: bool = False) -> None:
        self.colour = colour
        self.folder = given_path(folder, "ImageFolder(folder)")
        self.paths = list_images(self.folder)

    @property
    def names(self) -> list[str]:
        """File names, in the order of the items."""
        return [path.name for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return read_image(self.paths[index], colour=self.colour)

    def images(self) -> dict[str, Tensor]:
        """All images in memory, by file name."""
        return read_all(self.names, self.__getitem__)


def read_all(names: Iterable[str], read: Callable[[int], T]) -> dict[str, T]:
    """What ``read`` makes of the numbers 0, 1, ... of files, by their names.

    Raises
    ------
    DataError: some cannot be read; it names all of them, so that they can be repaired at once.
    """
    found: dict[str, T] = {}
    failures: dict[str, DataError] = {}
    for number, name in enumerate(counted(names, "reading images")):
        try:
            found[name] = read(number)
        except DataError as error:
            failures[name] = error
    if failures:
        first, *others = failures.values()
        if not others:
            raise first
        listed = ", ".join(list(failures)[:_NAMED]) + ", ..." * (len(failures) > _NAMED)
        raise DataError(f"{len(failures)} of {len(found) + len(failures)} files cannot be used: {listed}. {first}")
    return found


def _images_in(folder: Path) -> list[Path]:
    return [path for path in files_in(folder) if path.suffix.lower() in IMAGE_SUFFIXES]


def _hint_for_empty(folder: Path) -> str:
    subfolders = sorted(path for path in folder.iterdir() if path.name[0] != "." and folder_trouble(path) is None)
    for subfolder in subfolders:
        if _images_in(subfolder):
            return f"Sub-folders are not searched: images are in {subfolder}, pass that folder instead."
    if subfolders:
        return f"Sub-folders ({', '.join(path.name for path in subfolders[:3])}) are not searched: pass one of them."
    formats = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
    return f"Readable formats: {formats}."
