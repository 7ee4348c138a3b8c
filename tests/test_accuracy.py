"""``learnreg accuracy``: the reference, the measurements, the files and the command."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dense_truth import distance, norm, truth_of

import learnreg as lr
from learnreg import cli
from learnreg.operators import Blur, Identity
from learnreg.regularizers import FieldsOfExperts, TotalVariation
from learnreg.training import accuracy_measure, accuracy_problems
from learnreg.training.accuracy_measure import measure
from learnreg.training.accuracy_problems import AccuracyProblem, builtin_problems, clean_patches, model_problem
from learnreg.training.accuracy_reference import adjoint_at, solve_reference
from learnreg.training.accuracy_report import (
    AccuracyReport,
    describe,
    parse_methods,
    parse_tolerances,
    write_accuracy,
)
from learnreg.training.model import load, save_model
from learnreg.training.registry import METHODS

ROOT = Path(__file__).resolve().parents[1]
SIDE = 7
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


def tiny(name: str = "tiny", smoothing: float = 1e-2, ridge: float = 0.0) -> AccuracyProblem:
    generator = torch.Generator().manual_seed(3)
    x_true = torch.rand(2, 1, SIDE, SIDE, dtype=torch.float64, generator=generator)
    regularizer = FieldsOfExperts(2, 3, lr.PseudoHuber(smoothing, 0.1), generator=generator).double()
    problem = lr.LowerLevelProblem(Identity((1, SIDE, SIDE)), regularizer, ridge=ridge)
    b = x_true + 0.1 * torch.randn(x_true.shape, generator=generator)
    return AccuracyProblem(name, problem, b, lr.SquaredError(x_true))


@pytest.fixture(scope="module")
def report() -> AccuracyReport:
    torch.set_num_threads(1)
    return measure([tiny(), tiny("other", ridge=0.5)], ["implicit", "piggyback"], [1.0, 1e-2], progress=False)


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


def _violated(report: AccuracyReport) -> AccuracyReport:
    first = dataclasses.replace(report.rows[0], relative_error=2.0, relative_bound=1.0, effectivity=0.5, holds=False)
    return dataclasses.replace(report, rows=(first, *report.rows[1:]))


def test_a_violation_is_loud(report: AccuracyReport) -> None:
    broken = _violated(report)
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
    blurred = lr.LowerLevelProblem(Blur(torch.ones(3, 3) / 9, (1, 9, 9)), regularizer)
    save_model(tmp_path / "blur.safetensors", blurred, {})
    with pytest.raises(lr.ConfigError, match="does not hold its forward operator"):
        model_problem(load(tmp_path / "blur.safetensors"), "m")


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


# -------------------------------------------------------------------------------------------------------------- command


class Result:
    """What the command left behind."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def learnreg(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    monkeypatch.delenv("LEARNREG_DEBUG", raising=False)

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["learnreg", "accuracy", *map(str, arguments)])
        capsys.readouterr()
        code: object = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        assert isinstance(code, int)
        return Result(code, out, err)

    return call


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in set is one tiny problem."""
    monkeypatch.setattr(accuracy_problems, "builtin_problems", lambda seed: [tiny()])


@pytest.mark.usefixtures("small")
def test_the_command(learnreg: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = learnreg("--tolerances", "1e-1", "--json", "--out", tmp_path / "out")
    assert found.code == 0, found.err
    content = json.loads(found.out.splitlines()[-1])
    assert {row["method"] for row in content["rows"]} == set(METHODS)
    assert content["coverage"] == 1.0
    assert "coverage: 100 %" in found.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "accuracy.json",
        "accuracy.pdf",
        "accuracy.png",
    ]


@pytest.mark.usefixtures("small")
def test_the_table(learnreg: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = learnreg("--tolerances", "1,0.01", "--methods", "implicit,piggyback")
    assert found.code == 0, found.err
    assert "coverage: 100 %" in found.out.splitlines()[-1]
    table = [line.split() for line in found.out.splitlines() if line.startswith(("  implicit", "  piggyback"))]
    assert [row[:2] for row in table] == [
        ["implicit", "1"],
        ["implicit", "0.01"],
        ["piggyback", "1"],
        ["piggyback", "0.01"],
    ]
    assert all(float(row[2]) <= float(row[3]) and float(row[6]) <= float(row[7]) for row in table)
    assert list(tmp_path.iterdir()) == [], "nothing is written without --out"


def test_the_command_on_a_model(learnreg: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, FieldsOfExperts(filters=2, size=3), {"sigma": "15/255"})
    found = learnreg(path, "--methods", "implicit", "--tolerances", "0.1", "--json")
    assert found.code == 0, found.err
    content = json.loads(found.out.splitlines()[-1])
    assert {row["problem"] for row in content["rows"]} == {str(path)}
    assert content["coverage"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (("--methods", "pigyback"), 2, ("'pigyback'", "piggyback-interleaved")),
        (("--methods", ""), 2, ("expected 'all'",)),
        (("--tolerances", "1,-1"), 2, ("'-1'", "positive")),
        (("--tolerances", "tight"), 2, ("'tight'",)),
        (("--seed", "-1"), 2, ("seed=-1",)),
        (("absent.safetensors",), 6, ("does not exist",)),
        (("absent-model",), 6, ("Shipped models",)),
    ],
)
def test_bad_arguments(learnreg: Any, arguments: tuple[str, ...], code: int, parts: tuple[str, ...]) -> None:
    found = learnreg(*arguments)
    assert found.code == code
    assert found.out == ""
    assert len(found.err.splitlines()) == 1
    assert all(part in found.err for part in parts)


def test_a_file_is_no_folder(learnreg: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    found = learnreg("--out", tmp_path / "file")
    assert found.code == 2
    assert "expected a folder" in found.err


@pytest.mark.usefixtures("small")
def test_a_violation_ends_with_5(
    learnreg: Any, report: AccuracyReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy_measure, "measure", lambda *_: _violated(report))
    found = learnreg("--json", "--out", tmp_path)
    assert found.code == 5
    assert "VIOLATED" in found.err.splitlines()[-1]
    assert json.loads(found.out.splitlines()[-1])["violations"] == 1
    assert (tmp_path / "accuracy.json").is_file()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert learnreg("--out", tmp_path).code == 5, "not hidden by the missing package"


def test_names_and_tolerances() -> None:
    assert parse_methods("all") == list(METHODS)
    assert parse_methods("implicit, piggyback,implicit") == ["implicit", "piggyback"]
    assert parse_tolerances("1e-3,1,1e-3") == [1.0, 1e-3]


# -----------------------------------------------------------------------------------------------------------------docs


def test_the_snippet_of_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- snippet -->\n```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/accuracy.md", "exec"), names)
    certificate, printed = names["certificate"], capsys.readouterr().out
    assert certificate.certified
    assert "certified: True" in printed
    assert "%" in printed
    problem, b, loss, gradient = (names[name] for name in ("problem", "b", "loss", "gradient"))
    exact = solve_reference(problem, b, loss).gradient
    theirs = dict(zip(exact, gradient, strict=True))
    assert distance(theirs, exact) <= names["bound"] <= 1.1 * distance(theirs, exact)
