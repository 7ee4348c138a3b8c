"""HDF5 arrays, the layout of LoDoPaB, and sinograms in files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learnreg.datasets import LoDoPaB, ellipse_phantom, read_hdf5_array, read_sinogram
from learnreg.errors import ConfigError, DataError, ShapeError
from learnreg.operators import Identity, ParallelBeam2D

h5py = pytest.importorskip("h5py")
tifffile = pytest.importorskip("tifffile")

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"


def numbers(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    return (1000 * np.random.default_rng(0).random(shape)).astype(dtype)


def save(path: Path, key: str = "data", **options: Any) -> Path:
    with h5py.File(path, "a") as file:
        file.create_dataset(key, **options)
    return path


# ---------------------------------------------------------------------------------------------------------------- HDF5


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        *((dtype, torch.float32) for dtype in ("float16", "float32", ">f4", "uint8", "int16", "uint16")),
        *((dtype, torch.float64) for dtype in ("float64", "int32", ">u4", "int64")),
    ],
)
def test_arrays_keep_their_values(tmp_path: Path, dtype: str, expected: torch.dtype) -> None:
    values = numbers((3, 4, 5), dtype)
    path = save(tmp_path / "a.h5", "group/inner", data=values, chunks=(1, 4, 5), compression="gzip")
    found = read_hdf5_array(path, "group/inner")
    assert found.dtype == expected
    np.testing.assert_array_equal(found.numpy(), values.astype(np.float64))


def test_nothing_outside_the_file_is_read(tmp_path: Path) -> None:
    other = save(tmp_path / "other.h5", data=numbers((4, 5)))
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["inside"] = numbers((4, 5))
        file["soft"] = h5py.SoftLink("/inside")
        file["external"] = h5py.ExternalLink(str(other), "/data")
        file["dangling"] = h5py.ExternalLink(str(tmp_path / "absent.h5"), "/data")
        file["folder"] = h5py.ExternalLink(str(other), "/")
        layout = h5py.VirtualLayout((4, 5), "f4")
        layout[:] = h5py.VirtualSource(str(other), "data", (4, 5))
        file.create_virtual_dataset("virtual", layout)
        (tmp_path / "raw.bin").write_bytes(numbers((4, 5)).tobytes())
        file.create_dataset("stored", (4, 5), "f4", external=[(str(tmp_path / "raw.bin"), 0, 80)])
    for key in ("soft", "external", "dangling", "folder/data"):
        with pytest.raises(DataError, match="reached by a link") as caught:
            read_hdf5_array(path, key)
        assert "inside the file" in caught.value.hint
    with pytest.raises(DataError, match="virtual"):
        read_hdf5_array(path, "virtual")
    with pytest.raises(DataError, match="stored in other files"):
        read_hdf5_array(path, "stored")
    assert read_hdf5_array(path, "inside").shape == (4, 5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"shape": (4, 5), "dtype": "f4"}, "never written"),
        ({"data": np.array([1.0, np.nan, np.inf], "f4")}, "2 of 3 values are NaN"),
        ({"data": np.zeros((0, 4), "f4")}, "no values"),
        ({"data": h5py.Empty("f4")}, "no values"),
        ({"data": np.ones(3, "c8")}, "expected real numbers"),
        ({"data": np.ones(3, "?")}, "expected real numbers"),
        ({"data": [b"a", b"b"]}, "expected real numbers"),
        ({"data": np.ones(3, [("a", "f4")])}, "expected real numbers"),
    ],
)
def test_arrays_are_refused(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        read_hdf5_array(save(tmp_path / "a.h5", **options))


def test_keys_are_named(tmp_path: Path) -> None:
    path = save(save(tmp_path / "a.h5", "x/deep", data=numbers((3,))), "flat", data=numbers((3,)))
    with pytest.raises(DataError, match="no data set 'data'") as caught:
        read_hdf5_array(path)
    assert "flat" in caught.value.hint
    with pytest.raises(DataError, match="no data set 'flat/more'"):
        read_hdf5_array(path, "flat/more")
    with pytest.raises(DataError, match="'x' is a group") as caught:
        read_hdf5_array(path, "x")
    assert "deep" in caught.value.hint
    with pytest.raises(DataError, match="'' is a group"):
        read_hdf5_array(path, "")


@pytest.mark.parametrize("kept", [4, 100, 1000, 5000])
def test_truncated_files(tmp_path: Path, kept: int) -> None:
    path = save(tmp_path / "a.h5", data=numbers((50, 50)))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"damaged|truncated"):
        read_hdf5_array(path)


@pytest.mark.parametrize("name", ["a.h5", "a.npy", "a.tif"])
@pytest.mark.parametrize(
    ("content", "match"),
    [("", "0 bytes"), (LFS_POINTER, "Git LFS pointer"), ("text, " * 30, "not an HDF5|cannot be"), (None, "not exist")],
)
def test_what_is_no_array_file(tmp_path: Path, name: str, content: str | None, match: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=match):
        read_sinogram(path)
    path.unlink(missing_ok=True)
    path.mkdir()
    with pytest.raises(DataError, match="folder"):
        read_sinogram(path)


# ------------------------------------------------------------------------------------------------------------- LoDoPaB

SIZES = {"per_file": 4, "angles": 6, "detectors": 5, "size": 3}


def lodopab(root: Path, counts: tuple[int, ...] = (4, 4, 2), split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    observations, images = numbers((sum(counts), 6, 5)), numbers((sum(counts), 3, 3))
    start = 0
    for i, count in enumerate(counts):
        for what, values in (("observation", observations), ("ground_truth", images)):
            save(root / f"{what}_{split}_{i:03d}.hdf5", data=values[start : start + count])
        start += count
    return observations, images


def test_lodopab_items(tmp_path: Path) -> None:
    observations, images = lodopab(tmp_path)
    lodopab(tmp_path, (3,), "validation")
    pairs = LoDoPaB(tmp_path, **SIZES)
    assert len(pairs) == 10
    for i in (0, 3, 4, 9, -1):
        b, x_true = pairs[i]
        assert (b.shape, x_true.shape, b.dtype, x_true.dtype) == ((1, 6, 5), (1, 3, 3), torch.float32, torch.float32)
        np.testing.assert_allclose(b[0].numpy(), observations[i] / 0.26, rtol=1e-6)
        np.testing.assert_array_equal(x_true[0].numpy(), images[i])
    np.testing.assert_array_equal(LoDoPaB(tmp_path, side=1.0, **SIZES)[2][0][0].numpy(), observations[2])
    assert len(LoDoPaB(tmp_path, "validation", **SIZES)) == 3
    for i in (10, -11):
        with pytest.raises(IndexError):
            pairs[i]


def test_the_geometry_of_lodopab_is_that_of_its_simulation(tmp_path: Path) -> None:
    """ODL's RayTransform for the square of 26 cm with its default parallel beam, in the layout of the files."""
    pytest.importorskip("astra")
    tomo = pytest.importorskip("odl.applications.tomo")
    odl = pytest.importorskip("odl")
    size, angles, detectors = 31, 20, 45
    images = np.stack([ellipse_phantom(i, size)[0].numpy() for i in range(2)])
    space = odl.uniform_discr([-0.13, -0.13], [0.13, 0.13], (size, size), dtype="float32")
    beam = tomo.parallel_beam_geometry(space, num_angles=angles, det_shape=detectors)
    transform = tomo.RayTransform(space, beam, impl="astra_cpu")
    observations = np.stack([transform(space.element(image)).asarray() for image in images])
    save(tmp_path / "observation_train_000.hdf5", data=observations)
    save(tmp_path / "ground_truth_train_000.hdf5", data=images)
    pairs = LoDoPaB(tmp_path, angles=angles, detectors=detectors, size=size)
    A = ParallelBeam2D.from_geometry(pairs.geometry)
    for b, x_true in (pairs[i] for i in range(2)):
        assert float((A(x_true[None])[0] - b).norm()) < 1e-4 * float(b.norm())


