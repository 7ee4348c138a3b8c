"""Kinds of PNG, JPEG, BMP and other picture files: depth, opacity, colours, several pictures, sizes. Files are written
byte by byte where Pillow writes no such ones."""

from __future__ import annotations

import io
import itertools
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learnreg.datasets import load_ct_images, load_training_images, read_image
from learnreg.datasets.files import pixels as limits
from learnreg.errors import DataError

Image = pytest.importorskip("PIL.Image")
tifffile = pytest.importorskip("tifffile")

LUMA = np.array([0.299, 0.587, 0.114])
GREY = np.random.default_rng(0).integers(0, 256, (6, 7)).astype("u1")
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 7, 3)).astype("u1")
OPACITY = np.random.default_rng(2).integers(64, 255, (6, 7)).astype("u1")
OPAQUE = np.full_like(OPACITY, 255)
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's colour types
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
TURNED = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # EXIF: the first row is the right side


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def scanlines(samples: np.ndarray, bits: int) -> bytes:
    """Rows under the five filters of PNG in turn."""
    distance, above, lines = max(1, samples.shape[2] * bits // 8), None, b""
    for number, row in enumerate(samples):
        text = "".join(format(int(v), f"0{bits}b") for v in row.ravel())
        line = np.array([int(text[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(text), 8)])
        up = np.zeros_like(line) if above is None else above
        left, corner = (np.concatenate([np.zeros(distance, int), a])[: len(line)] for a in (line, up))
        guess = left + up - corner
        to_left, to_up, to_corner = abs(guess - left), abs(guess - up), abs(guess - corner)
        paeth = np.where((to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, up, corner))
        predicted = [0, left, up, (left + up) // 2, paeth][number % 5]
        lines += bytes([number % 5]) + ((line - predicted) % 256).astype("u1").tobytes()
        above = line
    return lines


def png(path: Path, samples: np.ndarray, bits: int, kind: int, before: bytes = b"", interlaced: bool = False) -> Path:
    samples = samples.reshape(*samples.shape[:2], -1)
    parts = [samples[y::dy, x::dx] for x, y, dx, dy in ADAM7] if interlaced else [samples]
    data = b"".join(scanlines(part, bits) for part in parts if part.size)
    head = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, kind, 0, 0, interlaced)
    body = chunk(b"IHDR", head) + before + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def found(path: Path) -> np.ndarray[Any, Any]:
    return read_image(path)[0].numpy()


# --------------------------------------------------------------------------------------------------------------- depth


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("bits", "kind"), [(1, 0), (2, 0), (4, 0), (16, 0), (8, 2), (16, 2), (16, 4), (8, 6), (16, 6)])
def test_png_keeps_all_its_bits(tmp_path: Path, bits: int, kind: int, interlaced: bool) -> None:
    samples = np.random.default_rng(0).integers(0, 2**bits, (9, 11, CHANNELS[kind]))
    if kind in {4, 6}:
        samples[..., -1] = 2**bits - 1
    shares = samples / (2**bits - 1)
    expected = shares[..., :3] @ LUMA if kind in {2, 6} else shares[..., 0]
    path = png(tmp_path / "a.png", samples, bits, kind, interlaced=interlaced)
    np.testing.assert_allclose(found(path), expected, atol=1e-7)


def test_deep_colour_is_turned(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", COLOUR.astype(int) * 257, 16, 2, chunk(b"eXIf", TURNED))
    np.testing.assert_allclose(found(path), np.rot90(COLOUR / 255 @ LUMA, -1), atol=1e-7)


@pytest.mark.parametrize(
    "note", [chunk(b"gAMA", struct.pack(">I", 100000)), chunk(b"sBIT", b"\x05"), chunk(b"cICP", bytes([9, 16, 0, 1]))]
)
def test_values_are_those_of_the_file(tmp_path: Path, note: bytes) -> None:
    np.testing.assert_allclose(found(png(tmp_path / "a.png", GREY, 8, 0, note)), GREY / 255, atol=1e-7)


def bmp(path: Path, bits: int, rows: np.ndarray, palette: bytes = b"", masks: tuple[int, ...] = ()) -> Path:
    """Rows of bytes from the top; Windows stores them from below."""
    data = b"".join(row.tobytes().ljust(-(-row.nbytes // 4) * 4, b"\0") for row in rows[::-1])
    size = 108 if masks else 40
    head = struct.pack("<IiiHHIIiiII", size, 7, 6, 1, bits, 3 if masks else 0, len(data), 0, 0, len(palette) // 4, 0)
    head += struct.pack("<IIII", *masks).ljust(68, b"\0") if masks else b""
    start = 14 + len(head) + len(palette)
    path.write_bytes(b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + head + palette + data)
    return path


BGR, BGRA_MASKS = COLOUR[..., ::-1], (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
INVERSE = bytes(itertools.chain.from_iterable((255 - i, 255 - i, 255 - i, 0) for i in range(256)))


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda path: bmp(path, 32, np.dstack([BGR, OPACITY])), COLOUR / 255 @ LUMA),  # the fourth byte means nothing
        (lambda path: bmp(path, 32, np.dstack([BGR, OPAQUE]), masks=BGRA_MASKS), COLOUR / 255 @ LUMA),
        (lambda path: bmp(path, 8, GREY, INVERSE), 1 - GREY / 255),
        (lambda path: bmp(path, 1, np.packbits(GREY % 2, axis=1), b"\xff\xff\xff\0\0\0\0\0"), 1.0 - GREY % 2),
    ],
)
def test_bmp(tmp_path: Path, write: Callable[[Path], Path], expected: np.ndarray) -> None:
    np.testing.assert_allclose(found(write(tmp_path / "a.bmp")), expected, atol=1e-7)


# ------------------------------------------------------------------------------------------------------------- opacity


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda path: png(path, np.dstack([COLOUR, OPACITY]), 8, 6), COLOUR / 255 @ LUMA),
        (lambda path: png(path, np.dstack([GREY, OPACITY]), 8, 4), GREY / 255),
        (lambda path: png(path, 257 * np.dstack([GREY, OPACITY]).astype(int), 16, 4), GREY / 255),
        (lambda path: png(path, 257 * np.dstack([COLOUR, OPACITY]).astype(int), 16, 6), COLOUR / 255 @ LUMA),
        (lambda path: png(path, GREY, 8, 0, chunk(b"tRNS", struct.pack(">H", GREY[0, 0]))), GREY / 255),
        (lambda path: png(path, COLOUR, 8, 2, chunk(b"tRNS", struct.pack(">HHH", *COLOUR[0, 0]))), COLOUR / 255 @ LUMA),
        (
            lambda path: png(path, 257 * COLOUR.astype(int), 16, 2, chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))),
            COLOUR / 255 @ LUMA,
        ),
        (
            lambda path: png(path, GREY % 2, 8, 3, chunk(b"PLTE", b"\0\0\0\xff\xff\xff") + chunk(b"tRNS", b"\x80")),
            GREY % 2,
        ),
        (lambda path: bmp(path, 32, np.dstack([BGR, OPACITY]), masks=BGRA_MASKS), COLOUR / 255 @ LUMA),
    ],
)
def test_transparency_is_left_out_with_a_warning(
    tmp_path: Path, write: Callable[[Path], Path], expected: np.ndarray
) -> None:
    path = write(tmp_path / "a.png")
    with pytest.warns(UserWarning, match="transparent; their colours are taken as they are stored"):
        pixels = found(path)
    np.testing.assert_allclose(pixels, expected, atol=1e-7)


