"""What is done for speed changes no answer: parts of a batch, compaction, the choice of solvers, planned checks."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import registry
import torch
from torch import Tensor
from truth.dense import distance, norm

import learnreg as lr
from learnreg.certificates.judgement import judge
from learnreg.lower_level import instance as instance_module
from learnreg.lower_level.adjoint_equation import AdjointEquation
from learnreg.lower_level.point import Point
from learnreg.operators import Blur, Identity
from learnreg.regularizers import FieldsOfExperts, TotalVariation
from learnreg.solvers import PDHG, SolverState, iterate
from learnreg.solvers.base import OWNED, select_samples
from learnreg.solvers.choice import make_adjoint_solver

SHAPE = (1, 12, 11)


def setting(
    smoothing: float = 0.05, weight: float = 0.3, batch: int = 5
) -> tuple[lr.LowerLevelProblem, Tensor, Tensor]:
    regularizer = FieldsOfExperts(6, 3, lr.PseudoHuber(smoothing, weight)).double()
    x_true, noise = registry.rand(batch, *SHAPE, seed=1), 0.1 * registry.randn(batch, *SHAPE, seed=2)
    return lr.LowerLevelProblem(Identity(SHAPE), regularizer), x_true + noise, x_true


@pytest.mark.parametrize("coupled", [False, True])
def test_judgements_of_parts_add_up(coupled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, b, x_true = setting()
    loss: lr.UpperLoss = lr.SquaredError(x_true)
    if coupled:
        loss = lr.UpperLoss(lambda x: 0.5 * ((x - x_true).sum() / 10) ** 2, gradient_lipschitz=x_true.numel() / 100)
    x, X = lr.solve(problem, b, 1e-6).x, registry.randn(5, *SHAPE, seed=3)
    point = Point.of(problem, b, loss, x, X)
    instance, whole = point.instance, judge(point)
    applications = instance.counter.applications
    monkeypatch.setattr(instance_module, "_PART_BYTES", 1)
    parts = judge(point)
    assert len(list(instance.parts())) == 5
    assert instance.counter.applications == 2 * applications
    assert parts.error_bound == pytest.approx(whole.error_bound, rel=1e-10)
    assert parts.loss_interval == pytest.approx(whole.loss_interval, rel=1e-12)
    for name, gradient in whole.gradient.items():
        torch.testing.assert_close(parts.gradient[name], gradient)
    torch.testing.assert_close(parts.adjoint_error, whole.adjoint_error)


def test_residuals_of_parts_are_those_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, b, x_true = setting()
    instance = problem.instance(b)
    equation = AdjointEquation.at(instance, b, instance.apply(b), lr.SquaredError(x_true).gradient(b))
    X = registry.randn(5, *SHAPE, seed=3)
    expected = (equation.rhs - equation.hessian(X)).flatten(1).norm(dim=1)
    monkeypatch.setattr(instance_module, "_PART_BYTES", 1)
    torch.testing.assert_close(equation.residual_norm(X), expected)


@dataclass(frozen=True)
class State(SolverState):
    shared: Tensor
    memory: Tensor = field(metadata=OWNED)


def test_owned_tensors_keep_their_memory() -> None:
    shared, memory = torch.arange(5.0), torch.arange(10.0).reshape(5, 2)
    rows = memory.clone()
    picked = select_samples(State(shared, memory), torch.tensor([1, 3, 4]))
    assert torch.equal(picked.memory, rows[[1, 3, 4]])
    assert torch.equal(picked.shared, torch.tensor([1.0, 3.0, 4.0]))
    assert torch.equal(shared, torch.arange(5.0))
    assert picked.memory.data_ptr() == memory.data_ptr()
    assert torch.equal(memory.sort(0).values, rows)  # what left the batch is still there


def test_pull_backs_come_back_in_order() -> None:
    """Samples that stop at different times: each keeps the dual iterate that belongs to it."""
    problem, b, _ = setting()
    b = b * torch.tensor([1.0, 0.01, 3.0, 0.1, 1.0]).reshape(-1, 1, 1, 1)
    instance = problem.instance(b)
    never, goal = torch.zeros(5, dtype=b.dtype), torch.tensor([1e-8, 1e-1, 1e-10, 1e-3, 1e-5], dtype=b.dtype)
    result = iterate(PDHG(), instance, b, never, goal)
    assert result.t is not None
    x = b - instance.adjoint(instance.potential.grad(result.t))
    exact = lr.solve(problem, b, 1e-12).x
    error = (x - exact).flatten(1).norm(dim=1)
    assert bool((error <= goal).all()), error


def test_the_automatic_choice_is_reported() -> None:
    problem, b, _ = setting()
    assert lr.solve(problem, b, 1e-4).solver == "lbfgs"
    variation = lr.LowerLevelProblem(problem.operator, TotalVariation())
    cold = lr.solve(variation, b, 1e-4)
    assert cold.solver == "pdhg"
    assert lr.solve(variation, b, 1e-6, start=cold.x).solver == "lbfgs"
    kernel = torch.ones(3, 3, dtype=b.dtype) / 9
    blurred = lr.LowerLevelProblem(Blur(kernel, SHAPE), problem.regularizer, ridge=1e-2)
    assert lr.solve(blurred, b, 1e-4).solver == "lbfgs"


@pytest.mark.parametrize(
    ("smoothing", "relative", "warm", "expected"),
    [(1e-4, 1e-1, False, "piggyback"), (1e-4, 1e-4, False, "cg"), (1e-4, 1e-1, True, "cg"), (0.5, 1e-1, False, "cg")],
)
def test_the_adjoint_solver_follows_condition_and_tolerance(
    smoothing: float, relative: float, warm: bool, expected: str
) -> None:
    problem, b, _ = setting(smoothing)
    assert make_adjoint_solver("auto", problem.instance(b), warm, relative).name == "cg"  # has a preconditioner
    other = lr.LowerLevelProblem(problem.operator, TotalVariation(0.5, smoothing).double())
    assert make_adjoint_solver("auto", other.instance(b), warm, relative).name == expected


def test_condition_bounds_hold() -> None:
    problem, b, _ = setting(0.01)
    instance = problem.instance(b)
    eye = torch.eye(b[0].numel(), dtype=b.dtype).reshape(-1, *SHAPE)
    equation = AdjointEquation.at(instance, b[:1], instance.apply(0 * b[:1]), b[:1])  # f'' is largest at 0
    largest = torch.linalg.eigvalsh(torch.stack([equation.hessian(e[None]).flatten() for e in eye])).max()
    assert float(largest) <= instance.condition_bound() <= 2.0 * float(largest)


@pytest.mark.parametrize("name", registry.ADJOINT_SOLVERS)
def test_every_adjoint_solver_gives_the_hypergradient(name: str) -> None:
    problem, b, x_true = setting(1e-2)
    loss = lr.SquaredError(x_true)
    expected = lr.hypergradient(problem, b, loss, tolerance=1e-6).gradient
    found = lr.hypergradient(problem, b, loss, lr.Implicit(name), 1e-2, certificate="none")  # type: ignore[arg-type]
    assert found.status is lr.Status.ESTIMATED
    assert distance(found.gradient, expected) <= 1e-2 * norm(expected)
    certified = lr.hypergradient(problem, b, loss, lr.Implicit(name), 1e-3)  # type: ignore[arg-type]
    assert certified.status is lr.Status.CONVERGED
    assert distance(certified.gradient, expected) <= certified.error_bound + 1e-6 * norm(expected)


def test_adjoint_solvers_are_named_or_given() -> None:
    for wrong in ("jacobi", lr.solvers.NewtonCG(), 3, "newton-cg"):
        with pytest.raises(lr.ConfigError, match=r"Implicit\(solver=.*expected 'auto', 'cg', .* state_solver="):
            lr.Implicit(wrong)  # type: ignore[arg-type]
    with pytest.raises(lr.ConfigError, match="only solver='nystrom' has a rank, not 'cg'"):
        lr.Implicit("cg", rank=3)
    for rank in (0, -2, 1.5, True, "3"):
        with pytest.raises(lr.ConfigError, match=r"rank=.*expected a positive integer"):
            lr.Implicit("nystrom", rank)  # type: ignore[arg-type]
    assert lr.Implicit("nystrom", rank=3).solver.rank == 3  # type: ignore[union-attr]
    assert repr(lr.Implicit()) == "Implicit()"
    assert repr(lr.Implicit("minres", state_solver="lbfgs")) == "Implicit('minres', state_solver='lbfgs')"
    assert repr(lr.Implicit(lr.solvers.Nystrom(4))) == "Implicit('nystrom')"


def test_float32_goes_on_in_float64() -> None:
    """A tolerance that float32 iterations cannot reach on an ill-conditioned problem, but a float32 image can hold."""
    problem, b, _ = setting(1e-4, 3.0)
    exact = lr.solve(problem, b.float().double(), 1e-10).x
    solution = lr.solve(problem, b.float(), 3e-7)
    assert solution.x.dtype == torch.float32
    assert solution.status.converged
    error = (solution.x.double() - exact).square().flatten(1).mean(1).sqrt()
    assert bool((error <= solution.error_bound).all())
