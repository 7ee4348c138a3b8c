"""The low-dose CT data set LoDoPaB in its published layout of HDF5 files."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import ClassVar, Self

from torch import Tensor
from torch.utils.data import Dataset

from learnreg.datasets.files.checks import check_claim, float_tensor
from learnreg.datasets.files.hdf5 import open_hdf5, read_values
from learnreg.datasets.tomography.noise import PhotonNoise
from learnreg.errors import ConfigError, DataError
from learnreg.linear.paths import folder_trouble
from learnreg.operators.tomography.geometry import ParallelGeometry

__all__ = ["LoDoPaB"]

_SPLITS = ("train", "validation", "test")
_SIDE = 0.26  # metres


_NAME = re.compile(r"(observation|ground_truth)_(train|validation|test)_(\d{3,})\.hdf5")


class LoDoPaB(Dataset[tuple[Tensor, Tensor]]):
    """Item i is (b, x_true), read when it is asked for: shapes (1, angles, detectors) and (1, size, size).

    The folder holds observation_SPLIT_NNN.hdf5 and ground_truth_SPLIT_NNN.hdf5, NNN from 000 without gaps, each with
    128 samples (the last ones: at most) in the data set "data". Images are attenuation coefficients in [0, 1],
    1 being 81.35858 per metre (3071 HU); observations are -log of transmission over 81.35858, so that they are
    integrals of the images along lines, in metres. They are divided by ``side``, the side of the images, because
    operators of learnreg have pixels of length 1/n; ``side=1`` keeps the numbers of the files.

    ``ParallelBeam2D.from_geometry(data.geometry)`` is the operator of the published simulation: 1,000 views at cell
    centres (i + 1/2) pi/1000, 513 detectors over the diagonal of the images, which makes them 0.998 pixels wide. There
    the first axis of an image is x and the second y, as in ODL; here columns are x and rows -y, so that the same view
    has an angle smaller by pi/2. The side of an image is its unit of length.

    Parameters
    ----------
    root: the folder.
    split: "train", "validation" or "test".
    side: side of the images in the unit of length of the observations.
    per_file, angles, detectors, size: the published numbers; others for data in the same layout.

    Source: Leuschner, Schmidt, Baguer, Maass, "LoDoPaB-CT, a benchmark dataset for low-dose computed tomography
    reconstruction", Sci Data 8, 109 (2021).

    Raises
    ------
    ConfigError: another split, or ``side`` <= 0.
    DataError: the folder, a file of a pair or a number between is missing; another shape; what `read_hdf5_array` names.
    """

    noise: ClassVar[PhotonNoise] = PhotonNoise(4096.0, 81.35858 * _SIDE)
    """What the published measurements were simulated with."""

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        side: float = _SIDE,
        per_file: int = 128,
        angles: int = 1000,
        detectors: int = 513,
        size: int = 362,
    ) -> None:
        if split not in _SPLITS:
            raise ConfigError(f"split={split!r} is not one of {', '.join(map(repr, _SPLITS))}.")
        if not (math.isfinite(side) and side > 0):
            raise ConfigError(f"side={side!r} must be a positive length.")
        self.root, self.split, self.side, self.per_file = Path(root), split, side, per_file
        self._pairs = _find_pairs(self.root, split)
        self._count = self._count_samples((angles, detectors), (size, size))  # what files cannot hold ends here
        self.geometry = ParallelGeometry(
            image_size=size,
            angles=tuple((i + 0.5) * math.pi / angles - 0.5 * math.pi for i in range(angles)),
            detectors=detectors,
            pixel_size=1.0 / size,
            detector_pitch=math.sqrt(2.0) / detectors,
        )

    @classmethod
    def is_one(cls, root: str | Path, split: str | None = None) -> bool:
        """Whether a folder holds files with names of this layout, of this split or of any."""
        root = Path(root)
        found = () if folder_trouble(root) else (_NAME.fullmatch(path.name) for path in root.iterdir())
        return any(match is not None and split in (None, match[2]) for match in found)

    @classmethod
    def of_files(cls, root: str | Path, split: str = "train", side: float = _SIDE) -> Self:
        """The data set in whatever sizes its first pair of files has."""
        observation, ground_truth = (_shape(path) for path in _find_pairs(Path(root), split)[0])
        count, angles, detectors = observation
        return cls(root, split, side, count, angles, detectors, ground_truth[-1])

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not -self._count <= index < self._count:
            raise IndexError(f"item {index} of a data set of {self._count} items")
        file, row = divmod(index % self._count, self.per_file)
        observation, ground_truth = self._pairs[file]
        return _read_row(observation, row) / self.side, _read_row(ground_truth, row)

    def _count_samples(self, observed: tuple[int, int], true: tuple[int, int]) -> int:
        total = 0
        for number, (observation, ground_truth) in enumerate(self._pairs):
            counts = [_rows(observation, observed), _rows(ground_truth, true)]
            if counts[0] != counts[1]:
                raise DataError(f"{counts[0]} samples, but {counts[1]} in {ground_truth.name}.", observation)
            last = number == len(self._pairs) - 1
            if counts[0] != self.per_file and not (last and 0 < counts[0] < self.per_file):
                expected = f"1 to {self.per_file}" if last else self.per_file
                raise DataError(f"{counts[0]} samples, expected {expected}.", observation, "Pass per_file=.")
            total += counts[0]
        return total


def _find_pairs(root: Path, split: str) -> list[tuple[Path, Path]]:
    if trouble := folder_trouble(root):
        raise DataError(trouble.reason, root, trouble.hint)
    numbers = {what: _numbers(root, f"{what}_{split}") for what in ("observation", "ground_truth")}
    present = set().union(*numbers.values())
    if not present:
        raise DataError(
            f"there are no files observation_{split}_000.hdf5 and ground_truth_{split}_000.hdf5.",
            root,
            "Unpack the archives of the data set here, or pass the folder that holds these files.",
        )
    name = "{}_" + split + "_{:03d}.hdf5"
    pairs = []
    for number in range(max(present) + 1):
        for what, found in numbers.items():
            if number not in found:
                raise DataError("this file is missing.", root / name.format(what, number), "Download it again.")
        pairs.append((root / name.format("observation", number), root / name.format("ground_truth", number)))
    return pairs


def _numbers(root: Path, prefix: str) -> set[int]:
    matches = (re.fullmatch(rf"{prefix}_(\d{{3,}})\.hdf5", path.name) for path in root.iterdir())
    return {int(match[1]) for match in matches if match}


def _shape(path: Path) -> tuple[int, int, int]:
    with open_hdf5(path, "data") as dataset:
        if dataset.ndim != 3 or 0 in dataset.shape:
            raise DataError(f'"data" has shape {dataset.shape}, expected three axes, none of them empty.', path)
        check_claim(path, dataset.nbytes)
        samples, rows, columns = dataset.shape
        return int(samples), int(rows), int(columns)


def _rows(path: Path, shape: tuple[int, int]) -> int:
    with open_hdf5(path, "data") as dataset:
        if dataset.ndim != 3 or dataset.shape[1:] != shape:
            raise DataError(
                f'"data" has shape {dataset.shape}, expected (samples, {shape[0]}, {shape[1]}).',
                path,
                "For other sizes pass angles=, detectors= and size=.",
            )
        check_claim(path, dataset.nbytes)
        return int(dataset.shape[0])


def _read_row(path: Path, row: int) -> Tensor:
    with open_hdf5(path, "data") as dataset:
        return float_tensor(read_values(dataset, path, row), path).float()
