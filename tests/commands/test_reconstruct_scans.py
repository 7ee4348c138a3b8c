"""``learnreg reconstruct`` of sinograms with a model for computed tomography: units, counts, and bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.command_line import refuse, succeed

import learnreg as lr
from learnreg.datasets import ellipse_phantom, line_integrals
from learnreg.models.model import load, save_model
from learnreg.operators import ParallelBeam2D, from_geometry
from learnreg.regularizers import FieldsOfExperts, TotalVariation

pytest.importorskip("astra")
pytest.importorskip("skimage.metrics")
Image = pytest.importorskip("PIL.Image")

N, ANGLES, SIDE, WATER = 20, 12, 360.0, 0.04  # pixels, views, millimetres, attenuation per millimetre of the model's 1
LOOSE = ("--tolerance", 1e-2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, the geometry of its rays in millimetres, and sinograms in its own units and in those of the scan."""
    folder = tmp_path_factory.mktemp("scan")
    operator = ParallelBeam2D(N, ANGLES)
    regularizer = FieldsOfExperts(3, 3, lr.PseudoHuber(2e-2, 1e-3), generator=torch.Generator().manual_seed(0))
    problem = lr.LowerLevelProblem(operator, regularizer, ridge=0.05, constraint=lr.Nonnegative())
    save_model(folder / "model.safetensors", problem)
    save_model(folder / "noise.safetensors", problem, {"noise": 0.02, "photons": 0.0})
    save_model(folder / "photons.safetensors", problem, {"noise": 0.01, "photons": 3e4})
    problem.data_term = lr.TransmissionLeastSquares(3e4, WATER * SIDE, 0.0, 0.05)
    save_model(folder / "transmission.safetensors", problem, {"noise": 0.01, "photons": 3e4})
    detectors = operator.range_shape[-1]
    (folder / "scan.toml").write_text(
        f'kind = "parallel"\nimage_size = {N}\npixel_size = {SIDE / N}\nangles = {ANGLES}\n'
        f"detectors = {detectors}\ndetector_pitch = {SIDE / N}\n",
        encoding="utf-8",
    )
    images = torch.stack([ellipse_phantom(i, N, 5) for i in range(2)])
    scan = from_geometry(folder / "scan.toml")
    np.save(folder / "unit.npy", operator(images)[:, 0].numpy())
    np.save(folder / "scan.npy", scan(WATER * images)[:, 0].numpy())
    generator = torch.Generator().manual_seed(1)
    transmitted = torch.exp(-scan(WATER * images.double())[:1, 0])
    flat = 2e4 * (1.0 + 0.2 * torch.rand(detectors, dtype=torch.float64, generator=generator))
    np.save(folder / "counts.npy", (torch.poisson(flat * transmitted, generator=generator) + 10.0).numpy())
    np.save(folder / "flat.npy", (flat + 10.0).numpy())
    return folder


def outputs(rows: list[dict[str, Any]]) -> list[np.ndarray[Any, Any]]:
    return [np.load(Path(row["output"]).with_suffix(".npy")) for row in rows]


