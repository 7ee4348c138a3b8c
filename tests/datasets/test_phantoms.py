"""Ellipses, textures and phantoms."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from learnreg.datasets import ellipse_phantom, ellipse_phantoms
from learnreg.datasets.tomography.ellipses import Canvas, Ellipse, Texture
from learnreg.errors import ConfigError

# ---------------------------------------------------------------------------------------------------------- primitives


@pytest.mark.parametrize(
    ("ellipse", "tolerance"),
    [
        (Ellipse(0.1, -0.05, 0.6, 0.3, 0.4), 1e-3),
        (Ellipse(-0.3, 0.2, 0.25, 0.25), 1e-3),
        (Ellipse(0.013, 0.021, 0.05, 0.03, 1.0), 3e-2),
        (Ellipse(0.013, 0.021, 0.3, 0.004, 0.7), 0.15),  # a quarter of a pixel wide
    ],
)
def test_ellipses_have_their_area(ellipse: Ellipse, tolerance: float) -> None:
    canvas = Canvas(128)
    canvas.paint(ellipse, 1.0)
    area = float(canvas.image.sum()) * canvas.pitch**2
    assert area == pytest.approx(math.pi * ellipse.a * ellipse.b, rel=tolerance)


def test_edges_are_antialiased() -> None:
    ellipse = Ellipse(0.07, -0.11, 0.53, 0.31, 0.6)
    canvas = Canvas(64)
    canvas.paint(ellipse, 1.0)
    fine = (np.arange(64 * 16) + 0.5) / (32 * 16) - 1.0
    dx, dy = fine[None, :] - ellipse.x, fine[:, None] - ellipse.y
    cosine, sine = math.cos(ellipse.angle), math.sin(ellipse.angle)
    inside = ((cosine * dx + sine * dy) / ellipse.a) ** 2 + ((cosine * dy - sine * dx) / ellipse.b) ** 2 <= 1
    covered = inside.reshape(64, 16, 64, 16).mean(axis=(1, 3))
    assert np.abs(canvas.image - covered).max() < 0.13
    assert np.abs(canvas.image - covered).mean() < 1e-3


def test_values_shading_and_clipping() -> None:
    canvas = Canvas(101)
    canvas.paint(Ellipse(0.0, 0.0, 0.8, 0.5), 0.5, shading=(0.1, 0.0))
    row = canvas.image[50]
    x = canvas.centres
    inside = np.abs(x) < 0.77
    np.testing.assert_allclose(row[inside], 0.5 * (1 + 0.1 * x[inside] / 0.8), rtol=1e-12)
    canvas.paint(Ellipse(0.0, 0.0, 0.9, 0.9), 0.9, within=Ellipse(0.0, 0.3, 0.2, 0.1))
    assert canvas.image[np.abs(canvas.centres - 0.3).argmin(), 50] == 0.9
    assert canvas.image[50, 50] == row[50]
    canvas.paint(Ellipse(3.0, 0.0, 0.5, 0.5), 1.0)  # outside: nothing to draw
    assert canvas.image.max() == 0.9


def test_soft_edges_are_ramps() -> None:
    canvas = Canvas(200)
    canvas.paint(Ellipse(0.0, 0.0, 0.5, 0.5), 1.0, softness=0.2)
    radius = np.hypot(canvas.x, canvas.y)
    expected = np.clip((0.5 - radius) / (0.2 + canvas.pitch) + 0.5, 0, 1)
    np.testing.assert_allclose(canvas.image, expected, atol=1e-12)


def test_textures_are_averages_over_pixels() -> None:
    generator = np.random.default_rng(0)
    texture = Texture(generator.uniform(-80, 80, (12, 2)), generator.uniform(0, 2 * math.pi, 12))
    coarse, fine = Canvas(16), Canvas(16 * 64)
    expected = texture.sample(fine.centres, fine.centres, fine.pitch).reshape(16, 64, 16, 64).mean(axis=(1, 3))
    sampled = texture.sample(coarse.centres, coarse.centres, coarse.pitch)
    np.testing.assert_allclose(sampled, expected, atol=1e-12)
    waves = zip(texture.frequencies, texture.phases, strict=True)
    x, y = fine.centres[None, :], fine.centres[:, None]
    direct = math.sqrt(2 / 12) * sum(np.cos(f[0] * x + f[1] * y + phase) for f, phase in waves)
    np.testing.assert_allclose(texture.sample(fine.centres, fine.centres, 1e-9), direct, atol=1e-11)


# ------------------------------------------------------------------------------------------------------------ phantoms


@pytest.fixture(scope="module")
def phantoms() -> torch.Tensor:
    return ellipse_phantoms(24, 128)


def test_phantoms_lie_in_the_unit_range_and_disc(phantoms: torch.Tensor) -> None:
    assert phantoms.shape == (24, 1, 128, 128)
    assert phantoms.dtype == torch.float32
    assert float(phantoms.min()) == 0.0
    assert 0.9 < float(phantoms.max()) <= 1.0
    centres = (torch.arange(128) + 0.5) / 64 - 1
    outside = centres[:, None] ** 2 + centres**2 > 1
    assert bool((phantoms[:, 0, outside] == 0).all())
    filled = (phantoms > 0).double().mean((1, 2, 3))
    assert float(filled.min()) > 0.3
    assert float(filled.max()) < 0.6


def test_items_depend_on_seed_and_index_alone(phantoms: torch.Tensor) -> None:
    assert torch.equal(ellipse_phantom(7), phantoms[7])
    assert torch.equal(ellipse_phantoms(3, start=5), phantoms[5:8])
    different = {ellipse_phantom(0, 32, seed, held_out).numpy().tobytes() for seed in (0, 1) for held_out in (0, 1)}
    assert len(different) == 4
    flat = phantoms.flatten(1).double()
    distance = torch.cdist(flat, flat) / 128  # root mean square
    assert float(distance[~torch.eye(24, dtype=torch.bool)].min()) > 0.03


def test_phantoms_are_the_same_in_another_process(phantoms: torch.Tensor) -> None:
    code = "import sys, torch; from learnreg.datasets import ellipse_phantom as e; torch.manual_seed(3); "
    code += "sys.stdout.buffer.write(e(2).numpy().tobytes())"
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
    other = np.frombuffer(done.stdout, dtype=np.float32).reshape(1, 128, 128)
    np.testing.assert_allclose(other, phantoms[2].numpy(), atol=1e-6)


@pytest.mark.parametrize(("index", "pixel", "mean"), [(0, 0.74942, 0.43525), (3, 0.43998, 0.44004)])
def test_phantoms_stay_what_they_are(index: int, pixel: float, mean: float) -> None:
    """Figures are published for a seed: another phantom would need another name."""
    image = ellipse_phantom(index, 64)[0].double()
    assert float(image[20, 32]) == pytest.approx(pixel, abs=1e-5)
    assert float(image[image > 0].mean()) == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_another_size_samples_the_same_object(index: int) -> None:
    fine, coarse = ellipse_phantom(index, 256), ellipse_phantom(index, 64)
    pooled = torch.nn.functional.avg_pool2d(fine, 4)
    assert float((pooled - coarse).double().square().mean().sqrt()) < 0.02
    assert float((pooled.mean() - coarse.mean()).abs()) < 4e-3


def test_regions_have_texture_gradients_and_bright_details(phantoms: torch.Tensor) -> None:
    """In soft tissue, away from edges, the local deviation is a few per cent of the value."""
    blocks = phantoms.double().unfold(2, 6, 6).unfold(3, 6, 6).reshape(-1, 36)
    mean, deviation = blocks.mean(1), blocks.std(1)
    soft = (mean > 0.3) & (mean < 0.55) & (blocks.max(1).values - blocks.min(1).values < 0.15)
    relative = (deviation / mean)[soft]
    assert int(soft.sum()) > 500
    assert 0.02 < float(relative.median()) < 0.06
    assert float((relative < 1e-3).double().mean()) < 0.01  # hardly anything is constant
    assert bool((phantoms.amax((1, 2, 3)) > 0.8).all())


@pytest.mark.parametrize(
    "call", [lambda: ellipse_phantom(-1), lambda: ellipse_phantom(0, 15), lambda: ellipse_phantom(True)]
)
def test_phantoms_reject_options(call: object) -> None:
    with pytest.raises(ConfigError, match="expected an integer >="):
        call()  # type: ignore[operator]


@pytest.mark.parametrize("count", [0, 2.0, True])
def test_phantoms_reject_counts(count: int) -> None:
    with pytest.raises(ConfigError, match="count"):
        ellipse_phantoms(count)
