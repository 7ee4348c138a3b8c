"""CT slices from DICOM files, in Hounsfield units: one to a file, or many frames of a multi-frame image.

Source: DICOM PS3.3, sections A.3 (CT Image), A.38 (Enhanced CT Image) and C.7.6.16 (functional groups).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learnreg.datasets.files.dicom_pixels import check_unit, hounsfield_units, stored_values
from learnreg.datasets.files.dicom_tags import is_dicom, numbers, opened, required, tag_numbers
from learnreg.errors import DataError
from learnreg.linear.paths import given_path

__all__ = ["DicomHeader", "DicomSlice", "is_dicom", "read_dicom", "read_header", "read_slices"]

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and those below it: pictures of screens
#: What may tell slices at one position apart, and the functional group it stands in for multi-frame images.
_MARKS = {
    "AcquisitionNumber": "",
    "TemporalPositionIdentifier": "",
    "TriggerTime": "",
    "EchoNumbers": "",
    "KVP": "",
    "ConvolutionKernel": "CTReconstructionSequence",
    "NominalPercentageOfCardiacPhase": "CardiacSynchronizationSequence",
    "TemporalPositionIndex": "FrameContentSequence",
    "StackID": "FrameContentSequence",
    "FrameAcquisitionNumber": "FrameContentSequence",
    "FrameType": "CTImageFrameTypeSequence",
    "ImageType": "",
    "AcquisitionTime": "",
    "ContentTime": "",
}


_IN_COMMON = ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID")


@dataclass(frozen=True)
class DicomSlice:
    """A CT slice.

    Attributes
    ----------
    hounsfield: (1, rows, columns) float32, in Hounsfield units: -1000 is vacuum, 0 water.
    pixel_spacing: distance of rows and of columns in millimetres.
    frame: its number in a multi-frame file, from 1.
    sop_instance_uid: identifies the image, "" where the tag is missing; copies have the same.
    instance_number, position, orientation: None where the tag is missing, empty or malformed.
    marks: tags that may tell slices at one position apart, such as AcquisitionNumber.
    belongs_to: tags that all slices of a series have in common, such as PatientID.

    Parameters
    ----------
    series_uid, path: the series that the slice belongs to, and its file.
    """

    hounsfield: Tensor
    pixel_spacing: tuple[float, float]
    series_uid: str
    path: Path
    frame: int = 1
    sop_instance_uid: str = ""
    instance_number: float | None = None
    position: tuple[float, ...] | None = None
    orientation: tuple[float, ...] | None = None
    marks: Mapping[str, str] = field(default_factory=dict)
    belongs_to: Mapping[str, str] = field(default_factory=dict)


def read_dicom(path: str | Path) -> DicomSlice:
    """Read one slice; its pixels become Hounsfield units by RescaleSlope and RescaleIntercept.

    Parameters
    ----------
    path: of the file.

    Raises
    ------
    DataError: pydicom is missing; the file is missing, damaged, truncated or not DICOM; not CT, a localizer, a picture
        of a screen, in colour or of several frames; a tag is missing (named) or senseless; compressed without a decoder
        installed (named); padding that would be matter.
    """
    path = given_path(path, "read_dicom(path)")
    with opened(path) as dataset:
        frames = _check_kind(dataset, path)
        if frames != 1:
            raise DataError(f"it holds {frames} frames.", path, "Read them with read_dicom_series.")
        return next(_slices(dataset, frames, path))


def read_slices(path: Path) -> list[DicomSlice]:
    """The slice of a file, or the frames of a multi-frame image in the order they are stored, each with the position,
    spacing and rescaling of its own.

    Raises
    ------
    DataError: as `read_dicom`, and frames that are moments in time.
    """
    with opened(path) as dataset:
        return list(_slices(dataset, _check_kind(dataset, path), path))


@dataclass(frozen=True)
class DicomHeader:
    """What groups files: "" where a tag is missing, empty or malformed."""

    modality: str
    series_uid: str


def read_header(path: Path) -> DicomHeader:
    """The tags that group slices, without reading pixels.

    Raises
    ------
    DataError: pydicom is missing, or the file is damaged.
    """
    with opened(path, ("Modality", "SeriesInstanceUID")) as dataset:
        return DicomHeader(str(dataset.get("Modality") or ""), str(dataset.get("SeriesInstanceUID") or ""))


def _check_kind(dataset: Any, path: Path) -> int:
    """How many frames a CT image has."""
    modality = required(dataset, "Modality", path)
    if modality != "CT":
        raise DataError(f"its modality is {modality}, expected CT.", path, "Leave it out.")
    if "LOCALIZER" in (dataset.get("ImageType") or ()):
        raise DataError("this is a localizer, a projection and no slice.", path, "Leave it out.")
    if str(dataset.get("SOPClassUID") or "").startswith(_SECONDARY_CAPTURE):
        raise DataError("this is a secondary capture, a picture of a screen.", path, "Leave it out.")
    if dataset.get("ModalityLUTSequence"):
        raise DataError("its values are those of a table (ModalityLUTSequence).", path, "Export it with RescaleSlope.")
    required(dataset, "SeriesInstanceUID", path)
    samples = int(required(dataset, "SamplesPerPixel", path))
    if samples != 1:
        raise DataError(f"it has {samples} samples per pixel (colour), expected grey values.", path)
    frames = int(dataset.get("NumberOfFrames") or 1)
    groups = dataset.get("PerFrameFunctionalGroupsSequence")
    if frames < 1 or (groups and len(groups) != frames):
        raise DataError(
            f"NumberOfFrames is {frames}, but {len(groups or ())} frames are described.", path, "Export it again."
        )
    if frames > 1 and not groups and any(dataset.get(keyword) for keyword in ("FrameTime", "FrameTimeVector")):
        raise DataError(f"its {frames} frames are moments in time, not slices.", path, "Leave it out.")
    return frames


def _slices(dataset: Any, frames: int, path: Path) -> Iterator[DicomSlice]:
    for frame, stored in enumerate(stored_values(dataset, frames, path)):
        yield _slice(dataset, frame, stored, frames > 1, path)


def _slice(dataset: Any, frame: int, stored: np.ndarray[Any, Any], several: bool, path: Path) -> DicomSlice:
    if "LOCALIZER" in (_group(dataset, frame, "CTImageFrameTypeSequence").get("FrameType") or ()):
        raise DataError(f"frame {frame + 1} is a localizer, a projection and no slice.", path, "Leave it out.")
    rows, columns = numbers(_group(dataset, frame, "PixelMeasuresSequence"), "PixelSpacing", 2, path)
    if min(rows, columns) <= 0:
        raise DataError(f"PixelSpacing is {(rows, columns)}.", path, "The header is damaged: export it again.")
    slope, intercept = check_unit(_group(dataset, frame, "PixelValueTransformationSequence"), path)
    place = _group(dataset, frame, "PlanePositionSequence")
    of_all_frames = several and place is dataset  # which one position cannot be
    number = tag_numbers(dataset, "InstanceNumber", 1)
    marks = {name: _group(dataset, frame, group).get(name) for name, group in _MARKS.items()}
    return DicomSlice(
        hounsfield=torch.from_numpy(hounsfield_units(stored, slope, intercept, dataset, path)).unsqueeze(0),
        pixel_spacing=(rows, columns),
        series_uid=str(dataset.SeriesInstanceUID),
        path=path,
        frame=frame + 1,
        sop_instance_uid=str(dataset.get("SOPInstanceUID") or ""),
        instance_number=None if number is None else number[0],
        position=None if of_all_frames else tag_numbers(place, "ImagePositionPatient", 3),
        orientation=tag_numbers(_group(dataset, frame, "PlaneOrientationSequence"), "ImageOrientationPatient", 6),
        marks={name: str(value) for name, value in marks.items() if value not in (None, "")},
        belongs_to={name: str(dataset.get(name) or "") for name in _IN_COMMON},
    )


def _group(dataset: Any, frame: int, name: str) -> Any:
    """Where the tags of a functional group stand for a frame: its own, those that all frames share, or the data set
    itself."""
    own, shared = dataset.get("PerFrameFunctionalGroupsSequence"), dataset.get("SharedFunctionalGroupsSequence")
    for groups in (own[frame] if own else None, shared[0] if shared else None):
        sequence = groups.get(name) if groups is not None and name else None
        if sequence:
            return sequence[0]
    return dataset
