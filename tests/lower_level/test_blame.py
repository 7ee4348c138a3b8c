"""Operators that fail in the middle of a solve or of training: who is blamed, and what is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from registry import rand, randn
from torch import Tensor, nn

import learnreg as lr
from learnreg.linear.operator import LinearOperator
from learnreg.operators import Blur, Identity
from learnreg.regularizers import AnalysisOperator, FieldsOfExperts, TotalVariation
from learnreg.training.guard import guarded, is_own_operator, is_own_regularizer

pytestmark = pytest.mark.usefixtures("quick_starts")

SHAPE = (1, 8, 8)
Failure = Callable[[Tensor], Tensor]


class LostError(Exception):
    """What the operator raises."""


def not_a_number(result: Tensor) -> Tensor:
    return result * math.nan


def infinite(result: Tensor) -> Tensor:
    return result.abs() / 0.0


def lost(result: Tensor) -> Tensor:
    raise LostError("the scanner does not answer")


class Scanner(Blur):
    """A blur that fails after some calls, in one direction, for a number of calls."""

    def __init__(self, after: float, failure: Failure, direction: str = "forward", times: float = math.inf) -> None:
        super().__init__(torch.ones(3, 3) / 9, SHAPE)
        self.after, self.failure, self.direction, self.times, self.calls = after, failure, direction, times, 0

    def _result(self, result: Tensor, direction: str) -> Tensor:
        if direction != self.direction:
            return result
        self.calls += 1
        return self.failure(result) if self.after < self.calls <= self.after + self.times else result

    def forward(self, x: Tensor) -> Tensor:
        return self._result(super().forward(x), "forward")

    def adjoint(self, y: Tensor) -> Tensor:
        return self._result(super().adjoint(y), "adjoint")

    def norm_bound(self) -> float:
        return 1.0


def examined(problem: lr.LowerLevelProblem, scanner: Scanner) -> lr.LowerLevelProblem:
    """The problem with a scanner that has been examined already, and fails from now on."""
    after = scanner.after
    scanner.__dict__["after"] = math.inf  # not an assignment, after which it would be examined again
    problem.instance(rand(2, *problem.operator.range_shape))
    scanner.__dict__.update(after=after, calls=0)
    return problem


def problem_with(operator: LinearOperator) -> lr.LowerLevelProblem:
    generator = torch.Generator().manual_seed(1)
    regularizer = FieldsOfExperts(3, 3, lr.PseudoHuber(0.1), generator=generator)
    problem = lr.LowerLevelProblem(operator, regularizer, ridge=1.0)
    return examined(problem, operator) if isinstance(operator, Scanner) else problem


# -------------------------------------------------------------------------------------------------------------- solves


@pytest.mark.parametrize("solver", ["pdhg", "lbfgs", "newton-cg"])
@pytest.mark.parametrize("direction", ["forward", "adjoint"])
@pytest.mark.parametrize("failure", [not_a_number, infinite])
@pytest.mark.parametrize("after", [0, 1, 7])
def test_a_solve_blames_the_operator(solver: str, direction: str, failure: Failure, after: int) -> None:
    scanner = Scanner(after, failure, direction)
    with pytest.raises(lr.OperatorError, match=rf"Scanner.*{direction}|Scanner\.{direction}") as caught:
        lr.solve(problem_with(scanner), rand(2, *SHAPE), 1e-4, solver=solver)  # type: ignore[arg-type]
    assert caught.value.failed_property == "finite"
    assert scanner.calls <= after + 122, "the solver went on with numbers that nothing can come of"


@pytest.mark.parametrize("solver", ["pdhg", "lbfgs", "newton-cg"])
def test_a_solve_survives_one_failure(solver: str) -> None:
    b = rand(2, *SHAPE)
    problem = problem_with(Scanner(9, not_a_number, times=1))
    solution = lr.solve(problem, b, 1e-4, solver=solver)  # type: ignore[arg-type]
    truth = lr.solve(problem_with(Blur(torch.ones(3, 3) / 9, SHAPE)), b, 1e-6)
    assert solution.status is lr.Status.MAX_STEPS or solution.status.converged
    assert bool(torch.isfinite(solution.x).all())
    difference = (solution.x - truth.x).flatten(1).square().mean(1).sqrt()
    assert bool((difference <= 1e-4 + 1e-6).all())


@pytest.mark.parametrize("method", [lr.Implicit(), lr.Piggyback(), lr.Piggyback(mode="interleaved")])
@pytest.mark.parametrize("after", [0, 12])
def test_a_hypergradient_blames_the_operator(method: lr.Implicit, after: int) -> None:
    b = rand(2, *SHAPE)
    with pytest.raises(lr.OperatorError, match="Scanner"):
        lr.hypergradient(problem_with(Scanner(after, not_a_number)), b, lr.SquaredError(b), method)


def test_the_operator_of_a_regularizer_is_blamed() -> None:
    scanner = Scanner(20, not_a_number)
    regularizer = AnalysisOperator(scanner, lr.PseudoHuber(0.1))
    problem = examined(lr.LowerLevelProblem(Identity(SHAPE), regularizer), scanner)
    with pytest.raises(lr.OperatorError, match="operator of the regularizer Scanner"):
        lr.solve(problem, rand(2, *SHAPE), 1e-6)


def test_bounds_of_what_is_not_finite_are_infinite() -> None:
    class Overflowing(TotalVariation):
        """Not the operator's fault: the potential has an infinite weight."""

    regularizer = Overflowing(0.1)
    with torch.no_grad():
        regularizer.log_weight.fill_(2000.0)
    solution = lr.solve(lr.LowerLevelProblem(Identity(SHAPE), regularizer), rand(1, *SHAPE), 1e-4)
    assert not solution.status.converged
    assert bool(torch.isposinf(solution.error_bound).all())
    assert bool(torch.isfinite(solution.x).all())


