"""Measuring denoisers, and reconstructing files."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import learnreg as lr
from learnreg.commands.evaluate import denoise, evaluate
from learnreg.commands.reconstruct_images import png_bytes, read_measurement, reconstruct_files
from learnreg.commands.scenes import noisy_scenes
from learnreg.datasets import add_noise, read_image
from learnreg.models import extras
from learnreg.models.extras import require
from learnreg.models.model import Model, load, save_model
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts, TotalVariation
from learnreg.report.comparison import compare, quality

metrics = pytest.importorskip("skimage.metrics")
Image = pytest.importorskip("PIL.Image")

SIGMA = 25 / 255
TOLERANCE = 1e-3


@pytest.fixture
def model(tmp_path: Path) -> Model:
    save_model(tmp_path / "model.safetensors", FieldsOfExperts(filters=4, size=3), {"sigma": SIGMA})
    return load(tmp_path / "model.safetensors")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Smooth images of different sizes; the order of their names is not the order of creation."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, (height, width) in {"b.png": (18, 25), "a.png": (24, 16), "c.png": (17, 17)}.items():
        write_image(folder / name, height, width)
    Image.new("RGB", (20, 21), (200, 30, 90)).save(folder / "colour.jpg")
    return folder


def write_image(path: Path, height: int, width: int) -> Tensor:
    rows, columns = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 2, width), indexing="ij")
    image = (0.5 + 0.4 * torch.sin(rows) * torch.cos(columns))[None]
    path.write_bytes(png_bytes(image))
    return image


# -------------------------------------------------------------------------------------------------------------- quality


def test_quality_is_that_of_its_definition(generator: torch.Generator) -> None:
    clean = torch.rand(1, 20, 30, generator=generator)
    x = clean + 0.1 * torch.randn(clean.shape, generator=generator)
    found = quality(x, clean)
    assert found.psnr == pytest.approx(-10 * np.log10(float((x - clean).double().square().mean())), abs=1e-6)
    expected = metrics.structural_similarity(clean[0].numpy(), x[0].numpy(), data_range=1.0)
    assert found.ssim == pytest.approx(float(expected), abs=1e-4)


def test_equal_images_are_infinitely_good() -> None:
    image = torch.rand(1, 9, 9)
    assert quality(image, image) == quality(image.clone(), image)
    assert quality(image, image).psnr == float("inf")


def test_an_image_too_small_for_ssim() -> None:
    with pytest.raises(lr.DataError, match=r"tiny\.png: the image has 6 x 9 pixels; SSIM needs at least 7 x 7"):
        quality(torch.zeros(1, 6, 9), torch.ones(1, 6, 9), "tiny.png")


# ------------------------------------------------------------------------------------------------------------- evaluate


def test_evaluate_is_the_mean_over_sorted_images(model: Model, images: Path) -> None:
    found = evaluate(model, images, SIGMA, seed=5, tolerance=TOLERANCE)
    inputs, outputs = [], []
    for i, path in enumerate(sorted(images.iterdir())):
        clean = read_image(path)
        noisy = add_noise(clean, SIGMA, 5 + i)
        inputs.append(quality(noisy, clean).psnr)
        outputs.append(quality(model.reconstruct(noisy[None], TOLERANCE)[0], clean))
    assert found.psnr == pytest.approx(np.mean([q.psnr for q in outputs]), abs=1e-3)
    assert found.ssim == pytest.approx(np.mean([q.ssim for q in outputs]), abs=1e-4)
    assert found.psnr_input == pytest.approx(np.mean(inputs), abs=1e-9)
    assert (found.n, found.sigma, found.seed) == (4, SIGMA, 5)
    assert found.certified
    assert found.error_bound <= TOLERANCE
    assert found.psnr > found.psnr_input
    assert found.seconds_per_image > 0


def test_evaluate_refuses(model: Model, images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(lr.DataError, match="does not exist"):
        evaluate(model, tmp_path / "absent", SIGMA)
    with pytest.raises(lr.DataError, match="holds no images"):
        evaluate(model, tmp_path / "empty", SIGMA)
    with pytest.raises(lr.ConfigError, match="25/255"):
        evaluate(model, images, 25.0)
    with pytest.raises(lr.ConfigError, match="tolerance=-1"):
        evaluate(model, images, SIGMA, tolerance=-1.0)
    (images / "z.png").write_bytes((images / "a.png").read_bytes()[:60])
    with pytest.raises(lr.DataError, match=r"z\.png: cannot be decoded"):
        evaluate(model, images, SIGMA, tolerance=TOLERANCE)


def test_denoise_minimises_the_energy(generator: torch.Generator) -> None:
    noisy = torch.rand(1, 1, 9, 8, generator=generator, dtype=torch.float64)
    regularizer = TotalVariation(weight=0.1, smoothing=0.05)
    x = denoise(regularizer, noisy, tolerance=1e-6).x.requires_grad_()
    energy = lr.LowerLevelProblem(Identity((1, 9, 8)), regularizer).energy(x, noisy).sum()
    assert float(torch.autograd.grad(energy, x)[0].abs().max()) < 1e-4


def test_compare(generator: torch.Generator) -> None:
    images = {name: torch.rand(1, 12, 10, generator=generator) for name in ("one", "two")}
    learned = partial(denoise, TotalVariation(weight=0.05), tolerance=TOLERANCE)
    tv = partial(denoise, TotalVariation(weight=0.2), tolerance=TOLERANCE)
    found = compare(learned, tv, noisy_scenes(images.items(), SIGMA, 3), seed=3, tolerance=TOLERANCE)
    assert [image.name for image in found.images] == ["one", "two"]
    second = found.images[1]
    assert torch.equal(second.input, add_noise(images["two"], SIGMA, 4))
    assert torch.equal(second.tv, tv(second.input[None]).x[0])
    assert torch.equal(second.learned, learned(second.input[None]).x[0])
    assert second.certified
    assert second.quality["learned"] == quality(second.learned, images["two"])
    assert found.mean("tv").psnr == pytest.approx(np.mean([image.quality["tv"].psnr for image in found.images]))
    with pytest.raises(lr.DataError, match="no images"):
        compare(learned, tv, [])


def test_a_missing_package_names_its_extra() -> None:
    assert extras.require("math", "counting", "python").floor(1.5) == 1
    with pytest.raises(lr.ConfigError, match=r"drawing needs the package absentee.*learnreg\[images\]"):
        require("absentee.module", "drawing", "absentee")


# ---------------------------------------------------------------------------------------------------------- reconstruct


def test_files_are_reconstructed(model: Model, images: Path, tmp_path: Path) -> None:
    array = add_noise(read_image(images / "a.png"), 0.5, seed=0)
    assert float(array.min()) < 0
    np.save(tmp_path / "array.npy", array[0].double().numpy())
    inputs = [images / "b.png", tmp_path / "array.npy"]
    out = tmp_path / "new" / "out"
    rows = list(reconstruct_files(model, inputs, out, TOLERANCE))
    assert [row.input for row in rows] == [str(path) for path in inputs]
    assert [row.output for row in rows] == [str(out / "b.png"), str(out / "array.png")]
    assert all(row.certified and row.error_bound <= TOLERANCE and row.status == "CONVERGED" for row in rows)
    assert sorted(path.name for path in out.iterdir()) == ["array.npy", "array.png", "b.png"]
    exact = np.load(out / "array.npy")
    assert exact.dtype == np.float32
    np.testing.assert_array_equal(exact, model.reconstruct(array[None], TOLERANCE)[0, 0].numpy())
    np.testing.assert_allclose(read_image(out / "array.png")[0].numpy(), exact.clip(0, 1), atol=0.51 / 255)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((9, 9), np.nan), "81 values are NaN"),
        (np.full((9, 9), 1e300), "81 values are NaN or infinite"),
        (np.zeros((9, 9), dtype=np.uint8), "its type is uint8"),
        (np.array([[{}]], dtype=object), "cannot be read as \\.npy"),
        (np.zeros((3, 9, 9)), r"its shape is \(3, 9, 9\), expected \(height, width\)"),
        (np.zeros((0, 9)), "its shape is"),
    ],
)
def test_bad_arrays(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "array.npy", array)
    with pytest.raises(lr.DataError, match=message):
        read_measurement(tmp_path / "array.npy")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"something else", b"PK\x05\x06" + b"\x00" * 18])
def test_damaged_arrays(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "array.npy").write_bytes(content)
    with pytest.raises(lr.DataError, match=r"array\.npy"):
        read_measurement(tmp_path / "array.npy")


def test_reconstruct_refuses_before_it_starts(model: Model, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    other = tmp_path / "a.png"
    write_image(other, 9, 9)
    (tmp_path / "file").touch()
    for inputs, folder, error, message in (
        ([images / "a.png", other], out, lr.ConfigError, "would both be written"),
        ([images / "a.png"], images, lr.ConfigError, "would replace an input"),
        ([images / "a.png"], tmp_path / "file", lr.ConfigError, "this is a file"),
        ([images / "a.png", tmp_path / "absent.png"], out, lr.DataError, "does not exist"),
        ([tmp_path / "absent.npy"], out, lr.DataError, "does not exist"),
    ):
        with pytest.raises(error, match=message):
            reconstruct_files(model, inputs, folder, TOLERANCE)
        assert not out.exists()
    with pytest.raises(lr.ConfigError, match="tolerance"):
        reconstruct_files(model, [images / "a.png"], out, 0.0)


def test_an_output_that_cannot_be_written(model: Model, images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(lr.DataError, match="cannot be written"):
        list(reconstruct_files(model, [images / "c.png"], tmp_path / "file" / "out", TOLERANCE))