def test_units_are_those_of_the_measurement(folder: Path, tmp_path: Path) -> None:
    model, tolerance = folder / "model.safetensors", 1e-3
    unit = succeed("reconstruct", model, folder / "unit.npy", "--out", tmp_path / "unit", "--tolerance", tolerance)[
        "rows"
    ]
    scan = succeed(
        "reconstruct", model, folder / "scan.npy", "--out", tmp_path / "scan", "--tolerance", tolerance,
        "--geometry", folder / "scan.toml",
    )["rows"]  # fmt: skip
    assert [Path(row["output"]).name for row in unit] == ["unit_000.npy", "unit_001.npy"]
    keys = {"input", "output", "error_bound", "bound_kind", "certified", "status", "seconds", "tolerance", "files"}
    keys |= {"notes", "warnings", "certified_scope", "sigma"}
    assert [set(row) for row in (*unit, *scan)] == 4 * [keys]
    assert all(row["bound_kind"] == "rigorous" for row in (*unit, *scan))
    assert all(0 < row["error_bound"] <= 1.001 * tolerance for row in unit)
    assert all(0 < row["error_bound"] <= 1.001 * WATER * tolerance for row in scan)
    assert not any(row["warnings"] for row in (*unit, *scan))
    # the model's own problem in float64, far more accurately, is the reference of both
    b = torch.from_numpy(np.load(folder / "unit.npy")).double()[:, None]
    exact = lr.solve(load(model).problem(), b, tolerance=1e-6).x[:, 0].numpy()
    for rows, value in ((unit, 1.0), (scan, WATER)):
        for row, found, expected in zip(rows, outputs(rows), exact, strict=True):
            assert found.dtype == np.float32
            error = float(np.sqrt(np.mean((found.astype(np.float64) - value * expected) ** 2)))
            assert error <= row["error_bound"] + value * 2e-6
            array, picture = row["files"]
            assert (array["path"], array["error_bound"]) == (row["output"], row["error_bound"])
            shown = np.asarray(Image.open(picture["path"])) / 255.0
            assert np.abs(shown - np.clip(found / value, 0, 1)).max() <= 0.5 / 255 + 1e-6
            assert np.sqrt(np.mean((shown - expected) ** 2)) <= picture["error_bound"] + 2e-6


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_bounds_are_those_of_the_files(folder: Path, tmp_path: Path, dtype: str) -> None:
    """Against the minimiser for the very numbers in the input, which single precision would round."""
    values = (1e-3 * np.load(folder / "unit.npy")[:1].astype(np.float64)).astype(dtype)
    np.save(tmp_path / "input.npy", values)
    command = ("reconstruct", folder / "model.safetensors", tmp_path / "input.npy", "--out", tmp_path / "out")
    (row,) = succeed(*command, "--tolerance", 1e-6, "--attenuation", 1e-3)["rows"]
    b = torch.from_numpy(values.astype(np.float64) / 1e-3)[:, None]
    exact = lr.solve(load(folder / "model.safetensors").problem(), b, tolerance=1e-10).x[0, 0].numpy()
    error = float(np.sqrt(np.mean((np.load(row["output"]).astype(np.float64) - 1e-3 * exact) ** 2)))
    assert error <= row["error_bound"] * (1 + 1e-9) + 1e-13
    assert row["error_bound"] <= 3e-9 if dtype == "f2" else 2e-8
    shown = np.asarray(Image.open(row["files"][1]["path"])) / 255.0
    assert np.sqrt(np.mean((shown - exact) ** 2)) <= row["files"][1]["error_bound"] * (1 + 1e-9) + 1e-10


def test_scans_of_another_kind_are_warned_of(folder: Path, tmp_path: Path) -> None:
    scan = np.load(folder / "unit.npy")[:1]
    for values, words in (
        (-scan, "negative of a scan"),
        (10 * scan, "--attenuation"),
        (2000 * scan - 1000, "negative"),
    ):
        np.save(tmp_path / "wrong.npy", values)
        command = ("reconstruct", folder / "model.safetensors", tmp_path / "wrong.npy", "--out", tmp_path / "out")
        (row,) = succeed(*command, *LOOSE)["rows"]
        assert words in row["warnings"][0]
    assert "--data-weight" in refuse(2, *command, "--sigma", "0.1")


def test_the_value_of_one_and_other_lengths(folder: Path, tmp_path: Path) -> None:
    """In centimetres, with the attenuation per centimetre, everything is the same picture."""
    text = (folder / "scan.toml").read_text(encoding="utf-8")
    (tmp_path / "cm.toml").write_text(text.replace(str(SIDE / N), str(SIDE / N / 10)), encoding="utf-8")
    arguments = (folder / "model.safetensors", folder / "scan.npy", *LOOSE, "--out")
    mm = succeed("reconstruct", *arguments, tmp_path / "mm", "--geometry", folder / "scan.toml")["rows"]
    cm = succeed(
        "reconstruct", *arguments, tmp_path / "cm", "--geometry", tmp_path / "cm.toml", "--attenuation", 10 * WATER
    )["rows"]
    for a, b in zip(outputs(mm), outputs(cm), strict=True):
        np.testing.assert_allclose(b, 10 * a, rtol=1e-3, atol=1e-4)
    assert cm[0]["error_bound"] == pytest.approx(10 * mm[0]["error_bound"], rel=0.2)


