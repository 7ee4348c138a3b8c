"""Sums and multiples of regularizers: their energies, solutions, certified gradients, and what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import registry
import torch
from registry import SHAPE
from torch import nn
from truth.by_energy import truth_by_energy
from truth.dense import distance, norm

import learnreg as lr
from learnreg.linear.stack import Stack
from learnreg.operators import Identity
from learnreg.regularizers import Combination, FieldsOfExperts, Regularizer, Scaled, TotalVariation

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = (
    "FieldsOfExperts",
    "FieldsOfExperts-Huber",
    "MultivariateExperts-triples",
    "LearnedTotalVariation",
    "RidgeRegularizer",
    "RidgeRegularizer-noise",
    "GeneralisedTikhonov",
    "TotalVariation",
    "AnalysisOperator-FilterBank-LogCosh",
    "Scaled",
    "InputConvexNetwork",
    "InputConvexNetwork-scaled",
    "ImportedRidge",
    "given-by-value",
)
"""Built-in regularizers, every potential and role among them."""

PAIRS = list(itertools.combinations(KINDS, 2))


def of(name: str) -> Regularizer:
    return registry.REGULARIZERS[name]()


def compared(R: Regularizer, tolerances: tuple[float, ...] = (1e-1, 1e-4)) -> None:
    """Everything that is certified of a denoising problem, against dense solves of its energy."""
    problem = lr.LowerLevelProblem(Identity(SHAPE), R)
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    solution = lr.solve(problem, b, 1e-6)
    truth = truth_by_energy(problem, b, loss, solution.x)
    assert (solution.status, solution.certified) == (lr.Status.CONVERGED, True)
    error = (solution.x - truth.x).square().flatten(1).mean(1).sqrt()
    assert bool((error <= solution.error_bound + 1e-13).all())
    for tolerance in tolerances:
        found = lr.hypergradient(problem, b, loss, tolerance=tolerance)
        assert (found.status, found.certified) == (lr.Status.CONVERGED, True)
        assert distance(found.gradient, truth.gradient) <= found.error_bound + 1e-10 * norm(truth.gradient)
        assert found.error_bound <= tolerance * found.norm


@pytest.mark.parametrize("pair", PAIRS[::15], ids=" + ".join)
def test_pairs_are_certified_and_right(pair: tuple[str, str]) -> None:
    compared(of(pair[0]) + 0.7 * of(pair[1]), (1e-3,))


@pytest.mark.slow(seconds=3)
@pytest.mark.parametrize("pair", PAIRS, ids=" + ".join)
def test_all_pairs_are_certified_and_right(pair: tuple[str, str]) -> None:
    compared(of(pair[0]) + 0.7 * of(pair[1]))


def test_three_parts_and_a_convex_nonconvex_one_are_certified() -> None:
    concave = registry.REGULARIZERS["RidgeRegularizer"]()
    weak = lr.regularizers.RidgeRegularizer((2, 3), 3, 9, "convex-nonconvex", nonconvexity=0.5).double()
    compared(of("TotalVariation") + 0.5 * (concave + 2 * weak), (1e-2,))


def learned(R: Regularizer) -> Regularizer:
    """All of its parameters, those too that ``Scaled`` fixes."""
    return R.requires_grad_(True)


FACTORS_OF_SUMS = {
    "factor of a sum": lambda: Scaled(of("FieldsOfExperts") + of("TotalVariation"), 2.0),
    "all parameters": lambda: learned(Scaled(of("FieldsOfExperts") + 0.5 * of("TotalVariation"), 2.0)),
    "multiple of a factor": lambda: 2.0 * learned(Scaled(of("RidgeRegularizer") + of("TotalVariation"), 1.5)),
    "factor of a factor": lambda: learned(Scaled(Scaled(of("TotalVariation") + of("GeneralisedTikhonov"), 1.5), 2.0)),
    "factor of a sum with a factor": lambda: learned(Scaled(Scaled(of("FieldsOfExperts"), 2.0) + of("TotalVariation"))),
    "sum of factors of sums": lambda: (
        of("RidgeRegularizer") + learned(Scaled(of("MultivariateExperts-triples") + of("TotalVariation"), 0.5))
    ),
    "given by value": lambda: learned(Scaled(of("given-by-value") + of("TotalVariation"), 2.0)),
    "nonconvex": lambda: Scaled(
        lr.regularizers.RidgeRegularizer((2, 3), 3, 9, "convex-nonconvex", nonconvexity=0.4).double()
        + of("TotalVariation"),
        1.5,
    ),
}


@pytest.mark.parametrize("name", FACTORS_OF_SUMS)
def test_factors_of_sums_are_certified_and_right(name: str) -> None:
    compared(FACTORS_OF_SUMS[name]().double(), (1e-2,))


@pytest.mark.parametrize("certificate", ["sharp", pytest.param("published", marks=pytest.mark.slow(seconds=5))])
@pytest.mark.parametrize("latent", registry.regularizers(latent=True))
def test_multiples_of_regularizers_with_latent_variables(latent: str, certificate: Any) -> None:
    R = 1.7 * of(latent)
    x = registry.rand(2, *SHAPE)
    torch.testing.assert_close(R.value(x), 1.7 * of(latent).value(x))
    problem, alone = (lr.LowerLevelProblem(Identity(SHAPE), part) for part in (R, of(latent)))
    x_true, b = registry.measure(problem)
    found = lr.hypergradient(problem, b, lr.SquaredError(x_true), tolerance=1e-2, certificate=certificate)
    scaled = lr.LowerLevelProblem(
        Identity(SHAPE), of(latent), data_term=lr.WeightedLeastSquares(torch.tensor(1.0 / 1.7, dtype=torch.float64))
    )
    expected = lr.hypergradient(scaled, b, lr.SquaredError(x_true), tolerance=1e-4)
    assert found.certified
    assert expected.certified
    gap = sum((found.gradient[f"0.{n}"] - g).square().sum() for n, g in expected.gradient.items())
    assert float(gap) ** 0.5 <= found.error_bound + expected.error_bound
    with pytest.raises(lr.ConfigError, match="latent variables, which a sum of regularizers does not carry"):
        lr.solve(lr.LowerLevelProblem(Identity(SHAPE), alone.regularizer + TotalVariation()), b)


def test_values_names_and_shared_parts() -> None:
    first, second = of("FieldsOfExperts"), of("TotalVariation")
    R = first + 2 * second
    x = registry.rand(2, *SHAPE)
    torch.testing.assert_close(R.value(x), first.value(x) + 2 * second.value(x))
    assert isinstance(R, Combination)
    assert R.parts == [first, second]
    assert dict(R.named_parameters())["1.log_weight"] is second.log_weight
    flat = 0.5 * (R + second) + first
    assert isinstance(flat, Combination)
    assert flat.factors == (0.5, 1.0, 0.5, 1.0)
    torch.testing.assert_close(flat.value(x), 1.5 * first.value(x) + 1.5 * second.value(x))
    assert torch.equal(sum([first, second]).value(x), (first + second).value(x))  # type: ignore[union-attr]
    assert (R * torch.tensor(2.0)).value(x).equal((2.0 * R).value(x))


def test_a_regularizer_twice_is_learned_once_and_not_certified() -> None:
    R = of("FieldsOfExperts")
    problem = lr.LowerLevelProblem(Identity(SHAPE), R + R)
    x_true, b = registry.measure(problem)
    found = lr.hypergradient(problem, b, lr.SquaredError(x_true), tolerance=1e-6)
    once = lr.LowerLevelProblem(Identity(SHAPE), 2.0 * R)
    expected = lr.hypergradient(once, b, lr.SquaredError(x_true), tolerance=1e-6)
    assert found.gradient.keys() == expected.gradient.keys()
    assert distance(found.gradient, expected.gradient) <= 1e-5 * expected.norm
    assert not found.certified
    assert "stands in several places" in found.reason


def test_noise_levels_reach_the_parts() -> None:
    ridge = lr.regularizers.RidgeRegularizer((2, 3), 3, 9, noise_conditioned=True).double()
    R = ridge + TotalVariation().double()
    x = registry.rand(2, *SHAPE)
    torch.testing.assert_close(R.at(0.2).value(x), ridge.at(0.2).value(x) + TotalVariation().double().value(x))
    assert (TotalVariation() + TotalVariation()).at(0.2).parts[0].weight > 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda R: 0 * R, "got 0, expected a positive finite number"),
        (lambda R: R * -1.5, "got -1.5"),
        (lambda R: R * float("nan"), "got nan"),
        (lambda R: R * True, "got True"),
        (lambda R: "2" * R, "got '2'"),
        (lambda R: R * nn.Parameter(torch.tensor(2.0)), r"factors are fixed; Scaled\(regularizer, factor\) learns one"),
        (lambda R: R + 3, r"TotalVariation \+ int: expected another Regularizer"),
        (lambda R: R + nn.Linear(1, 1), r"TotalVariation \+ Linear"),
        (lambda R: R - R, "not subtracted"),
        (lambda R: Combination([]), "got 0 regularizers"),
        (lambda R: Combination([R], [1.0, 2.0]), "1 regularizers and 2 factors"),
        (lambda R: Combination([R, nn.Linear(1, 1)]), "got Linear among the parts"),
    ],
)
def test_what_is_refused(make: Any, words: str) -> None:
    with pytest.raises(lr.ConfigError, match=words):
        make(TotalVariation())


def test_model_files_hold_them(tmp_path: Path) -> None:
    R = of("FieldsOfExperts") + 0.3 * (Scaled(of("TotalVariation"), 2.0).double() + of("RidgeRegularizer"))
    lr.save_model(tmp_path / "m.safetensors", R)
    loaded = lr.load(tmp_path / "m.safetensors").regularizer
    x = registry.rand(2, *SHAPE)
    assert torch.equal(loaded.value(x), R.value(x))
    assert list(loaded.state_dict()) == list(R.state_dict())


@pytest.mark.parametrize("size", [12, 40])
def test_the_norm_of_a_stack_is_bounded(size: int) -> None:
    terms = (of("FieldsOfExperts") + of("TotalVariation")).saddle_terms((1, size, size))
    assert isinstance(terms.operator, Stack)
    x = registry.randn(1, 1, size, size)
    for _ in range(50):
        image = terms.operator(x / x.norm())
        x = terms.operator.adjoint(image).detach()
    below = float(image.detach().norm())
    assert below <= terms.operator.norm_bound() <= 1.5 * below
    assert terms.operator.norm_bound_kind == "rigorous"


def test_combinations_of_combinations_count_as_their_parts() -> None:
    first, second, third = FieldsOfExperts(2, 3), FieldsOfExperts(1, 3), TotalVariation()
    nested = Combination([Combination([first, second], [2.0, 3.0]), third], [0.5, 4.0])
    assert nested.parts == [first, second, third]
    assert nested.factors == (1.0, 1.5, 4.0)
    x = registry.rand(2, 1, 5, 5)
    result = lr.hypergradient(lr.LowerLevelProblem(Identity((1, 5, 5)), nested.double()), x, lr.SquaredError(0.5 * x))
    assert result.certified
