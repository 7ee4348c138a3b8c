"""Pairs of measurement and ground truth, resized slices, and CT images by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from learnreg.datasets import (
    PhotonNoise,
    RelativeNoise,
    TomographyPairs,
    ellipse_phantom,
    ellipse_phantoms,
    load_ct_images,
    resize_slice,
)
from learnreg.errors import ConfigError, DataError, ShapeError
from learnreg.linear.operator import LinearOperator


class Projections(LinearOperator):
    """Sums along rows, columns and both diagonals' wrapped lines, times the length of a pixel: four exact views."""

    def __init__(self, size: int) -> None:
        super().__init__((1, size, size), (1, 4, size))
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(x.shape[0])
        size = x.shape[-1]
        index = torch.arange(size)
        sheared = [torch.stack([x[..., i, (index + sign * i) % size] for i in range(size)], -2) for sign in (1, -1)]
        return torch.stack([x.sum(-1), x.sum(-2), *(s.sum(-2) for s in sheared)], -2) / size

    def adjoint(self, y: Tensor) -> Tensor:
        raise NotImplementedError


@pytest.fixture(scope="module")
def phantoms() -> Tensor:
    return ellipse_phantoms(7, 32)


# --------------------------------------------------------------------------------------------------------------- pairs


def test_noise_is_one_percent_of_the_mean_by_default(phantoms: Tensor) -> None:
    operator = Projections(32)
    pairs = TomographyPairs(operator, phantoms)
    assert len(pairs) == 7
    relative = []
    for i, (b, x_true) in enumerate(pairs):
        assert torch.equal(x_true, phantoms[i])
        clean = operator(x_true[None])[0]
        assert (b.shape, b.dtype) == ((1, 4, 32), torch.float32)
        relative.append(((b - clean) / (0.01 * clean.mean())).flatten())
    assert float(torch.cat(relative).std()) == pytest.approx(1.0, abs=0.1)  # 896 numbers


def test_blocks_go_through_the_operator_once(phantoms: Tensor) -> None:
    operator = Projections(32)
    pairs = TomographyPairs(operator, phantoms, block=3)
    first = pairs[4][0]
    assert operator.batches == [3]
    assert pairs[3][0] is pairs[3][0]
    assert pairs[-3][0] is first
    assert operator.batches == [3]
    list(pairs)
    assert operator.batches == [3, 3, 1]


@pytest.mark.parametrize("noise", [RelativeNoise(0.02), PhotonNoise(1e4, 4.0), PhotonNoise(1e4, 4.0, electronic=5.0)])
def test_items_depend_on_seed_and_index_alone(phantoms: Tensor, noise: RelativeNoise | PhotonNoise) -> None:
    pairs = TomographyPairs(Projections(32), phantoms, noise, seed=3)
    backwards = TomographyPairs(Projections(32), phantoms[:5], noise, seed=3, block=2)
    for i in (4, 0, 2, 1, 3):
        torch.testing.assert_close(backwards[i][0], pairs[i][0], atol=1e-6, rtol=1e-6)
    assert not torch.equal(TomographyPairs(Projections(32), phantoms, noise, seed=4)[0][0], pairs[0][0])
    same = TomographyPairs(Projections(32), torch.stack([phantoms[0]] * 2), noise)
    assert not torch.equal(same[0][0], same[1][0])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_do_not_change_the_pairs(phantoms: Tensor) -> None:
    runs = [
        torch.cat([b for b, _ in DataLoader(TomographyPairs(Projections(32), phantoms), batch_size=2, num_workers=n)])
        for n in (0, 2)
    ]
    torch.testing.assert_close(*runs, atol=1e-6, rtol=1e-6)


def test_images_by_name(phantoms: Tensor) -> None:
    pairs = TomographyPairs(Projections(32), {"left": phantoms[0].double(), "right": phantoms[1]})
    assert pairs.names == ["left", "right"]
    assert pairs[0][1].dtype == torch.float32
    with pytest.raises(IndexError):
        pairs[2]


def test_pairs_reject_input(phantoms: Tensor) -> None:
    with pytest.raises(ShapeError, match=r"image 0 has shape \(1, 32, 32\), Projections takes \(1, 16, 16\).*resize"):
        TomographyPairs(Projections(16), phantoms)
    with pytest.raises(DataError, match=r"broken: .*NaN"):
        TomographyPairs(Projections(32), {"broken": torch.full((1, 32, 32), torch.nan)})
    with pytest.raises(DataError, match="no images"):
        TomographyPairs(Projections(32), [])
    with pytest.raises(ConfigError, match="block"):
        TomographyPairs(Projections(32), phantoms, block=0)
    with pytest.raises(ConfigError, match="RelativeNoise"):
        TomographyPairs(Projections(32), phantoms, noise=0.01)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------------- slices


