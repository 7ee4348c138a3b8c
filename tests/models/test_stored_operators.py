"""Forward operators in model files, with their tensors; your own regularizers beside them; names at the top level."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import registry
import torch
from safetensors import safe_open
from torch import Tensor, nn

import learnreg as lr
from learnreg.linear.operator import LinearOperator
from learnreg.operators import (
    Blur,
    CartesianMRI,
    FourierSampling,
    Identity,
    Inpainting,
    as_complex,
    assemble,
    from_callables,
)
from learnreg.regularizers import REGULARIZERS, Regularizer, TotalVariation

SHAPE = registry.SHAPE


def _kernel(learned: bool = False) -> Tensor:
    kernel = registry.rand(3, 3) / 9
    return nn.Parameter(kernel) if learned else kernel


OPERATORS: dict[str, Callable[[], LinearOperator]] = {
    "blur": lambda: Blur(_kernel(), SHAPE, "reflect"),
    "learned blur": lambda: Blur(_kernel(True), SHAPE, "circular"),
    "inpainting": lambda: Inpainting(registry.rand(*SHAPE) > 0.4),
    "weights": lambda: Inpainting(registry.rand(*SHAPE)),
    "Fourier": lambda: FourierSampling(registry.rand(5, 6) > 0.4),
    "complex Fourier": lambda: FourierSampling(nn.Parameter(registry.rand(5, 6)), (2, 5, 6)),
    "MRI": lambda: CartesianMRI(nn.Parameter(registry.rand(6)), domain_shape=(2, 5, 6)),
    "MRI with coils": lambda: CartesianMRI(registry.rand(5, 6) > 0.4, as_complex(registry.randn(3, 2, 5, 6))),
    "sparse": lambda: assemble(Blur(_kernel(), SHAPE)),
    "composition": lambda: Inpainting(registry.rand(*SHAPE) > 0.4) @ Blur(_kernel(True), SHAPE),
    "sum": lambda: Identity(SHAPE) - 0.3 * Blur(_kernel(), SHAPE),
    "stack": lambda: lr.vstack(Identity(SHAPE), Blur(_kernel(), SHAPE), Inpainting(registry.rand(*SHAPE))),
}
if registry.HAS_ASTRA:
    OPERATORS["projections of a mask"] = lambda: lr.operators.ParallelBeam2D(6, 5) @ Inpainting(registry.rand(1, 6, 6))


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_comes_back_with_its_tensors(name: str, tmp_path: Path) -> None:
    A = OPERATORS[name]()
    R: Regularizer = TotalVariation()
    if A.domain_shape[0] != 1:
        R = lr.regularizers.TotalVariation()  # stored, not solved
    lr.save_model(tmp_path / "model.safetensors", lr.LowerLevelProblem(A, R, ridge=0.1))
    again = lr.load(tmp_path).problem()
    x = registry.rand(2, *A.domain_shape)
    assert torch.equal(again.operator(x), A(x))
    assert torch.equal(again.operator.adjoint(A(x)), A.adjoint(A(x)))
    assert list(again.learnable()) == list(lr.LowerLevelProblem(A, R).learnable())
    if A.domain_shape[0] == 1:
        b = A(x).detach()
        assert torch.equal(
            lr.load(tmp_path).reconstruct(b, 1e-3), lr.solve(lr.LowerLevelProblem(A, R, ridge=0.1), b, 1e-3).x
        )


def test_what_cannot_be_stored_is_given_again(tmp_path: Path) -> None:
    outside = from_callables(lambda x: 0.5 * x, None, SHAPE, SHAPE)
    for A in (outside, outside @ Identity(SHAPE), lr.vstack(Identity(SHAPE), outside)):
        lr.save_model(tmp_path / "m.safetensors", lr.LowerLevelProblem(A, TotalVariation(), ridge=0.1))
        model = lr.load(tmp_path / "m.safetensors")
        with pytest.raises(lr.ConfigError, match=rf"\({type(A).__name__}\); pass operator="):
            model.problem()
        assert model.problem(operator=A).operator is A


def test_a_file_whose_tensor_is_missing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    lr.save_model(path, lr.LowerLevelProblem(Blur(_kernel(), SHAPE), TotalVariation(), ridge=0.1))
    from learnreg.models.tensor_files import write_tensors

    with safe_open(path, "pt") as file:
        content = json.loads(file.metadata()["learnreg"])
        tensors = {k: file.get_tensor(k) for k in file.keys() if not k.startswith("operator")}  # noqa: SIM118
    write_tensors(path, tensors, content)
    with pytest.raises(lr.CheckpointError, match="cannot be rebuilt"):
        lr.load(path)


# ---- regularizers of your own ----------------------------------------------------------------------------------------


class Plain(Regularizer):
    """Without arguments, so that there is nothing to say."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3))

    def value(self, x: Tensor) -> Tensor:
        return self.weight * x.square().sum((1, 2, 3))


