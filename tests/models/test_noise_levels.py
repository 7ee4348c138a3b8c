"""Models of one noise level, and those that adapt to a range."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import learnreg as lr
from learnreg.models.model import load, save_model
from learnreg.operators import Identity
from learnreg.regularizers import RidgeRegularizer
from learnreg.regularizers.imported import ImportedRidge


def test_a_range_of_noise_levels(tmp_path: Path) -> None:
    regularizer = RidgeRegularizer((2,), 3, noise_conditioned=True)
    save_model(tmp_path / "a.safetensors", regularizer, {"sigma": [5 / 255, 50 / 255]})
    model, b = load(tmp_path / "a.safetensors"), torch.rand(1, 1, 9, 9)
    assert (model.noise_level, model.noise_range) == (None, (5 / 255, 50 / 255))
    assert model.usual_noise_level == 25 / 255
    with pytest.raises(lr.ConfigError, match="from 5/255 to 50/255; pass that of b"):
        model.reconstruct(b)
    expected = lr.solve(lr.LowerLevelProblem(Identity((1, 9, 9)), regularizer.at(0.1)), b).x
    assert torch.equal(model.reconstruct(b, noise_level=0.1), expected)


@pytest.mark.parametrize("sigma", [0.1, None, [], ["5/255"], [True], "25/255", [-1.0, 0.1], [0.0]])
def test_what_is_no_range(tmp_path: Path, sigma: object) -> None:
    save_model(tmp_path / "a.safetensors", RidgeRegularizer((2,), 3, noise_conditioned=True), {"sigma": sigma})
    assert load(tmp_path / "a.safetensors").noise_range is None
    load(tmp_path / "a.safetensors").reconstruct(torch.rand(1, 1, 9, 9), tolerance=1.0)


@pytest.mark.parametrize(("sigma", "said"), [(0.1, "25.5/255"), (None, "does not say")])
def test_a_model_of_one_noise_level_refuses_others(tmp_path: Path, sigma: float | None, said: str) -> None:
    save_model(tmp_path / "a.safetensors", RidgeRegularizer((2,), 3), {} if sigma is None else {"sigma": sigma})
    model, b = load(tmp_path / "a.safetensors"), torch.rand(1, 1, 9, 9)
    with pytest.raises(lr.ConfigError, match=said):
        model.reconstruct(b, tolerance=1e-2, noise_level=0.2)
    if sigma is not None:
        model.reconstruct(b, tolerance=1e-2, noise_level=sigma)


def test_a_model_that_refuses_some_noise_levels_adapts_to_noise(tmp_path: Path) -> None:
    """Such as published ridges, which know levels up to 30/255."""
    regularizer = ImportedRidge(
        [torch.rand(2, 1, 3, 3)], torch.ones(1, 4), 0.1, log_scales=torch.zeros(2, 3), noise_range=(0.0, 30.0),
        noise_level=25 / 255,
    )  # fmt: skip
    save_model(tmp_path / "a.safetensors", regularizer, {"sigma": [0.0, 30 / 255]})
    model, b = load(tmp_path / "a.safetensors"), torch.rand(1, 1, 9, 9)
    assert model.conditioned
    model.reconstruct(b, noise_level=10 / 255, tolerance=1e-2)
    with pytest.raises(lr.ConfigError, match=r"noise level 0\.2"):
        model.reconstruct(b, noise_level=0.2)
