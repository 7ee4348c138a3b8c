"""``learnreg adapt``: a denoiser's regularizer balanced with other measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.command_line import refuse, succeed

import learnreg as lr
from learnreg.commands import adapt as adapting
from learnreg.commands import deblur, mri
from learnreg.commands.options import DeblurConfig
from learnreg.models.model import load, save_model
from learnreg.regularizers import (
    FieldsOfExperts,
    ImportedRidge,
    InputConvexNetwork,
    LearnedTotalGeneralizedVariation,
    RidgeRegularizer,
    Scaled,
)

pytest.importorskip("skimage.metrics")

DEBLUR = ["--steps=1", *(f"--set={key}" for key in ("patch=12", "patches=3", "ridge=0.05", "blur=0.8"))]
MRI = ["--steps=1", *(f"--set={key}" for key in ("size=16", "images=3", "ridge=0.05"))]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches and comparisons that need not be good."""
    monkeypatch.setattr(adapting, "_MOST", 3)
    monkeypatch.setattr(adapting, "_MOST_SCALES", 1)
    for task in (deblur, mri):
        monkeypatch.setattr(task, "_COMPARISON_TOLERANCE", 5e-2)
    monkeypatch.setattr(deblur, "_CROP", 16)


@pytest.fixture
def experts(tmp_path: Path) -> Path:
    path = tmp_path / "experts.safetensors"
    save_model(path, FieldsOfExperts(3, 3, lr.PseudoHuber(0.02, 0.1)))
    return path


