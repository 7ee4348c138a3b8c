"""Noise levels, seeded noise, and noisy patches of images."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from learnreg.datasets import (
    DenoisingPatches,
    add_noise,
    parse_sigma,
    parse_sigmas,
)
from learnreg.errors import ConfigError, DataError

# --------------------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize(
    ("text", "sigma"), [("25/255", 25 / 255), ("0.1", 0.1), (0.1, 0.1), (" 15 / 255 ", 15 / 255), ("1", 1.0), (1, 1.0)]
)
def test_parse_sigma(text: str | float, sigma: float) -> None:
    assert parse_sigma(text) == sigma


@pytest.mark.parametrize(
    "text", ["25", 25, "0", "-0.1", "-25/255", "300/255", "1/0", "1/2/3", "", "noisy", "nan", "inf", "25/inf", "a/255"]
)
def test_parse_sigma_rejects(text: str | float) -> None:
    with pytest.raises(ConfigError, match="25/255"):
        parse_sigma(text)


def test_ranges_of_noise_levels() -> None:
    assert parse_sigmas("5/255:50/255") == (5 / 255, 50 / 255)
    assert parse_sigmas("0.1") == parse_sigmas(0.1) == 0.1
    for text in ("50/255:5/255", "5:50", "0.1:", ":", "0.1:0.2:0.3"):
        with pytest.raises(ConfigError, match="sigma"):
            parse_sigmas(text)


def test_hint_repeats_the_noise_level_given() -> None:
    with pytest.raises(ConfigError, match="15/255"):
        parse_sigma("15")


def test_noise_is_seeded_and_not_clipped() -> None:
    image = torch.zeros(1, 64, 64)
    noisy = add_noise(image, 0.5, seed=3)
    assert torch.equal(noisy, add_noise(image, 0.5, seed=3))
    assert not torch.equal(noisy, add_noise(image, 0.5, seed=4))
    assert torch.equal(noisy, 0.5 * torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(3)))
    assert abs(float(noisy.std()) - 0.5) < 0.02
    assert float(noisy.min()) < -0.5
    double = add_noise(image.double(), 0.5, seed=3)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double, noisy.double(), rtol=1e-6, atol=1e-7)
    with pytest.raises(ConfigError, match="25/255"):
        add_noise(image, 25, seed=3)


# ------------------------------------------------------------------------------------------------------------- patches


def ramp(height: int, width: int, offset: float = 0.0) -> Tensor:
    """An image in which every pixel has another value, so that a patch tells where it came from."""
    return offset + torch.arange(height * width, dtype=torch.float32).reshape(1, height, width) / (4 * height * width)


def test_patches_are_pairs_of_measurement_and_ground_truth() -> None:
    patches = DenoisingPatches([torch.full((1, 80, 90), 0.5)], sigma=25 / 255, count=32)
    assert len(patches) == 32
    b, x_true = patches[7]
    assert b.shape == x_true.shape == (1, 64, 64)
    assert b.dtype == x_true.dtype == torch.float32
    noise = torch.cat([b - x_true for b, x_true in patches])
    assert abs(float(noise.std()) - 25 / 255) < 1e-3
    assert abs(float(noise.mean())) < 2e-3
    assert float(DenoisingPatches([torch.zeros(1, 64, 64)], 0.1)[0][0].min()) < 0


def test_patches_depend_on_seed_and_index_alone() -> None:
    images = {"a": ramp(70, 80), "b": ramp(66, 64, 0.5)}
    patches = DenoisingPatches(images, 0.1, count=12, seed=5)
    backwards = {i: patches[i] for i in reversed(range(12))}
    torch.manual_seed(99)
    again = DenoisingPatches(list(images.values()), 0.1, count=100, seed=5)
    for i, (b, x_true) in backwards.items():
        assert torch.equal(b, again[i][0])
        assert torch.equal(x_true, again[i][1])
    assert torch.equal(patches[-1][0], patches[11][0])
    assert not torch.equal(patches[0][0], patches[1][0])
    assert not torch.equal(patches[0][0], DenoisingPatches(images, 0.1, seed=6)[0][0])
    assert not torch.equal(patches[1][0], DenoisingPatches(images, 0.1, seed=6)[0][0])
    with pytest.raises(IndexError):
        patches[12]
    with pytest.raises(IndexError):
        patches[-13]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_do_not_change_the_patches() -> None:
    patches = DenoisingPatches([ramp(70, 80), ramp(66, 64, 0.5)], 0.1, count=10)
    runs = [list(DataLoader(patches, batch_size=4, num_workers=workers)) for workers in (0, 2)]
    for (b, x_true), (b_workers, x_true_workers) in zip(*runs, strict=True):
        assert torch.equal(b, b_workers)
        assert torch.equal(x_true, x_true_workers)


def test_patches_are_drawn_uniformly_over_images_and_symmetries() -> None:
    large, small = ramp(4, 11), ramp(4, 5, 0.5)  # 2 x 9 and 2 x 3 positions of 3 x 3 patches
    patches = DenoisingPatches({"large": large, "small": small}, 0.1, patch=3, count=4000)
    known: dict[bytes, tuple[str, int, int, int]] = {}
    for name, image in (("large", large), ("small", small)):
        for row, column in itertools.product(range(2), range(image.shape[2] - 2)):
            patch = image[:, row : row + 3, column : column + 3]
            turns = [torch.rot90(flip, k, (1, 2)) for flip in (patch, patch.flip(2)) for k in range(4)]
            known |= {turn.numpy().tobytes(): (name, row, column, k) for k, turn in enumerate(turns)}
    seen = [known[x_true.numpy().tobytes()] for _, x_true in patches]
    positions = dict.fromkeys({key[:3] for key in known.values()}, 0)
    symmetries = [0] * 8
    for *position, k in seen:
        positions[tuple(position)] += 1
        symmetries[k] += 1
    assert len(positions) == 24
    chi_square = sum((n - 4000 / 24) ** 2 / (4000 / 24) for n in positions.values())
    assert chi_square < 60  # 23 degrees of freedom: exceeded with probability 4e-5
    assert sum((n - 500) ** 2 / 500 for n in symmetries) < 35  # 7 degrees of freedom: 1e-5


@pytest.mark.parametrize("sigma", [25, 0, -0.1, 1.01, float("nan")])
def test_patches_reject_noise_levels(sigma: float) -> None:
    with pytest.raises(ConfigError, match="25/255"):
        DenoisingPatches([ramp(64, 64)], sigma)


def test_patches_reject_images() -> None:
    with pytest.raises(DataError, match=r"small\.png.*40 x 90") as caught:
        DenoisingPatches({"fine.png": ramp(64, 64), "small.png": ramp(40, 90)}, 0.1)
    assert "patch <= 40" in caught.value.hint
    with pytest.raises(DataError, match=r"image 1: .*NaN"):
        DenoisingPatches([ramp(64, 64), torch.full((1, 64, 64), torch.nan)], 0.1)
    with pytest.raises(DataError, match="Rescale"):
        DenoisingPatches([255 * ramp(64, 64)], 0.1)
    with pytest.raises(DataError, match="shape"):
        DenoisingPatches([torch.zeros(2, 64, 64)], 0.1)
    with pytest.raises(DataError, match="no images"):
        DenoisingPatches([], 0.1)


@pytest.mark.parametrize("options", [{"patch": 0}, {"count": 0}, {"patch": 6.5}, {"count": True}])
def test_patches_reject_options(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="positive integer"):
        DenoisingPatches([ramp(64, 64)], 0.1, **options)


# ------------------------------------------------------------------------------------------------------ ranges of noise


def test_a_range_of_noise_levels_gives_triples() -> None:
    patches = DenoisingPatches([torch.full((1, 32, 32), 0.5)], sigma=(0.02, 0.2), patch=24, count=64)
    items = [patches[i] for i in range(64)]
    for item in items[:8]:
        b, x_true, sigma = item  # type: ignore[misc]
        assert float((b - x_true).std()) == pytest.approx(sigma, rel=0.2)
    levels = torch.tensor([item[2] for item in items])  # type: ignore[misc]
    assert 0.02 <= float(levels.min()) < 0.05
    assert 0.17 < float(levels.max()) <= 0.2
    assert patches[5][2] == patches[5][2], "seeded"  # type: ignore[misc]
    one = DenoisingPatches([torch.full((1, 32, 32), 0.5)], sigma=0.1, patch=24, count=64)
    assert len(one[0]) == 2


@pytest.mark.parametrize("sigma", [(0.2, 0.1), (0.0, 0.1), (0.1, 25), (0.1,), (0.1, 0.2, 0.3), [0.1, None]])
def test_what_is_no_range_of_noise_levels(sigma: object) -> None:
    with pytest.raises(ConfigError, match="sigma="):
        DenoisingPatches([torch.full((1, 32, 32), 0.5)], sigma=sigma)  # type: ignore[arg-type]


@pytest.mark.parametrize("levels", [1, 4, 7])
def test_items_share_noise_levels_that_are_spread_over_the_range(levels: int) -> None:
    patches = DenoisingPatches([ramp(16, 16)], (0.1, 0.3), patch=8, count=21, seed=5, levels=levels)
    groups = patches.batch_groups()
    assert groups is not None
    assert sorted(i for group in groups for i in group) == list(range(21))
    found = [{patches[i][2] for i in group} for group in groups]
    assert all(len(level) == 1 for level in found)
    values = sorted(level for (level,) in found)
    assert len(set(values)) == levels
    assert values[0] >= 0.1
    assert values[-1] <= 0.3
    widest = max(b - a for a, b in itertools.pairwise([0.1, *values, 0.3]))
    assert levels == 1 or widest <= 2 * 0.2 / levels
    assert patches[-1][2] == patches[20][2]
    other = DenoisingPatches([ramp(16, 16)], (0.1, 0.3), patch=8, count=21, seed=6, levels=levels)
    assert other[0][2] != patches[0][2]


def test_levels_are_of_a_range_and_no_more_than_items() -> None:
    for sigma, levels in ((0.1, 2), ((0.1, 0.2), 5), ((0.1, 0.2), 0)):
        with pytest.raises(ConfigError, match="levels"):
            DenoisingPatches([ramp(16, 16)], sigma, patch=8, count=4, levels=levels)
    assert DenoisingPatches([ramp(16, 16)], (0.1, 0.2), patch=8, count=4).batch_groups() is None
