"""Masks, coils, complex phantoms and files of k-space, in the layouts of fastMRI and ISMRMRD."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import registry
import torch
from torch import Tensor

import learnreg as lr
from learnreg.datasets import (
    GaussianNoise,
    KSpacePairs,
    cartesian_mask,
    ellipse_phantoms,
    estimate_coil_maps,
    read_kspace,
    simulate_coil_maps,
    with_smooth_phase,
)
from learnreg.operators import CartesianMRI, as_complex
from learnreg.operators.mri import to_kspace

NUMBERS = as_complex(registry.randn(6, 2, 8, 6, seed=7)).to(torch.complex64)
XML = """<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>
<encodedSpace><matrixSize><x>8</x><y>6</y><z>1</z></matrixSize></encodedSpace>
<reconSpace><matrixSize><x>4</x><y>6</y><z>1</z></matrixSize></reconSpace><trajectory>cartesian</trajectory>
<encodingLimits><kspace_encoding_step_1><center>3</center></kspace_encoding_step_1></encodingLimits>
</encoding></ismrmrdHeader>"""


@pytest.mark.parametrize("kind", ["random", "equispaced"])
@pytest.mark.parametrize("lines", [1, 31, 64, 368])
@pytest.mark.parametrize("acceleration", [1.0, 4.0, 8.0])
def test_masks_hold_the_middle_and_as_many_lines_as_are_asked_for(kind: Any, lines: int, acceleration: float) -> None:
    mask = cartesian_mask(lines, acceleration, 0.08, kind, torch.Generator().manual_seed(1))
    middle = round(0.08 * lines)
    assert int(mask.sum()) == max(middle, round(lines / acceleration), 1)
    if middle:
        first = (lines - middle + 1) // 2
        assert bool(mask[first : first + middle].all())
        assert bool(mask[lines // 2])
    again = cartesian_mask(lines, acceleration, 0.08, kind, torch.Generator().manual_seed(1))
    assert torch.equal(mask, again)


def test_coils_are_normalised_and_found_again_from_the_middle() -> None:
    maps = simulate_coil_maps(4, 48, 40)
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(48, 40))
    magnitude = torch.nn.functional.avg_pool2d(torch.rand(1, 1, 48, 40), 5, 1, 2)[0]
    image = as_complex(with_smooth_phase(0.5 + magnitude, seed=3, strength=0.3)[None])[0]
    found = estimate_coil_maps(to_kspace(maps * image), calibration=16)
    phase = (found.conj() * maps).sum(0)
    phase = phase / phase.abs()  # of the image: maps are found up to it
    error = (found * phase - maps)[:, 6:-6, 6:-6].abs().max()
    assert float(error) < 0.08
    kspace = to_kspace(maps * image) * (torch.arange(40) % 2)
    with pytest.raises(lr.DataError, match=r"8 of 16 lines in the middle of k-space were not measured"):
        estimate_coil_maps(kspace, calibration=16)


def test_phases_are_smooth_seeded_and_keep_the_magnitude() -> None:
    image = torch.rand(1, 32, 24)
    z = with_smooth_phase(image, seed=2)
    torch.testing.assert_close(as_complex(z[None])[0].abs(), image[0])
    assert torch.equal(z, with_smooth_phase(image, seed=2))
    assert not torch.equal(z, with_smooth_phase(image, seed=3))
    phase = as_complex(with_smooth_phase(torch.ones(1, 64, 64), seed=2)[None])[0]
    assert float((phase[1:] - phase[:-1]).abs().max()) < 0.5
    assert torch.equal(with_smooth_phase(image, strength=0.0)[0], image[0])


def test_pairs_are_measured_where_the_mask_is() -> None:
    images = [with_smooth_phase(x, seed=i) for i, x in enumerate(ellipse_phantoms(3, 16, seed=0))]
    mask = cartesian_mask(16, 4.0, generator=torch.Generator().manual_seed(0))
    A = CartesianMRI(mask, simulate_coil_maps(2, 16, 16))
    pairs = KSpacePairs(A, images, GaussianNoise(0.1), seed=5)
    b, x_true = pairs[1]
    assert torch.equal(x_true, images[1])
    assert torch.equal(b != 0, mask.expand_as(b))
    noise = (b - A(x_true[None])[0])[..., mask]
    assert 0.08 < float(noise.std()) < 0.12
    assert torch.equal(KSpacePairs(A, images, GaussianNoise(0.1), seed=5)[1][0], b)
    with pytest.raises(lr.LearnregError, match=r"KSpacePairs\(noise\)"):
        KSpacePairs(A, images, 0.1)  # type: ignore[arg-type]
    with pytest.raises(lr.LearnregError, match=r"KSpacePairs\(operator\)"):
        KSpacePairs(lr.operators.Identity((2, 16, 16)), images)  # type: ignore[arg-type]


def _npy(path: Path, values: Tensor) -> Path:
    np.save(path / "k.npy", values.numpy())
    return path / "k.npy"


def _fastmri(path: Path, values: Tensor) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path / "k.h5", "w") as file:
        file["kspace"] = values.numpy()
        file["ismrmrd_header"] = "<x/>"
    return path / "k.h5"


@pytest.mark.parametrize(
    ("write", "shape", "expected"),
    [
        (_npy, (8, 6), (1, 1, 8, 6)),
        (_npy, (3, 8, 6), (1, 3, 8, 6)),
        (_npy, (2, 3, 8, 6), (2, 3, 8, 6)),
        (_fastmri, (3, 8, 6), (3, 1, 8, 6)),
        (_fastmri, (2, 3, 8, 6), (2, 3, 8, 6)),
    ],
)
def test_arrays_of_k_space(
    write: Callable[[Path, Tensor], Path], shape: tuple[int, ...], expected: tuple[int, ...], tmp_path: Path
) -> None:
    values = NUMBERS.flatten()[: int(np.prod(shape))].reshape(shape).clone()
    values[..., 1] = 0.0
    found = read_kspace(write(tmp_path, values))
    assert torch.equal(found.data, values.reshape(expected))
    assert torch.equal(found.mask, found.lines.expand(8, 6))
    assert found.lines.tolist() == [True, False, True, True, True, True]
    assert found.image_sides == (8, 6)


def ismrmrd(path: Path, xml: str = XML, **head: Any) -> Path:
    """Two slices of three coils, every other line, written as the format's library does, with a scan of noise first."""
    h5py = pytest.importorskip("h5py")
    counter = [(n, "<u2") for n in ("kspace_encode_step_1", "kspace_encode_step_2", "average", "slice")]
    counter += [(n, "<u2") for n in ("contrast", "phase", "repetition", "set", "segment")] + [("user", "<u2", (8,))]
    header = [("version", "<u2"), ("flags", "<u8"), ("number_of_samples", "<u2"), ("active_channels", "<u2")]
    header += [(n, "<u2") for n in ("discard_pre", "discard_post", "center_sample")] + [("idx", counter)]
    record = np.dtype([("head", header), ("traj", h5py.vlen_dtype(np.float32)), ("data", h5py.vlen_dtype(np.float32))])
    values = NUMBERS.reshape(2, 3, 8, 6).numpy()
    lines = [(s, line) for s in range(2) for line in (0, 2, 3, 4)]
    rows = np.zeros(1 + len(lines), record)
    noise = {"flags": 1 << 18, "number_of_samples": 5, "active_channels": 3}
    image = {"number_of_samples": 8, "active_channels": 3, "center_sample": 4, **head}
    for i, (s, line) in enumerate([(0, 0), *lines]):
        for name, value in (image if i else noise).items():
            rows["head"][name][i] = value
        rows["head"]["idx"]["kspace_encode_step_1"][i], rows["head"]["idx"]["slice"][i] = line, s
        rows["traj"][i] = np.zeros(0, np.float32)
        rows["data"][i] = (
            np.ascontiguousarray(values[s, :, :, line] if i else values[0, :, :5, 0]).view(np.float32).ravel()
        )
    with h5py.File(path / "k.h5", "w") as file:
        file.create_dataset("dataset/data", data=rows, maxshape=(None,), chunks=(4,))
        file.create_dataset("dataset/xml", data=np.array([xml], dtype=object), dtype=h5py.string_dtype())
    return path / "k.h5"


