"""Training for a range of noise levels and from a model: what the options mean, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import learnreg as lr
from learnreg.commands.common import initial_regularizer
from learnreg.commands.denoise import scenario, split_images, validation_levels
from learnreg.commands.options import DenoiseConfig, TomographyConfig
from learnreg.commands.sources import training_options
from learnreg.models.model import save_model

RANGE: dict[str, Any] = {"sigma": "5/255:50/255", "noise_conditioned": True, "regularizer": "ridge"}
SMALL: dict[str, Any] = {"regularizer": "ridge", "convolutions": "2,3", "knots": 7}


def parameters(regularizer: lr.Regularizer) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in regularizer.named_parameters()}


@pytest.fixture
def images(tmp_path: Path) -> str:
    """A folder of eight images, some of them by another name."""
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(8):
        pixels = (255 * torch.rand(20, 20, generator=torch.Generator().manual_seed(i))).byte().numpy()
        Image.fromarray(pixels).save(folder / f"{'a' if i < 5 else 'b'}{i}.png")
    return str(folder)


def test_a_range_of_noise_levels_has_batches_of_one_level(images: str) -> None:
    config = DenoiseConfig(**RANGE, data=images, patch=16, patches=8, levels=4)
    made = scenario(config)
    assert made.problem(initial_regularizer(config)).noise_level is None
    assert made.described == {"sigma": [5 / 255, 50 / 255]}
    groups = made.pairs.batch_groups()  # type: ignore[attr-defined]
    assert [len(group) for group in groups] == [2] * 4
    assert made.tv_pairs is not None
    assert float((made.tv_pairs[0][0] - made.tv_pairs[0][1]).std()) == pytest.approx(25 / 255, rel=0.2)
    assert validation_levels(0.1, 0.4) == pytest.approx((0.1, 0.2, 0.3, 0.4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": "5/255:50/255", "regularizer": "ridge"}, "--noise-conditioned"),
        ({**RANGE, "sigma": "50/255:5/255"}, "lower noise level first"),
        ({**RANGE, "levels": 600}, "patches=512"),
        ({**RANGE, "convolutions": "4,eight"}, "4,8,32"),
    ],
)
def test_ranges_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(lr.ConfigError, match=message):
        initial_regularizer(DenoiseConfig(**options))


@pytest.mark.parametrize(
    ("kind", "assignments", "message"),
    [
        (DenoiseConfig, ["levels=8"], "range of noise levels"),
        (DenoiseConfig, ["noise_weighting=none"], "range of noise levels"),
        (DenoiseConfig, ["regularizer=tv", "noise_conditioned=true"], "no such option"),
        (TomographyConfig, ["regularizer=ridge", "noise_conditioned=true"], "learnreg train denoise has it"),
    ],
)
def test_options_that_nothing_reads_are_refused(kind: Any, assignments: list[str], message: str) -> None:
    with pytest.raises(lr.ConfigError, match=message):
        training_options(kind, None, assignments, {}, resume=False)


def test_images_are_held_out_by_number_and_name(images: str) -> None:
    for held_out, of, count in ((4, "all", 2), (1, "b", 1), (2, "b", 2)):
        kept, apart = split_images(images, 3, held_out=held_out, held_out_of=of)
        assert len(apart) == count
        assert len(kept) + count == 8
        assert not kept.keys() & apart.keys()
        assert of == "all" or all(name.startswith(of) for name in apart)
    with pytest.raises(lr.ConfigError, match="held_out_of"):
        split_images(images, 3, held_out_of="train/")


def test_training_starts_from_a_model_with_more_parameters_and_larger_kernels(tmp_path: Path) -> None:
    path = str(tmp_path / "model.safetensors")
    given = initial_regularizer(DenoiseConfig(**SMALL, size=3, seed=1))
    with torch.no_grad():
        for p in given.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
    save_model(path, given)
    same = initial_regularizer(DenoiseConfig(**SMALL, size=3, init=path))
    assert all(torch.equal(p, parameters(given)[name]) for name, p in parameters(same).items())
    more = {"noise_conditioned": True, "convexity": "convex-nonconvex", "depth": 0.7}
    grown: Any = initial_regularizer(DenoiseConfig(**SMALL, **more, size=5, init=path))
    filters = torch.nn.functional.pad(given.effective_filters, [2, 2, 2, 2])  # type: ignore[operator, arg-type]
    torch.testing.assert_close(grown.effective_filters / grown.effective_filters.norm(), filters / filters.norm())
    assert torch.equal(grown.log_curvature, given.log_curvature)  # type: ignore[arg-type]
    assert bool((grown.weight_exponents == 1).all())
    torch.testing.assert_close(grown.logit_depth.sigmoid(), torch.full_like(grown.logit_depth, 0.7))
    resumed = initial_regularizer(DenoiseConfig(**SMALL, size=3, init="gone.safetensors"), resume=True)
    assert parameters(resumed).keys() == parameters(given).keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regularizer": "fields-of-experts"}, "RidgeRegularizer"),
        ({**SMALL, "knots": 9}, "knots: 7 in the model, 9 now"),
        ({**SMALL, "convolutions": "2,4"}, "channels"),
        ({**SMALL, "size": 4}, "even number"),
        ({**SMALL, "size": 2}, "even number"),
    ],
)
def test_models_of_another_kind_are_no_start(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = str(tmp_path / "model.safetensors")
    save_model(path, initial_regularizer(DenoiseConfig(**SMALL, size=3)))
    with pytest.raises(lr.ConfigError, match=message):
        initial_regularizer(DenoiseConfig(**options, init=path))


def test_what_a_model_has_learned_is_not_dropped(tmp_path: Path) -> None:
    path = str(tmp_path / "model.safetensors")
    save_model(path, initial_regularizer(DenoiseConfig(**SMALL, noise_conditioned=True)))
    with pytest.raises(lr.ConfigError, match="weight_exponents: learned by the model"):
        initial_regularizer(DenoiseConfig(**SMALL, init=path))


def weights_of(chain: Any) -> Any:
    x = torch.linspace(0.0, 1.0, 144).reshape(1, 1, 12, 12)
    terms = chain.base.saddle_terms((1, 12, 12))
    with torch.no_grad():
        return chain.weights.of(terms, x, terms.operator(x))


def test_a_reweighted_ridge_starts_from_the_ridge_that_it_weighs(tmp_path: Path) -> None:
    given = initial_regularizer(DenoiseConfig(**SMALL, size=3, seed=5))
    save_model(tmp_path / "ridge.safetensors", given, {"sigma": 0.1})
    path, options = str(tmp_path / "ridge.safetensors"), {**SMALL, "regularizer": "reweighted-ridge"}
    started: Any = initial_regularizer(DenoiseConfig(**options, size=3, init=path))
    for name, p in given.named_parameters():
        torch.testing.assert_close(started.base.get_parameter(name), p, rtol=0.0, atol=0.0)
    assert len(list(started.parameters())) > len(list(given.parameters()))
    free: Any = initial_regularizer(DenoiseConfig(**options, size=3, reweighting="free", init=path))
    weights = free.base.log_weights.exp() * free.weights.usual()  # as strong as the ridge, with room for weights
    torch.testing.assert_close(weights, given.get_parameter("log_weights").exp())
    assert 0.5 < free.weights.usual() < 0.95
    save_model(tmp_path / "chain.safetensors", free, {"sigma": 0.1})
    again: dict[str, Any] = {**options, "reweighting": "free", "init": str(tmp_path / "chain.safetensors")}
    for name, p in initial_regularizer(DenoiseConfig(**again, size=3)).named_parameters():  # as later stages do
        assert torch.equal(p, free.get_parameter(name)), name
    longer: Any = initial_regularizer(DenoiseConfig(**again, size=3, solves=4))  # the same weights, oftener
    assert (longer.steps, free.steps) == (4, 2)
    assert torch.equal(longer.weights.second, free.weights.second)
    wider: Any = initial_regularizer(DenoiseConfig(**again, size=3, weights_side=7))
    torch.testing.assert_close(weights_of(wider), weights_of(free), rtol=1e-6, atol=1e-6)
    with pytest.raises(lr.ConfigError, match="kernels of side 5 have no place"):
        initial_regularizer(DenoiseConfig(**again, size=3, weights_side=3))
    with pytest.raises(lr.ConfigError, match=r"regularizer\.knots: 7 in the model, 9 now"):
        initial_regularizer(DenoiseConfig(**{**again, "knots": 9}, size=3))