def test_a_denoiser_is_adapted_to_blur_by_pairs(experts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = succeed("adapt", experts, "--task", "deblur", "--out", out, "--pairs", 2, *DEBLUR)
    assert {"psnr_blurred", "psnr_tv", "psnr_learned", "factor", "scale", "loss", "certified_steps"} <= set(summary)
    assert summary["certified_steps"] == 1
    found = load(out / "model.safetensors")
    assert isinstance(found.regularizer, Scaled)
    assert float(found.regularizer.factor.detach()) == pytest.approx(summary["factor"])
    own, adapted = load(experts).regularizer, found.regularizer.base
    assert isinstance(own, FieldsOfExperts)
    x, scale = torch.rand(2, 1, 9, 8), summary["scale"]
    expected = scale**2 * own.value(x / scale)
    torch.testing.assert_close(adapted.value(x), expected, rtol=1e-5, atol=1e-5)
    assert found.operator.range_shape == (1, 12, 12)


def test_steps_that_are_certified_may_be_left_out(experts: Path, tmp_path: Path) -> None:
    without = [word for word in DEBLUR if not word.startswith("--steps")]
    options = ("adapt", experts, "--task", "deblur", "--pairs", 2, *without)
    summary = succeed(*options, "--steps", 0, "--out", tmp_path / "out")
    assert summary["certified_steps"] == 0
    assert 0 < summary["loss"] < float("inf")
    assert "--steps -1: expected 0 for none" in refuse(2, *options, "--steps", -1, "--out", tmp_path / "other")


def test_the_loss_is_that_after_the_last_step() -> None:
    scenario = deblur.scenario(DeblurConfig(patch=12, patches=3, ridge=0.05, blur=0.8))
    b, x_true = (torch.stack(column) for column in zip(*(scenario.pairs[i] for i in range(2)), strict=True))
    problem = scenario.problem(Scaled(FieldsOfExperts(3, 3, lr.PseudoHuber(0.02, 0.1)), 5.0))

    def loss() -> float:
        return float(lr.SquaredError(x_true.double()).value(lr.solve(problem, b.double(), 1e-7).x))

    before = loss()
    upper, steps = adapting._Tuning(scenario, b, x_true, 1e-3)._descend(problem, 1)
    assert steps == 1
    assert loss() <= upper < before


@pytest.mark.slow(seconds=8)
def test_the_size_of_the_residual_chooses_without_a_ground_truth(
    experts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapting, "_MOST", 8)
    options = [*DEBLUR, "--set=ridge=0.001", "--criterion", "discrepancy"]
    arguments = ("adapt", experts, "--task", "deblur", "--out", tmp_path / "out", *options)
    tried: list[float] = []

    def recorded(problem: lr.LowerLevelProblem, *arguments: Any, **options: Any) -> lr.Solution:
        assert isinstance(problem.regularizer, Scaled)
        tried.append(float(problem.regularizer.log_factor.detach()))
        return lr.solve(problem, *arguments, **options)

    monkeypatch.setattr(adapting, "solve", recorded)
    summary = succeed(*arguments, "--pairs", 3, "--noise", 0.02)
    assert summary["loss"] is None  # without a ground truth
    assert len(set(tried)) == len(tried)
    problem = load(tmp_path / "out" / "model.safetensors").problem()
    pairs = deblur.scenario(DeblurConfig(patch=12, patches=3, ridge=1e-3, blur=0.8)).pairs
    b = torch.stack([pairs[i][0] for i in range(3)])
    residual = problem.operator(lr.solve(problem, b, 1e-4).x) - b
    assert float(residual.square().mean().sqrt()) == pytest.approx(0.02, rel=0.05)
    assert "check --noise" in refuse(2, *arguments, "--noise", 30.0)


@pytest.mark.parametrize("family", ["experts", "ridge"])
@pytest.mark.sampled(share=0.5, by=("family",))
def test_a_model_of_grey_images_sees_the_modulus_of_complex_ones(family: str, experts: Path, tmp_path: Path) -> None:
    out, grey = tmp_path / "out", experts
    if family == "ridge":
        grey = tmp_path / "ridge.safetensors"
        save_model(grey, RidgeRegularizer((2,), 3, 11, "convex-nonconvex"))
    succeed("adapt", grey, "--task", "mri", "--out", out, "--pairs", 1, *MRI, "--set=ridge=1")
    adapted = load(out / "model.safetensors")
    assert adapted.for_mri
    x = torch.rand(1, 2, 16, 16)
    turned = torch.stack([-x[:, 1], x[:, 0]], dim=1)  # times the imaginary unit
    torch.testing.assert_close(adapted.regularizer.value(turned), adapted.regularizer.value(x))


def test_what_cannot_be_adapted_is_refused(experts: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    network = tmp_path / "network.safetensors"
    save_model(network, InputConvexNetwork(features=2, size=3))
    field = tmp_path / "field.safetensors"
    save_model(field, LearnedTotalGeneralizedVariation())
    cases = [
        ((experts, "--task", "denoising"), "expected one of denoise, ct, mri, deblur"),
        ((experts, "--task", "deblur", "--criterion", "luck", *DEBLUR), "expected one of pairs, discrepancy"),
        ((experts, "--task", "deblur", "--pairs", 4, *DEBLUR), "from 1 to the 3 training samples"),
        ((experts, "--task", "mri", "--set", "angles=3"), "learnreg train ct has it"),
        ((network, "--task", "mri", *MRI), "see no modulus"),
        ((field, "--task", "mri", *MRI), "no form for 2 channels"),
    ]
    for arguments, message in cases:
        assert message in refuse(2, "adapt", *arguments, *out)


@pytest.mark.slow(seconds=3)
def test_noise_levels_that_a_model_does_not_know_are_not_tried(tmp_path: Path) -> None:
    """Of a published ridge: up to 30/255, where the search begins at 25/255 and tries larger ones."""
    torch.manual_seed(0)
    regularizer = ImportedRidge(
        [torch.rand(2, 1, 3, 3)], torch.ones(1, 4), 0.1, log_scales=torch.zeros(2, 3), noise_range=(0.0, 30.0),
        noise_level=25 / 255, boundary="reflect",
    )  # fmt: skip
    save_model(tmp_path / "a.safetensors", regularizer, {"sigma": [0.0, 30 / 255]})
    summary = succeed("adapt", tmp_path / "a.safetensors", "--task", "deblur", "--out", tmp_path / "out", *DEBLUR)
    assert 0.0 < summary["noise_level"] <= 30 / 255