def stored_as(values: np.ndarray, dtype: str) -> np.ndarray:
    return {"u1": values, "u2": values.astype("u2") * 257, "f4": (values / 255).astype("f4")}[dtype]


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("colour", [COLOUR, GREY[..., None]])
@pytest.mark.parametrize("kind", ["assocalpha", "unassalpha", "unspecified"])
def test_the_fourth_channel_of_tiff(tmp_path: Path, kind: str, colour: np.ndarray, planes: str, dtype: str) -> None:
    photometric = "rgb" if colour is COLOUR else "minisblack"

    def write(opacity: np.ndarray) -> Path:
        values = stored_as(np.dstack([colour, opacity]), dtype)
        values = values if planes == "contig" else np.moveaxis(values, -1, 0).copy()
        tifffile.imwrite(tmp_path / "a.tif", values, photometric=photometric, planarconfig=planes, extrasamples=[kind])
        return tmp_path / "a.tif"

    expected = colour / 255 @ LUMA if colour is COLOUR else GREY / 255
    np.testing.assert_allclose(found(write(OPAQUE)), expected, atol=1e-6)
    if kind == "unassalpha":
        with pytest.warns(UserWarning, match="transparent"):
            np.testing.assert_allclose(found(write(OPACITY)), expected, atol=1e-6)
        return
    reason = "multiplied by their opacity" if kind == "assocalpha" else "do not say what it is"
    with pytest.raises(DataError, match=reason) as caught:
        found(write(OPACITY))
    assert caught.value.hint


