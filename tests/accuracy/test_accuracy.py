"""``learnreg accuracy``: the reference, the measurements and the files."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from truth.accuracy_cases import SIDE, tiny, tiny_report, violated
from truth.dense import distance, norm, truth_of

import learnreg as lr
from learnreg.accuracy import measure as accuracy_measure
from learnreg.accuracy import problems as accuracy_problems
from learnreg.accuracy.figure import write_accuracy
from learnreg.accuracy.measure import measure
from learnreg.accuracy.problems import builtin_problems, clean_patches, model_problem
from learnreg.accuracy.reference import adjoint_at, solve_reference
from learnreg.accuracy.report import AccuracyReport, describe
from learnreg.models.model import load, save_model
from learnreg.operators import Blur, Identity, from_callables
from learnreg.regularizers import FieldsOfExperts, RidgeRegularizer, TotalVariation

PUBLIC_KEYS = {
    "problem",
    "method",
    "tolerance",
    "relative_error",
    "relative_bound",
    "certified",
    "operator_applications",
    "seconds",
}


@pytest.fixture(scope="module")
def report() -> AccuracyReport:
    return tiny_report()


# ------------------------------------------------------------------------------------------------------------ reference


@pytest.mark.parametrize("make", [TotalVariation, lambda *a: FieldsOfExperts(2, 3)], ids=["tv", "experts"])
@pytest.mark.parametrize("blurred", [False, True])
def test_the_reference_agrees_with_dense_algebra(make: Callable[..., Any], blurred: bool) -> None:
    torch.manual_seed(2)
    shape = (1, SIDE, SIDE)
    operator = Blur(torch.rand(3, 3, dtype=torch.float64), shape) if blurred else Identity(shape)
    problem = lr.LowerLevelProblem(operator, make(0.05, 1e-2).double(), ridge=0.1)
    x_true = torch.rand(2, *shape, dtype=torch.float64)
    b = operator(x_true) + 0.05 * torch.randn(2, *shape, dtype=torch.float64)
    loss = lr.SquaredError(x_true)
    found, truth = solve_reference(problem, b, loss), truth_of(problem, b, loss)
    assert distance(found.gradient, truth.gradient) <= 1e-9 * norm(truth.gradient)
    assert 0 < found.error <= 1e-10 * found.norm
    assert found.norm == pytest.approx(norm(truth.gradient))


def test_the_reference_is_of_float64_whatever_the_parameters_are() -> None:
    problem = tiny()
    single = lr.LowerLevelProblem(problem.problem.operator, FieldsOfExperts(2, 3))
    found = solve_reference(single, problem.b.float(), problem.loss)
    assert all(g.dtype == torch.float64 for g in found.gradient.values())
    assert next(single.parameters()).dtype == torch.float32, "the problem itself is left as it was"


def test_a_constraint_has_no_reference() -> None:
    problem = lr.LowerLevelProblem(Identity((1, 5, 5)), TotalVariation(), constraint=lr.Nonnegative())
    b = torch.rand(1, 1, 5, 5)
    with pytest.raises(lr.AssumptionError, match="constraints"):
        solve_reference(problem, b, lr.SquaredError(b))


def test_the_adjoint_state_solves_its_equation() -> None:
    problem = tiny()
    x = problem.b.clone()
    X = adjoint_at(problem.problem, problem.b, problem.loss, x, 1e-10)
    point = x.requires_grad_()
    (gradient,) = torch.autograd.grad(problem.problem.energy(point, problem.b).sum(), point, create_graph=True)
    (product,) = torch.autograd.grad(gradient, point, X)
    torch.testing.assert_close(product, -problem.loss.gradient(x), rtol=1e-8, atol=1e-10)


# --------------------------------------------------------------------------------------------------------- measurements


def test_measurements(report: AccuracyReport) -> None:
    found = report.as_dict()
    assert len(found["rows"]) == 2 * 2 * 2 * 2
    assert all(set(row) >= PUBLIC_KEYS for row in found["rows"])
    assert {row["certificate"] for row in found["rows"]} == {"published", "sharp"}
    assert {(row["method"], row["tolerance"]) for row in found["rows"]} == {
        (method, tolerance) for method in ("implicit", "piggyback") for tolerance in (1.0, 1e-2)
    }
    assert found["coverage"] == 1.0
    assert found["violations"] == 0
    for row in (*report.rows, *report.plain):
        assert row.certified
        assert row.holds
        assert row.operator_applications > 0
        assert row.effectivity >= 1.0
        assert row.relative_bound == pytest.approx(row.effectivity * row.relative_error)
    assert all(row.relative_bound <= row.tolerance for row in report.rows)


def test_judged_gradients(report: AccuracyReport) -> None:
    assert {row.state_error for row in report.plain} == {1e-2, 1e-3, 1e-4}
    sharp, published = (report.effectivities(kind, plain=True) for kind in ("sharp", "published"))
    assert sharp["median"] is not None
    assert published["median"] is not None
    assert 1.0 <= sharp["median"] < 1.2, "the distance to a corrected gradient is nearly the error"
    assert published["median"] > sharp["median"]
    worse = {size: max(r.relative_error for r in report.plain if r.state_error == size) for size in (1e-2, 1e-4)}
    assert worse[1e-4] < 0.1 * worse[1e-2]


def test_the_same_seed_gives_the_same_numbers(report: AccuracyReport) -> None:
    again = measure([tiny()], ["implicit"], [1e-2], progress=False)
    own = [row.relative_error for row in report.rows if (row.problem, row.method) == ("tiny", "implicit")]
    assert {row.relative_error for row in again.rows} <= set(own)


def test_what_is_not_certified_is_not_checked() -> None:
    problem = tiny()
    unbounded = lr.UpperLoss(lambda x: 0.5 * ((x - problem.b) ** 2).flatten(1).sum(1))
    found = measure([dataclasses.replace(problem, loss=unbounded)], ["implicit"], [1e-1], progress=False)
    assert found.coverage is None
    assert not any(row.certified for row in (*found.rows, *found.plain))
    assert found.effectivities("sharp", plain=False) == {"median": None, "percentile_95": None}
    lines = list(describe(found))
    assert "nothing" in lines[-1]
    assert any("~" in line for line in lines)
    assert sum("nothing certified" in line for line in lines) == 4
    found.check()


def test_a_violation_is_loud(report: AccuracyReport) -> None:
    broken = violated(report)
    assert broken.coverage == pytest.approx(1 - 1 / len(broken.certified))
    with pytest.raises(lr.SolverError, match="VIOLATED: 1 of"):
        broken.check()


def test_an_error_above_the_bound_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    def boast(*arguments: Any, **options: Any) -> lr.Hypergradient:
        return dataclasses.replace(lr.hypergradient(*arguments, **options), error_bound=1e-30)

    monkeypatch.setattr(accuracy_measure, "hypergradient", boast)
    found = measure([tiny()], ["implicit"], [1.0], progress=False)
    assert len(found.violations) == 2


# ------------------------------------------------------------------------------------------------------------- problems


def test_builtin_problems_have_a_certificate() -> None:
    problems = builtin_problems(seed=1, side=10)
    assert len({problem.name for problem in problems}) == len(problems) == 4
    for problem in problems:
        assert problem.problem.strong_convexity > 0
        assert problem.b.dtype == torch.float64
        assert all(p.dtype == torch.float64 for p in problem.problem.parameters())
    again = builtin_problems(seed=1, side=10)
    assert all(torch.equal(a.b, b.b) for a, b in zip(problems, again, strict=True))


def test_without_photographs_there_is_a_synthetic_image(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(split: str) -> None:
        raise lr.DataError("scikit-image is not installed")

    monkeypatch.setattr(accuracy_problems, "natural_images", absent)
    patches = clean_patches(3, 24, seed=0)
    assert "synthetic image" in capsys.readouterr().err
    assert patches.shape == (3, 1, 24, 24)
    assert 0 <= float(patches.min()) < float(patches.max()) <= 1
    assert float(patches.std()) > 0.05
    assert torch.equal(patches, clean_patches(3, 24, seed=0))
    assert not torch.equal(patches, clean_patches(3, 24, seed=1))


def test_a_model_brings_its_own_problem(tmp_path: Path) -> None:
    regularizer = FieldsOfExperts(2, 3)
    save_model(tmp_path / "m.safetensors", lr.LowerLevelProblem(Identity((1, 9, 9)), regularizer, ridge=0.25), {})
    (found,) = model_problem(load(tmp_path / "m.safetensors"), "m", side=12)
    assert found.problem.ridge_value == 0.25
    assert found.b.shape == (2, 1, 12, 12)
    ridge = RidgeRegularizer((2,), 3, noise_conditioned=True)
    save_model(tmp_path / "range.safetensors", ridge, {"sigma": [5 / 255, 15 / 255]})
    (found,) = model_problem(load(tmp_path / "range.safetensors"), "m", side=12)
    assert found.problem.noise_level == 15 / 255
    blurred = lr.LowerLevelProblem(Blur(torch.ones(3, 3) / 9, (1, 7, 9)), regularizer)
    save_model(tmp_path / "blur.safetensors", blurred, {})
    (found,) = model_problem(load(tmp_path / "blur.safetensors"), "m")
    assert found.b.shape == (2, 1, 7, 9)
    own = lr.LowerLevelProblem(from_callables(lambda x: 2 * x, None, (1, 9, 9), (1, 9, 9)), regularizer, ridge=0.1)
    save_model(tmp_path / "own.safetensors", own, {})
    with pytest.raises(lr.ConfigError, match="does not hold its forward operator"):
        model_problem(load(tmp_path / "own.safetensors"), "m")


# ---------------------------------------------------------------------------------------------------------------- files


def test_files(report: AccuracyReport, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = write_accuracy(report, tmp_path / "new")
    assert [path.name for path in paths] == ["accuracy.json", "accuracy.png", "accuracy.pdf"]
    content = json.loads(paths[0].read_text(encoding="utf-8"))
    assert content["coverage"] == 1.0
    png, pdf = paths[1].read_bytes(), paths[2].read_bytes()
    assert png.startswith(b"\x89PNG")
    assert len(png) > 30_000
    assert pdf.startswith(b"%PDF")
    assert b"/Subtype /Image" not in pdf, "a vector figure"
    assert len(pdf) > 5_000


@pytest.mark.parametrize("certificate", ["", "sharp"])
def test_a_figure_without_certified_rows(report: AccuracyReport, tmp_path: Path, certificate: str) -> None:
    pytest.importorskip("matplotlib")
    bare = dataclasses.replace(
        report,
        rows=tuple(
            dataclasses.replace(r, certified=False, relative_bound=float("inf")) for r in report.rows if r.tolerance < 1
        ),
        plain=tuple(r for r in report.plain if r.certificate == certificate),
    )
    assert write_accuracy(bare, tmp_path)[1].stat().st_size > 10_000


def test_without_matplotlib_the_numbers_are_written(
    report: AccuracyReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(lr.ConfigError, match=r"matplotlib.*learnreg\[images\]"):
        write_accuracy(report, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["accuracy.json"]
