"""Which certificate decides, what is asked of the first point, and gradients without a certificate."""

from __future__ import annotations

import math
import pickle

import pytest
import registry
import torch
import truth.dense as dense_truth

import learnreg as lr
from learnreg.certificates.frobenius import FrobeniusBound
from learnreg.certificates.judgement import judge
from learnreg.convolutions.filter_bank import FilterBank
from learnreg.lower_level.point import Point
from learnreg.operators import Identity, from_callables
from learnreg.regularizers import AnalysisOperator

REGULARIZERS = [name for name in registry.REGULARIZERS if "value" not in name]


def problem_of(regularizer: str) -> tuple[lr.LowerLevelProblem, torch.Tensor, lr.SquaredError]:
    problem = lr.LowerLevelProblem(
        Identity(registry.REGULARIZERS[regularizer].shape), registry.REGULARIZERS[regularizer]()
    )
    x_true, b = registry.measure(problem)
    return problem, b, lr.SquaredError(x_true)


@pytest.mark.parametrize("regularizer", REGULARIZERS)
@torch.no_grad()
def test_each_rung_is_above_the_next_and_above_the_error(regularizer: str, rotating_generator: torch.Generator) -> None:
    problem, b, loss = problem_of(regularizer)
    instance = problem.instance(b)
    exact = lr.hypergradient(problem, b, loss, tolerance=1e-7)
    start = lr.Start.after(exact).in_all(instance)
    for size in (1e-6, 1e-3, 1e-2):
        x, X = (
            v + size * v.norm() * torch.randn(v.shape, generator=rotating_generator, dtype=v.dtype) / 8 for v in start
        )
        point = Point(problem.frozen(), instance, b, instance.latent.loss(loss), x, X)
        published, frobenius, sharp = (judge(point, kind) for kind in ("published", "frobenius", "sharp"))
        assert frobenius.rung == "frobenius"
        error = dense_truth.distance(sharp.gradient, exact.gradient)
        assert error <= sharp.error_bound + exact.error_bound
        assert sharp.error_bound <= frobenius.error_bound * (1.0 + 1e-9)
        assert frobenius.state_error.tolist() == sharp.state_error.tolist() == published.state_error.tolist()


def test_no_eigenvalues_on_the_cheap_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, b, loss = problem_of("FieldsOfExperts")
    problem.frozen()
    found = lr.hypergradient(problem, b, loss, tolerance=0.1)
    assert found.rung == "frobenius"
    point = Point.of(problem, b, loss, found.x, found.X)
    judge(point, "frobenius")  # finds the norm of the operator, once

    def refuse(*arguments: object) -> None:
        raise AssertionError("an eigenvalue problem was solved")

    for name in ("eigvalsh", "eigh", "svdvals", "svd"):
        monkeypatch.setattr(torch.linalg, name, refuse)
    assert math.isfinite(judge(point, "frobenius").error_bound)


def test_the_sharp_bound_decides_where_the_cheap_one_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, b, loss = problem_of("FieldsOfExperts")
    groups = FrobeniusBound.groups

    def larger(self: FrobeniusBound) -> list[object]:
        return [group.scaled(1e12) for group in groups(self)]

    monkeypatch.setattr(FrobeniusBound, "groups", larger)
    found = lr.hypergradient(problem, b, loss, tolerance=0.1)
    assert (found.status, found.rung, found.certified) == (lr.Status.CONVERGED, "sharp", True)
    assert found.relative_error_bound <= 0.1


@pytest.mark.parametrize("certificate", ["auto", "sharp", "published"])
def test_the_result_names_its_certificate(certificate: str) -> None:
    problem, b, loss = problem_of("FieldsOfExperts")
    found = lr.hypergradient(problem, b, loss, tolerance=0.5, certificate=certificate)  # type: ignore[arg-type]
    assert found.rung == {"auto": "frobenius"}.get(certificate, certificate)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_next_call_knows_how_accurate_to_be(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call from what the last one ended in, on the same problem, needs one judgement, and no more accuracy."""
    from learnreg.hypergradients import search

    problem, b, loss = problem_of("FieldsOfExperts")
    problem.regularizer.to(dtype)
    b, loss = b.to(dtype), lr.SquaredError(loss.x_true.to(dtype))
    first = lr.hypergradient(problem, b, loss, tolerance=0.1)
    assert first.accuracy is not None
    judgements = []
    plain = search.judge

    def counted(*arguments: object, **options: object) -> object:
        judgements.append(arguments)
        return plain(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(search, "judge", counted)
    again = lr.hypergradient(problem, b, loss, tolerance=0.1, start=lr.Start.after(first))
    assert len(judgements) == 1
    assert again.certified
    assert again.relative_error_bound <= 0.1
    assert again.operator_applications < first.operator_applications


@pytest.mark.parametrize(
    ("method", "regularizer"),
    [(m, "FieldsOfExperts") for m in registry.METHODS] + [("Implicit", r) for r in REGULARIZERS],
)
def test_without_a_certificate(method: str, regularizer: str) -> None:
    problem, b, loss = problem_of(regularizer)
    found = lr.hypergradient(problem, b, loss, registry.METHODS[method](), 1e-3, certificate="none")
    assert (found.bound_kind, found.certified, found.error_bound, found.rung) == ("none", False, math.inf, "")
    assert found.loss_interval == (-math.inf, math.inf)
    exact = lr.hypergradient(problem, b, loss, tolerance=1e-5)
    assert dense_truth.distance(found.gradient, exact.gradient) <= 0.02 * exact.norm


def test_certify_without_a_certificate_is_refused() -> None:
    problem, b, loss = problem_of("FieldsOfExperts")
    with pytest.raises(lr.ConfigError, match="certificates alone"):
        lr.certify(problem, b, loss, b, certificate="none")


@pytest.mark.parametrize("tolerances", [(1e-300, 1e-3), (1e-14, 0.0), (30.0, 0.0)])
def test_tolerances_beyond_rounding_and_absolute_ones(tolerances: tuple[float, float]) -> None:
    """What is asked of the first point stays within what arithmetic can do."""
    problem, b, loss = problem_of("FieldsOfExperts")
    relative, absolute = tolerances
    found = lr.hypergradient(problem, b, loss, tolerance=relative, absolute_tolerance=absolute)
    assert found.certified
    assert found.error_bound <= max(relative * found.norm, absolute, 1e-9 * found.norm)
    assert found.operator_applications < 2000


def test_results_can_be_stored_whatever_the_operators_are() -> None:
    """A norm is handed on by operators that tell those nearby alone; a closure is none of them."""
    shape = (1, 6, 6)
    double = from_callables(lambda x: 2.0 * x, lambda y: 2.0 * y, shape, shape)
    b = registry.rand(2, *shape)
    for operator, told in ((double, False), (FilterBank(registry.randn(2, 3, 3), shape), True)):
        problem = lr.LowerLevelProblem(Identity(shape), AnalysisOperator(operator, lr.PseudoHuber(0.1)))
        found = lr.hypergradient(problem, b, lr.SquaredError(0.9 * b))
        start = pickle.loads(pickle.dumps(lr.Start.after(found)))
        assert (start.normed is not None) is told
        again = lr.hypergradient(problem, b, lr.SquaredError(0.9 * b), start=start)
        assert again.certified == found.certified