# ------------------------------------------------------------------------------------------------------------ training


class Images:
    """Pairs of a blurred and a sharp image."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.x = rand(8, *SHAPE).to(dtype)
        self.b = Blur(torch.ones(3, 3) / 9, SHAPE)(self.x) + 0.05 * randn(8, *SHAPE).to(dtype)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.b[index], self.x[index]


@pytest.fixture
def threads() -> object:
    torch.set_num_threads(2)  # chunks run in as many worker threads
    yield 2
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("optimizer", "failure", "blamed"),
    [("adam", lost, "raises"), ("adam", not_a_number, "finite"), ("lbfgs", not_a_number, "finite"),
     ("adaptive", lost, "raises")],
)  # fmt: skip
def test_a_failure_in_training_keeps_what_was_learned(
    tmp_path: Path, failure: Failure, blamed: str, optimizer: str, threads: int
) -> None:
    scanner, saved = Scanner(math.inf, failure), {}
    problem = problem_with(scanner)

    def after_two(row: dict[str, object]) -> None:
        if row["step"] == 2:
            saved.update({name: p.detach().clone() for name, p in problem.learnable().items()})
            scanner.after = scanner.calls + 5

    arguments = {"out": tmp_path, "minutes": 2.0, "batch_size": 4, "optimizer": optimizer, "samples": 4, "tune": False}
    with pytest.raises(lr.OperatorError, match="Scanner") as caught:
        lr.train(problem, Images(), on_update=after_two, **arguments)
    assert caught.value.failed_property == blamed
    message = str(caught.value)
    updates = len((tmp_path / "metrics.jsonl").read_text().splitlines())
    assert f"in update {updates + 1};" in message
    assert f"saved in {tmp_path}" in message
    assert "resume=True" in message
    assert "step size" not in message
    if failure is lost:
        assert isinstance(caught.value.__cause__.__cause__, LostError)  # type: ignore[union-attr]
        assert "LostError: the scanner does not answer" in message
    kept = dict(lr.load(tmp_path / "model.safetensors").regularizer.named_parameters())
    if updates == 2:
        assert all(torch.equal(kept[name], value) for name, value in saved.items())
    resumed = problem_with(Scanner(math.inf, failure))
    result = lr.train(resumed, Images(), updates=updates + 2, resume=True, **arguments)
    assert [row["step"] for row in result.rows] == list(range(1, updates + 3))
    assert result.updates == updates + 2


def test_without_a_folder_the_parameters_stay(threads: int) -> None:
    scanner = Scanner(math.inf, lost)
    problem = problem_with(scanner)
    before = problem.regularizer.filters.detach().clone()
    with pytest.raises(lr.OperatorError, match="the problem's regularizer holds what the updates before it learned"):
        lr.train(problem, Images(), minutes=1.0, batch_size=4, on_update=lambda row: setattr(scanner, "after", 0))
    assert bool(torch.isfinite(problem.regularizer.filters).all())
    assert not torch.equal(problem.regularizer.filters.detach(), before)


def test_other_errors_tell_where_things_are(tmp_path: Path) -> None:
    def stop(row: object) -> None:
        raise LostError("no disk")

    with pytest.raises(LostError) as caught:
        lr.train(problem_with(Scanner(math.inf, lost)), Images(), out=tmp_path, minutes=1.0, on_update=stop)
    assert "resume=True" in caught.value.__notes__[0]


@pytest.mark.parametrize("where", ["operator", "regularizer"])
def test_what_is_wrong_is_found_before_training(tmp_path: Path, where: str) -> None:
    class Half(Blur):
        def adjoint(self, y: Tensor) -> Tensor:
            return 1.005 * super().adjoint(y)

    half = Half(torch.ones(3, 3) / 9, SHAPE)
    problem = problem_with(half)
    if where == "regularizer":
        problem = lr.LowerLevelProblem(Identity(SHAPE), AnalysisOperator(half, lr.PseudoHuber(0.1)))
    with pytest.raises(
        lr.OperatorError, match=r"before training: .*off by a factor 1\.005.*check_operator=False"
    ) as caught:
        lr.train(problem, Images(), out=tmp_path / "run", minutes=1.0)
    assert caught.value.failed_property == {"operator": "adjoint", "regularizer": "analysis operator"}[where]
    assert not (tmp_path / "run").exists()
    assert lr.train(problem, Images(), minutes=1.0, updates=1, check_operator=False).updates == 1


def test_examination_before_training_takes_few_applications() -> None:
    scanner = Scanner(math.inf, lost)
    from learnreg.training.guard import examine_problem

    examine_problem(problem_with(scanner), lambda: torch.float32)
    assert scanner.calls <= 6  # forward alone is counted


def test_only_foreign_operators_are_examined_and_watched() -> None:
    class Mine(Identity):
        pass

    blur, mine = Blur(torch.ones(3, 3), SHAPE), Mine(SHAPE)
    assert is_own_operator(blur @ (2.0 * Identity(SHAPE)) + blur.T)
    assert not is_own_operator(mine)
    assert not is_own_operator(blur @ (blur + mine))
    assert is_own_regularizer(FieldsOfExperts(3, 3), SHAPE)
    assert not is_own_regularizer(AnalysisOperator(mine, lr.PseudoHuber(0.1)), SHAPE)

    class Bent(lr.PseudoHuber):
        pass

    assert not is_own_regularizer(AnalysisOperator(blur, Bent(0.1)), SHAPE)
    problem = problem_with(blur)
    assert guarded(problem) is problem


def test_a_watched_operator_is_the_operator() -> None:
    class Learned(Blur):
        unit_roundoff = 1e-7

        def adjoint_mismatch(self) -> float:
            return 0.25

    A = Learned(nn.Parameter(torch.eye(3, dtype=torch.float64)), SHAPE, "circular")
    problem = problem_with(A)
    watched = guarded(problem)
    assert problem.operator is A
    assert list(watched.learnable()) == list(problem.learnable())
    assert all(p is q for p, q in zip(watched.learnable().values(), problem.learnable().values(), strict=True))
    twin = watched.operator
    assert (twin.norm_bound(), twin.norm_bound_kind) == (A.norm_bound(), A.norm_bound_kind)
    assert isinstance(twin, Learned)
    assert (twin.unit_roundoff, twin.adjoint_mismatch()) == (1e-7, 0.25), "what an operator declares, whatever that is"
    assert "forward" not in vars(A)
    assert twin.gram_lower_bound() == A.gram_lower_bound()
    assert twin.parameter_lipschitz() == A.parameter_lipschitz()
    x = rand(2, *SHAPE)
    assert torch.equal(twin(x), A(x))
    assert torch.equal(twin.adjoint(x), A.adjoint(x))
    assert bool(torch.isnan(twin(x * math.nan)).all()), "NaN that came in is not the operator's"
    b, hg = rand(2, *SHAPE), {}
    for p in (problem, watched):
        hg[p] = lr.hypergradient(p, b, lr.SquaredError(x), tolerance=1e-3).gradient
    assert all(torch.equal(hg[problem][name], hg[watched][name]) for name in hg[problem])
