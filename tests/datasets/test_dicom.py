"""CT slices in DICOM files: real ones that are installed with pydicom, and damaged copies of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learnreg.datasets import (
    CT_WINDOW,
    find_series,
    load_ct_images,
    read_dicom,
    read_dicom_series,
    window_hounsfield,
)
from learnreg.errors import ConfigError, DataError

pydicom = pytest.importorskip("pydicom")

FILES = Path(pydicom.__file__).parent / "data" / "test_files"
SMALL = FILES / "CT_small.dcm"
SERIES = FILES / "dicomdirtests" / "98892001" / "CT5N"  # five slices, 2.5 mm apart
LOCALIZERS = FILES / "dicomdirtests" / "98892001" / "CT2N"


def changed(path: Path, change: Callable[[Any], object], source: Path = SMALL) -> Path:
    """A copy of a slice after ``change(dataset)``."""
    dataset = pydicom.dcmread(source)
    change(dataset)
    dataset.save_as(path)
    return path


def without(keyword: str) -> Callable[[Any], None]:
    return lambda dataset: delattr(dataset, keyword)


def having(**values: Any) -> Callable[[Any], None]:
    def change(dataset: Any) -> None:
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return change


# ----------------------------------------------------------------------------------------------------------- one slice


def test_a_real_slice_in_hounsfield_units() -> None:
    one = read_dicom(SMALL)
    stored = np.frombuffer(pydicom.dcmread(SMALL).PixelData, dtype="<i2").reshape(128, 128)
    assert torch.equal(one.hounsfield[0], torch.from_numpy(stored.astype(np.float32) - 1024))
    assert one.hounsfield.dtype == torch.float32
    assert one.pixel_spacing == (0.661468, 0.661468)
    assert one.series_uid == "1.3.6.1.4.1.5962.1.3.1.1.20040119072730.12322"
    assert -1024 <= float(one.hounsfield.min()) < -800  # air
    assert 0 < float(one.hounsfield.median()) < 100  # soft tissue


def test_slope_and_intercept(tmp_path: Path) -> None:
    path = changed(tmp_path / "a", having(RescaleSlope="0.25", RescaleIntercept="-100.5"))
    expected = 0.25 * (read_dicom(SMALL).hounsfield + 1024) - 100.5
    torch.testing.assert_close(read_dicom(path).hounsfield, expected)


def test_run_lengths_are_decoded(tmp_path: Path) -> None:
    path = changed(tmp_path / "rle.dcm", lambda dataset: dataset.compress(pydicom.uid.RLELossless))
    assert torch.equal(read_dicom(path).hounsfield, read_dicom(SMALL).hounsfield)


def test_jpeg_2000_is_decoded_with_pillow() -> None:
    pytest.importorskip("PIL")
    if not pydicom.pixels.get_decoder(pydicom.uid.JPEG2000Lossless).is_available:
        pytest.skip("this pillow was built without JPEG 2000")
    one = read_dicom(FILES / "J2K_pixelrep_mismatch.dcm")  # signed by its header, unsigned by its code stream
    assert one.hounsfield.shape == (1, 512, 512)
    assert float(one.hounsfield.min()) == -2000  # padding
    assert -20 < float(one.hounsfield[one.hounsfield > -300].median()) < 200


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (without("Modality"), r"the tag Modality \(0008,0060\) is missing"),
        (without("SeriesInstanceUID"), r"SeriesInstanceUID \(0020,000E\)"),
        (without("RescaleSlope"), r"RescaleSlope \(0028,1053\)"),
        (having(RescaleIntercept=""), r"RescaleIntercept \(0028,1052\) is missing or empty"),
        (without("PixelSpacing"), r"PixelSpacing \(0028,0030\)"),
        (without("Rows"), r"Rows \(0028,0010\)"),
        (without("BitsAllocated"), r"BitsAllocated \(0028,0100\)"),
        (without("PixelData"), r"PixelData \(7FE0,0010\)"),
        (having(Modality="MR"), "modality is MR, expected CT"),
        (having(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer"),
        (having(NumberOfFrames=3), "holds 3 frames"),
        (having(SamplesPerPixel=3), "3 samples per pixel"),
        (having(RescaleType="US"), "RescaleType"),
        (having(RescaleSlope="0"), "RescaleSlope is 0"),
        (having(PixelSpacing=["0.5", "-1"]), "PixelSpacing"),
        (having(PixelSpacing=["0.5"]), "expected 2 finite numbers"),
        (having(Rows=9000), "9000 x 128 pixels, expected sides of 1 to 8192"),
        (having(Rows=140), "truncated: 32768 of 35840 bytes"),
        (lambda dataset: setattr(dataset, "PixelData", dataset.PixelData[:-200]), "truncated: 32568 of 32768 bytes"),
        (having(BitsAllocated=13), "damaged"),
    ],
)
def test_slices_are_refused(tmp_path: Path, change: Callable[[Any], None], match: str) -> None:
    path = changed(tmp_path / "a.dcm", change)
    with pytest.raises(DataError, match=match) as caught:
        read_dicom(path)
    assert caught.value.path == str(path)


@pytest.mark.parametrize("kept", [100, 150, 300, 2000, 20000, 39000])
def test_truncated_files(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(SMALL.read_bytes()[:kept])
    with pytest.raises(DataError):
        read_dicom(path)


def test_damaged_files_are_read_or_refused(tmp_path: Path, rotating_seed: int) -> None:
    """Never another error, and no warning."""
    whole, generator = next(SERIES.iterdir()).read_bytes(), np.random.default_rng(rotating_seed)
    path, refused = tmp_path / "a", 0
    for _ in range(150):
        data = bytearray(whole)
        for place in generator.integers(132, len(whole), generator.integers(1, 6)):
            data[place] = generator.integers(256)
        path.write_bytes(data)
        try:
            read_dicom_series(path)
        except DataError:
            refused += 1
    assert 0 < refused < 150


@pytest.mark.parametrize(
    ("syntax", "name", "advice"),
    [
        (pydicom.uid.JPEGLSLossless, "JPEG-LS Lossless", "pylibjpeg"),
        (pydicom.uid.JPEGLosslessSV1, "JPEG Lossless", "pylibjpeg"),
        (pydicom.uid.MPEG2MPML, "MPEG2", "uncompressed"),
    ],
)
def test_missing_decoders_are_named(tmp_path: Path, syntax: Any, name: str, advice: str) -> None:
    if syntax != pydicom.uid.MPEG2MPML and pydicom.pixels.get_decoder(syntax).is_available:
        pytest.skip("a decoder is installed")

    def change(dataset: Any) -> None:
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9" * 100])
        dataset["PixelData"].VR = "OB"

    with pytest.raises(DataError, match=name) as caught:
        read_dicom(changed(tmp_path / "a.dcm", change))
    assert advice in caught.value.hint


def test_a_decoder_that_comes_with_an_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = type(pydicom.pixels.get_decoder(pydicom.uid.JPEG2000Lossless))
    monkeypatch.setattr(decoder, "is_available", property(lambda self: False))
    monkeypatch.setattr(decoder, "missing_dependencies", property(lambda self: ["pillow - requires Pillow>=10.0"]))
    with pytest.raises(DataError, match="no decoder is installed") as caught:
        read_dicom(FILES / "J2K_pixelrep_mismatch.dcm")
    assert "learnreg[images]" in caught.value.hint


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "text.dcm").write_text("no DICOM" * 40)
    (tmp_path / "empty.dcm").touch()
    for name, match in (("text.dcm", "DICM is missing"), ("empty.dcm", "0 bytes"), ("absent.dcm", "does not exist")):
        with pytest.raises(DataError, match=match):
            read_dicom(tmp_path / name)
    with pytest.raises(DataError, match="deflated"):
        read_dicom(FILES / "image_dfl.dcm")
    with pytest.raises(DataError, match="modality is MR"):
        read_dicom(FILES / "MR_small.dcm")
    with pytest.raises(DataError, match="modality is RTDOSE"):
        read_dicom(FILES / "rtdose.dcm")


# -------------------------------------------------------------------------------------------------------------- series


def test_a_real_series_is_sorted_along_the_body() -> None:
    series = read_dicom_series(SERIES)
    assert [path.name for path in series.paths] == ["3353", "3023", "2693", "2392", "2062"]
    np.testing.assert_allclose(series.positions, [-1.2375, 1.2625, 3.7625, 6.2625, 8.7625])
    assert series.sorted_by == "position"
    assert series.images.shape == (5, 1, 16, 16)
    for path, image in zip(series.paths, series.images, strict=True):
        stored = np.frombuffer(pydicom.dcmread(path).PixelData, dtype="<i2").reshape(16, 16)
        np.testing.assert_allclose(image[0].numpy(), np.clip((stored - 24.0) / 2000, 0, 1), atol=1e-6)


def test_sorting_without_positions(tmp_path: Path) -> None:
    for i, source in enumerate(sorted(SERIES.iterdir())):
        changed(tmp_path / f"{i}", having(ImagePositionPatient=None, InstanceNumber=(30, 4, 100, 2, 7)[i]), source)
    series = read_dicom_series(tmp_path)
    assert series.sorted_by == "instance number"
    assert [path.name for path in series.paths] == ["3", "1", "4", "0", "2"]
    assert series.positions == ()
    changed(tmp_path / "0", having(ImageOrientationPatient=[0] * 6), tmp_path / "0")
    assert read_dicom_series(tmp_path).sorted_by == "instance number"
    changed(tmp_path / "2", without("InstanceNumber"), tmp_path / "2")
    series = read_dicom_series(tmp_path)
    assert series.sorted_by == "file name"
    assert [path.name for path in series.paths] == ["0", "1", "2", "3", "4"]


def test_sorting_along_an_oblique_normal(tmp_path: Path) -> None:
    axes = [0.0, 1.0, 0.0, 0.0, 0.0, -1.0]  # sagittal: the normal is -x
    for name, x in (("a", 5.0), ("b", -3.0), ("c", 1.0)):
        changed(tmp_path / name, having(ImageOrientationPatient=axes, ImagePositionPatient=[x, 50 - x, 7.0]))
    series = read_dicom_series(tmp_path)
    assert [path.name for path in series.paths] == ["a", "c", "b"]
    assert series.positions == (-5.0, -1.0, 3.0)


def test_the_window_and_what_it_clips() -> None:
    hounsfield = read_dicom(SMALL).hounsfield
    series = read_dicom_series(SMALL, window=(-160.0, 240.0))
    assert series.images.shape == (1, 1, 128, 128)
    assert series.clipped_below == pytest.approx(float((hounsfield < -160).double().mean()))
    assert series.clipped_above == pytest.approx(float((hounsfield > 240).double().mean()))
    assert series.clipped_below > 0.1
    torch.testing.assert_close(series.images[0], ((hounsfield + 160) / 400).clamp(0, 1))
    values = torch.tensor([-1000.0, -1200.0, 0.0, 500.0, 1500.0])
    assert window_hounsfield(values).tolist() == [0.0, 0.0, 0.5, 0.75, 1.0]
    assert read_dicom_series(SMALL).window == CT_WINDOW == (-1000.0, 1000.0)


@pytest.mark.parametrize("window", [(0.0, 0.0), (10.0, -10.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_windows_are_intervals(window: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="window"):
        read_dicom_series(SMALL, window=window)
    with pytest.raises(ConfigError, match="window"):
        window_hounsfield(torch.zeros(1), window)


@pytest.fixture
def two_series(tmp_path: Path) -> Path:
    for source in (SMALL, *SERIES.iterdir()):
        shutil.copy(source, tmp_path / source.name)
    return tmp_path


def test_several_series_are_not_mixed(two_series: Path) -> None:
    found = find_series(two_series)
    assert sorted(len(files) for files in found.values()) == [1, 5]
    with pytest.raises(DataError, match="2 CT series") as caught:
        read_dicom_series(two_series)
    for uid, files in found.items():
        assert f"{uid} ({len(files)} files)" in str(caught.value)
        assert len(read_dicom_series(two_series, series_uid=uid).images) == len(files)
    assert "series_uid=" in caught.value.hint
    with pytest.raises(DataError, match=r"no CT series 1\.2\.3"):
        read_dicom_series(two_series, series_uid="1.2.3")


def test_other_files_in_a_folder_are_left_out(tmp_path: Path) -> None:
    for source in SERIES.iterdir():
        shutil.copy(source, tmp_path / source.name)
    shutil.copy(FILES / "reportsi.dcm", tmp_path)
    (tmp_path / "README.txt").write_text("not DICOM")
    (tmp_path / "folder").mkdir()
    assert len(read_dicom_series(tmp_path).images) == 5


def test_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        find_series(tmp_path / "absent")
    with pytest.raises(DataError, match="no DICOM files"):
        read_dicom_series(tmp_path)
    shutil.copy(FILES / "MR_small.dcm", tmp_path)
    with pytest.raises(DataError, match="no CT images, but 1 of modality MR"):
        read_dicom_series(tmp_path)
    changed(tmp_path / "a.dcm", without("SeriesInstanceUID"))
    with pytest.raises(DataError, match="SeriesInstanceUID"):
        read_dicom_series(tmp_path)
    with pytest.raises(DataError, match=r"orientation|localizer"):
        read_dicom_series(LOCALIZERS)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (having(PixelSpacing=["0.5", "0.5"]), "PixelSpacing is"),
        (having(Rows=64, Columns=256), r"size is \(64, 256\)"),
        (having(ImageOrientationPatient=[0, 1, 0, 1, 0, 0]), "orientation"),
    ],
)
def test_slices_of_a_series_agree(tmp_path: Path, change: Callable[[Any], None], match: str) -> None:
    shutil.copy(SMALL, tmp_path / "a.dcm")
    changed(tmp_path / "b.dcm", change)
    with pytest.raises(DataError, match=match) as caught:
        read_dicom_series(tmp_path)
    assert caught.value.path is not None
    assert caught.value.path.endswith("b.dcm")


def test_series_as_images_to_train_on(two_series: Path) -> None:
    with pytest.raises(DataError, match="2 CT series"):
        load_ct_images(two_series)
    training, held_out = load_ct_images(SERIES, 8)
    assert list(training) == ["3353", "3023", "2693", "2392"]
    assert list(held_out) == ["2062"]
    whole = read_dicom_series(SERIES).images
    expected = whole.reshape(5, 1, 8, 2, 8, 2).mean(dim=(3, 5))
    torch.testing.assert_close(torch.stack([*training.values(), *held_out.values()]), expected)
