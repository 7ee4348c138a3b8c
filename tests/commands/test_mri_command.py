"""``learnreg train mri`` from phantoms or k-space to the report, ``evaluate``, and ``reconstruct`` of k-space."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from support.command_line import refuse, small_training, succeed

import learnreg as lr
from learnreg.datasets import ellipse_phantom, read_kspace, simulate_coil_maps, with_smooth_phase
from learnreg.models.model import load, save_model
from learnreg.operators import CartesianMRI, as_channels, as_complex
from learnreg.operators.mri import to_kspace
from learnreg.regularizers import TotalVariation

pytest.importorskip("skimage.metrics")
Image = pytest.importorskip("PIL.Image")

TINY = ("--size", 16, "--minutes", 3.0)
SMALL = small_training(ridge=0.05)
LOOSE = ("--tolerance", 1e-2)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    A = CartesianMRI(torch.ones(16), domain_shape=(2, 16, 16))
    R = TotalVariation(0.01, 0.02, channels=2, coupling="complex")
    save_model(tmp_path / "model.safetensors", lr.LowerLevelProblem(A, R, ridge=0.05))
    return tmp_path / "model.safetensors"


def kspace(coils: int, lines: torch.Tensor, height: int = 16, number: int = 0) -> torch.Tensor:
    """Of a phantom with intensities of the thousandth, (coils, height, lines)."""
    image = 1e-3 * with_smooth_phase(ellipse_phantom(number, max(height, len(lines)), 0)[:, :height, : len(lines)])
    maps = simulate_coil_maps(coils, height, len(lines))
    return to_kspace(maps * as_complex(image[None])) * lines


def test_train_resume_evaluate(quick: None, tmp_path: Path) -> None:
    out = tmp_path / "run"
    summary = succeed("train", "mri", "--out", out, "--coils", 2, *TINY, *SMALL)
    assert {"psnr_zero_filled", "psnr_tv", "psnr_learned", "gain_over_tv", "model", "report"} <= set(summary)
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "zero-filled" in report
    assert "25 % of the lines of k-space, 2 coils" in re.sub(r"\s+", " ", report)
    found = load(out / "model.safetensors")
    assert found.for_mri
    assert found.operator.range_shape == (2, 2, 16, 16)
    assert found.regularizer.config()["coupling"] == "complex"
    assert succeed("train", "mri", "--out", out, "--resume")["updates"] == summary["updates"]
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(2):
        pixels = (255 * ellipse_phantom(i, 32, 3)[0].numpy()).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    figures = succeed("evaluate", out / "model.safetensors", "--data", folder, *LOOSE)
    assert (figures["n"], figures["sigma"]) == (2, 0.01)
    assert "psnr_fbp" not in figures
    noisier = succeed("evaluate", out / "model.safetensors", "--data", folder, "--sigma", 0.3, *LOOSE)
    assert noisier["psnr"] < figures["psnr"]


@pytest.mark.slow(seconds=5)
def test_train_on_fully_sampled_k_space(quick: None, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    folder = tmp_path / "scans"
    folder.mkdir()
    for i in range(2):
        with h5py.File(folder / f"{i}.h5", "w") as file:
            file["kspace"] = torch.stack([kspace(2, torch.ones(20), 24, 3 * i + k) for k in range(3)]).numpy()
    summary = succeed("train", "mri", "--data", folder, "--out", tmp_path / "run", *TINY, *SMALL)
    assert summary["held_out"] == ["1.h5 0", "1.h5 1", "1.h5 2"]
    with h5py.File(folder / "0.h5", "w") as file:
        file["kspace"] = kspace(2, torch.arange(20) % 2, 24)[None].numpy()
    message = refuse(3, "train", "mri", "--data", folder, "--out", tmp_path / "other", *TINY, *SMALL)
    assert "10 of 20 lines were not measured" in message


@pytest.mark.parametrize("coils", [1, 3])
def test_reconstructs_k_space_of_other_lines_and_sides(coils: int, model: Path, tmp_path: Path) -> None:
    lines = torch.zeros(24)
    lines[[1, 5, *range(8, 17), 20]] = 1
    data = kspace(coils, lines, 20)
    np.save(tmp_path / "scan.npy", data.numpy() if coils > 1 else data[0].numpy())
    np.save(tmp_path / "maps.npy", simulate_coil_maps(coils, 20, 24).numpy())
    maps = ("--coil-maps", tmp_path / "maps.npy") if coils > 1 else ()
    out = tmp_path / "out"
    (row,) = succeed("reconstruct", model, tmp_path / "scan.npy", "--out", out, *maps, *LOOSE)["rows"]
    assert row["certified"]
    found = np.load(out / "scan.npy")
    assert (found.shape, found.dtype) == ((20, 24), np.complex64)
    with Image.open(out / "scan.png") as picture:
        assert picture.size == (24, 20)
    s = simulate_coil_maps(coils, 20, 24) if coils > 1 else None
    A = CartesianMRI(lines, s, (2, 20, 24)).double()
    b = as_channels((data if coils > 1 else data[0])[None].to(torch.complex128))
    scale = float(as_complex(A.approximate_inverse(b))[0].abs().max())
    exact = lr.solve(load(model).problem(operator=A), b / scale, tolerance=1e-9).x
    error = scale * as_complex(exact)[0].numpy() - found
    assert float(np.sqrt(np.mean(np.abs(error) ** 2))) <= row["error_bound"] <= 2e-2 * scale
    if coils > 1:
        (estimated,) = succeed("reconstruct", model, tmp_path / "scan.npy", "--out", out, *LOOSE)["rows"]
        assert estimated["notes"] == ["12 of 24 lines measured, 3 coils"]


def test_what_does_not_fit_is_refused(model: Path, tmp_path: Path) -> None:
    scan, out = tmp_path / "scan.npy", tmp_path / "out"
    np.save(scan, kspace(2, (torch.arange(16) % 2).float()).numpy())
    np.save(tmp_path / "maps.npy", simulate_coil_maps(3, 16, 16).numpy())
    np.save(tmp_path / "real.npy", np.ones((4, 4), np.float32))
    save_model(tmp_path / "denoiser.safetensors", TotalVariation())
    maps = ("--coil-maps", tmp_path / "maps.npy")
    assert "too few to estimate sensitivities" in refuse(3, "reconstruct", model, scan, "--out", out)
    assert "holds 1 slices of (coils, H, W) = (2, 16, 16)" in refuse(4, "reconstruct", model, scan, "--out", out, *maps)
    assert "complex numbers" in refuse(3, "reconstruct", model, tmp_path / "real.npy", "--out", out)
    assert "expected a name and a number" in refuse(2, "reconstruct", model, scan, "--out", out, "--select", "set")
    assert "for denoising images" in refuse(2, "reconstruct", model, scan, "--out", out, "--sigma", 0.1)
    assert "the option is for CT" in refuse(2, "reconstruct", model, scan, "--out", out, "--counts", "--flat", 3)
    denoiser = tmp_path / "denoiser.safetensors"
    assert "the option is for MRI" in refuse(2, "reconstruct", denoiser, tmp_path / "real.npy", "--out", out, *maps)
    message = refuse(2, "train", "mri", "--out", out, *TINY, "--regularizer", "icnn")
    assert "coupling='complex'" in message
    assert read_kspace(scan).lines.tolist() == [False, True] * 8
