"""CT series in folders of DICOM files: grouped, sorted along the body, mapped to [0, 1]."""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from learnreg.datasets.files.checks import check_file
from learnreg.datasets.files.dicom import DicomSlice, is_dicom, read_header, read_slices
from learnreg.errors import ConfigError, DataError
from learnreg.linear.arguments import check_real, real_number, shown
from learnreg.linear.paths import files_in, given_path

__all__ = ["CT_WINDOW", "DicomSeries", "find_series", "read_dicom_series", "window_hounsfield"]

#: Hounsfield units that become 0 and 1. With vacuum at 0, values are proportional to attenuation, as line integrals
#: need it: water is 0.5, and denser bone than 1000 HU is clipped.
CT_WINDOW = (-1000.0, 1000.0)

_SAME_DIRECTION = 1e-3  # cosines in headers are rounded
_SAME_SPACING = 1e-3  # half a pixel of 512
_SAME_PLACE = 0.1  # pixels
_EQUAL_GAPS = 0.05  # of the usual distance
_ASIDE = 0.05  # pixels
_LEAVE_OUT = "Leave it out, or put it into a folder of its own."


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
    frames: the number of each image in its file, from 1.
    notes: what was left out, and what a user of the slices should know: copies, pixels that are not square, distances
        that vary, slices shifted against each other.

    Parameters
    ----------
    series_uid: of the slices.
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
    frames: tuple[int, ...]
    notes: tuple[str, ...]


def read_dicom_series(
    path: str | Path, series_uid: str | None = None, window: tuple[float, float] = CT_WINDOW
) -> DicomSeries:
    """Read the CT series in a folder or a single file, of one slice or of many frames (enhanced CT).

    Files without the mark of DICOM and objects that are no CT images (reports, structures) are left out, and so are
    copies of a slice, which have its SOPInstanceUID; sub-folders are not searched.

    Parameters
    ----------
    path: a folder, or one of its files.
    series_uid: which series, needed where the folder holds several.
    window: Hounsfield units that become 0 and 1; values outside are clipped. The lower end must stay -1000 for images
        that are proportional to attenuation.

    Raises
    ------
    DataError: no CT series, several of them without ``series_uid``, or an unknown one; slices of different sizes,
        spacings or orientations, or several at one position; what `read_dicom` names.
    ConfigError: a window that is not lower < upper.
    """
    _check_window(window)
    path = given_path(path, "read_dicom_series(path)")
    paths = _choose(find_series(path), series_uid, path) if os.path.isdir(path) else [check_file(path)]
    slices, notes = _without_copies([one for file in paths for one in read_slices(file)])
    _check_agreement(slices)
    sorted_by, slices, positions = _sorted(slices)
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
        tuple(one.path for one in slices),
        tuple(one.frame for one in slices),
        (*notes, *_notes(slices, positions)),
    )