def test_lodopab_is_read_lazily(tmp_path: Path) -> None:
    """A value that is no number is met by the item that holds it, not before."""
    observations, _ = lodopab(tmp_path)
    pairs = LoDoPaB(tmp_path, **SIZES)
    with h5py.File(tmp_path / "observation_train_001.hdf5", "a") as file:
        file["data"][1, 0, 0] = np.nan
    np.testing.assert_allclose(pairs[4][0][0].numpy(), observations[4] / 0.26, rtol=1e-6)
    with pytest.raises(DataError, match=r"observation_train_001.*1 of 30 values are NaN"):
        pairs[5]


def test_lodopab_in_its_published_sizes(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "observation_test_000.hdf5", "w") as file:
        data = file.create_dataset("data", (2, 1000, 513), "f4", chunks=(1, 1000, 513), compression="gzip")
        data[1] = 0.5
    with h5py.File(tmp_path / "ground_truth_test_000.hdf5", "w") as file:
        file["data"] = np.ones((2, 362, 362), "f4")
    pairs = LoDoPaB(tmp_path, "test")
    b, x_true = pairs[1]
    assert (len(pairs), b.shape, x_true.shape) == (2, (1, 1000, 513), (1, 362, 362))
    assert (pairs.geometry.image_size, pairs.geometry.detectors, len(pairs.geometry.angles)) == (362, 513, 1000)


