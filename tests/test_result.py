"""What results, problems and operators look like when they are printed: a few lines, no whole tensors."""

from __future__ import annotations

import pytest
import registry
import torch

import learnreg as lr
from learnreg.result import brief


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    problem = registry.build("denoising-learned-ridge", "FieldsOfExperts", lr.Box(0.0, torch.full(registry.SHAPE, 2.0)))
    x, b = registry.measure(problem, 5)
    loss = lr.SquaredError(x)
    hg = lr.hypergradient(problem, b, loss, tolerance=0.5)
    things = {
        "Solution": lr.solve(problem, b, 1e-2),
        "Hypergradient": hg,
        "Certificate": lr.certify(problem, b, loss, hg.x, hg.X, certificate="published"),
        "Start": lr.Start(hg.x, hg.X),
        "LowerLevelProblem": problem,
        "FrozenProblem": problem.frozen(),
        "Instance": problem.instance(b),
        "SquaredError": loss,
        "UpperLoss": lr.UpperLoss(torch.sum, 1.0),
        "SolutionLayer": lr.solution_layer(problem),
        "TrainResult": lr.train(problem, [(b[0], x[0])], updates=2),
        "PseudoHuber": lr.PseudoHuber(torch.rand(40, 1, 1)),
    }
    return {name: repr(thing) for name, thing in things.items()}


def test_no_tensor_is_printed(printed: dict[str, str]) -> None:
    for name, text in printed.items():
        assert text.startswith(name), name
        assert "tensor(" not in text, name
        assert len(text.splitlines()) <= 16, name
        assert len(text) < 1500, name


def test_what_matters_is_said(printed: dict[str, str]) -> None:
    assert "status=CONVERGED" in printed["Solution"]
    assert "bound_kind='rigorous'" in printed["Solution"]
    assert "(5, 1, 5, 6) float64" in printed["Solution"]
    assert "filters: (3, 3, 3) float64" in printed["Hypergradient"]
    assert "rows=2 items" in printed["TrainResult"]
    assert "ridge=0." in printed["LowerLevelProblem"]
    assert "lower=0, upper=(1, 5, 6) float64" in printed["LowerLevelProblem"]
    assert "learned=" in printed["FrozenProblem"]


def test_statuses_print_their_names() -> None:
    assert f"{lr.Status.CONVERGED}" == "CONVERGED"
    assert repr(lr.Status.PRECISION) == "Status.PRECISION"
    assert "float64" in lr.Status.PRECISION.value


@pytest.mark.parametrize("name", registry.OPERATORS)
def test_operators_print_their_shapes(name: str) -> None:
    A = registry.OPERATORS[name]()
    text = repr(A)
    assert f"{A.domain_shape} -> {A.range_shape}" in text
    assert len(text.splitlines()) <= 12


def test_values() -> None:
    assert brief(torch.tensor([1.0, 2.5])) == "[1, 2.5]"
    assert brief(torch.tensor(3)) == "3"
    assert brief(torch.arange(9.0)) == "9 in [0, 8]"
    assert brief(torch.zeros(2, 3, dtype=torch.bool)) == "(2, 3) bool"
    assert brief(torch.zeros(7, device="meta")) == "(7,) float32 on meta"
    assert brief({"a": (1.0, None)}) == "{a: (1, None)}"
