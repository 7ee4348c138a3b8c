"""Colour images on the command line: in and out, by models for colour and by those for grey images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.command_line import call, succeed

import learnreg as lr
from learnreg.commands.denoise import scenario, split_images
from learnreg.commands.options import DenoiseConfig
from learnreg.datasets import DenoisingPatches, ImageFolder, natural_images, read_image
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts, MultivariateExperts, TotalVariation


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    """Of colour and of grey images, to denoise at 25/255."""
    torch.manual_seed(0)
    made = {}
    for name, kind in (("colour", {"channels": 3, "coupling": "joint"}), ("grey", {})):
        R = FieldsOfExperts(4, 3, lr.PseudoHuber(0.05, 0.2), **kind)  # type: ignore[arg-type]
        made[name] = tmp_path / f"{name}.safetensors"
        lr.save_model(made[name], R, {"sigma": 25 / 255})
    return made


def picture(path: Path, equal: bool = False) -> np.ndarray[Any, Any]:
    """Saved, and as shares of white, (12, 14, 3)."""
    rows, cols = np.mgrid[:12, :14]
    clean = np.stack([0.2 + 0.6 * (rows > 5), 0.3 + 0.4 * (cols > 6), 0.5 + 0.02 * rows], 2)
    noisy = clean + 25 / 255 * np.random.default_rng(0).normal(size=clean.shape)
    levels = np.clip(255 * noisy, 0, 255).round().astype(np.uint8)
    levels = np.repeat(levels[..., :1], 3, 2) if equal else levels
    Image.fromarray(levels).save(path)
    return levels / 255


def reconstruct(model: Path, source: Path, out: Path) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    found = succeed("reconstruct", model, source, "--out", out)
    row = found["rows"][0] if "rows" in found else found["results"][0]
    return row, np.asarray(Image.open(out / f"{source.stem}.png")) / 255


def minimiser(model: Path, values: torch.Tensor) -> torch.Tensor:
    R = lr.load(model).regularizer.double()
    return lr.solve(lr.LowerLevelProblem(Identity(tuple(values.shape[1:])), R), values, 1e-8).x


@pytest.mark.parametrize("kind", ["colour", "grey"])
def test_colour_in_colour_out(kind: str, models: dict[str, Path], tmp_path: Path) -> None:
    noisy = picture(tmp_path / "a.png")
    row, written = reconstruct(models[kind], tmp_path / "a.png", tmp_path / "out")
    values = torch.from_numpy(noisy).movedim(2, 0)
    exact = minimiser(models[kind], values[None] if kind == "colour" else values[:, None]).view(3, 12, 14)
    error = float((torch.from_numpy(written).movedim(2, 0) - exact).square().mean().sqrt())
    assert error <= row["error_bound"] <= 5e-3
    assert row["certified"]
    assert ("one by one" in " ".join(row["notes"])) == (kind == "grey")


def test_equal_channels_are_a_grey_image(models: dict[str, Path], tmp_path: Path) -> None:
    picture(tmp_path / "a.png", equal=True)
    row, written = reconstruct(models["grey"], tmp_path / "a.png", tmp_path / "out")
    assert written.ndim == 2
    assert "equal" in row["notes"][0]
    refused = call("reconstruct", models["colour"], tmp_path / "a.png", "--out", tmp_path / "out")
    assert refused.exit_code != 0
    assert "it is grey, and the model is for images of 3 channels" in refused.stderr


def test_arrays_of_colours(models: dict[str, Path], tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((3, 9, 8)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    row, _ = reconstruct(models["colour"], tmp_path / "a.npy", tmp_path / "out")
    written = np.load(tmp_path / "out" / "a.npy")
    exact = minimiser(models["colour"], torch.from_numpy(values)[None].double())[0]
    assert written.shape == (3, 9, 8)
    assert float((torch.from_numpy(written) - exact).square().mean().sqrt()) <= row["error_bound"] <= 2e-4


def test_evaluation_is_in_the_colours_of_the_model(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    picture(tmp_path / "images" / "a.png")
    found = {kind: succeed("evaluate", path, "--data", tmp_path / "images") for kind, path in models.items()}
    clean = read_image(tmp_path / "images" / "a.png", colour=True)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)) * 25 / 255
    assert found["colour"]["psnr_input"] == pytest.approx(float(-10 * noise.square().mean().log10()), abs=1e-4)
    assert found["grey"]["psnr_input"] != pytest.approx(found["colour"]["psnr_input"], abs=1e-4)


def test_images_are_read_in_colour(tmp_path: Path) -> None:
    levels = picture(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", colour=True)
    torch.testing.assert_close(image, torch.from_numpy(levels).movedim(2, 0).float())
    assert torch.equal(ImageFolder(tmp_path, colour=True)[0], image)
    Image.fromarray((255 * levels[..., 0]).astype(np.uint8)).save(tmp_path / "grey.png")
    assert torch.equal(
        read_image(tmp_path / "grey.png", colour=True), read_image(tmp_path / "grey.png").expand(3, -1, -1)
    )
    with pytest.raises(lr.DataError, match="some of the images are grey and some coloured"):
        DenoisingPatches([image, image[:1]], 0.1, patch=4)


def test_training_is_in_colour() -> None:
    training, held_out = split_images("natural", 0, colour=True)
    assert all(len(image) == 3 for image in (*training.values(), *held_out.values()))
    assert natural_images("train").keys() > training.keys()
    made = scenario(DenoiseConfig(channels="colour", patch=8, patches=3))
    b, x_true = made.pairs[0]
    assert b.shape == x_true.shape == (3, 8, 8)
    options = DenoiseConfig(channels="colour", coupling="separate", size=3)
    for cls in (FieldsOfExperts, MultivariateExperts, TotalVariation):
        R = cls.from_options(options, torch.Generator().manual_seed(0))
        assert (R.images.channels, R.images.coupling) == (3, "separate")
        assert torch.isfinite(made.problem(R).energy(b[None], b[None])).all()
