"""Kinds of HDF5 data sets: parts never written, fill values, packed values, filters, types; claims of LoDoPaB files."""

from __future__ import annotations

import struct
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learnreg.datasets import LoDoPaB, read_hdf5_array
from learnreg.errors import DataError

h5py = pytest.importorskip("h5py")

VALUES = np.arange(1, 71, dtype="f4").reshape(10, 7)


def made(path: Path, make: Callable[[Any], object]) -> Path:
    with h5py.File(path, "w") as file:
        make(file)
    return path


def partly(rows: int = 5, dtype: str = "f4", chunks: tuple[int, int] | None = (5, 7), **options: Any) -> Any:
    """A data set whose first rows alone are written."""

    def make(file: Any) -> None:
        file.create_dataset("data", (10, 7), dtype, chunks=chunks, **options)[:rows] = VALUES[:rows].astype(dtype)

    return make


def resized(rows: int) -> Any:
    return lambda file: file.create_dataset("data", data=VALUES, maxshape=(None, 7), chunks=(5, 7)).resize((rows, 7))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (partly(), "1 of 2 chunks were never written"),
        (partly(9, chunks=(1, 7)), "1 of 10 chunks"),
        (partly(compression="gzip"), "1 of 2 chunks"),
        (partly(fillvalue=-1), "1 of 2 chunks"),
        (partly(fillvalue=np.nan), "1 of 2 chunks"),
        (resized(20), "2 of 4 chunks"),
        (partly(7, fillvalue=-9999), "21 of 70 values are the fill value -9999"),
        (partly(5, "u2", fillvalue=1000, chunks=None), "35 of 70 values are the fill value 1000"),
        (partly(7, fillvalue=-1, fill_time="alloc"), "21 of 70 values are the fill value -1"),
    ],
)
def test_what_was_never_written_is_not_data(tmp_path: Path, make: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        read_hdf5_array(made(tmp_path / "a.h5", make))
    assert caught.value.hint


def test_whole_data_sets_are_read(tmp_path: Path) -> None:
    zeros = 0 * VALUES
    for values, options in (
        (VALUES, {"chunks": (3, 4)}),  # chunks over the edge
        (zeros, {"chunks": (3, 4)}),
        (VALUES, {"chunks": (5, 7), "fillvalue": -1}),
        (VALUES, {"chunks": (5, 7), "compression": "lzf", "shuffle": True, "fletcher32": True}),
        (VALUES.astype("i4"), {"chunks": (5, 7), "scaleoffset": 0}),
        (VALUES.astype(">i2"), {}),
    ):
        path = made(tmp_path / "a.h5", lambda file, v=values, o=options: file.create_dataset("data", data=v, **o))
        np.testing.assert_array_equal(read_hdf5_array(path).numpy(), values)
    np.testing.assert_array_equal(read_hdf5_array(made(tmp_path / "b.h5", resized(5))).numpy(), VALUES[:5])


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("scale_factor", 0.5, "scale_factor = 0.5"),
        ("add_offset", -1024, "add_offset = -1024"),
        ("scaling_factor", 2.0, "scaling_factor"),
        ("_Unsigned", "true", "_Unsigned"),
        ("_FillValue", np.float32(3), "1 of 70 values are the fill value 3"),
        ("missing_value", np.array([5.0, -1.0]), "1 of 70 values are the fill value 5"),
        ("scale_factor", 1.0, None),
        ("_FillValue", np.float32(-99), None),
        ("missing_value", "none", None),
    ],
)
def test_attributes_that_change_what_values_mean(
    tmp_path: Path, attribute: str, value: Any, reason: str | None
) -> None:
    path = made(
        tmp_path / "a.h5", lambda file: file.create_dataset("data", data=VALUES).attrs.update({attribute: value})
    )
    if reason is None:
        np.testing.assert_array_equal(read_hdf5_array(path).numpy(), VALUES)
    else:
        with pytest.raises(DataError, match=reason):
            read_hdf5_array(path)


