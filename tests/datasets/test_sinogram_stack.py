"""Stacks of sinograms, of which one is in memory at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learnreg.datasets import SinogramStack, read_sinogram
from learnreg.datasets.files import sinograms
from learnreg.errors import DataError, ShapeError
from learnreg.operators import ParallelBeam2D

h5py = pytest.importorskip("h5py")
tifffile = pytest.importorskip("tifffile")

COUNT = 7


def numbers(*shape: int, dtype: str = "float32") -> np.ndarray[Any, Any]:
    return (1000 * np.random.default_rng(0).random(shape)).astype(dtype)


def saved(folder: Path, kind: str, values: np.ndarray[Any, Any]) -> Path:
    path = folder / f"stack.{kind.partition('-')[0]}"
    if path.suffix == ".npy":
        np.save(path, np.asfortranarray(values) if kind.endswith("fortran") else values)
    elif path.suffix == ".h5":
        chunks = {"chunks": (min(3, len(values)), *values.shape[1:]), "compression": "gzip"}
        options = chunks if kind.endswith("chunks") else {}
        with h5py.File(path, "w") as file:
            file.create_dataset("data", data=values, **options)
    else:
        tifffile.imwrite(path, values.reshape(-1, *values.shape[-2:]), photometric="minisblack")
    return path


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint16", "int32"])
@pytest.mark.parametrize("shape", [(5, 9), (1, 5, 9), (COUNT, 5, 9), (COUNT, 1, 5, 9)])
@pytest.mark.parametrize("kind", ["npy", "npy-fortran", "h5", "h5-chunks", "tif"])
def test_a_stack_is_what_is_read_whole(kind: str, shape: tuple[int, ...], dtype: str, tmp_path: Path) -> None:
    if kind == "h5-chunks" and len(shape) == 2:
        kind = "h5"
    path = saved(tmp_path, kind, numbers(*shape, dtype=dtype))
    whole, stack = read_sinogram(path), SinogramStack(path)
    assert len(stack) == len(whole) == (COUNT if shape[0] == COUNT else 1)
    assert torch.equal(torch.cat(list(stack)), whole)
    assert stack[len(stack) - 1].dtype == whole.dtype


@pytest.mark.parametrize("kind", ["npy", "h5", "h5-chunks", "tif"])
def test_one_sinogram_is_in_memory(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, taken = saved(tmp_path, kind, numbers(COUNT, 5, 9)), []
    convert = sinograms.float_tensor
    monkeypatch.setattr(sinograms, "float_tensor", lambda v, *others: taken.append(v.size) or convert(v, *others))
    stack = SinogramStack(path)
    assert taken == []
    assert len(list(stack)) == COUNT
    assert taken == [45] * COUNT


def test_bad_sinograms_are_named(tmp_path: Path) -> None:
    values = numbers(COUNT, 5, 9)
    values[4, 2, 3], values[6, 1, 1] = np.nan, -1.0
    stack = SinogramStack(saved(tmp_path, "npy", values), counts=True)
    assert stack[0].shape == (1, 1, 5, 9)
    with pytest.raises(DataError, match="sinogram 4: 1 of 45 values are NaN"):
        stack[4]
    with pytest.raises(DataError, match="sinogram 6: 1 counts are negative"):
        stack[6]
    operator = ParallelBeam2D(4, 9, 5, backend="matrix-free")
    with pytest.raises(ShapeError, match="transposed"):
        SinogramStack(stack.path, operator=operator)
    with pytest.raises(DataError, match="only HDF5 files have keys"):
        SinogramStack(stack.path, key="data")
    with pytest.raises(ShapeError, match=r"expected \(angles, detectors\)"):
        SinogramStack(saved(tmp_path, "npy", numbers(5)))
    with pytest.raises(DataError, match="no values"):
        SinogramStack(saved(tmp_path, "npy", numbers(0, 5, 9)))
    (tmp_path / "stack.txt").write_text("1 2")
    with pytest.raises(DataError, match="unknown kind of file"):
        SinogramStack(tmp_path / "stack.txt")
