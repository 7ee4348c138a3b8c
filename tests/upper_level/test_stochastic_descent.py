"""Stochastic training of bilevel problems: steps against plain loops, schedules, constraints, and where it leads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import learnreg as lr
from learnreg.hypergradients.base import HypergradientMethod

pytestmark = pytest.mark.usefixtures("one_thread")

N, P, SAMPLES = 6, 3, 40
METHODS = [lr.BSG1(), lr.BSGHessian(), lr.BSGNewtonFD(), lr.Implicit()]


class Regression:
    """lower: ridge regression of targets that theta shifts; upper: that of clean ones. Data are rows."""

    def __init__(self, generator: torch.Generator, dtype: torch.dtype = torch.float64, **options: Any) -> None:
        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.A, self.shift, self.b = draw(SAMPLES, N), 3.0 * draw(SAMPLES, P), draw(SAMPLES)
        self.clean = self.A @ torch.ones(N, dtype=dtype) + 0.1 * draw(SAMPLES)
        H = self.A.T @ self.A / SAMPLES + torch.eye(N, dtype=dtype)
        self.L = float(torch.linalg.eigvalsh(H)[-1])
        self.problem = lr.BilevelProblem(self.lower, self.upper, 1.0, gradient_lipschitz=self.L, **options)
        self.theta, self.x = torch.zeros(P, dtype=dtype), torch.zeros(N, dtype=dtype)
        self.every = torch.arange(SAMPLES)

    def lower(self, x: Tensor, theta: Tensor, rows: Tensor) -> Tensor:
        residual = self.A[rows] @ x - self.b[rows] - self.shift[rows] @ theta
        return 0.5 * residual.square().mean() + 0.5 * x.square().sum()

    def upper(self, x: Tensor, theta: Tensor, rows: Tensor) -> Tensor:
        return 0.5 * (self.A[rows] @ x - self.clean[rows]).square().mean() + 0.01 * theta.square().sum()

    def whole(self, generator: torch.Generator, step: int) -> Tensor:
        return self.every

    def part(self, generator: torch.Generator, step: int) -> Tensor:
        return torch.randint(SAMPLES, (20,), generator=generator)

    def exact(self, theta: Tensor) -> Tensor:
        """The unconstrained solution, by a dense matrix."""
        H = self.A.T @ self.A / SAMPLES + torch.eye(N, dtype=self.A.dtype)
        return torch.linalg.solve(H, self.A.T @ (self.b + self.shift @ theta) / SAMPLES)

    def optimum(self) -> float:
        """The least loss without constraints: it is quadratic in theta."""
        unit = torch.eye(P, dtype=torch.float64)
        slope = torch.stack([self.exact(e) - self.exact(0.0 * e) for e in unit], 1)
        rows = torch.cat([self.A @ slope / SAMPLES**0.5, 0.02**0.5 * unit])
        sides = torch.cat([(self.clean - self.A @ self.exact(unit[0] * 0.0)) / SAMPLES**0.5, torch.zeros(P).double()])
        theta = torch.linalg.lstsq(rows, sides).solution
        return float(self.upper(self.exact(theta), theta, self.every))

    def loss(self, theta: Tensor) -> float:
        return float(self.upper(self.exact(theta), theta, self.every))

    def constrained_loss(self, theta: Tensor) -> float:
        x = self.problem.solve(theta, self.x, self.every, tolerance=1e-7).x
        return float(self.upper(x, theta, self.every))


def test_steps_are_those_of_a_plain_loop(generator: torch.Generator) -> None:
    """BSG-H with exact adjoint states, by dense matrices."""
    case = Regression(generator)
    theta, x = case.theta.clone(), case.x.clone()
    run = lr.StochasticDescent(
        case.problem,
        case.whole,
        lr.BSGHessian(adjoint_steps=N),
        step_size=0.3,
        lower_step_size=0.2,
        lower_decay=0.25,
        lower_steps=2,
    ).run(theta, x, 4)
    assert not x.any()
    expected, v = case.theta.clone(), case.x.clone()
    H = case.A.T @ case.A / SAMPLES + torch.eye(N, dtype=torch.float64)
    for k in range(4):
        for _ in range(2):
            residual = case.A @ v - case.b - case.shift @ expected
            v = v - 0.2 / (k + 1) ** 0.25 * (case.A.T @ residual / SAMPLES + v)
        u = case.A.T @ (case.A @ v - case.clean) / SAMPLES
        gradient = case.shift.T @ (case.A @ torch.linalg.solve(H, u)) / SAMPLES + 0.02 * expected
        expected = expected - 0.3 / (k + 1) ** 0.5 * gradient
    torch.testing.assert_close(theta, expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(run.x, v, rtol=1e-8, atol=1e-10)
    assert run.step_sizes == pytest.approx([0.3 / (k + 1) ** 0.5 for k in range(4)])


@pytest.mark.parametrize("method", METHODS[1:], ids=lambda m: m.name)
def test_minibatches_lead_near_the_optimum(method: HypergradientMethod, generator: torch.Generator) -> None:
    case = Regression(generator)
    theta, first = case.theta.clone(), case.loss(case.theta)
    lr.StochasticDescent(case.problem, case.part, method, step_size=1.0, lower_step_size=0.3, lower_steps=3).run(
        theta, case.x, 60, generator
    )
    best = case.optimum()
    assert case.loss(theta) - best < 0.3 * (first - best)


@pytest.mark.filterwarnings("ignore:BSG1")
def test_the_rank_one_method_descends_with_small_steps(generator: torch.Generator) -> None:
    case = Regression(generator)
    theta, first = case.theta.clone(), case.loss(case.theta)
    lr.StochasticDescent(case.problem, case.part, lr.BSG1(), step_size=0.03, lower_step_size=0.05).run(
        theta, case.x, 60, generator
    )
    assert case.loss(theta) < first


@pytest.mark.parametrize("method", METHODS[:3], ids=lambda m: m.name)
@pytest.mark.filterwarnings("ignore:BSG1")
def test_float32_and_parameters_stay(method: HypergradientMethod, generator: torch.Generator) -> None:
    case = Regression(generator, torch.float32)
    theta = torch.nn.Parameter(case.theta.clone())
    run = lr.StochasticDescent(case.problem, case.part, method, step_size=0.01).run(theta, case.x, 3)
    assert run.theta is theta
    assert (theta.dtype, run.x.dtype) == (torch.float32, torch.float32)
    assert bool(theta.detach().any())


def test_the_same_generator_gives_the_same_run(generator: torch.Generator) -> None:
    case = Regression(generator)
    runs = []
    for _ in range(2):
        descent = lr.StochasticDescent(case.problem, case.part, lr.BSGHessian())
        runs.append(descent.run(case.theta.clone(), case.x, 5, torch.Generator().manual_seed(3)).losses)
    assert runs[0] == runs[1]


def test_accuracy_increases_where_the_loss_stalls(generator: torch.Generator) -> None:
    case = Regression(generator)
    options = {"step_size": 1e-9, "lower_step_size": 1e-9, "patience": 3}
    descent = lr.StochasticDescent(case.problem, case.whole, lr.BSGHessian(), most_lower_steps=3, **options)  # type: ignore[arg-type]
    assert descent.run(case.theta.clone(), case.x, 16).lower_steps == [1] * 6 + [2] * 3 + [3] * 7
    fixed = lr.StochasticDescent(case.problem, case.whole, lr.BSGHessian(), **options)  # type: ignore[arg-type]
    assert set(fixed.run(case.theta.clone(), case.x, 12).lower_steps) == {1}


@pytest.mark.parametrize(
    "constraint",
    [
        lr.LinearConstraints(torch.ones(1, N), 1.0),
        lr.LinearConstraints(torch.ones(1, N), 0.5, "inequality"),
        [lr.LinearConstraints(torch.ones(1, N), 1.0), lr.Nonnegative()],
        lr.Box(-0.1, 0.1),
    ],
    ids=["plane", "half-space", "simplex", "box"],
)
def test_constraints_hold_and_the_loss_falls(constraint: Any, generator: torch.Generator) -> None:
    case = Regression(generator, constraint=constraint)
    theta, first = case.theta.clone(), case.constrained_loss(case.theta)
    run = lr.StochasticDescent(
        case.problem, case.whole, lr.BSGHessian(), step_size=0.5, lower_step_size=0.3, lower_steps=5
    ).run(theta, case.x, 30)
    if not isinstance(constraint, lr.Box):
        total = float(run.x.sum())
        parts = constraint if isinstance(constraint, list) else [constraint]
        assert total <= float(parts[0].d[0]) + 1e-9
        assert parts[0].kind == "inequality" or total == pytest.approx(1.0)
    if not isinstance(constraint, lr.LinearConstraints):
        assert float(run.x.min()) >= -0.1 - 1e-12
    assert case.constrained_loss(theta) < first - 1e-3


def test_theta_is_projected_and_watched(generator: torch.Generator) -> None:
    case, seen = Regression(generator), []
    theta = case.theta.clone()
    lr.StochasticDescent(
        case.problem, case.whole, lr.BSGHessian(), step_size=5.0, project=lambda theta: theta.clamp_(-0.1, 0.1)
    ).run(theta, case.x, 3, callback=lambda k, theta, x, loss: seen.append((k, float(theta.abs().max()), loss)))
    assert [k for k, _, _ in seen] == [0, 1, 2]
    assert all(largest <= 0.1 for _, largest, _ in seen)


def test_dicts_of_tensors() -> None:
    problem = lr.BilevelProblem(
        lambda x, theta, data: 0.5 * (x["a"] - theta["s"] * theta["t"].sum()).square().sum(),
        lambda x, theta, data: 0.5 * (x["a"] - 1.0).square().sum(),
        1.0,
        gradient_lipschitz=1.0,
    )
    theta = {"s": torch.tensor(0.5), "t": torch.ones(1)}
    run = lr.StochasticDescent(problem, None, lr.BSGHessian(), step_size=0.3, decay=0.0, lower_step_size=1.0).run(
        theta, {"a": torch.zeros(2)}, 60
    )
    assert float(theta["s"] * theta["t"].sum()) == pytest.approx(1.0, abs=1e-3)
    assert run.x["a"].shape == (2,)


def test_refusals(generator: torch.Generator) -> None:
    case = Regression(generator)
    for options in ({"step_size": 0.0}, {"decay": -1.0}, {"lower_steps": 0}, {"lower_steps": 3, "most_lower_steps": 2}):
        with pytest.raises(lr.ConfigError, match="StochasticDescent"):
            lr.StochasticDescent(case.problem, case.whole, **options)  # type: ignore[arg-type]
    with pytest.raises(lr.ConfigError, match="sampler"):
        lr.StochasticDescent(case.problem, 3)  # type: ignore[arg-type]
    with pytest.raises(lr.SolverError, match="smaller steps"):
        lr.StochasticDescent(case.problem, case.whole, lr.BSGHessian(), step_size=1e200, lower_step_size=100.0).run(
            case.theta.clone(), case.x, 20
        )