# ------------------------------------------------------------------------------------------------------------- colours


def cmyk(path: Path) -> None:
    Image.fromarray(np.dstack([COLOUR, GREY]), "CMYK").save(path.with_suffix(".jpg"))


def tiff(path: Path, values: np.ndarray, **options: Any) -> None:
    tifffile.imwrite(path.with_suffix(".tif"), values, **options)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (cmyk, "CMYK"),
        (lambda path: tiff(path, np.dstack([COLOUR, GREY]), photometric="separated"), "inks"),
        (lambda path: tiff(path, np.dstack([COLOUR, GREY]).astype("u2"), photometric="separated"), "inks"),
        (lambda path: tiff(path, COLOUR, photometric="cielab"), "CIE L"),
        (lambda path: tiff(path, COLOUR.astype("u2"), photometric="icclab"), "ICC L"),
        (lambda path: tiff(path, GREY, photometric="mask"), "a mask"),
        (lambda path: tiff(path, np.dstack([COLOUR, GREY, GREY]), photometric="rgb"), "5 channels"),
    ],
)
def test_colours_without_a_grey_value_are_refused(tmp_path: Path, write: Callable[[Path], None], reason: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Pillow: a mode as argument
        write(tmp_path / "a")
    (path,) = tmp_path.iterdir()
    with pytest.raises(DataError, match=reason) as caught:
        read_image(path)
    assert caught.value.hint


# ---------------------------------------------------------------------------------- several pictures, and other formats


def several(path: Path, name: str, colour: bool = False, **options: Any) -> Path:
    first, second = (Image.fromarray(a) for a in ((COLOUR, 255 - COLOUR) if colour else (GREY, 255 - GREY)))
    first.save(path, format=name, save_all=True, append_images=[second], **options)
    return path


@pytest.mark.parametrize(
    ("name", "format_", "options"),
    [
        ("a.png", "PNG", {}),
        ("a.png", "PNG", {"default_image": True}),
        ("a.png", "GIF", {}),
        ("a.png", "WEBP", {"lossless": True}),
        ("a.jpg", "MPO", {"colour": True}),
        ("a.png", "TIFF", {}),
    ],
)
def test_several_pictures_are_refused(tmp_path: Path, name: str, format_: str, options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"holds 2 (pictures|pages)") as caught:
        read_image(several(tmp_path / name, format_, **options))
    assert "of its own" in caught.value.hint


@pytest.mark.parametrize("companion", ["thumbnail", "gain map"])
def test_companions_of_a_camera_picture_are_left_out(tmp_path: Path, companion: str) -> None:
    more = {"xmp": b'<x hdrgm:Version="1.0"/>'} if companion == "gain map" else {}
    path = several(tmp_path / "a.jpg", "MPO", colour=True, quality=100, subsampling=0, **more)
    if companion == "thumbnail":
        data = path.read_bytes()
        start = data.index(b"MPF\0") + 4
        little = data[start : start + 2] == b"II"
        entry = struct.pack("<I" if little else ">I", 0x030000)
        second = data.index(entry, start + 10) + 16
        kind = struct.pack("<I" if little else ">I", 0x010001)
        path.write_bytes(data[:second] + kind + data[second + 4 :])
    np.testing.assert_allclose(found(path), COLOUR / 255 @ LUMA, atol=0.03)


@pytest.mark.parametrize(("name", "format_"), [("a.tif", "PNG"), ("a.png", "TIFF"), ("a.png", "GIF"), ("a.jpg", "BMP")])
def test_the_content_decides_not_the_name(tmp_path: Path, name: str, format_: str) -> None:
    Image.fromarray(GREY).save(tmp_path / name, format=format_)
    np.testing.assert_allclose(found(tmp_path / name), GREY / 255, atol=1e-7)
    tifffile.imwrite(tmp_path / "b.tif", stored_as(GREY, "u2"), photometric="miniswhite")
    (tmp_path / "b.tif").rename(tmp_path / "b.png")
    np.testing.assert_allclose(found(tmp_path / "b.png"), 1 - GREY / 255, atol=1e-7)


@pytest.mark.parametrize("format_", ["ICO", "PPM", "TGA"])
def test_other_formats_are_named(tmp_path: Path, format_: str) -> None:
    Image.fromarray(np.tile(COLOUR, (4, 4, 1))).save(tmp_path / "a.png", format=format_)
    with pytest.raises(DataError, match=f"format {format_}"):
        read_image(tmp_path / "a.png")


def test_apple_s_png_is_refused(tmp_path: Path) -> None:
    data = png(tmp_path / "a.png", np.dstack([COLOUR, OPACITY]), 8, 6).read_bytes()
    (tmp_path / "a.png").write_bytes(data[:8] + chunk(b"CgBI", b"\x50\0\x20\x06") + data[8:])
    with pytest.raises(DataError, match="CgBI"):
        read_image(tmp_path / "a.png")


def test_jpeg_of_12_bits_is_refused_with_advice(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.tile(GREY, (4, 4))).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    frame = data.index(b"\xff\xc0")
    data[frame + 1], data[frame + 4] = 0xC1, 12
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(DataError, match="cannot be decoded") as caught:
        read_image(tmp_path / "a.jpg")
    assert "8 bits" in caught.value.hint


# --------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("name", ["a.png", "a.tif", "deep.tif"])
def test_pictures_too_large_are_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "a.png":
        png(tmp_path / name, GREY, 8, 0)
    else:
        tifffile.imwrite(tmp_path / name, COLOUR.astype("u2") if name == "deep.tif" else GREY)
    monkeypatch.setattr(limits, "_MOST_PIXELS", 41)
    with pytest.raises(DataError, match="7 x 6 pixels, at most 41"):
        read_image(tmp_path / name)


def test_a_header_that_claims_too_much(tmp_path: Path) -> None:
    data = png(tmp_path / "a.png", GREY, 8, 0).read_bytes()
    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(data[:8] + chunk(b"IHDR", head) + data[33:])
    with pytest.raises(DataError, match="too many pixels"):
        read_image(tmp_path / "a.png")


def test_blocks_of_rows_are_seamless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = png(tmp_path / "a.png", COLOUR, 8, 2)
    monkeypatch.setattr(limits, "_BLOCK", 50)
    np.testing.assert_allclose(found(path), COLOUR / 255 @ LUMA, atol=1e-7)


@pytest.mark.parametrize("task", ["photographs", "BSDS500", "slices"])
@pytest.mark.parametrize("bad", [1, 3, 12])
def test_every_picture_that_cannot_be_read_is_named(tmp_path: Path, task: str, bad: int) -> None:
    folders = [tmp_path / "data" / "images" / split for split in ("train", "test")] if task == "BSDS500" else [tmp_path]
    names = [f"{i:02}.png" for i in range(14)]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for i, name in enumerate(names):
            Image.fromarray(np.full((16, 16), i, "u1")).save(folder / name)
    for name in names[:bad]:
        (folders[-1] / name).write_bytes(b"\x89PNG and nothing else")
    with pytest.raises(DataError) as caught:
        load_ct_images(tmp_path, 16) if task == "slices" else load_training_images(tmp_path)
    text = str(caught.value)
    assert (f"{bad} of {14 * len(folders)} files" in text) == (bad > 1)
    assert sum(name in text for name in names[:bad]) == min(bad, 10)
    assert not any(name in text for name in names[bad:])
