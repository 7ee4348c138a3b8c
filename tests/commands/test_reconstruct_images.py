"""``learnreg reconstruct`` of images with denoisers: files in, files with the bounds of their own pixels out."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.command_line import call, refuse, succeed

import learnreg as lr
from learnreg.commands.image_inputs import read_measurement
from learnreg.commands.image_outputs import Reconstructed, png_bytes
from learnreg.commands.reconstruct_images import Denoiser
from learnreg.datasets import read_image
from learnreg.models.model import Model, load, save_model
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts, RidgeRegularizer

Image = pytest.importorskip("PIL.Image")
tifffile = pytest.importorskip("tifffile")

SIGMA = 25 / 255
TOLERANCE = 1e-4
Array = np.ndarray[Any, Any]
Write = Callable[[Path, Array], None]


def noisy(height: int = 22, width: int = 19, sigma: float = SIGMA, seed: int = 0) -> Array:
    """A smooth image with noise that leaves [0, 1], float64."""
    rows, columns = np.meshgrid(np.linspace(0, 3, height), np.linspace(0, 2, width), indexing="ij")
    clean = 0.5 + 0.45 * np.sin(2 * rows) * np.cos(2 * columns)
    return clean + sigma * np.random.default_rng(seed).normal(size=clean.shape)


def levels(image: Array, bits: int) -> Array:
    return (image.clip(0, 1) * (2**bits - 1)).round().astype(np.uint8 if bits == 8 else np.uint16)


def pillow(bits: int) -> Write:
    return lambda path, image: Image.fromarray(levels(image, bits)).save(path)


def tiff(kind: Callable[[Array], Array]) -> Write:
    return lambda path, image: tifffile.imwrite(path, kind(image))


def array(dtype: str, scale: float = 1.0, offset: float = 0.0) -> Write:
    return lambda path, image: np.save(path, (scale * image + offset).astype(dtype))


KINDS: dict[str, tuple[str, Write, int | None]] = {
    "png8": (".png", pillow(8), 8),
    "png16": (".png", pillow(16), 16),
    "jpg": (".jpg", pillow(8), 8),
    "bmp": (".bmp", pillow(8), 8),
    "colour": (".png", lambda path, image: Image.fromarray(np.stack([levels(image, 8)] * 3, 2)).save(path), 8),
    "tif8": (".tif", tiff(lambda image: levels(image, 8)), 8),
    "tif16": (".tiff", tiff(lambda image: levels(image, 16)), 16),
    "tif16 colour": (".tif", tiff(lambda image: np.stack([levels(image, 16)] * 3, 2)), 16),
    "tif float32": (".tif", tiff(lambda image: image.astype(np.float32)), None),
    "tif float64": (".tif", tiff(lambda image: image), None),
    "npy float16": (".npy", array("f2"), None),
    "npy float32": (".npy", array("f4"), None),
    "npy float64": (".npy", array("f8"), None),
    "npy big endian": (".npy", array(">f8"), None),
    "npy in 0..255": (".npy", array("f4", 255.0), None),
    "npy in Hounsfield units": (".npy", array("f8", 2000.0, -1000.0), None),
    "npy with an offset": (".npy", array("f8", 1.0, 1e4), None),
}


@pytest.fixture
def model(tmp_path: Path) -> Model:
    regularizer = FieldsOfExperts(4, 3, lr.PseudoHuber(1e-2, 0.3), generator=torch.Generator().manual_seed(0))
    save_model(tmp_path / "model.safetensors", regularizer, {"sigma": SIGMA})
    return load(tmp_path / "model.safetensors")


@pytest.fixture
def adapting(tmp_path: Path) -> Path:
    """The file of a model that knows all noise levels."""
    regularizer = RidgeRegularizer((2,), 3, noise_conditioned=True, generator=torch.Generator().manual_seed(0))
    problem = lr.LowerLevelProblem(Identity((1, 9, 9)), regularizer, noise_level=SIGMA)
    save_model(tmp_path / "adapting.safetensors", problem)
    return tmp_path / "adapting.safetensors"


def reconstructed(model: Model, path: Path, out: Path, tolerance: float | None = TOLERANCE) -> Reconstructed:
    (known,), rows = Denoiser(model, tolerance).run([path], out)
    (row,) = rows
    assert (known.notes, known.warnings) == (row.notes, row.warnings)
    return row


def exact_input(path: Path) -> torch.Tensor:
    """The numbers in the file, in float64, by the readers of others."""
    if path.suffix == ".npy":
        image = np.load(path)
    elif path.suffix in (".tif", ".tiff"):
        image = tifffile.imread(path)
    else:
        image = np.asarray(Image.open(path))
    if image.dtype.kind == "u":
        image = image / np.iinfo(image.dtype).max
    if image.ndim == 3:
        image = image @ np.array([0.299, 0.587, 0.114])
    return torch.from_numpy(image.astype(np.float64))[None, None]


def read_back(path: str) -> Array:
    if path.endswith(".npy"):
        return np.load(path).astype(np.float64)
    pixels = np.asarray(Image.open(path))
    return pixels / (255.0 if pixels.dtype == np.uint8 else 65535.0)


# ------------------------------------------------------------------------------------------------ the bound of the file


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_that_of_the_file(model: Model, tmp_path: Path, kind: str) -> None:
    suffix, write, bits = KINDS[kind]
    path = tmp_path / f"input{suffix}"
    write(path, noisy())
    row = reconstructed(model, path, tmp_path / "out")
    exact = lr.solve(model.problem((1, 22, 19)), exact_input(path), tolerance=1e-9).x[0, 0].numpy()
    assert row.certified
    assert row.files[0].path == row.output
    assert row.files[0].error_bound == row.error_bound
    arrays = suffix in (".npy", ".tif", ".tiff")
    assert [Path(file.path).name for file in row.files] == (["input.npy"] if arrays else []) + ["input.png"]
    for file in row.files:
        error = float(np.sqrt(np.mean((read_back(file.path) - exact) ** 2)))
        assert error <= file.error_bound * (1 + 1e-9) + 2e-9, file
        assert file.error_bound <= 1.01 * error + 3 * TOLERANCE, file  # and not much larger
    if bits == 16:
        assert np.asarray(Image.open(row.files[-1].path)).dtype in (np.uint16, np.int32)
        assert row.error_bound <= TOLERANCE + 1e-5
    if bits is None:
        assert np.load(row.output).dtype == np.float32


def test_rounding_of_the_input_counts(model: Model, tmp_path: Path) -> None:
    """Numbers of float64 around 1e4 lose 3e-4 of them when they become float32: more than the tolerance."""
    np.save(tmp_path / "far.npy", noisy() + 1e4)
    np.save(tmp_path / "single.npy", (noisy() + 1e4).astype(np.float32))
    far, single = (reconstructed(model, tmp_path / n, tmp_path / "out") for n in ("far.npy", "single.npy"))
    assert far.error_bound > single.error_bound + 1e-4


@pytest.mark.parametrize(
    ("kind", "expected"), [("png8", 1e-3), ("jpg", 1e-3), ("tif8", 1e-3), ("png16", 1e-4), ("npy float32", 1e-4)]
)
def test_the_default_tolerance_follows_the_output(model: Model, tmp_path: Path, kind: str, expected: float) -> None:
    suffix, write, _ = KINDS[kind]
    write(tmp_path / f"input{suffix}", noisy())
    assert reconstructed(model, tmp_path / f"input{suffix}", tmp_path / "out", None).tolerance == expected


# ---------------------------------------------------------------------------------------------------------------- files


def test_files_are_reconstructed(model: Model, tmp_path: Path) -> None:
    image = noisy(12, 10).astype(np.float32)
    np.save(tmp_path / "array.npy", image)
    KINDS["png8"][1](tmp_path / "b.png", noisy(9, 11))
    out = tmp_path / "new" / "out"
    inputs = [tmp_path / "b.png", tmp_path / "array.npy"]
    known, rows = Denoiser(model, TOLERANCE).run(inputs, out)
    first = next(rows)
    assert (len(known), first.output) == (2, str(out / "b.png"))
    assert [path.name for path in out.iterdir()] == ["b.png"]  # written before the next one is begun
    (second,) = rows
    assert [first.input, second.input] == [str(path) for path in inputs]
    assert second.output == str(out / "array.npy")
    assert sorted(path.name for path in out.iterdir()) == ["array.npy", "array.png", "b.png"]
    x = model.reconstruct(torch.from_numpy(image)[None, None], TOLERANCE)[0, 0].numpy()
    np.testing.assert_array_equal(np.load(out / "array.npy"), x)
    np.testing.assert_allclose(read_image(out / "array.png")[0].numpy(), x.clip(0, 1), atol=0.51 / 255)


def test_folders_are_taken_in_the_order_of_names(model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    for name in ("c.png", "a.png", "below/d.png", ".hidden.png"):
        KINDS["png8"][1](folder / name, noisy(9, 9))
    np.save(folder / "b.npy", noisy(9, 9))
    (folder / "notes.txt").write_text("no image")
    known, rows = Denoiser(model, 1e-2).run([folder], tmp_path / "out")
    assert len(known) == 3
    assert [Path(row.input).name for row in rows] == ["a.png", "b.npy", "c.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(lr.DataError, match=r"holds no input.*npy.*sub-folders are not searched"):
        Denoiser(model).run([tmp_path / "empty"], tmp_path / "out")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((9, 9), np.nan), "81 values are NaN"),
        (np.full((9, 9), 1e300), "81 values are beyond the range of float32"),
        (np.zeros((9, 9), dtype=np.uint8), "its type is uint8"),
        (np.array([[{}]], dtype=object), "cannot be read as .npy"),
        (np.zeros((2, 9, 9)), r"its shape is \(2, 9, 9\), expected \(height, width\)"),
        (np.zeros((0, 9)), "its shape is|cannot be read"),
    ],
)
def test_bad_arrays(tmp_path: Path, values: Array, message: str) -> None:
    np.save(tmp_path / "array.npy", values)
    with pytest.raises(lr.DataError, match=message):
        read_measurement(tmp_path / "array.npy")


CLAIM = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (900000, 900000), }"


@pytest.mark.parametrize(
    "content",
    [b"", b"\x93NUMPY", b"something else", b"PK\x05\x06" + b"\x00" * 18, CLAIM.ljust(127) + b"\n", CLAIM[:40]],
)
def test_damaged_arrays(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "array.npy").write_bytes(content)
    with pytest.raises(lr.DataError, match=r"array\.npy"):
        read_measurement(tmp_path / "array.npy")


@pytest.mark.parametrize(("name", "advice"), [("a.npz", "Save one array"), ("a.dcm", "read_dicom")])
def test_other_kinds_of_files_get_advice(tmp_path: Path, name: str, advice: str) -> None:
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(lr.DataError, match=advice):
        read_measurement(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "a.npy", "a.tif"])
def test_pipes_and_loops_of_links_are_refused(name: str, model: Model, tmp_path: Path) -> None:
    """A pipe can be read once; inputs are read when they are examined, and again for their turn."""
    for folder in ("pipe", "loop"):
        (tmp_path / folder).mkdir()
    os.mkfifo(tmp_path / "pipe" / name)
    (tmp_path / "loop" / name).symlink_to(name)
    for folder, message in (("pipe", "a pipe or a device"), ("loop", "does not exist|cannot be")):
        with pytest.raises(lr.DataError, match=message):
            Denoiser(model, TOLERANCE).run([tmp_path / folder / name], tmp_path / "out")


def test_it_refuses_before_it_starts(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, out, other = tmp_path / "images", tmp_path / "out", tmp_path / "a.png"
    images.mkdir()
    for path in (other, images / "a.png"):
        KINDS["png8"][1](path, noisy(9, 9))
    (tmp_path / "file").touch()
    KINDS["png8"][1](tmp_path / "tiny.png", noisy(1, 9))
    tifffile.imwrite(tmp_path / "pages.tif", np.zeros((3, 9, 9), np.uint8), photometric="minisblack")
    for inputs, folder, error, message in (
        ([images / "a.png", other], out, lr.ConfigError, "would both be written"),
        ([images, other], out, lr.ConfigError, "would both be written"),
        ([images / "a.png"], images, lr.ConfigError, "would replace an input"),
        ([images / "a.png"], tmp_path / "file", lr.ConfigError, "this is a file"),
        ([images / "a.png", tmp_path / "absent.png"], out, lr.DataError, "does not exist"),
        ([tmp_path / "absent.npy"], out, lr.DataError, "does not exist"),
        ([images / "a.png", tmp_path / "tiny.png"], out, lr.ShapeError, r"tiny\.png: image 1x9 is too small"),
        ([tmp_path / "pages.tif"], out, lr.DataError, "Save each"),
    ):
        with pytest.raises(error, match=message):
            Denoiser(model, TOLERANCE).run(inputs, folder)
        assert not out.exists()
    with pytest.raises(lr.ConfigError, match="tolerance"):
        Denoiser(model, 0.0)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(lr.ConfigError, match="pillow"):
        Denoiser(model)


def test_an_output_that_cannot_be_written(model: Model, tmp_path: Path) -> None:
    KINDS["png8"][1](tmp_path / "c.png", noisy(9, 9))
    (tmp_path / "file").touch()
    _, rows = Denoiser(model, 1e-2).run([tmp_path / "c.png"], tmp_path / "file" / "out")
    with pytest.raises(lr.DataError, match="cannot be written"):
        list(rows)


# --------------------------------------------------------------------------------------------------- notes and warnings


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("L", []), ("1", []), ("RGB", ["grey"]), ("P", ["grey"]), ("RGBA", ["grey", "alpha"]),
        ("LA", ["alpha"]), ("I;16", []),
    ],
)  # fmt: skip
def test_it_says_what_is_lost(model: Model, tmp_path: Path, mode: str, expected: list[str]) -> None:
    source = Image.fromarray(np.stack([levels(noisy(), 8)] * 3, 2))
    image = Image.fromarray(levels(noisy(), 16)) if mode == "I;16" else source.convert(mode)
    path = tmp_path / "a.png"
    image.save(path)
    notes = reconstructed(model, path, tmp_path / "out", 1e-2).notes
    assert len(notes) == len(expected)
    assert all(word in note for word, note in zip(expected, notes, strict=True))


def test_float_images_may_leave_the_range(model: Model, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noisy().astype(np.float32))
    row = reconstructed(model, tmp_path / "a.tif", tmp_path / "out")
    assert "taken as they are" in row.notes[0]
    assert row.warnings == ()
    with pytest.raises(lr.DataError, match=r"must lie in \[0, 1\]"):  # clean images, as before
        read_image(tmp_path / "a.tif")


def test_the_noise_level(model: Model, adapting: Path, tmp_path: Path) -> None:
    """``--sigma`` for models that adapt; the rows say the level that was estimated."""
    image = noisy(64, 60, 10 / 255).astype(np.float32)
    np.save(tmp_path / "a.npy", image)
    arguments = ("reconstruct", adapting, tmp_path / "a.npy", "--out", tmp_path / "out", "--tolerance", 1e-5)
    (plain,) = succeed(*arguments)["rows"]
    assert "--sigma auto" in plain["warnings"][0]
    regularizer = load(adapting).regularizer
    for sigma in ("10/255", "auto"):
        (row,) = succeed(*arguments, "--sigma", sigma)["rows"]
        assert row["sigma"] == pytest.approx(10 / 255, rel=1e-9 if sigma == "10/255" else 0.1)
        assert row["warnings"] == []
        found = np.load(row["output"])
        expected = lr.solve(
            lr.LowerLevelProblem(Identity((1, 64, 60)), regularizer.at(10 / 255)), torch.from_numpy(image)[None, None]
        ).x[0, 0].numpy()  # fmt: skip
        size = np.abs(np.load(plain["output"]) - expected).max() if sigma == "auto" else 0.0
        np.testing.assert_allclose(found, expected, atol=3e-4 if sigma == "10/255" else max(3e-3, 0.2 * size))
    assert "estimated as" in row["notes"][0]
    np.save(tmp_path / "flat.npy", np.full((30, 30), 0.5))
    (flat,) = succeed("reconstruct", adapting, tmp_path / "flat.npy", *arguments[3:], "--sigma", "auto")["rows"]
    assert "cannot be estimated" in flat["notes"][0]
    save_model(tmp_path / "plain.safetensors", model.regularizer, {"sigma": SIGMA})
    plain_arguments = (tmp_path / "plain.safetensors", tmp_path / "a.npy", "--out", tmp_path / "out")
    assert "25/255 and does not adapt" in refuse(2, "reconstruct", *plain_arguments, "--sigma", "auto")
    assert "25/255" in refuse(2, *arguments, "--sigma", "25")


LEVELS = {"within": (10.0, 10.0), "below": (2.0, 5.0), "above": (70.0, 50.0)}


@pytest.mark.parametrize(("kind", "channels"), [("within", 3), ("below", 1), ("above", 1)])
def test_a_range_of_noise_levels(kind: str, channels: int, adapting: Path, tmp_path: Path) -> None:
    """Without --sigma, and with auto, the estimate as far as the model knows such levels."""
    sigma, used = (level / 255 for level in LEVELS[kind])
    save_model(tmp_path / "range.safetensors", load(adapting).regularizer, {"sigma": [5 / 255, 50 / 255]})
    image = np.stack([noisy(64, 60, sigma, seed) for seed in range(channels)])
    np.save(tmp_path / "a.npy", image.astype(np.float32))
    arguments = ("reconstruct", tmp_path / "range.safetensors", tmp_path / "a.npy", "--out", tmp_path / "out")
    for option in ((), ("--sigma", "auto")):
        (row,) = succeed(*arguments, *option)["rows"]
        assert row["sigma"] == pytest.approx(used, rel=0.1)
        (note,) = (note for note in row["notes"] if "estimated as" in note)
        assert ("beyond those that the model was learned for" in note) == (kind != "within")
    (row,) = succeed(*arguments, "--sigma", f"{255 * sigma:g}/255")["rows"]
    assert row["sigma"] == pytest.approx(sigma)
    assert any("from 5/255 to 50/255, not for" in warning for warning in row["warnings"]) == (kind != "within")


def test_a_level_that_is_not_known_is_refused(adapting: Path, tmp_path: Path) -> None:
    for config in ({}, {"sigma": [5 / 255, 50 / 255]}):
        save_model(tmp_path / "range.safetensors", load(adapting).regularizer, config)
        np.save(tmp_path / "flat.npy", np.full((30, 30), 0.5))
        arguments = (tmp_path / "range.safetensors", tmp_path / "flat.npy", "--out", tmp_path / "out")
        assert "cannot be estimated. Pass it: --sigma" in refuse(3, "reconstruct", *arguments)
        (row,) = succeed("reconstruct", *arguments, "--sigma", "10/255")["rows"]
        assert row["sigma"] == pytest.approx(10 / 255)


def test_warnings_are_printed(model: Model, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", 255 * noisy())
    arguments = ("reconstruct", tmp_path / "model.safetensors", tmp_path / "a.npy", "--out", tmp_path / "out")
    printed = call(*arguments)
    assert printed.exit_code == 0
    assert f"{tmp_path / 'a.npy'}: warning: its values span" in printed.stderr
    assert "Divide them by 255" in printed.stderr
    assert "of the model's minimiser (rms)  CONVERGED" in printed.stdout
    (row,) = succeed(*arguments)["rows"]
    assert "Divide them by 255" in row["warnings"][0]


def test_png_of_16_bits_is_that_of_pillow() -> None:
    x = torch.rand(1, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    read = np.asarray(Image.open(io.BytesIO(png_bytes(x, 16))))
    np.testing.assert_array_equal(read, (x[0].numpy() * 65535).round())
