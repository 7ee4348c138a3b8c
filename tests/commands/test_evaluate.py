"""Measuring denoisers."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import learnreg as lr
from learnreg.commands.evaluate import denoise, evaluate
from learnreg.commands.image_outputs import png_bytes
from learnreg.commands.scenes import noisy_scenes
from learnreg.datasets import add_noise, read_image
from learnreg.models import extras
from learnreg.models.extras import require
from learnreg.models.model import Model, load, save_model
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts, Regularizer, RidgeRegularizer, TotalVariation
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


def posed(regularizer: Regularizer) -> lr.LowerLevelProblem:
    """Its problem for images of some size."""
    return lr.LowerLevelProblem(Identity((1, 9, 9)), regularizer)


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


def test_rows_are_the_images_one_by_one(model: Model, images: Path) -> None:
    found = evaluate(model, images, SIGMA, tolerance=TOLERANCE)
    assert [row.name for row in found.rows] == ["a.png", "b.png", "c.png", "colour.jpg"]
    for name in ("psnr", "ssim", "psnr_input"):
        assert getattr(found, name) == pytest.approx(np.mean([getattr(row, name) for row in found.rows]))
    assert found.error_bound == max(row.error_bound for row in found.rows)
    assert found.seconds_per_image == pytest.approx(np.mean([row.seconds for row in found.rows]))


@pytest.mark.parametrize(
    ("stored", "given", "used", "note"),
    [
        ({"sigma": 15 / 255}, None, 15 / 255, ""),
        ({"sigma": 15 / 255}, 15 / 255, 15 / 255, ""),
        ({"sigma": 15 / 255}, 0.1, 0.1, "was learned for 15/255, not for 25.5/255"),
        ({}, None, 25 / 255, "does not say its noise level; 25/255 is used"),
        ({"sigma": [5 / 255, 50 / 255]}, None, 25 / 255, "from 5/255 to 50/255; 25/255 is used"),
        ({"sigma": [5 / 255, 15 / 255]}, None, 15 / 255, "from 5/255 to 15/255; 15/255 is used"),
        ({}, 0.1, 0.1, ""),
    ],
)
def test_the_noise_is_that_of_the_model(
    images: Path, tmp_path: Path, stored: dict[str, Any], given: float | None, used: float, note: str
) -> None:
    save_model(tmp_path / "own.safetensors", TotalVariation(weight=0.05), stored)
    found = evaluate(load(tmp_path / "own.safetensors"), images, given, tolerance=1e-2)
    assert found.sigma == used
    assert len(found.notes) == bool(note)
    assert note in " ".join(found.notes)


def test_a_model_that_adapts_is_told_the_noise_level(images: Path, tmp_path: Path) -> None:
    regularizer = RidgeRegularizer((2,), 3, noise_conditioned=True, generator=torch.Generator().manual_seed(0))
    save_model(tmp_path / "ridge.safetensors", lr.LowerLevelProblem(Identity((1, 9, 9)), regularizer, noise_level=0.1))
    model = load(tmp_path / "ridge.safetensors")
    clean = read_image(images / "a.png")
    for sigma in (None, 0.02):
        level = sigma or 0.1
        noisy = add_noise(clean, level, 0)
        x = denoise(posed(regularizer), level, noisy[None], 1e-6).x[0]
        found = evaluate(model, images, sigma, tolerance=1e-6)
        assert found.rows[0].psnr == pytest.approx(quality(x, clean).psnr, abs=1e-3)
        assert found.notes == ()


def test_a_missing_package_is_found_before_the_work(
    model: Model, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def solve(*_: object, **__: object) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr(Model, "solve", solve)
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(lr.ConfigError, match=r"needs the package scikit-image.*learnreg\[images\]"):
        evaluate(model, images)


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
    with pytest.raises(lr.DataError, match=r"z\.png: its header promises"):
        evaluate(model, images, SIGMA, tolerance=TOLERANCE)


def test_denoise_minimises_the_energy(generator: torch.Generator) -> None:
    noisy = torch.rand(1, 1, 9, 8, generator=generator, dtype=torch.float64)
    regularizer = TotalVariation(weight=0.1, smoothing=0.05)
    x = denoise(posed(regularizer), SIGMA, noisy, tolerance=1e-6).x.requires_grad_()
    energy = lr.LowerLevelProblem(Identity((1, 9, 8)), regularizer).energy(x, noisy).sum()
    assert float(torch.autograd.grad(energy, x)[0].abs().max()) < 1e-4


def test_compare(generator: torch.Generator) -> None:
    images = {name: torch.rand(1, 12, 10, generator=generator) for name in ("one", "two")}
    learned = partial(denoise, posed(TotalVariation(weight=0.05)), SIGMA, tolerance=TOLERANCE)
    tv = partial(denoise, posed(TotalVariation(weight=0.2)), SIGMA, tolerance=TOLERANCE)
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