@pytest.mark.parametrize("name", ["model", "noise", "photons", "transmission"])
def test_counts_become_weighted_line_integrals(folder: Path, tmp_path: Path, name: str) -> None:
    rows = succeed(
        "reconstruct", folder / f"{name}.safetensors", folder / "counts.npy", "--out", tmp_path, "--tolerance", 1e-3,
        "--geometry", folder / "scan.toml", "--counts", "--flat", folder / "flat.npy", "--dark", 10,
        "--data-weight", 0.5,
    )["rows"]  # fmt: skip
    counts = torch.from_numpy(np.load(folder / "counts.npy"))
    values = line_integrals(counts, torch.from_numpy(np.load(folder / "flat.npy")), 10.0).values
    training = {"noise": (0.02 * values.mean()) ** 2, "photons": values.mean().exp() / 3e4}
    training["transmission"] = np.exp(0.05 * WATER * SIDE) / 3e4
    photons = counts - 10.0  # whose inverse is the variance of a line integral
    weights = photons / photons.mean() if name == "model" else training[name] * photons
    problem = load(folder / "model.safetensors").problem(data_term=lr.WeightedLeastSquares(0.5 * weights))
    exact = lr.solve(problem, values[None] / (WATER * SIDE), tolerance=1e-6).x[0, 0].numpy()
    (found,) = outputs(rows)
    error = float(np.sqrt(np.mean((found.astype(np.float64) - WATER * exact) ** 2)))
    assert error <= rows[0]["error_bound"] + WATER * 2e-6 <= WATER * 1.1e-3


@pytest.mark.parametrize("name", ["noise", "transmission"])
def test_dead_detectors_count_nothing(folder: Path, tmp_path: Path, name: str) -> None:
    """Named by the option or the geometry file, whatever the sinogram and the flat field hold there."""
    counts, flat = np.load(folder / "counts.npy"), np.load(folder / "flat.npy")
    arguments = ("reconstruct", folder / f"{name}.safetensors", "--tolerance", 1e-4, "--dark", 10, "--counts")
    found = []
    for i, (value, dark) in enumerate(((0.0, 0.0), (np.nan, np.nan), (9e5, 7.0))):
        counts[..., [3, 10, 11]], flat[[3, 10, 11]] = value, dark
        np.save(tmp_path / "counts.npy", counts)
        np.save(tmp_path / "flat.npy", flat)
        text = (folder / "scan.toml").read_text(encoding="utf-8")
        text += "dead_detectors = [3]\n" if i == 0 else "dead_detectors = [3, 10, 11]\n" if i == 1 else ""
        (tmp_path / "scan.toml").write_text(text, encoding="utf-8")
        option = ("--dead-detectors", "3,10-11") if i == 2 else ("--dead-detectors", "10-11") if i == 0 else ()
        rows = succeed(*arguments, tmp_path / "counts.npy", "--flat", tmp_path / "flat.npy", "--geometry",
                       tmp_path / "scan.toml", "--out", tmp_path / str(i), *option)["rows"]  # fmt: skip
        assert rows[0]["bound_kind"] == "rigorous"
        found.append(outputs(rows)[0])
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    rows = succeed(*arguments, folder / "counts.npy", "--flat", folder / "flat.npy", "--geometry", folder / "scan.toml",
                   "--out", tmp_path / "whole")["rows"]  # fmt: skip
    (whole,) = outputs(rows)
    assert 1e-3 < np.linalg.norm(found[0] - whole) / np.linalg.norm(whole) < 0.25


def test_dead_detectors_of_the_model_s_own_geometry(folder: Path, tmp_path: Path) -> None:
    b = np.load(folder / "unit.npy")
    b[..., 4] = np.nan
    np.save(tmp_path / "b.npy", b)
    arguments = ("reconstruct", folder / "model.safetensors", tmp_path / "b.npy", "--tolerance", 1e-4, "--out")
    assert "NaN" in refuse(3, *arguments, tmp_path / "out")
    found = outputs(succeed(*arguments, tmp_path / "out", "--dead-detectors", "4")["rows"])
    weights = torch.ones(b.shape[-1]).index_fill(0, torch.tensor([4]), 0.0)
    problem = load(folder / "model.safetensors").problem(data_term=lr.WeightedLeastSquares(weights))
    exact = lr.solve(problem, torch.from_numpy(np.nan_to_num(b)).double()[:, None], tolerance=1e-6).x[:, 0].numpy()
    for image, expected in zip(found, exact, strict=True):
        assert float(np.sqrt(np.mean((image - expected) ** 2))) < 2e-4


def test_more_data_weight_means_less_regularization(folder: Path, tmp_path: Path) -> None:
    residuals = []
    for weight in (0.1, 10.0):
        out = tmp_path / str(weight)
        rows = succeed(
            "reconstruct",
            folder / "model.safetensors",
            folder / "unit.npy",
            "--out",
            out,
            *LOOSE,
            "--data-weight",
            weight,
        )["rows"]
        x = torch.from_numpy(np.stack(outputs(rows)))[:, None]
        b = torch.from_numpy(np.load(folder / "unit.npy"))[:, None]
        residuals.append(float((ParallelBeam2D(N, ANGLES)(x) - b).norm()))
    assert residuals[1] < residuals[0]