def test_blocks_of_pixels_are_averaged() -> None:
    image = torch.rand((1, 24, 24), dtype=torch.float64)
    expected = image.numpy().reshape(6, 4, 6, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(resize_slice(image, 6)[0].numpy(), expected, rtol=1e-12)
    same = resize_slice(image, 24)
    assert torch.equal(same, image)
    assert same.data_ptr() != image.data_ptr()


@pytest.mark.parametrize(("shape", "rows", "columns"), [((9, 12), (0, 9), (1, 10)), ((13, 6), (3, 9), (0, 6))])
def test_the_central_square_is_taken(shape: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]) -> None:
    image = torch.rand((1, *shape))
    assert torch.equal(resize_slice(image, min(shape)), image[:, slice(*rows), slice(*columns)])


@pytest.mark.parametrize("size", [37, 90])
def test_other_sizes_are_interpolated(size: int) -> None:
    pytest.importorskip("skimage")
    fine = ellipse_phantom(1, 64)
    resized = resize_slice(fine, size)
    assert (resized.shape, resized.dtype) == ((1, size, size), torch.float32)
    assert float(resized.min()) >= 0.0
    assert float(resized.max()) <= float(fine.max())
    assert float(resized.mean()) == pytest.approx(float(fine.mean()), rel=0.02)
    plane = torch.linspace(0, 1, 64).expand(1, 64, 64)
    centres = (torch.arange(size) + 0.5) * 64 / size - 0.5
    inner = (centres > 8) & (centres < 55)  # away from the border, where the filter sees the edge repeated
    torch.testing.assert_close(resize_slice(plane, size)[0, size // 2, inner], centres[inner] / 63, atol=1e-5, rtol=0)


def test_resize_rejects_input() -> None:
    with pytest.raises(ConfigError, match="size=0"):
        resize_slice(torch.rand(1, 4, 4), 0)
    for image in (torch.rand(4, 4), torch.rand(3, 4, 4), torch.rand(1, 0, 4), torch.ones(1, 4, 4, dtype=torch.uint8)):
        with pytest.raises(ShapeError, match="expected a float image"):
            resize_slice(image, 2)


# ------------------------------------------------------------------------------------------------------ images by name


def test_phantoms_by_name() -> None:
    training, held_out = load_ct_images("ellipses", 32, count=3, seed=5)
    assert [len(training), len(held_out)] == [3, 8]
    assert torch.equal(training["ellipses 2"], ellipse_phantom(2, 32, 5))
    contents = {x.numpy().tobytes() for x in (*training.values(), *held_out.values())}
    assert len(contents) == 11
    assert load_ct_images("ellipses", 32, count=1, seed=5)[1].keys() == held_out.keys()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_folders_of_image_files(tmp_path: Path, suffix: str) -> None:
    image_module = pytest.importorskip("PIL.Image")
    generator = np.random.default_rng(0)
    pixels = [generator.integers(0, 256, (20, 26), dtype=np.uint8) for _ in range(9)]
    for i, image in enumerate(pixels):
        image_module.fromarray(image).save(tmp_path / f"{i}.{suffix}")
    training, held_out = load_ct_images(tmp_path, 10, seed=1)
    assert [len(training), len(held_out)] == [7, 2]
    assert training.keys().isdisjoint(held_out)
    for name, image in (training | held_out).items():
        square = pixels[int(Path(name).stem)][:, 3:23] / 255
        np.testing.assert_allclose(image[0].numpy(), square.reshape(10, 2, 10, 2).mean(axis=(1, 3)), atol=1e-6)
    fewer, same = load_ct_images(str(tmp_path), 10, count=2, seed=1)
    assert [len(fewer), same.keys()] == [2, held_out.keys()]


def test_folders_without_enough_images(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    with pytest.raises(DataError, match="holds no images"):
        load_ct_images(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        load_ct_images(tmp_path / "absent")
    image_module.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="one image"):
        load_ct_images(tmp_path, 8)
    with pytest.raises(ConfigError, match="count"):
        load_ct_images(tmp_path, 8, count=0)
