"""``learnreg train ct`` from images to the report, and ``evaluate`` of what it learned, on tiny images."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.command_line import refuse, small_training, succeed

import learnreg as lr
from learnreg.commands import evaluate as evaluation
from learnreg.datasets import LoDoPaB, ellipse_phantom
from learnreg.models.model import load, save_model
from learnreg.operators import ParallelBeam2D, ParallelGeometry
from learnreg.regularizers import TotalVariation
from learnreg.report.comparison import Scene

pytest.importorskip("astra")
pytest.importorskip("skimage.metrics")
Image = pytest.importorskip("PIL.Image")

TINY = ("--size", 16, "--angles", 8, "--minutes", 3.0)
SMALL = small_training(ridge=0.01)
LOOSE = ("--tolerance", 1e-2)


@pytest.fixture
def slices(tmp_path: Path) -> Path:
    folder = tmp_path / "slices"
    folder.mkdir()
    for i in range(4):
        pixels = (255 * ellipse_phantom(i, 32, 3)[0].numpy()).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def check_run(out: Path, kind: str) -> None:
    present = {path.name for path in out.iterdir()}
    assert {"model.safetensors", "config.toml", "metrics.jsonl", "report.html", "checkpoint"} <= present
    assert "FBP" in (out / "report.html").read_text(encoding="utf-8")
    model = load(out / "model.safetensors")
    assert type(model.operator).__name__ == kind
    assert model.operator.range_shape[1] == 8


def test_train_on_phantoms_resume_evaluate_reconstruct(quick: None, slices: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "run", tmp_path / "run" / "model.safetensors"
    summary = succeed("train", "ct", "--out", out, *TINY, *SMALL)
    assert {"psnr_fbp", "psnr_tv", "psnr_learned", "gain_over_tv", "updates", "model", "report"} <= set(summary)
    assert len(summary["held_out"]) == 8
    check_run(out, "ParallelBeam2D")
    assert "--resume" in refuse(2, "train", "ct", "--out", out, *TINY, *SMALL)
    assert "angles: 8 in the run, 9 now" in refuse(2, "train", "ct", "--out", out, "--resume", "--angles", 9)
    resumed = succeed("train", "ct", "--out", out, "--resume")
    assert resumed["updates"] == summary["updates"]
    assert resumed["psnr_learned"] == pytest.approx(summary["psnr_learned"], abs=1e-3)

    figures = succeed("evaluate", model, "--data", slices, *LOOSE)
    keys = {"psnr", "ssim", "psnr_input", "psnr_fbp", "n", "sigma", "seed", "seconds_per_image"}
    assert keys <= set(figures)
    assert (figures["n"], figures["sigma"], figures["seed"]) == (4, 0.01, 0)
    assert figures["psnr_input"] == figures["psnr_fbp"] < figures["psnr"]
    noisier = succeed("evaluate", model, "--data", slices, "--sigma", 0.1, *LOOSE)
    assert noisier["psnr"] < figures["psnr"]

    operator = load(model).operator
    np.save(tmp_path / "b.npy", operator(ellipse_phantom(0, 16, 0)[None])[0, 0].numpy())
    (row,) = succeed("reconstruct", model, tmp_path / "b.npy", "--out", tmp_path / "results", *LOOSE)["rows"]
    assert row["certified"]
    assert np.load(Path(row["output"]).with_suffix(".npy")).shape == (16, 16)


@pytest.mark.slow(seconds=7)
def test_train_on_image_files_with_a_fan_and_photons(quick: None, slices: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--geometry", "fan", "--set", "photons=1e4", "--data-term", "transmission")
    summary = succeed("train", "ct", "--data", slices, "--out", out, *TINY, *SMALL, *options)
    assert len(summary["held_out"]) == 1
    check_run(out, "FanBeam2D")
    model = load(out / "model.safetensors")
    assert model.config["photons"] == 1e4
    assert isinstance(model.data_term, lr.TransmissionPoisson)
    assert model.data_term.photons == 1e4
    assert "photons per ray" in (out / "report.html").read_text(encoding="utf-8")
    figures = succeed("evaluate", out / "model.safetensors", "--data", slices, "--seed", 3, *LOOSE)
    assert (figures["n"], figures["seed"]) == (4, 3)


def lodopab(root: Path, angles: int = 8, detectors: int = 23) -> None:
    """Six training and three validation pairs in files of that layout."""
    h5py = pytest.importorskip("h5py")
    root.mkdir()
    for split, count in (("train", 6), ("validation", 3)):
        images = torch.stack([ellipse_phantom(i, 16, held_out=split != "train") for i in range(count)])
        geometry = ParallelGeometry(
            image_size=16,
            angles=tuple((i + 0.5) * math.pi / angles - 0.5 * math.pi for i in range(angles)),
            detectors=detectors,
            pixel_size=1 / 16,
            detector_pitch=math.sqrt(2) / detectors,
        )
        b = ParallelBeam2D.from_geometry(geometry)(images)
        noisy = [LoDoPaB.noise.apply(p, torch.Generator().manual_seed(i)) for i, p in enumerate(b)]
        for what, values in (("observation", 0.26 * torch.cat(noisy)), ("ground_truth", images[:, 0])):
            with h5py.File(root / f"{what}_{split}_000.hdf5", "w") as file:
                file["data"] = values.numpy()


def test_measured_sinograms_are_evaluated_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lodopab(tmp_path / "data")
    data = LoDoPaB.of_files(tmp_path / "data", "validation")
    A, path = ParallelBeam2D.from_geometry(data.geometry), tmp_path / "model.safetensors"
    problem = lr.LowerLevelProblem(A, TotalVariation(1e-3, 1e-2), ridge=1e-3)
    save_model(path, problem)
    expected = [(lr.solve(problem, b[None], 1e-5).x[0], x_true) for b, x_true in (data[i] for i in range(3))]
    events, read, measure = [], LoDoPaB.__getitem__, evaluation._measure

    def recorded_read(self: LoDoPaB, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        events.append(f"read {index}")
        return read(self, index)

    def recorded_measure(scene: Scene, *rest: Any) -> evaluation.EvaluatedImage:
        events.append(scene.name)
        return measure(scene, *rest)

    monkeypatch.setattr(LoDoPaB, "__getitem__", recorded_read)
    monkeypatch.setattr(evaluation, "_measure", recorded_measure)
    found = succeed("evaluate", path, "--data", tmp_path / "data", "--tolerance", 1e-3)
    assert events == [event for i in range(3) for event in (f"read {i}", f"validation {i}")]
    assert found["sigma"] is None
    for row, (x, x_true) in zip(found["rows"], expected, strict=True):
        assert row["psnr"] == pytest.approx(-10.0 * math.log10(float((x - x_true).square().mean())), abs=0.1)
    other = tmp_path / "other.safetensors"
    save_model(other, lr.LowerLevelProblem(ParallelBeam2D(16, 8), TotalVariation(), ridge=1e-3))
    assert "not that of the model" in refuse(2, "evaluate", other, "--data", tmp_path / "data")
    assert "a noise of their own" in refuse(2, "evaluate", path, "--data", tmp_path / "data", "--sigma", 0.1)


@pytest.mark.slow(seconds=12)
def test_train_on_lodopab(quick: None, slices: Path, tmp_path: Path) -> None:
    """With the geometry, the size and the photons of the data, whatever the defaults are."""
    lodopab(tmp_path / "data")
    out = tmp_path / "run"
    summary = succeed("train", "ct", "--data", tmp_path / "data", "--out", out, "--minutes", 3.0, *SMALL)
    assert summary["held_out"] == ["validation 0", "validation 1", "validation 2"]
    check_run(out, "ParallelBeam2D")
    model = load(out / "model.safetensors")
    assert model.operator.range_shape == (1, 8, 23)
    assert (model.data_term.photons, model.data_term.attenuation) == (4096.0, 81.35858 * 0.26)  # type: ignore[attr-defined]
    assert model.config["training"]["angles"] == 8
    assert "4096 photons" in (out / "report.html").read_text(encoding="utf-8")
    resumed = succeed("train", "ct", "--out", out, "--resume")
    assert resumed["updates"] == summary["updates"]
    assert succeed("evaluate", out / "model.safetensors", "--data", slices, *LOOSE)["n"] == 4

    arguments = ("train", "ct", "--data", tmp_path / "data", "--out", tmp_path / "other", *SMALL)
    assert "angles=9: the measurements of LoDoPaB have 8" in refuse(2, *arguments, "--angles", 9)
    (tmp_path / "data" / "observation_validation_000.hdf5").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert "Git LFS" in refuse(3, *arguments)
    (tmp_path / "data" / "ground_truth_validation_000.hdf5").unlink()
    assert "ground_truth_validation_000.hdf5" in refuse(3, *arguments)


def test_train_on_a_dicom_series(quick: None, tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    series = Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests" / "98892001" / "CT5N"
    if not series.is_dir():
        pytest.skip("pydicom came without its test files")
    out = tmp_path / "run"
    summary = succeed("train", "ct", "--data", series, "--out", out, *TINY, *SMALL)
    assert len(summary["held_out"]) == 1
    check_run(out, "ParallelBeam2D")


def test_bad_dicom_folders(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    files = Path(pydicom.__file__).parent / "data" / "test_files"
    small = files / "CT_small.dcm"
    if not small.is_file():
        pytest.skip("pydicom came without its test files")
    slice_ = pydicom.dcmread(small)
    folders = {name: tmp_path / name for name in ("missing", "mixed", "compressed", "lfs", "no images")}
    for folder in folders.values():
        folder.mkdir()
    shutil.copy(small, folders["mixed"] / "a.dcm")
    slice_.SeriesInstanceUID = "1.2.3"
    slice_.save_as(folders["mixed"] / "b.dcm")
    del slice_.PixelSpacing
    slice_.save_as(folders["missing"] / "a.dcm")
    other = pydicom.dcmread(small)
    other.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless
    other.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9" * 100])
    other["PixelData"].VR = "OB"
    other.save_as(folders["compressed"] / "a.dcm")
    (folders["lfs"] / "a.dcm").write_text("version https://git-lfs.github.com/spec/v1\n")
    expected = {
        "missing": "PixelSpacing (0028,0030)",
        "mixed": "2 CT series",
        "compressed": "JPEG-LS Lossless",
        "lfs": "no images",
        "no images": "no images",
    }
    if pydicom.pixels.get_decoder(pydicom.uid.JPEGLSLossless).is_available:
        del expected["compressed"]
    for name, part in expected.items():
        message = refuse(3, "train", "ct", "--data", folders[name], "--out", tmp_path / "run", *TINY)
        assert part in message
    assert not (tmp_path / "run").exists()