def find_series(folder: str | Path) -> dict[str, list[Path]]:
    """The CT files directly inside a folder by their SeriesInstanceUID, each sorted by file name.

    Parameters
    ----------
    folder: searched with all folders in it.

    Raises
    ------
    DataError: the folder is missing or holds no CT files; a damaged file; a CT file without a series.
    """
    folder = given_path(folder, "find_series(folder)")
    files = [file for file in files_in(folder) if is_dicom(file)]
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

    Parameters
    ----------
    hounsfield: any shape.
    window: what becomes 0 and 1.

    Raises
    ------
    ConfigError: a window that is not lower < upper.
    """
    lower, upper = _check_window(window)
    check_real(hounsfield, "window_hounsfield(hounsfield)", "of Hounsfield units")
    if not hounsfield.is_floating_point():
        hounsfield = hounsfield.to(torch.get_default_dtype())
    return ((hounsfield - lower) / (upper - lower)).clamp(0.0, 1.0)


def _check_window(window: tuple[float, float]) -> tuple[float, float]:
    pair = isinstance(window, (tuple, list)) and len(window) == 2
    lower, upper = (real_number(end, "window: an end") for end in window) if pair else (0.0, 0.0)
    if not lower < upper:
        raise ConfigError(f"window={shown(window)}: expected lower < upper in Hounsfield units, as in (-1000, 1000).")
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


def _without_copies(slices: list[DicomSlice]) -> tuple[list[DicomSlice], list[str]]:
    """Every image once, and what there is to say: a copy has the SOPInstanceUID, place and pixels of another."""
    images: dict[tuple[str, int], list[DicomSlice]] = {}
    for one in slices:
        images.setdefault((one.sop_instance_uid or str(one.path), one.frame), []).append(one)
    kept = [one for group in images.values() for one in (_different(group) if len(group) > 1 else group)]
    notes = []
    if len(kept) < len(slices):
        notes.append(f"copies left out, by their SOPInstanceUID: {len(slices) - len(kept)}.")
    if len(kept) > len(images):
        notes.append("different images have one SOPInstanceUID; their headers are faulty.")
    return kept, notes


def _different(slices: list[DicomSlice]) -> list[DicomSlice]:
    contents: dict[tuple[object, ...], DicomSlice] = {}
    for one in slices:
        place, pixels = (one.position, one.orientation, one.pixel_spacing), one.hounsfield
        contents.setdefault((*place, pixels.shape, sha256(pixels.numpy().tobytes()).digest()), one)
    return list(contents.values())


def _check_agreement(slices: list[DicomSlice]) -> None:
    first = slices[0]
    for one in slices:
        size, expected = tuple(one.hounsfield.shape[1:]), tuple(first.hounsfield.shape[1:])
        if size != expected:
            raise DataError(f"its size is {size}, that of {first.path.name} is {expected}.", one.path, _LEAVE_OUT)
        if not np.allclose(one.pixel_spacing, first.pixel_spacing, rtol=_SAME_SPACING, atol=0):
            found, wanted = one.pixel_spacing, first.pixel_spacing
            raise DataError(f"its PixelSpacing is {found}, that of {first.path.name} {wanted}.", one.path, _LEAVE_OUT)
        for name, value in one.belongs_to.items():
            if value != first.belongs_to[name]:
                raise DataError(
                    f"its {name} is not that of {first.path.name} in the same series.", one.path, _LEAVE_OUT
                )


def _sorted(slices: list[DicomSlice]) -> tuple[str, list[DicomSlice], tuple[float, ...]]:
    """How the slices were sorted, the slices, and their positions along the normal."""
    positions = _positions(slices)
    if positions is not None:
        order = sorted(range(len(slices)), key=lambda i: positions[i])
        ordered, along = [slices[i] for i in order], tuple(positions[i] for i in order)
        _check_apart(ordered, along)
        return "position", ordered, along
    if all(one.instance_number is not None for one in slices):
        ordered = sorted(slices, key=lambda one: (one.instance_number or 0.0, one.path.name, one.frame))
        for one, after in itertools.pairwise(ordered):
            if (one.instance_number, one.frame) == (after.instance_number, after.frame):
                raise DataError(
                    f"its InstanceNumber {after.instance_number:g} is that of {one.path.name}, and there are no "
                    "positions to sort by.",
                    after.path,
                    _one_folder_each([one, after]),
                )
        return "instance number", ordered, ()
    return "file name", sorted(slices, key=lambda one: (one.path.name, one.frame)), ()


def _positions(slices: list[DicomSlice]) -> list[float] | None:
    """Positions along the common normal; None where a slice has no position or orientation."""
    first = slices[0].orientation
    if first is None:
        return None
    across, down = np.array(first[:3]), np.array(first[3:])
    if not np.allclose([across @ across, down @ down, across @ down], [1, 1, 0], atol=_SAME_DIRECTION * 10):
        return None  # no two directions
    normal = np.cross(across, down)
    normal /= np.linalg.norm(normal)
    positions = []
    for one in slices:
        if one.orientation is None or one.position is None:
            return None
        if np.abs(np.subtract(one.orientation, first)).max() > _SAME_DIRECTION:
            raise DataError(
                f"its orientation {one.orientation} differs from {first} in the same series.",
                one.path,
                "Leave localizers and reformatted images out.",
            )
        positions.append(float(np.dot(one.position, normal)))
    return positions


def _check_apart(slices: list[DicomSlice], positions: tuple[float, ...]) -> None:
    """Refuse several slices at one position: phases, echoes, kernels, or copies under other names."""
    same = np.diff(positions) < _SAME_PLACE * min(slices[0].pixel_spacing)
    if not same.any():
        return
    i = int(np.argmax(same))
    raise DataError(
        f"{int(same.sum())} of {len(slices)} slices lie where another one does, "
        f"as {slices[i].path.name} and {slices[i + 1].path.name} at {positions[i]:g} mm: phases, acquisitions, kernels "
        "or copies.",
        slices[i + 1].path,
        _one_folder_each(slices[i : i + 2]),
    )


def _one_folder_each(pair: list[DicomSlice]) -> str:
    a, b = (one.marks for one in pair)
    differing = [f"{name} ({a.get(name)}, {b.get(name)})" for name in {**a, **b} if a.get(name) != b.get(name)]
    if not differing:
        return "No tag tells them apart: keep one of them."
    return f"Export or move the slices of one value of {', '.join(differing[:3])} into a folder of their own."


def _notes(slices: list[DicomSlice], positions: tuple[float, ...]) -> tuple[str, ...]:
    notes = []
    rows, columns = slices[0].pixel_spacing
    if not math.isclose(rows, columns, rel_tol=_SAME_SPACING):
        notes.append(f"pixels are not square: {rows:g} x {columns:g} mm (load_ct_images makes them square).")
    gaps = np.diff(positions)
    if len(gaps) > 1 and gaps.max() - gaps.min() > _EQUAL_GAPS * float(np.median(gaps)):
        notes.append(f"distances between slices vary from {gaps.min():g} to {gaps.max():g} mm; some may be missing.")
    if len(positions) > 1:
        corners = np.array([one.position for one in slices])
        steps = np.diff(corners, axis=0)
        aside = np.sqrt(np.maximum((steps**2).sum(1) - gaps**2, 0.0))
        if aside.max() > _ASIDE * min(rows, columns):
            notes.append(
                f"slices are shifted against each other by up to {aside.max():g} mm (tilted gantry, or another "
                "field of view)."
            )
    return tuple(notes)
