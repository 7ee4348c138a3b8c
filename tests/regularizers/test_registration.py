"""The table of regularizers: your own class is trained, stored and loaded; what every entry brings with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import registry
import torch
from support.training_pairs import Pairs
from torch import nn

import learnreg as lr
from learnreg.commands.common import initial_regularizer
from learnreg.commands.options import DenoiseConfig, TomographyConfig
from learnreg.convolutions.gradient import Gradient
from learnreg.lower_level.saddle_terms import SaddleTerms
from learnreg.models.model import save_model
from learnreg.operators import Identity
from learnreg.regularizers import (
    REGULARIZERS,
    FieldsOfExperts,
    Regularizer,
    Scaled,
    TotalVariation,
    register,
    trainable,
)

pytestmark = pytest.mark.usefixtures("quick_starts")

NAME = "tests/anisotropic"


class Anisotropic(Regularizer):
    """weight · sum of log-cosh of forward differences; ``smoothing`` is a keyword of the constructor."""

    def __init__(self, smoothing: float = 0.05) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.log_weight = nn.Parameter(torch.tensor(-2.0))

    def saddle_terms(self, image_shape: tuple[int, ...]) -> SaddleTerms:
        return SaddleTerms(Gradient(image_shape), lr.LogCosh(self.smoothing, self.log_weight.double().exp()))

    def config(self) -> dict[str, Any]:
        return {"smoothing": self.smoothing}


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is forgotten."""
    before = dict(REGULARIZERS)
    yield
    REGULARIZERS.clear()
    REGULARIZERS.update(before)


def test_your_own_regularizer_is_trained_stored_and_loaded(table: None, tmp_path: Path) -> None:
    regularizer = Anisotropic(0.07)
    problem = lr.LowerLevelProblem(Identity((1, 8, 8)), regularizer)
    with pytest.raises(
        lr.ConfigError, match=r"not registered. Call learnreg.regularizers.register\(name, Anisotropic\)"
    ):
        lr.train(problem, Pairs(), out=tmp_path / "refused", minutes=0.1, updates=1)
    lr.regularizers.register(NAME, Anisotropic)
    result = lr.train(problem, Pairs(), out=tmp_path / "run", minutes=3.0, batch_size=4, updates=2)
    assert float(regularizer.log_weight.detach()) != -2.0
    assert result.model_path is not None
    loaded = lr.load(result.model_path).regularizer
    assert type(loaded) is Anisotropic
    assert loaded.smoothing == 0.07
    x = registry.rand(2, 1, 8, 8)
    assert torch.equal(loaded.value(x), regularizer.value(x))
    save_model(tmp_path / "scaled.safetensors", Scaled(regularizer, 0.5))
    scaled = lr.load(tmp_path / "scaled.safetensors").regularizer
    assert torch.allclose(scaled.value(x), 0.5 * regularizer.value(x))
    del REGULARIZERS[NAME]
    sentence = re.escape(f"call learnreg.regularizers.register({NAME!r}, cls) before learnreg.load")
    for path in (result.model_path, tmp_path / "scaled.safetensors"):
        with pytest.raises(lr.CheckpointError, match=sentence):
            lr.load(path)


def test_what_cannot_be_registered(table: None) -> None:
    class Nameless(Regularizer):
        """Without config()."""

        def __init__(self, size: int = 3) -> None:
            super().__init__()
            self.size = size

    register(NAME, Anisotropic)
    register(NAME, Anisotropic)
    again = type("Anisotropic", (Anisotropic,), {"__module__": __name__, "__qualname__": "Anisotropic"})
    register(NAME, again)  # as a cell of a notebook that runs again
    assert REGULARIZERS[NAME] is again
    for name, cls, message in (
        ("tv", Anisotropic, "taken by TotalVariation"),
        (" ", Anisotropic, "a text that is not empty"),
        ("other", Nameless, r"has to implement config\(\)"),
        ("other", nn.Linear, "a subclass of Regularizer"),
        ("other", Anisotropic(), "a subclass of Regularizer"),
    ):
        with pytest.raises(lr.ConfigError, match=message):
            register(name, cls)  # type: ignore[arg-type]
    assert "other" not in REGULARIZERS


@pytest.mark.parametrize("name", trainable())
@pytest.mark.parametrize("kind", [DenoiseConfig, TomographyConfig])
def test_what_the_command_line_trains_brings_all_it_needs(name: str, kind: type[DenoiseConfig]) -> None:
    config = kind(regularizer=name, filters=4, features=4)
    regularizer = initial_regularizer(config)
    assert type(regularizer) is REGULARIZERS[name]
    same = initial_regularizer(config)
    assert all(torch.equal(p, q) for p, q in zip(regularizer.parameters(), same.parameters(), strict=True))
    rebuilt = type(regularizer).from_config(regularizer.config())
    rebuilt.load_state_dict(regularizer.state_dict())
    x = registry.rand(1, 1, 16, 16)
    assert torch.equal(rebuilt.value(x), regularizer.value(x))
    assert regularizer.summary
    shown = regularizer.pictures()
    if shown is not None:
        groups = len(shown.filters)
        assert (shown.filters.dim(), shown.weights.shape) == (4, (groups,))
        assert shown.smoothing is None or shown.smoothing.shape == (groups,)
        assert not shown.filters.requires_grad


def test_what_the_command_line_cannot_train() -> None:
    assert {"imported-ridge", "scaled"}.isdisjoint(trainable())
    with pytest.raises(lr.ConfigError, match="the command line cannot train it"):
        Anisotropic.from_options(DenoiseConfig(), torch.Generator())


def test_a_scaled_regularizer_is_drawn_like_the_one_it_scales() -> None:
    base = FieldsOfExperts(3, 3)
    shown = Scaled(base, 2.0).pictures()
    assert shown is not None
    assert torch.equal(shown.filters[:, 0], base.effective_filters)
    differences, alone = Scaled(TotalVariation()).pictures(), TotalVariation().pictures()
    assert differences is not None
    assert alone is not None
    assert torch.equal(differences.filters, alone.filters)
