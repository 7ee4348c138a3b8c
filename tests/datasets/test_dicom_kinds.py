"""Kinds of DICOM slices and series: bits and rescaling, padding, multi-frame images, copies, phases, distances, pixels
that are not square."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learnreg.datasets import DicomSeries, load_ct_images, read_dicom, read_dicom_series
from learnreg.errors import DataError

pydicom = pytest.importorskip("pydicom")

SMALL = pydicom.dcmread(Path(pydicom.__file__).parent / "data" / "test_files" / "CT_small.dcm")
HOUNSFIELD = np.array([[-1000, 0, 40], [1500, -500, 300]])
SLICES = [HOUNSFIELD // 4 + 10 * k for k in range(5)]
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
AXIAL = [1, 0, 0, 0, 1, 0]


def ct(hounsfield: np.ndarray = HOUNSFIELD, stored: int = 16, signed: int = 1, number: int = 1, **tags: Any) -> Any:
    """A slice with these values, stored in ``stored`` of 16 bits; the number makes its SOPInstanceUID and position."""
    dataset = copy.deepcopy(SMALL)
    del dataset.PixelPaddingValue
    dataset.Rows, dataset.Columns = hounsfield.shape
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = stored, stored - 1, signed
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0 if signed else -1024
    words = hounsfield - int(dataset.RescaleIntercept)
    dataset.PixelData = words.astype("<i2" if signed else "<u2").tobytes()
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
    dataset.InstanceNumber, dataset.PixelSpacing = number, [0.7, 0.7]
    dataset.ImageOrientationPatient, dataset.ImagePositionPatient = AXIAL, [0, 0, float(number)]
    for keyword, value in tags.items():
        if keyword.startswith("PixelPadding"):
            dataset.add_new(keyword, "SS", value)
        else:
            setattr(dataset, keyword, value)
    return dataset


def group(**tags: Any) -> Any:
    item = pydicom.Dataset()
    for keyword, value in tags.items():
        setattr(item, keyword, value)
    return pydicom.Sequence([item])


def enhanced(
    slices: Sequence[np.ndarray],
    positions: Sequence[float] | None = None,
    rescale: Sequence[tuple[float, float]] | None = None,
    spacings: Sequence[tuple[float, float]] | None = None,
    shared: dict[str, Any] | None = None,
    own: Sequence[dict[str, Any]] | None = None,
) -> Any:
    """An enhanced CT image; functional groups are shared unless there is one for each frame."""
    dataset = ct(np.concatenate(list(slices)), SOPClassUID=ENHANCED_CT, NumberOfFrames=len(slices))
    dataset.Rows = slices[0].shape[0]
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        delattr(dataset, keyword)
    of_all = {"PlaneOrientationSequence": group(ImageOrientationPatient=AXIAL)}
    if spacings is None:
        of_all["PixelMeasuresSequence"] = group(PixelSpacing=[0.7, 0.7])
    if rescale is None:
        of_all["PixelValueTransformationSequence"] = group(RescaleSlope=1, RescaleIntercept=0, RescaleType="HU")
    dataset.SharedFunctionalGroupsSequence = group(**of_all | (shared or {}))
    frames, words = [], []
    for i, hounsfield in enumerate(slices):
        slope, intercept = rescale[i] if rescale else (1, 0)
        words.append(((hounsfield - intercept) / slope).astype("<i2"))
        tags = {"PlanePositionSequence": group(ImagePositionPatient=[0, 0, float(positions[i] if positions else i)])}
        if rescale:
            tags["PixelValueTransformationSequence"] = group(RescaleSlope=slope, RescaleIntercept=intercept)
        if spacings:
            tags["PixelMeasuresSequence"] = group(PixelSpacing=list(spacings[i]))
        frames.append(group(**tags | (own[i] if own else {}))[0])
    dataset.PerFrameFunctionalGroupsSequence = pydicom.Sequence(frames)
    dataset.PixelData = np.stack(words).tobytes()
    return dataset


def saved(folder: Path, *datasets: Any) -> Path:
    for i, dataset in enumerate(datasets):
        dataset.save_as(folder / f"{i}.dcm")
    return folder


def series(**tags: Sequence[Any]) -> list[Any]:
    """Five slices, each with its own values of the tags."""
    return [
        ct(hounsfield, number=i, **{keyword: values[i] for keyword, values in tags.items()})
        for i, hounsfield in enumerate(SLICES)
    ]


def along(*positions: float) -> list[list[float]]:
    return [[0.0, 0.0, position] for position in positions]


def hounsfield_of(found: DicomSeries) -> np.ndarray[Any, Any]:
    return found.images[:, 0].numpy() * 2000 - 1000


# ----------------------------------------------------------------------------------------------------------- one slice


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (lambda: ct(PhotometricInterpretation="MONOCHROME1"), None),  # how values are shown, not what they are
        (lambda: ct(stored=12, signed=0), None),
        (lambda: ct(stored=12), HOUNSFIELD.astype("<i2").view("<u2") & 0xFFF),  # no sign in the upper bits
        (lambda: ct(stored=12, signed=0), (HOUNSFIELD + 1024).astype("<u2") | 0x3000),  # an overlay in the upper bits
        (lambda: ct(RescaleType="HU"), None),
        (lambda: ct(PixelPaddingValue=-2000), None),
        (lambda: ct(PixelPaddingValue=3000), None),  # no pixel has it
    ],
)
def test_hounsfield_units_of_what_is_stored(tmp_path: Path, dataset: Any, words: np.ndarray | None) -> None:
    one = dataset()
    if words is not None:
        one.PixelData = words.tobytes()
    saved(tmp_path, one)
    np.testing.assert_array_equal(read_dicom(tmp_path / "0.dcm").hounsfield[0].numpy(), HOUNSFIELD)


def test_big_endian_words(tmp_path: Path) -> None:
    one = ct()
    one.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
    one.PixelData = HOUNSFIELD.astype(">i2").tobytes()
    pydicom.dcmwrite(tmp_path / "a.dcm", one, implicit_vr=False, little_endian=False)
    np.testing.assert_array_equal(read_dicom(tmp_path / "a.dcm").hounsfield[0].numpy(), HOUNSFIELD)


@pytest.mark.parametrize("padding", [63536, -2000])
def test_padding_below_vacuum_is_kept(tmp_path: Path, padding: int) -> None:
    values = np.array([[-2000, 0, 40]])
    one = ct(values)
    one.add_new("PixelPaddingValue", "US" if padding > 0 else "SS", padding)
    saved(tmp_path, one)
    np.testing.assert_array_equal(read_dicom(tmp_path / "0.dcm").hounsfield[0].numpy(), values)


@pytest.mark.parametrize(
    ("tags", "match"),
    [
        ({"HighBit": 15, "stored": 12}, r"HighBit is 15, expected BitsStored - 1 = 11"),
        ({"HighBit": 11}, r"HighBit is 11, expected BitsStored - 1 = 15"),
        ({"HighBit": None}, r"HighBit \(0028,0102\)"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
        ({"RescaleSlope": "1e308"}, "lead to inf HU"),
        ({"RescaleIntercept": "1e300"}, "lead to inf HU"),
        ({"RescaleSlope": "1e6"}, r"lead to 1.5e\+09 HU"),
        ({"RescaleType": "EDW"}, "'EDW'"),
        ({"PixelPaddingValue": 1500}, "1 pixels are padding .* 1500 HU"),
        ({"PixelPaddingValue": 0}, "1 pixels are padding .* 0 HU"),
        ({"PixelPaddingValue": 1600, "PixelPaddingRangeLimit": 200}, "2 pixels are padding"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "secondary capture"),
        ({"ModalityLUTSequence": group(ModalityLUTType="US")}, "ModalityLUTSequence"),
    ],
)
def test_slices_are_refused(tmp_path: Path, tags: dict[str, Any], match: str) -> None:
    saved(tmp_path, ct(**tags))
    with pytest.raises(DataError, match=match) as caught:
        read_dicom(tmp_path / "0.dcm")
    assert caught.value.hint


# --------------------------------------------------------------------------------------------------- multi-frame images


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ({}, (0, 1, 2, 3, 4)),
        ({"positions": (1, 3, 0, 4, 2)}, (2, 0, 4, 1, 3)),
        ({"positions": (4, 3, 2, 1, 0)}, (4, 3, 2, 1, 0)),
        ({"rescale": ((1, -1000), (0.5, 0), (1, 7), (1, 0), (0.25, 100))}, (0, 1, 2, 3, 4)),
        ({"spacings": [(0.7, 0.7)] * 5}, (0, 1, 2, 3, 4)),
        ({"shared": {"PlaneOrientationSequence": group(ImageOrientationPatient=[1, 0, 0, 0, -1, 0])}}, (4, 3, 2, 1, 0)),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_frames_are_slices(tmp_path: Path, options: dict[str, Any], order: tuple[int, ...], compressed: bool) -> None:
    dataset = enhanced(SLICES, **options)
    if compressed:
        dataset.compress(pydicom.uid.RLELossless)
    found = read_dicom_series(saved(tmp_path, dataset))
    np.testing.assert_allclose(hounsfield_of(found), np.stack([SLICES[i] for i in order]), atol=2e-3)
    assert found.frames == tuple(i + 1 for i in order)
    assert found.paths == (tmp_path / "0.dcm",) * 5
    assert (found.sorted_by, found.notes) == ("position", ())
    with pytest.raises(DataError, match="5 frames") as caught:
        read_dicom(tmp_path / "0.dcm")
    assert "read_dicom_series" in caught.value.hint


def test_frames_of_several_files(tmp_path: Path) -> None:
    first, second = enhanced(SLICES[3:], (3, 4)), enhanced(SLICES[:3])
    second.SOPInstanceUID = "1.2.3.99"
    found = read_dicom_series(saved(tmp_path, first, second))
    np.testing.assert_allclose(hounsfield_of(found), np.stack(SLICES), atol=2e-3)
    assert found.frames == (1, 2, 3, 1, 2)


def test_frames_without_groups_keep_their_order(tmp_path: Path) -> None:
    dataset = ct(np.concatenate(SLICES), NumberOfFrames=5)
    dataset.Rows = 2
    found = read_dicom_series(saved(tmp_path, dataset))
    np.testing.assert_allclose(hounsfield_of(found), np.stack(SLICES), atol=2e-3)
    assert (found.sorted_by, found.positions) == ("instance number", ())
    dataset.FrameTime = "40"
    with pytest.raises(DataError, match="moments in time"):
        read_dicom_series(saved(tmp_path, dataset))


@pytest.mark.parametrize(
    ("options", "change", "match"),
    [
        ({"spacings": [(0.7, 0.7)] * 4 + [(0.9, 0.9)]}, {}, "PixelSpacing is"),
        ({"positions": (0, 1, 0, 1, 2)}, {}, "2 of 5 slices lie where another one does"),
        ({"shared": {"PixelMeasuresSequence": group()}}, {}, r"PixelSpacing \(0028,0030\)"),
        (
            {"own": [{"CTImageFrameTypeSequence": group(FrameType=["ORIGINAL", "PRIMARY", "LOCALIZER"])}] * 5},
            {},
            "localizer",
        ),
        ({}, {"NumberOfFrames": 4}, "NumberOfFrames is 4, but 5 frames are described"),
        ({}, {"PixelData": b"\0" * 48}, "truncated: 48 of 60 bytes"),
    ],
)
def test_frames_are_refused(tmp_path: Path, options: dict[str, Any], change: dict[str, Any], match: str) -> None:
    dataset = enhanced(SLICES, **options)
    for keyword, value in change.items():
        setattr(dataset, keyword, value)
    with pytest.raises(DataError, match=match):
        read_dicom_series(saved(tmp_path, dataset))


def test_phases_of_frames_are_named(tmp_path: Path) -> None:
    own = [{"FrameContentSequence": group(TemporalPositionIndex=phase)} for phase in (1, 1, 2, 2)]
    with pytest.raises(DataError, match="2 of 4 slices") as caught:
        read_dicom_series(saved(tmp_path, enhanced(SLICES[:4], (0, 1, 0, 1), own=own)))
    assert "TemporalPositionIndex (1, 2)" in caught.value.hint


# --------------------------------------------------------------------------------- copies, phases, distances of slices


@pytest.mark.parametrize("placed", [True, False])
def test_copies_are_left_out(tmp_path: Path, placed: bool) -> None:
    slices = series() if placed else series(ImagePositionPatient=[None] * 5)
    found = read_dicom_series(saved(tmp_path, *slices, *slices))
    np.testing.assert_allclose(hounsfield_of(found), np.stack(SLICES), atol=2e-3)
    assert found.notes == ("copies left out, by their SOPInstanceUID: 5.",)
    assert [path.name for path in found.paths] == [f"{i}.dcm" for i in range(5)]


def test_one_identifier_for_different_images_is_told(tmp_path: Path) -> None:
    found = read_dicom_series(saved(tmp_path, *series(SOPInstanceUID=["1.2.3"] * 5)))
    assert len(found.images) == 5
    assert "faulty" in found.notes[0]


@pytest.mark.parametrize(
    ("keyword", "values", "apart"),
    [
        ("AcquisitionNumber", (1, 2), 0.0),
        ("TemporalPositionIdentifier", (1, 2), 0.01),
        ("EchoNumbers", (1, 2), 0.0),
        ("ConvolutionKernel", ("B30", "B60"), 0.0),
        ("NominalPercentageOfCardiacPhase", (30.0, 70.0), 0.01),
        ("KVP", ("80", "140"), 0.0),
        ("ContentTime", ("100000", "100010"), 0.0),
        (None, (0, 0), 0.01),
    ],
)
def test_several_slices_at_one_position(tmp_path: Path, keyword: str | None, values: Any, apart: float) -> None:
    phases = [series(**({keyword: [value] * 5} if keyword else {})) for value in values]
    for i, one in enumerate(phases[1]):
        one.SOPInstanceUID, one.ImagePositionPatient = f"1.2.4.{i}", [0, 0, i + apart]
    with pytest.raises(DataError, match="5 of 10 slices lie where another one does") as caught:
        read_dicom_series(saved(tmp_path, *phases[0], *phases[1]))
    expected = f"{keyword} ({values[0]}, {values[1]})" if keyword else "keep one of them"
    assert expected in caught.value.hint


def test_instance_numbers_that_repeat_give_no_order(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"InstanceNumber 1 is that of 1\.dcm"):
        read_dicom_series(saved(tmp_path, *series(ImagePositionPatient=[None] * 5, InstanceNumber=[0, 1, 1, 2, 3])))


@pytest.mark.parametrize(
    ("tags", "note"),
    [
        ({"ImagePositionPatient": along(0, 1, 2, 4, 5)}, "distances between slices vary from 1 to 2 mm"),
        ({"ImagePositionPatient": along(0, 1.246, 2.5, 3.754, 5)}, None),  # rounded
        ({"ImagePositionPatient": [[0, 0.4 * i, i] for i in range(5)]}, "shifted against each other by up to 0.4 mm"),
        ({"ImagePositionPatient": [[30 * (i > 2), 0, i] for i in range(5)]}, "by up to 30 mm"),
        ({"PixelSpacing": [[0.5, 1.0]] * 5}, "not square: 0.5 x 1 mm"),
        ({"PixelSpacing": [[0.661468 + 1e-7 * i, 0.661468] for i in range(5)]}, None),
        (
            {
                "ImageOrientationPatient": [[1, 0, 0, 0, 0.8, 0.6]] * 5,
                "ImagePositionPatient": [[0, -0.6 * i, 0.8 * i] for i in range(5)],
            },
            None,
        ),
        ({"PixelSpacing": [[0.02, 0.02]] * 5, "ImagePositionPatient": along(0, 0.02, 0.04, 0.06, 0.08)}, None),
    ],
)
def test_notes_on_a_series(tmp_path: Path, tags: dict[str, Any], note: str | None) -> None:
    found = read_dicom_series(saved(tmp_path, *series(**tags)))
    np.testing.assert_allclose(hounsfield_of(found), np.stack(SLICES), atol=2e-3)
    assert found.sorted_by == "position"
    assert (not found.notes) if note is None else (note in found.notes[0])


@pytest.mark.parametrize("keyword", ["PatientID", "StudyInstanceUID", "FrameOfReferenceUID"])
def test_one_series_belongs_to_one_patient(tmp_path: Path, keyword: str) -> None:
    with pytest.raises(DataError, match=rf"{keyword} is not that of 0\.dcm"):
        read_dicom_series(saved(tmp_path, *series(**{keyword: ["1", "1", "1", "2", "2"]})))


def test_directions_that_are_none_give_no_positions(tmp_path: Path) -> None:
    tags = {"ImageOrientationPatient": [[2, 0, 0, 0, 2, 0]] * 5, "InstanceNumber": [2, 1, 4, 3, 5]}
    found = read_dicom_series(saved(tmp_path, *series(**tags)))
    assert found.sorted_by == "instance number"
    assert [path.name for path in found.paths] == ["1.dcm", "0.dcm", "3.dcm", "2.dcm", "4.dcm"]


# -------------------------------------------------------------------------------------------------- images to train on


@pytest.mark.parametrize("size", [16, 24, 32, 40])
@pytest.mark.parametrize("transposed", [False, True])
def test_pixels_become_square(tmp_path: Path, size: int, transposed: bool) -> None:
    """A square of half the side of the image remains one, wherever rows are half as far apart as columns."""
    pytest.importorskip("skimage")
    values = np.full((64, 32), -1000)
    values[16:48, 8:24] = 1000
    spacing = [1.0, 0.5] if transposed else [0.5, 1.0]
    slices = [
        ct((values.T if transposed else values) - number, number=number, PixelSpacing=spacing) for number in range(4)
    ]
    with pytest.warns(UserWarning, match="not square"):
        training, held_out = load_ct_images(saved(tmp_path, *slices), size)
    for image in (*training.values(), *held_out.values()):
        bright = image[0] > 0.5
        assert (int(bright[:, size // 2].sum()), int(bright[size // 2].sum())) == (size // 2, size // 2)


def test_frames_have_names(tmp_path: Path) -> None:
    training, held_out = load_ct_images(saved(tmp_path, enhanced(SLICES)), 2)
    assert list(training) == [f"0.dcm frame {i}" for i in range(1, 5)]
    assert list(held_out) == ["0.dcm frame 5"]


@pytest.mark.parametrize(
    "tags",
    [{}, {"ImagePositionPatient": [None] * 4}, {"ImagePositionPatient": [None] * 4, "InstanceNumber": [None] * 4}],
)
def test_held_out_slices_are_not_trained_on(tmp_path: Path, tags: dict[str, Any]) -> None:
    slices = [
        ct(SLICES[i], number=number, **{keyword: values[number] for keyword, values in tags.items()})
        for number, i in enumerate((0, 1, 2, 0))
    ]
    with pytest.warns(UserWarning, match=r"1 of 3 training images are equal to held-out ones, such as 0.dcm to 3.dcm"):
        training, held_out = load_ct_images(saved(tmp_path, *slices), 2)
    assert (list(training), list(held_out)) == (["1.dcm", "2.dcm"], ["3.dcm"])
    assert not any(torch.equal(x, y) for x in training.values() for y in held_out.values())


def test_copies_among_image_files(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for i, content in enumerate((0, 1, 1, 2, 2, 3, 3, 0)):
        pixels = np.random.default_rng(content).integers(0, 255, (8, 8)).astype("u1")
        image.fromarray(pixels).save(tmp_path / f"{i}.png")
    with pytest.warns(UserWarning, match="equal to held-out ones"):
        training, held_out = load_ct_images(tmp_path, 8)
    assert training
    assert not any(torch.equal(x, y) for x in training.values() for y in held_out.values())
    for path in tmp_path.iterdir():
        image.fromarray(np.zeros((8, 8), "u1")).save(path)
    with pytest.raises(DataError, match="6 of 6 training images are equal"):
        load_ct_images(tmp_path, 8)