class Sized(Plain):
    """Its config is a property."""

    def __init__(self, size: int = 3, power: float = 2.0) -> None:
        super().__init__()
        self.kernel, self.power = nn.Parameter(0.1 * torch.ones(1, 1, size, size)), power

    @property
    def config(self) -> dict[str, Any]:  # type: ignore[override]
        return {"size": self.kernel.shape[-1], "power": self.power}

    def value(self, x: Tensor) -> Tensor:
        t = nn.functional.conv2d(x, self.kernel)
        return self.weight * (1.0 + t.square()).pow(0.5 * self.power).sum((1, 2, 3))


class Forgetful(Sized):
    """Does not say its size."""

    @property
    def config(self) -> dict[str, Any]:  # type: ignore[override]
        return {"power": self.power}


class Unwritable(Sized):
    """Says what JSON does not know."""

    @property
    def config(self) -> dict[str, Any]:  # type: ignore[override]
        return {"size": torch.tensor(3)}


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Plain, Sized, Forgetful, Unwritable):
        monkeypatch.setitem(REGULARIZERS, f"tests/{kind.__name__}", kind)


@pytest.mark.parametrize(
    "make", [Plain, lambda: Sized(5, 1.5), lambda: Plain() + 2 * Sized(2)], ids=["plain", "sized", "sum"]
)
def test_your_own_comes_back(table: None, tmp_path: Path, make: Callable[[], Regularizer]) -> None:
    R = make()
    with torch.no_grad():
        for p in R.parameters():
            p.add_(0.01)
    lr.save_model(tmp_path / "m.safetensors", lr.LowerLevelProblem(Blur(_kernel(), SHAPE), R, ridge=0.1))
    model = lr.load(tmp_path / "m.safetensors")
    x = registry.rand(2, *SHAPE)
    assert torch.equal(model.regularizer.value(x), R.value(x))
    assert model.problem().operator.domain_shape == SHAPE


def test_what_would_not_come_back_is_refused_when_it_is_stored(table: None, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for R, words in (
        (Forgetful(5), r"kernel has the shape \(1, 1, 3, 3\) instead of"),
        (Unwritable(), "holds a Tensor"),
    ):
        with pytest.raises(lr.ConfigError, match=words):
            lr.save_model(path, R)
    assert not path.exists()


def test_registration_asks_for_a_config_where_there_are_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learnreg.regularizers.REGULARIZERS", dict(REGULARIZERS))

    class Arguments(Plain):
        def __init__(self, size: int = 3) -> None:
            super().__init__()
            self.size = size

    lr.regularizers.register("tests/plain", Plain)
    lr.regularizers.register("tests/sized", Sized)
    with pytest.raises(
        lr.ConfigError, match=r"its constructor takes arguments, so that it has to implement config\(\)"
    ):
        lr.regularizers.register("tests/arguments", Arguments)


def test_folders_are_there_when_they_are_used() -> None:
    code = (
        "import sys, learnreg as lr; before = set(sys.modules);"
        "assert not any(m in before for m in ('skimage', 'learnreg.datasets', 'learnreg.models.model')), before;"
        "print(callable(lr.datasets.natural_images), lr.operators.Blur.__name__, callable(lr.save_model))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True", "Blur", "True"]