def test_a_denoiser_reconstructs_a_scan(folder: Path, tmp_path: Path) -> None:
    """With a geometry and a data weight; without a ridge nothing is certified."""
    save_model(tmp_path / "denoiser.safetensors", TotalVariation(0.1, 0.02))
    arguments = (tmp_path / "denoiser.safetensors", folder / "scan.npy", "--out", tmp_path / "out", *LOOSE)
    rows = succeed("reconstruct", *arguments, "--geometry", folder / "scan.toml", "--data-weight", 300)["rows"]
    assert not rows[0]["certified"]
    truth = WATER * ellipse_phantom(0, N, 5)[0].numpy()
    found = outputs(rows)[0]
    assert np.sqrt(np.mean((found - truth) ** 2)) < 0.5 * truth.std()
    assert "--data-weight: this model denoises images" in refuse(2, "reconstruct", *arguments, "--data-weight", 300)


def test_other_kinds_of_files(folder: Path, tmp_path: Path) -> None:
    h5py, tifffile = pytest.importorskip("h5py"), pytest.importorskip("tifffile")
    b = np.load(folder / "unit.npy")
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["first"], file["second"] = b[0], b[1]
    tifffile.imwrite(tmp_path / "pages.tif", b, photometric="minisblack")
    arguments = ("reconstruct", folder / "model.safetensors", tmp_path / "two.h5", "--out", tmp_path / "out", *LOOSE)
    first, second = (outputs(succeed(*arguments, "--key", key)["rows"])[0] for key in ("first", "second"))
    pages = outputs(succeed(*arguments[:2], tmp_path / "pages.tif", *arguments[3:])["rows"])
    np.testing.assert_array_equal(pages, [first, second])
    assert "2 data sets" in refuse(3, *arguments)
    assert "only HDF5 files have keys" in refuse(3, *arguments[:2], folder / "unit.npy", *arguments[3:], "--key", "a")


def test_a_stack_is_its_sinograms_one_by_one(folder: Path, tmp_path: Path) -> None:
    """Also of counts, with a flat field for all or for each of them."""
    counts = np.load(folder / "counts.npy")
    flat = np.broadcast_to(np.load(folder / "flat.npy"), counts.shape[-2:])
    several = np.concatenate([counts, 1.1 * counts, 0.9 * counts]).reshape(3, *counts.shape[-2:])
    np.save(tmp_path / "stack.npy", several)
    np.save(tmp_path / "flats.npy", np.stack([flat, 1.1 * flat, 1.2 * flat]))
    begin = ("reconstruct", folder / "transmission.safetensors")
    options = (*LOOSE, "--counts", "--out", tmp_path / "out", "--attenuation", WATER * SIDE)
    found = outputs(succeed(*begin, tmp_path / "stack.npy", *options, "--flat", tmp_path / "flats.npy")["rows"])
    assert len(found) == 3
    for i, factor in enumerate((1.0, 1.1, 1.2)):
        np.save(tmp_path / "one.npy", several[i])
        np.save(tmp_path / "flat.npy", factor * flat)
        single = succeed(*begin, tmp_path / "one.npy", *options, "--flat", tmp_path / "flat.npy")["rows"]
        np.testing.assert_array_equal(outputs(single)[0], found[i])


# ------------------------------------------------------------------------------------------------------------ bad input