def test_lines_of_ismrmrd_files(tmp_path: Path) -> None:
    found = read_kspace(ismrmrd(tmp_path))
    expected = NUMBERS.reshape(2, 3, 8, 6).clone()
    expected[..., [1, 5]] = 0.0
    assert torch.equal(found.data, expected)
    assert found.lines.tolist() == [True, False, True, True, True, False]
    assert found.image_sides == (4, 6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"xml": XML.replace("cartesian", "spiral")}, "trajectory is spiral.*from_mrinufft"),
        ({"xml": XML.replace("<x>8</x>", "<x>-8</x>")}, "header says '-8' for encodedSpace/x"),
        ({"xml": "<broken"}, "XML header is damaged"),
        ({"xml": '<!DOCTYPE x [<!ENTITY a "b">]>' + XML}, "no plain XML"),
        ({"xml": XML.replace("<x>8</x>", "<x>6</x>")}, "lies outside the encoded matrix 6 x 6"),
        ({"xml": XML.replace("<center>3<", "<center>4<")}, "lies outside the encoded matrix"),
        ({"number_of_samples": 7}, "48 numbers for 3 coils and 7 complex samples"),
        ({"flags": 1 << 21}, "read backwards"),
        ({"flags": 1 << 18}, "no line of an image"),
    ],
)
def test_ismrmrd_files_that_are_refused(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(lr.DataError, match=message):
        read_kspace(ismrmrd(tmp_path, **changed))


def test_lists_that_never_end_or_are_too_long_are_refused(tmp_path: Path) -> None:
    """The HDF5 library goes around for ever in free space of no size, and takes memory for any length."""
    path = ismrmrd(tmp_path)
    data = path.read_bytes()
    place = data.index(b"GCOL") + 16
    while number := int.from_bytes(data[place : place + 2], "little"):
        place += 16 + -(-int.from_bytes(data[place + 8 : place + 16], "little") // 8) * 8
    assert number == 0
    path.write_bytes(data[: place + 8] + bytes(8) + data[place + 16 :])
    with pytest.raises(lr.DataError, match="lists of values are damaged"):
        read_kspace(path)
    lengths = (len(XML), 48)  # of the text, and of the numbers of a line; each stands before its place in the file
    for length in lengths:
        stored = length.to_bytes(4, "little") + (data.index(b"GCOL")).to_bytes(8, "little")
        assert stored in data
        path.write_bytes(data.replace(stored, (2**31 - 1).to_bytes(4, "little") + stored[4:]))
        with pytest.raises(lr.DataError, match=r"it promises [\d,]+ bytes, the file has"):
            read_kspace(path)


def test_several_repetitions_are_chosen_from(tmp_path: Path) -> None:
    path = ismrmrd(tmp_path)
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "r+") as file:
        row = file["dataset/data"][1]
        row["head"]["idx"]["repetition"] = 2
        file["dataset/data"][1] = row
    with pytest.raises(lr.DataError, match=r"it holds 2 of repetition: 0, 2.*select=\{'repetition': 0\}"):
        read_kspace(path)
    assert read_kspace(path, {"repetition": 2}).lines.tolist() == [True] + [False] * 5
    with pytest.raises(lr.DataError, match="it holds 0, 2"):
        read_kspace(path, {"repetition": 1})
    with pytest.raises(lr.DataError, match="Known: contrast, phase, repetition, set"):
        read_kspace(path, {"average": 1})


def test_files_that_are_no_k_space(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["volume"] = np.zeros(3)
    with h5py.File(tmp_path / "real.h5", "w") as file:
        file["kspace"] = np.ones((2, 8, 6))
    bad = NUMBERS[:1].clone()
    bad[0, 0, 0] = float("nan")
    np.save(tmp_path / "real.npy", np.ones((8, 6)))
    np.save(tmp_path / "one.npy", np.ones(6, dtype=complex))
    cases: list[tuple[Path, type[Exception], str]] = [
        (tmp_path / "other.h5", lr.DataError, "neither.*At its root: volume"),
        (tmp_path / "real.h5", lr.DataError, "expected complex numbers"),
        (tmp_path / "real.npy", lr.DataError, "expected complex numbers"),
        (tmp_path / "one.npy", lr.ShapeError, r"expected \(H, W\)"),
        (tmp_path / "k.png", lr.DataError, "does not exist"),
        (_npy(tmp_path, bad), lr.DataError, "1 of 48 values are NaN"),
    ]
    for path, error, message in cases:
        with pytest.raises(error, match=message):
            read_kspace(path)
    with pytest.raises(lr.DataError, match="nothing was measured"):
        read_kspace(_npy(tmp_path, torch.zeros_like(NUMBERS)[:4]))
