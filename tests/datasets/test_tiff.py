"""Tags of image files: what stands for white, bits, signs, orientation, several images, smaller copies."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import learnreg as lr
from learnreg.datasets import read_image, read_sinogram

tifffile = pytest.importorskip("tifffile")
Image = pytest.importorskip("PIL.Image")

GREY = np.array([[0, 255, 17], [128, 64, 200]], "u1")


def pixels(path: Path) -> np.ndarray[Any, Any]:
    return read_image(path)[0].numpy()


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("photometric", ["miniswhite", "minisblack"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_white_may_be_zero(
    tmp_path: Path, byteorder: str, dtype: str, photometric: str, compression: str | None
) -> None:
    largest = np.iinfo(dtype).max
    stored = GREY.astype(dtype) * (largest // 255)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stored, photometric=photometric, byteorder=byteorder, compression=compression)
    expected = stored / largest if photometric == "minisblack" else 1 - stored / largest
    np.testing.assert_allclose(pixels(path), expected, atol=1e-7)


def packed(path: Path, bits: int, values: list[list[int]], photometric: int, order: int = 1) -> None:
    """A TIFF file whose samples take ``bits`` each, rows padded to bytes, their bits reversed in FillOrder 2."""
    rows = ["".join(format(v, f"0{bits}b") for v in row) for row in values]
    data = b"".join(int(row.ljust(-(-len(row) // 8) * 8, "0"), 2).to_bytes(-(-len(row) // 8), "big") for row in rows)
    if order == 2:
        data = bytes(int(format(byte, "08b")[::-1], 2) for byte in data)
    shorts = {256: len(values[0]), 257: len(values), 258: bits, 259: 1, 262: photometric, 277: 1, 278: len(values)}
    shorts[266] = order
    longs = {273: 8 + 2 + 12 * 10 + 4, 279: len(data)}
    entries = {
        **{tag: struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in shorts.items()},
        **{tag: struct.pack("<HHII", tag, 4, 1, value) for tag, value in longs.items()},
    }
    directory = struct.pack("<H", 10) + b"".join(entries[tag] for tag in sorted(entries)) + struct.pack("<I", 0)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + directory + data)


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12])
def test_white_is_the_largest_value_of_the_bits(tmp_path: Path, bits: int, photometric: int) -> None:
    largest = 2**bits - 1
    values = [[0, largest, largest // 2], [largest, 0, largest // 3]]
    packed(tmp_path / "a.tif", bits, values, photometric)
    if (bits, photometric) == (12, 0) and importlib.util.find_spec("imagecodecs") is None:
        with pytest.raises(lr.DataError, match="pip install imagecodecs"):
            read_image(tmp_path / "a.tif")
        return
    found = pixels(tmp_path / "a.tif")
    expected = np.array(values) / largest
    np.testing.assert_allclose(found, expected if photometric else 1 - expected, atol=3e-3)


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_bits_may_be_stored_in_reverse(tmp_path: Path, bits: int, photometric: int) -> None:
    largest = 2**bits - 1
    values = [[0, largest, largest // 2], [largest, 0, largest // 3]]
    packed(tmp_path / "a.tif", bits, values, photometric, order=2)
    expected = np.array(values) / largest
    np.testing.assert_allclose(pixels(tmp_path / "a.tif"), expected if photometric else 1 - expected, atol=3e-3)


@pytest.mark.parametrize("dtype", ["u4", "u8", "f2"])
def test_other_depths(tmp_path: Path, dtype: str) -> None:
    stored = (GREY / 255).astype(dtype) if dtype == "f2" else GREY.astype(dtype) * (np.iinfo(dtype).max // 255)
    tifffile.imwrite(tmp_path / "a.tif", stored)
    np.testing.assert_allclose(pixels(tmp_path / "a.tif"), GREY / 255, atol=1e-3 if dtype == "f2" else 1e-6)


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4"])
def test_signed_integers_are_refused(tmp_path: Path, dtype: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.array([[-1, -128], [0, 127]], dtype))
    with pytest.raises(lr.DataError, match="white is not defined"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "deep.tif", "float.tif"])
def test_pictures_are_turned_as_their_orientation_says(tmp_path: Path, kind: str, orientation: int) -> None:
    picture = np.zeros((16, 24), "u1")
    picture[:4], picture[:, :8] = 255, 128
    path = tmp_path / f"a.{kind}"
    if "." not in kind:
        exif = Image.Exif()
        exif[274] = orientation
        options = {"quality": 100} if kind == "jpg" else {}
        Image.fromarray(picture).save(path, exif=exif, **options)
    else:
        stored = np.dstack([picture.astype("u2") * 257] * 3) if kind == "deep.tif" else (picture / 255).astype("f8")
        photometric = "rgb" if kind == "deep.tif" else "minisblack"
        tifffile.imwrite(path, stored, photometric=photometric, extratags=[(274, 3, 1, orientation, True)])
    expected = {
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.T,
        6: np.rot90(picture, -1),
        7: picture[::-1, ::-1].T,
        8: np.rot90(picture),
    }[orientation]
    np.testing.assert_allclose(pixels(path), expected / 255, atol=0.03 if kind == "jpg" else 1e-6)


@pytest.mark.parametrize("writer", ["imagej", "shaped"])
@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_several_images_behind_one_directory_are_refused(tmp_path: Path, writer: str, dtype: str) -> None:
    stack = (np.arange(3 * 20 * 30).reshape(3, 20, 30) / 1800).astype(dtype)
    options = {"imagej": True, "metadata": {"axes": "ZYX"}} if writer == "imagej" else {"photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "a.tif", stack, truncate=True, **options)
    for read in (read_image, read_sinogram):
        with pytest.raises(lr.DataError, match="3 images"):
            read(tmp_path / "a.tif")


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_smaller_copies_are_left_out(tmp_path: Path, dtype: str) -> None:
    picture = np.linspace(0, 1, 16 * 24).reshape(16, 24)
    stored = picture.astype("f4") if dtype == "f4" else (picture * np.iinfo(dtype).max).astype(dtype)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(stored, photometric="minisblack")
        writer.write(stored[::2, ::2], photometric="minisblack", subfiletype=1)
    assert pixels(tmp_path / "a.tif").shape == (16, 24)
    np.testing.assert_allclose(pixels(tmp_path / "a.tif"), picture, atol=5e-3)
    with tifffile.TiffWriter(tmp_path / "b.tif") as writer:
        writer.write(stored, photometric="minisblack")
        writer.write(stored, photometric="minisblack")
    with pytest.raises(lr.DataError, match="2 pages"):
        read_image(tmp_path / "b.tif")


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_a_preview_may_come_first(tmp_path: Path, dtype: str) -> None:
    picture = np.linspace(0, 1, 16 * 24).reshape(16, 24)
    stored = picture.astype("f4") if dtype == "f4" else (picture * np.iinfo(dtype).max).astype(dtype)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(stored[::2, ::2].copy(), photometric="minisblack", subfiletype=1)
        writer.write(stored, photometric="minisblack")
    np.testing.assert_allclose(pixels(tmp_path / "a.tif"), picture, atol=5e-3)
    with tifffile.TiffWriter(tmp_path / "b.tif") as writer:
        writer.write(stored[::2, ::2].copy(), photometric="minisblack", subfiletype=1, subifds=1)
        writer.write(stored, photometric="minisblack")
    with pytest.raises(lr.DataError, match="smaller copies") as caught:
        read_image(tmp_path / "b.tif")
    assert "sub-directory" in caught.value.hint


@pytest.mark.filterwarnings("ignore:.*circular")
@pytest.mark.parametrize("pages", [1, 2])
@pytest.mark.parametrize("colour", [False, True])
def test_a_ring_of_directories_ends(tmp_path: Path, pages: int, colour: bool) -> None:
    stored = np.dstack([GREY.astype("u2")] * 3) if colour else GREY.astype("u2")
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for _ in range(pages):
            writer.write(stored, metadata=None, photometric="rgb" if colour else "minisblack")
    with tifffile.TiffFile(path) as tiff:
        places = [page.offset for page in tiff.pages]
    data = bytearray(path.read_bytes())
    end = places[-1] + 2 + 12 * struct.unpack_from("<H", data, places[-1])[0]
    struct.pack_into("<I", data, end, places[0])
    path.write_bytes(data)
    if pages == 1:
        np.testing.assert_allclose(pixels(path), GREY / 65535, atol=1e-7)
    else:
        with pytest.raises(lr.DataError, match="2 pages"):
            read_image(path)
    if not colour:
        np.testing.assert_array_equal(read_sinogram(path)[:, 0].numpy(), np.stack([GREY] * pages))


def test_sinograms_honour_tags(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY, extratags=[(274, 3, 1, 6, True)])
    np.testing.assert_array_equal(read_sinogram(tmp_path / "a.tif")[0, 0].numpy(), np.rot90(GREY, -1))
    tifffile.imwrite(tmp_path / "b.tif", GREY, photometric="miniswhite")  # how counts are shown, not what they are
    np.testing.assert_array_equal(read_sinogram(tmp_path / "b.tif")[0, 0].numpy(), GREY)
    tifffile.imwrite(tmp_path / "c.tif", GREY, photometric="palette", colormap=np.zeros((3, 256), "u2"))
    with pytest.raises(lr.DataError, match="PALETTE"):
        read_sinogram(tmp_path / "c.tif")


@pytest.mark.parametrize("read", [read_image, read_sinogram])
def test_calibrated_values_of_imagej_are_refused(tmp_path: Path, read: Callable[[Path], object]) -> None:
    """That is how ImageJ stores signed 16 bits: unsigned, and c0=-32768."""
    signed = "ImageJ=1.53\nimages=1\ncf=0\nc0=-32768.0\nc1=1.0\nvunit=Gray Value\n"
    tifffile.imwrite(tmp_path / "a.tif", GREY.astype("u2"), description=signed, metadata=None)
    with pytest.raises(lr.DataError, match="calibration") as caught:
        read(tmp_path / "a.tif")
    assert "32 bits" in caught.value.hint


@pytest.mark.parametrize(
    ("photometric", "tag", "match"),
    [
        ("ycbcr", (529, 5, 3, (2126, 10000, 7152, 10000, 722, 10000), True), "weights"),
        ("ycbcr", (532, 5, 6, (16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1), True), "limits"),
        ("ycbcr", (529, 5, 3, (299, 1000, 587, 1000, 114, 1000), True), None),
        ("palette", 1, "palette have 8 bits"),
        ("palette", 257, None),
    ],
)
def test_colours_that_decoders_take_for_others(tmp_path: Path, photometric: str, tag: Any, match: str | None) -> None:
    path = tmp_path / "a.tif"
    if photometric == "palette":
        ramp = np.arange(256, dtype="u2") * tag
        tifffile.imwrite(path, GREY, photometric="palette", colormap=np.stack([ramp] * 3))
    else:
        neutral = np.dstack([GREY, np.full_like(GREY, 128), np.full_like(GREY, 128)])
        tifffile.imwrite(path, neutral, photometric="ycbcr", subsampling=(1, 1), extratags=[tag])
    if match is None:
        np.testing.assert_allclose(pixels(path), GREY / 255, atol=5e-3)
    else:
        with pytest.raises(lr.DataError, match=match):
            read_image(path)