def test_every_mark_of_missing_values_counts(tmp_path: Path) -> None:
    marks = {"missing_value": "none", "_FillValue": np.float32(3)}
    path = made(tmp_path / "a.h5", lambda file: file.create_dataset("data", data=VALUES).attrs.update(marks))
    with pytest.raises(DataError, match="the fill value 3"):
        read_hdf5_array(path)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array([2**60 + 1, 1]), r"beyond 2\^53"),
        (np.array([2**64 - 1], "u8"), r"beyond 2\^53"),
        (np.array([np.longdouble("1e400")]), "infinite"),
    ],
)
def test_numbers_that_float64_cannot_hold(tmp_path: Path, values: np.ndarray, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_hdf5_array(made(tmp_path / "a.h5", lambda file: file.create_dataset("data", data=values)))


def test_names_are_no_numbers(tmp_path: Path) -> None:
    def make(file: Any) -> None:
        file.create_dataset("data", (3,), h5py.enum_dtype({"bone": 0, "air": 1}, "i4"))[0] = 1

    with pytest.raises(DataError, match=r"holds names \(air, bone\)"):
        read_hdf5_array(made(tmp_path / "a.h5", make))


def under_filter(path: Path, number: int) -> Path:
    """A file that says that its chunks are compressed by another filter than gzip."""
    with h5py.File(path, "w", libver=("earliest", "v108")) as file:
        file.create_dataset("data", data=VALUES, chunks=(5, 7), compression="gzip")
    data = path.read_bytes()
    start = data.index(b"deflate\0") - 8  # number, length of the name, flags, count of values, name
    assert struct.unpack_from("<H", data, start) == (1,)
    path.write_bytes(data[:start] + struct.pack("<H", number) + data[start + 2 :])
    return path


@pytest.mark.parametrize(
    ("number", "name"), [(307, "bzip2"), (32001, "Blosc"), (32004, "LZ4"), (32008, "bitshuffle"), (32015, "Zstandard")]
)
def test_missing_filters_are_named(tmp_path: Path, number: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if h5py.h5z.filter_avail(number):
        pytest.skip("it is installed")
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(DataError, match=rf"not installed: {name} \(number {number}\)") as caught:
        read_hdf5_array(under_filter(tmp_path / "a.h5", number))
    assert "hdf5plugin" in caught.value.hint
    assert "h5repack" in caught.value.hint


def test_hdf5plugin_is_asked_for_filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hdf5plugin", types.ModuleType("hdf5plugin"))
    answers = iter([False, True])
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda number: next(answers))
    path = made(tmp_path / "a.h5", lambda file: file.create_dataset("data", data=VALUES, compression="gzip"))
    np.testing.assert_array_equal(read_hdf5_array(path).numpy(), VALUES)


# ------------------------------------------------------------------------------------------------------------- LoDoPaB


def lodopab(root: Path, observations: Callable[[Any], object], truths: Callable[[Any], object] | None = None) -> Path:
    made(root / "observation_train_000.hdf5", observations)
    made(
        root / "ground_truth_train_000.hdf5",
        truths or (lambda file: file.create_dataset("data", data=np.ones((2, 3, 3), "f4"))),
    )
    return root


def claiming(*shape: int) -> Callable[[Any], None]:
    def make(file: Any) -> None:
        file.create_dataset("data", shape, "f4", chunks=(1, 10, 3))[0, 0, 0] = 1

    return make


@pytest.mark.parametrize("shape", [(2, 50_000, 50_000), (2, 100_000_000, 3)])
def test_claims_are_checked_before_memory_is_taken(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    lodopab(tmp_path, claiming(*shape), claiming(*shape))
    with pytest.raises(DataError, match="its header promises"):
        LoDoPaB.of_files(tmp_path)
    with pytest.raises(DataError, match="its header promises"):
        LoDoPaB(tmp_path, per_file=2, angles=shape[1], detectors=shape[2], size=3)


def test_samples_never_written_are_met_by_themselves(tmp_path: Path) -> None:
    def make(file: Any) -> None:
        data = file.create_dataset("data", (3, 4, 5), "f4", chunks=(1, 2, 5))
        data[0] = 1
        data[1, :2] = 1

    lodopab(tmp_path, make, lambda file: file.create_dataset("data", data=np.ones((3, 3, 3), "f4")))
    pairs = LoDoPaB.of_files(tmp_path, side=1.0)
    np.testing.assert_array_equal(pairs[0][0].numpy(), np.ones((1, 4, 5)))
    for sample in (1, 2):
        with pytest.raises(DataError, match=f"parts of sample {sample} were never written"):
            pairs[sample]
