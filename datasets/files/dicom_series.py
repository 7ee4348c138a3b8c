"""CT series in folders of DICOM files: grouped, sorted along the body, mapped to [0, 1]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from learnreg.datasets.files.checks import check_file
from learnreg.datasets.files.dicom import DicomHeader, is_dicom, read_dicom, read_header
from learnreg.errors import ConfigError, DataError

__all__ = ["CT_WINDOW", "DicomSeries", "find_series", "read_dicom_series", "window_hounsfield"]

#: Hounsfield units that become 0 and 1. With vacuum at 0, values are proportional to attenuation, as line integrals
#: need it: water is 0.5, and denser bone than 1000 HU is clipped.
CT_WINDOW = (-1000.0, 1000.0)

_SAME_DIRECTION = 1e-3  # cosines in headers are rounded


@dataclass(frozen=True)
class DicomSeries:
    """The slices of one series.

    Attributes
    ----------
    images: (count, 1, rows, columns) float32 in [0, 1].
    window: the Hounsfield units of 0 and 1.
    clipped_below, clipped_above: share of all pixels outside the window.
    pixel_spacing: distance of rows and of columns in millimetres.
    sorted_by: "position" (along the normal of the slices), "instance number" where a slice has no position or
        orientation, "file name" where one has no instance number either.
    positions: in millimetres along the normal; empty unless sorted by them.
    paths: the files, in the order of the images.
    """

    images: Tensor
    window: tuple[float, float]
    clipped_below: float
    clipped_above: float
    pixel_spacing: tuple[float, float]
    series_uid: str
    sorted_by: str
    positions: tuple[float, ...]
    paths: tuple[Path, ...]


def read_dicom_series(
    path: str | Path, series_uid: str | None = None, window: tuple[float, float] = CT_WINDOW
) -> DicomSeries:
    """Read the CT series in a folder, or a single file as a series of one.

    Files without the mark of DICOM and objects that are no CT images (reports, structures) are left out; sub-folders
    are not searched.

    Parameters
    ----------
    series_uid: which series, needed where the folder holds several.
    window: Hounsfield units that become 0 and 1; values outside are clipped. The lower end must stay -1000 for images
        that are proportional to attenuation.

    Raises
    ------
    DataError: no CT series, several of them without ``series_uid``, or an unknown one; slices of different sizes,
        spacings or orientations; what `read_dicom` names.
    ConfigError: a window that is not lower < upper.
    """
    _check_window(window)
    path = Path(path)
    paths = _choose(find_series(path), series_uid, path) if path.is_dir() else [check_file(path)]
    headers = {file: read_header(file) for file in paths}
    sorted_by, paths, positions = _sort(headers)
    slices = [read_dicom(file) for file in paths]
    for one in slices:
        for what, value, first in (
            ("size", tuple(one.hounsfield.shape[1:]), tuple(slices[0].hounsfield.shape[1:])),
            ("PixelSpacing", one.pixel_spacing, slices[0].pixel_spacing),
        ):
            if value != first:
                raise DataError(f"its {what} is {value}, that of {slices[0].path.name} is {first}.", one.path)
    hounsfield = torch.stack([one.hounsfield for one in slices])
    below, above = (float(outside.double().mean()) for outside in (hounsfield < window[0], hounsfield > window[1]))
    return DicomSeries(
        window_hounsfield(hounsfield, window),
        window,
        below,
        above,
        slices[0].pixel_spacing,
        slices[0].series_uid,
        sorted_by,
        positions,
        tuple(paths),
    )


def find_series(folder: str | Path) -> dict[str, list[Path]]:
    """The CT files directly inside a folder by their SeriesInstanceUID, each sorted by file name.

    Raises
    ------
    DataError: the folder is missing or holds no CT files; a damaged file; a CT file without a series.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError("this folder does not exist.", folder, "Check the path.")
    files = sorted(file for file in folder.iterdir() if file.is_file() and is_dicom(file))
    if not files:
        raise DataError("this folder holds no DICOM files.", folder, "Sub-folders are not searched: pass one of them.")
    series: dict[str, list[Path]] = {}
    others: dict[str, int] = {}
    for file in files:
        header = read_header(file)
        if header.modality == "CT":
            series.setdefault(header.series_uid, []).append(file)
        else:
            modality = header.modality or "unknown"
            others[modality] = others.get(modality, 0) + 1
    if not series:
        found = ", ".join(f"{count} of modality {modality}" for modality, count in others.items())
        raise DataError(f"this folder holds no CT images, but {found}.", folder)
    if "" in series:
        raise DataError("the tag SeriesInstanceUID (0020,000E) is missing or empty.", series[""][0])
    return series


def window_hounsfield(hounsfield: Tensor, window: tuple[float, float] = CT_WINDOW) -> Tensor:
    """Map the window to [0, 1] and clip.

    Raises
    ------
    ConfigError: a window that is not lower < upper.
    """
    lower, upper = _check_window(window)
    return ((hounsfield - lower) / (upper - lower)).clamp(0.0, 1.0)


def _check_window(window: tuple[float, float]) -> tuple[float, float]:
    lower, upper = window
    if not (math.isfinite(lower) and math.isfinite(upper) and lower < upper):
        raise ConfigError(f"window={window!r}: expected lower < upper in Hounsfield units, as in (-1000, 1000).")
    return lower, upper


def _choose(series: dict[str, list[Path]], series_uid: str | None, folder: Path) -> list[Path]:
    listed = ", ".join(f"{uid} ({len(files)} files)" for uid, files in series.items())
    if series_uid is not None:
        if series_uid not in series:
            raise DataError(f"there is no CT series {series_uid}.", folder, f"Series here: {listed}.")
        return series[series_uid]
    if len(series) > 1:
        raise DataError(
            f"this folder holds {len(series)} CT series: {listed}.",
            folder,
            "Move all but one into other folders, or pass series_uid= in Python.",
        )
    return next(iter(series.values()))


def _sort(headers: dict[Path, DicomHeader]) -> tuple[str, list[Path], tuple[float, ...]]:
    """How the files were sorted, the files, and their positions along the normal."""
    numbers = {path: header.instance_number for path, header in headers.items()}
    positions = _positions(headers)
    if positions is not None:
        order = sorted(headers, key=lambda path: (positions[path], numbers[path] or 0.0, path.name))
        return "position", order, tuple(positions[path] for path in order)
    if None not in numbers.values():
        return "instance number", sorted(headers, key=lambda path: (numbers[path] or 0.0, path.name)), ()
    return "file name", sorted(headers), ()


def _positions(headers: dict[Path, DicomHeader]) -> dict[Path, float] | None:
    """Positions along the common normal; None where a slice has no position or orientation."""
    first = next(iter(headers.values())).orientation
    if first is None:
        return None
    normal = np.cross(first[:3], first[3:])
    if np.linalg.norm(normal) < 0.5:  # no two directions
        return None
    positions = {}
    for path, header in headers.items():
        direction = header.orientation
        if direction is None or header.position is None:
            return None
        if np.abs(np.subtract(direction, first)).max() > _SAME_DIRECTION:
            raise DataError(
                f"its orientation {direction} differs from {first} in the same series.",
                path,
                "Leave localizers and reformatted images out.",
            )
        positions[path] = float(np.dot(header.position, normal))
    return positions