@pytest.mark.parametrize("missing", ["observation_train_001.hdf5", "ground_truth_train_000.hdf5"])
def test_lodopab_with_a_missing_file(tmp_path: Path, missing: str) -> None:
    lodopab(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(DataError, match=f"{missing}: this file is missing"):
        LoDoPaB(tmp_path, **SIZES)


def test_lodopab_refuses(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no files observation_train_000\.hdf5"):
        LoDoPaB(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        LoDoPaB(tmp_path / "absent")
    with pytest.raises(ConfigError, match="split"):
        LoDoPaB(tmp_path, "challenge")
    with pytest.raises(ConfigError, match="side"):
        LoDoPaB(tmp_path, side=0.0)
    lodopab(tmp_path, (4, 2))
    with pytest.raises(DataError, match=r"shape \(4, 6, 5\), expected \(samples, 1000, 513\)"):
        LoDoPaB(tmp_path)
    with pytest.raises(DataError, match="4 samples, expected 3"):
        LoDoPaB(tmp_path, **SIZES | {"per_file": 3})
    with pytest.raises(DataError, match="4 samples, expected 8"):
        LoDoPaB(tmp_path, **SIZES | {"per_file": 8})
    with h5py.File(tmp_path / "ground_truth_train_001.hdf5", "w") as file:
        file["data"] = np.ones((1, 3, 3), "f4")
    with pytest.raises(DataError, match=r"2 samples, but 1 in ground_truth_train_001\.hdf5"):
        LoDoPaB(tmp_path, **SIZES)
    (tmp_path / "observation_train_001.hdf5").write_text(LFS_POINTER)
    with pytest.raises(DataError, match="Git LFS pointer"):
        LoDoPaB(tmp_path, **SIZES)


# ----------------------------------------------------------------------------------------------------------- sinograms


def write(path: Path, values: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".tif":
        with tifffile.TiffWriter(path) as tiff:
            for page in values.reshape(-1, *values.shape[-2:]):
                tiff.write(page, contiguous=False)
    else:
        save(path, "measured", data=values)
    return path


@pytest.mark.parametrize("name", ["a.npy", "a.h5", "a.hdf5", "a.tif"])
@pytest.mark.parametrize("shape", [(6, 5), (1, 6, 5), (3, 6, 5), (3, 1, 6, 5)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint16", "int32"])
def test_sinograms_keep_their_units(tmp_path: Path, name: str, shape: tuple[int, ...], dtype: str) -> None:
    values = numbers(shape, dtype)
    found = read_sinogram(write(tmp_path / name, values), operator=Identity((1, 6, 5)), counts=True)
    assert found.dtype == (torch.float32 if dtype in {"float32", "uint16"} else torch.float64)
    np.testing.assert_array_equal(found.numpy(), values.reshape(-1, 1, 6, 5))


@pytest.mark.parametrize("name", ["a.npy", "a.h5", "a.tif"])
def test_sinograms_of_another_shape(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, numbers((3, 6, 5)))
    with pytest.raises(ShapeError, match=r"shape \(1, 6, 5\), but Identity measures \(1, 5, 6\).*transposed\?"):
        read_sinogram(path, operator=Identity((1, 5, 6)))


@pytest.mark.parametrize("shape", [(5,), (2, 3, 6, 5), (1, 1, 1, 6, 5)])
def test_arrays_that_are_no_sinograms(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected \(angles, detectors\)"):
        read_sinogram(write(tmp_path / "a.npy", numbers(shape)))


def test_negative_counts(tmp_path: Path) -> None:
    values = numbers((6, 5)) - 900
    path = write(tmp_path / "a.npy", values)
    assert float(read_sinogram(path).min()) < 0
    with pytest.raises(
        DataError, match=rf"{(values < 0).sum()} counts are negative, the smallest is {values.min():.6g}"
    ):
        read_sinogram(path, counts=True)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    np.save(tmp_path / "a.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes((tmp_path / "a.npy").read_bytes()[128:])  # a pickle without the header of .npy
    for name in ("a.npy", "b.npy"):
        with pytest.raises(DataError, match=r"cannot be read as \.npy"):
            read_sinogram(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_no_memory_is_taken_for_what_a_file_cannot_hold(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", (2**20, 2**20), "f4", chunks=(16, 16))[0, 0] = 1
    tifffile.imwrite(tmp_path / "a.tif", numbers((6, 5)), contiguous=False, metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tiff:
        for tag in ("ImageWidth", "ImageLength"):
            tiff.pages[0].tags[tag].overwrite(60_000)
    for name in ("a.h5", "a.tif"):
        with pytest.raises(DataError, match="its header promises"):
            read_sinogram(tmp_path / name)


@pytest.mark.parametrize("name", ["a.npy", "a.tif"])
def test_damaged_files_are_read_or_refused(tmp_path: Path, name: str, rotating_seed: int) -> None:
    path = write(tmp_path / name, numbers((6, 5)))
    whole, generator, refused = path.read_bytes(), np.random.default_rng(rotating_seed), 0
    for _ in range(150):
        data = bytearray(whole)
        for place in generator.integers(0, min(250, len(whole)), generator.integers(1, 6)):
            data[place] = generator.integers(256)
        path.write_bytes(data)
        try:
            read_sinogram(path)
        except (DataError, ShapeError):
            refused += 1
    assert 0 < refused < 150


def test_other_sinogram_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", numbers((6, 5)))
    (tmp_path / "a.npz").rename(tmp_path / "archive.npy")
    with pytest.raises(DataError, match="npz archive"):
        read_sinogram(tmp_path / "archive.npy")
    path = write(tmp_path / "b.npy", numbers((60, 50)))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be read"):
        read_sinogram(path)
    with pytest.raises(DataError, match="only HDF5 files have keys"):
        read_sinogram(path, key="data")
    (tmp_path / "a.raw").write_bytes(b"0" * 100)
    with pytest.raises(DataError, match=r"unknown kind of file '\.raw'"):
        read_sinogram(tmp_path / "a.raw")
    with pytest.raises(DataError, match="NaN"):
        read_sinogram(write(tmp_path / "c.npy", np.full((3, 4), np.nan)))


def test_the_key_of_a_sinogram(tmp_path: Path) -> None:
    path = save(save(tmp_path / "a.h5", "first", data=numbers((6, 5))), "second", data=numbers((7, 5)))
    with pytest.raises(DataError, match="2 data sets at its root: first, second"):
        read_sinogram(path)
    assert read_sinogram(path, key="second").shape == (1, 1, 7, 5)
    save(path, "data", data=numbers((8, 5)))
    assert read_sinogram(path).shape == (1, 1, 8, 5)


def test_tiff_pages(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "rgb.tif", numbers((6, 5, 3), "uint8"), photometric="rgb")
    with tifffile.TiffWriter(tmp_path / "mixed.tif") as tiff:
        tiff.write(numbers((6, 5)))
        tiff.write(numbers((6, 4)))
    for name in ("rgb.tif", "mixed.tif"):
        with pytest.raises(ShapeError, match="pages of shapes"):
            read_sinogram(tmp_path / name)
    path = write(tmp_path / "a.tif", numbers((3, 60, 50)))
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(DataError, match="damaged or truncated"):
        read_sinogram(path)


def test_tiff_metadata_opens_no_other_file(tmp_path: Path) -> None:
    """OME metadata may say that the pages are in another file of the folder; tifffile then ignores those of its own."""
    ones = np.ones((6, 5), "f4")
    tifffile.imwrite(tmp_path / "b.ome.tif", np.full((2, 6, 5), 7, "f4"), metadata={"axes": "ZYX"}, ome=True)
    with tifffile.TiffFile(tmp_path / "b.ome.tif") as tiff:
        metadata = tiff.ome_metadata
    identity = re.search(r'UUID="([^"]*)"', metadata)[1]  # type: ignore[index]
    elsewhere = f'<TiffData IFD="0" PlaneCount="2"><UUID FileName="b.ome.tif">{identity}</UUID></TiffData>'
    metadata = metadata.replace('<TiffData IFD="0" PlaneCount="2"/>', elsewhere)
    metadata = metadata.replace(f'UUID="{identity}"', 'UUID="urn:uuid:00000000-0000-0000-0000-000000000000"')
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(ones, description=metadata, metadata=None, contiguous=False)
        writer.write(ones, metadata=None, contiguous=False)
    np.testing.assert_array_equal(read_sinogram(path)[:, 0].numpy(), np.ones((2, 6, 5)))


@pytest.mark.parametrize("number", [bytes(9) + b"\x01" + bytes(6), b"\x01" + bytes(7) + b"\xff\x7f" + bytes(6)])
def test_what_is_no_number_is_refused_without_a_warning(tmp_path: Path, number: bytes) -> None:
    """Extended precision has patterns that are no numbers, whose conversion is an invalid operation."""
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f16", "fortran_order": False, "shape": (3, 4)})
        file.write(12 * number)
    with pytest.raises(DataError, match="12 of 12 values are NaN or infinite"):
        read_sinogram(tmp_path / "a.npy")