def bad_files(folder: Path, tmp_path: Path) -> dict[str, tuple[int, tuple[str, ...], tuple[object, ...]]]:
    """For each bad file the exit code, what the message says, and further options."""
    h5py = pytest.importorskip("h5py")
    b = np.load(folder / "unit.npy")[0]
    np.save(tmp_path / "shape.npy", b[:-1])
    np.save(tmp_path / "nan.npy", np.where(b > b.mean(), np.nan, b))
    np.save(tmp_path / "negative.npy", b - 1)
    Image.fromarray((255 * b / b.max()).astype(np.uint8)).save(tmp_path / "image.png")
    Image.fromarray(np.zeros((N, N), np.uint8)).save(tmp_path / "image.tif")
    (tmp_path / "pointer.hdf5").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with h5py.File(tmp_path / "whole.h5", "w") as file:
        file["data"] = np.repeat(b[None], 200, 0)
    (tmp_path / "truncated.h5").write_bytes((tmp_path / "whole.h5").read_bytes()[:20000])
    (tmp_path / "raw.bin").write_bytes(b.tobytes())
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file.create_dataset("data", b.shape, "f4", external=[(str(tmp_path / "raw.bin"), 0, b.nbytes)])
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["data"] = h5py.ExternalLink(str(tmp_path / "whole.h5"), "/data")
    counts = ("--counts", "--flat", 100)
    shape = (f"(1, {ANGLES}, {b.shape[1]})",)
    return {
        "shape.npy": (4, (f"(1, {ANGLES - 1}, {b.shape[1]})", *shape), ()),
        "nan.npy": (3, ("NaN",), ()),
        "negative.npy": (3, ("counts are negative",), counts),
        "image.png": (4, ("an image", "learnreg evaluate", *shape), ()),
        "image.tif": (4, (f"(1, {N}, {N})", *shape), ()),
        "pointer.hdf5": (3, ("Git LFS pointer", "git lfs pull"), ()),
        "truncated.h5": (3, ("truncated",), ()),
        "external.h5": (3, ("stored in other files",), ()),
        "link.h5": (3, ("reached by a link",), ("--key", "data")),
        "absent.npy": (3, ("does not exist",), ()),
    }


def test_bad_sinograms(folder: Path, tmp_path: Path) -> None:
    for name, (code, parts, options) in bad_files(folder, tmp_path).items():
        good = () if "--key" in options else (folder / "unit.npy",)
        arguments = ("reconstruct", folder / "model.safetensors", *good, tmp_path / name)
        message = refuse(code, *arguments, "--out", tmp_path / "out", *options)
        assert all(part in message for part in (name, *parts)), message
    assert not (tmp_path / "out").exists(), "nothing is reconstructed before all inputs were read"


def test_bad_options(folder: Path, tmp_path: Path) -> None:
    arguments = ("reconstruct", folder / "model.safetensors", folder / "counts.npy", "--out", tmp_path / "out")
    (tmp_path / "bad.toml").write_text('kind = "parallel"\nimage_sise = 3\n', encoding="utf-8")
    np.save(tmp_path / "flat.npy", np.ones(7))
    for options, code, part in (
        (("--attenuation", 0), 2, "--attenuation 0.0: expected a positive"),
        (("--data-weight", "inf"), 2, "--data-weight inf"),
        (("--counts",), 2, "--counts needs --flat"),
        (("--dark", 3), 2, "belong to --counts"),
        (("--geometry", tmp_path / "bad.toml"), 2, "image_sise"),
        (("--geometry", tmp_path / "absent.toml"), 3, "absent.toml"),
        (("--counts", "--flat", 5, "--dark", 7), 3, "flat <= dark"),
        (("--counts", "--flat", tmp_path / "flat.npy"), 4, "flat of shape (7,)"),
        (("--counts", "--flat", tmp_path / "absent.npy"), 3, "does not exist"),
        (("--tolerance", 0), 2, "tolerance=0.0"),
        (("--dead-detectors", "four"), 2, "expected numbers and ranges, such as 40,101-103"),
        (("--dead-detectors", "-1"), 2, "expected numbers and ranges"),
        (("--dead-detectors", "3,29"), 2, "29 is out of range, the 29 detectors are counted from 0 to 28"),
        (("--dead-detectors", "5-3"), 2, "5-3 is out of range"),
        (("--dead-detectors", "3,2-4"), 2, "a detector is named twice"),
        (("--dead-detectors", "0-28"), 2, "all 29 detectors are dead"),
    ):
        assert part in refuse(code, *arguments, *options)
    assert "replace an input" in refuse(2, *arguments[:-1], folder)
    blur = lr.LowerLevelProblem(lr.operators.Blur(torch.ones(3, 3) / 9, (1, N, N)), TotalVariation(), ridge=0.1)
    save_model(tmp_path / "blur.safetensors", blur)
    message = refuse(2, "reconstruct", tmp_path / "blur.safetensors", folder / "unit.npy", "--out", tmp_path / "out")
    assert "for blur, not for projections" in message


def test_weights_of_other_views_are_refused(folder: Path, tmp_path: Path) -> None:
    weights = lr.WeightedLeastSquares(torch.ones(1, 7, 1))
    save_model(
        tmp_path / "m.safetensors", lr.LowerLevelProblem(ParallelBeam2D(N, 7), TotalVariation(), data_term=weights)
    )
    arguments = (tmp_path / "m.safetensors", folder / "scan.npy", "--geometry", folder / "scan.toml")
    assert "weights of shape (1, 7, 1)" in refuse(4, "reconstruct", *arguments, "--out", tmp_path / "out")
