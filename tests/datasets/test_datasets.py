"""Reading images, finding data sets."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from learnreg.datasets import BSDS500, ImageFolder, list_images, load_training_images, natural_images, read_image
from learnreg.datasets.photographs import natural
from learnreg.errors import ConfigError, DataError

Image = pytest.importorskip("PIL.Image")
tifffile = pytest.importorskip("tifffile")

LUMA = np.array([0.299, 0.587, 0.114])


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() in {".tif", ".tiff"}:
        tifffile.imwrite(path, pixels, photometric="rgb" if pixels.shape[-1] == 3 else "minisblack")
    else:
        Image.fromarray(pixels).save(path, **options)
    return path


def noise_image(shape: tuple[int, ...], dtype: str = "uint8") -> np.ndarray:
    values = np.random.default_rng(0).random(shape)
    if np.dtype(dtype).kind == "f":
        return values.astype(dtype)
    return np.round(values * np.iinfo(dtype).max).astype(dtype)


# ---------------------------------------------------------------------------------------------------------- read_image


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        *((f"a.{suffix}", (7, 9), "uint8") for suffix in ("png", "PNG", "bmp", "tif", "TIFF")),
        *((f"a.{suffix}", (7, 9, 3), "uint8") for suffix in ("png", "bmp", "tif")),
        *((f"a.{suffix}", (7, 9), "uint16") for suffix in ("png", "tif")),
        ("a.tif", (7, 9, 3), "uint16"),
        ("a.tif", (7, 9), "float32"),
        ("a.tif", (7, 9), "float64"),
        ("a.tif", (7, 9, 3), "float32"),
    ],
)
def test_pixels_are_exact(tmp_path: Path, name: str, shape: tuple[int, ...], dtype: str) -> None:
    pixels = noise_image(shape, dtype)
    image = read_image(save(tmp_path / name, pixels))
    unit = pixels / (1.0 if pixels.dtype.kind == "f" else np.iinfo(dtype).max)
    expected = unit @ LUMA if len(shape) == 3 else unit
    assert image.shape == (1, 7, 9)
    assert image.dtype == torch.float32
    np.testing.assert_allclose(image[0].numpy(), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "JPG"])
def test_jpeg_is_read(tmp_path: Path, suffix: str) -> None:
    pixels = np.full((16, 24, 3), (200, 100, 50), dtype=np.uint8)
    image = read_image(save(tmp_path / f"a.{suffix}", pixels, quality=95))
    assert image.shape == (1, 16, 24)
    np.testing.assert_allclose(image.numpy(), (pixels[0, 0] / 255) @ LUMA, atol=0.01)


def test_planes_stored_separately(tmp_path: Path) -> None:
    pixels = noise_image((7, 9, 3), "uint16")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.moveaxis(pixels, -1, 0), photometric="rgb", planarconfig="separate")
    np.testing.assert_allclose(read_image(path)[0].numpy(), (pixels / 65535) @ LUMA, atol=1e-7)


@pytest.mark.filterwarnings("ignore:.*transparent")
def test_alpha_is_dropped(tmp_path: Path) -> None:
    colour = noise_image((5, 6, 4))
    image = read_image(save(tmp_path / "rgba.png", colour))
    np.testing.assert_allclose(image[0].numpy(), (colour[..., :3] / 255) @ LUMA, atol=1e-7)
    grey = noise_image((5, 6, 2))
    image = read_image(save(tmp_path / "la.png", grey))
    np.testing.assert_allclose(image[0].numpy(), grey[..., 0] / 255, atol=1e-7)


@pytest.mark.filterwarnings("ignore:.*transparent")
def test_palettes_and_bilevel_images(tmp_path: Path) -> None:
    colour = np.zeros((4, 4, 3), dtype=np.uint8)
    colour[:2] = (255, 0, 0)
    Image.fromarray(colour).quantize(4).save(tmp_path / "palette.png")
    Image.fromarray(colour).quantize(4).save(tmp_path / "transparent.png", transparency=b"\x00\x80\xff\xff")
    Image.fromarray(colour[..., 0]).convert("1").save(tmp_path / "bilevel.png")
    for name, white in (("palette.png", 0.299), ("transparent.png", 0.299), ("bilevel.png", 1.0)):
        image = read_image(tmp_path / name)[0]
        np.testing.assert_allclose(image[:2].numpy(), white, atol=1e-6)
        np.testing.assert_allclose(image[2:].numpy(), 0.0)


def test_white_colour_does_not_exceed_one(tmp_path: Path) -> None:
    white = np.full((3, 3, 3), 255, dtype=np.uint8)
    assert float(read_image(save(tmp_path / "white.png", white)).max()) == 1.0


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif", "deep.tif"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_truncated_file(tmp_path: Path, name: str, kept: float) -> None:
    deep = name == "deep.tif"
    path = save(tmp_path / name, noise_image((40, 50, 3), "uint16" if deep else "uint8"))
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(DataError, match=r"damaged, truncated or not an image|its header promises") as caught:
        read_image(path)
    assert caught.value.path == str(path)
    assert caught.value.hint


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    for name, reason in (
        ("text.png", "damaged, truncated or not an image"),
        ("empty.png", "empty"),
        ("absent.png", "does not exist"),
        ("notes.txt", "not an image file"),
        ("folder.png", "this is a folder"),
    ):
        with pytest.raises(DataError, match=reason) as caught:
            read_image(tmp_path / name)
        assert caught.value.path == str(tmp_path / name)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite(tmp_path: Path, bad: float) -> None:
    pixels = noise_image((5, 6), "float32")
    pixels[2, 3] = bad
    with pytest.raises(DataError, match="1 pixels are NaN or infinite"):
        read_image(save(tmp_path / "a.tif", pixels))


@pytest.mark.parametrize("factor", [255, -1])
def test_float_images_outside_the_unit_range(tmp_path: Path, factor: float) -> None:
    with pytest.raises(DataError, match=r"must lie in \[0, 1\]"):
        read_image(save(tmp_path / "a.tif", factor * noise_image((5, 6), "float32")))


@pytest.mark.parametrize("shape", [(3, 5, 6), (2, 5, 6, 3)])
def test_several_pages(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = save(tmp_path / "a.tif", noise_image(shape))
    with pytest.raises(DataError, match=f"holds {shape[0]} pages"):
        read_image(path)


# -------------------------------------------------------------------------------------------------------------- folder


def test_folder_lists_images_by_name(tmp_path: Path) -> None:
    for name in ("b.png", "a.PNG", "c.jpg", ".hidden.png", "._a.png", "sub/d.png"):
        save(tmp_path / name, noise_image((4, 5)))
    for name in ("Thumbs.db", "notes.txt", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.PNG", "b.png", "c.jpg"]
    folder = ImageFolder(str(tmp_path))
    assert folder.names == ["a.PNG", "b.png", "c.jpg"]
    assert len(folder) == 3
    assert torch.equal(folder[1], read_image(tmp_path / "b.png"))
    assert list(folder.images()) == folder.names
    assert len(list(folder)) == 3


def test_folder_that_is_missing_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        ImageFolder(tmp_path / "absent")
    path = save(tmp_path / "a.png", noise_image((4, 5)))
    with pytest.raises(DataError, match="this is a file") as caught:
        ImageFolder(path)
    assert str(tmp_path) in caught.value.hint


def test_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    with pytest.raises(DataError, match="holds no images") as caught:
        list_images(tmp_path)
    assert "png" in caught.value.hint


def test_folder_whose_images_are_deeper(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    save(tmp_path / "photos" / "a.png", noise_image((4, 5)))
    with pytest.raises(DataError, match="Sub-folders are not searched") as caught:
        list_images(tmp_path)
    assert str(tmp_path / "photos") in caught.value.hint


# ---------------------------------------------------------------------------------------------------------------- BSDS

LAYOUTS = ("BSDS500/data/images", "data/images", "images", "")


def fake_bsds(root: Path, splits: tuple[str, ...] = ("train", "test", "val")) -> Path:
    images = root / "BSDS500" / "data" / "images"
    for value, split in enumerate(splits):
        for name in ("20.jpg", "10.jpg"):
            save(images / split / name, np.full((8, 12, 3), 50 * (value + 1), dtype=np.uint8))
        (images / split / "Thumbs.db").write_bytes(b"x")
    return images


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bsds_layouts(tmp_path: Path, layout: str) -> None:
    images = fake_bsds(tmp_path)
    root = Path(str(images).removesuffix(layout)) if layout else images
    data = BSDS500(root)
    assert data.names == ["train/10.jpg", "train/20.jpg", "test/10.jpg", "test/20.jpg"]
    assert len(data) == 4
    assert data[0].shape == (1, 8, 12)
    assert list(data.images("test")) == ["test/10.jpg", "test/20.jpg"]
    assert list(data.images()) == data.names
    assert list(load_training_images(root)) == data.names


def test_bsds_needs_only_the_splits_asked_for(tmp_path: Path) -> None:
    fake_bsds(tmp_path, ("train",))
    assert len(BSDS500(tmp_path, splits=("train",))) == 2
    assert len(BSDS500(tmp_path, splits="train")) == 2
    with pytest.raises(DataError, match="was not found") as caught:
        BSDS500(tmp_path)
    for layout in LAYOUTS[:3]:
        assert layout in caught.value.hint


def test_bsds_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        BSDS500(tmp_path / "absent")
    fake_bsds(tmp_path)
    with pytest.raises(ConfigError, match="'validation'"):
        BSDS500(tmp_path, splits=("validation",))
    with pytest.raises(ConfigError, match="was not opened"):
        BSDS500(tmp_path).images("val")


def test_training_images_from_a_flat_folder(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise_image((4, 5)))
    assert list(load_training_images(tmp_path)) == ["a.png"]
    with pytest.raises(DataError, match="does not exist"):
        load_training_images(tmp_path / "absent")


def test_test_images_of_another_data_set_are_not_trained_on(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save(tmp_path / split / "a.png", noise_image((4, 5)))
    with pytest.raises(DataError, match="Sub-folders are not searched"):
        load_training_images(tmp_path)


def test_bsds_as_distributed(shared_data: Path) -> None:
    data = BSDS500(shared_data / "BSDS500")
    assert len(data) == 400
    assert len(set(data.names)) == 400
    assert sorted(data[0].shape) == [1, 321, 481]


# ------------------------------------------------------------------------------------------------------------- natural


def test_natural_images_are_photographs_in_the_unit_range() -> None:
    pytest.importorskip("skimage")
    images = natural_images("train")
    assert tuple(images) == natural.NATURAL_SPLITS["train"]
    for name, image in images.items():
        assert image.ndim == 3, name
        assert image.shape[0] == 1, name
        assert min(image.shape[1:]) >= 128, name
        assert 0 <= float(image.min()) < float(image.max()) <= 1, name


def test_held_out_images_are_never_trained_on() -> None:
    pytest.importorskip("skimage")
    assert set(natural.NATURAL_SPLITS["test"]) == {"camera", "coffee", "rocket"}
    digests = [digest for files in natural._SHA256.values() for digest in files.values()]
    assert len(set(digests)) == len(digests)
    train, test = load_training_images("natural"), natural_images("test")
    assert not set(train) & set(test)
    for a, b in itertools.product(train.values(), test.values()):
        assert a.shape != b.shape or not torch.allclose(a, b, atol=0.05)


def test_natural_images_agree_with_scikit_image() -> None:
    data = pytest.importorskip("skimage.data")
    np.testing.assert_array_equal(natural_images("test")["camera"][0].numpy(), np.float32(data.camera() / 255))


def test_natural_images_load_neither_scikit_image_nor_its_downloader(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    code = (
        "import sys; from learnreg.datasets import natural_images; natural_images('test');"
        "print({'skimage', 'pooch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "set()"


def test_natural_image_that_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage")
    for name in natural._SHA256["test"]:
        shutil.copy(natural._data_folder() / name, tmp_path)
    monkeypatch.setattr(natural, "_data_folder", lambda: tmp_path)
    assert len(natural_images("test")) == 3
    save(tmp_path / "camera.png", noise_image((8, 8)))
    with pytest.raises(DataError, match=re.escape(natural._scikit_image_version())) as caught:
        natural_images("test")
    assert caught.value.path.endswith("camera.png")
    (tmp_path / "camera.png").unlink()
    with pytest.raises(DataError, match="missing"):
        natural_images("test")


def test_natural_images_without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(natural, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"learnreg\[images\]"):
        natural_images("test")
    with pytest.raises(ConfigError, match="'validation'"):
        natural_images("validation")


def test_reading_without_pillow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", noise_image((4, 5)))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"learnreg\[images\]"):
        read_image(path)
