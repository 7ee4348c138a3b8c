"""Bilevel problems with linear constraints on the lower level, against dense KKT systems and finite differences of
other solvers' solutions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, minimize
from torch import Tensor
from truth.constrained import constrained_minimum

import learnreg as lr
from learnreg.lower_level.linear_constraints import Polyhedron

pytestmark = pytest.mark.usefixtures("one_thread")

N, P = 5, 3
KINDS = ("equality", "inequality", "both", "with a box", "repeated")


class Case:
    """A smooth problem that is not quadratic, with all its constants, under constraints of a kind."""

    def __init__(self, kind: str, generator: torch.Generator) -> None:
        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        A, self.B, self.aim = draw(N, N), draw(N, P), draw(N)
        self.H = A @ A.T / N + 0.5 * torch.eye(N, dtype=torch.float64)
        C, inner = draw(3, N), (0.1 * draw(N)).clamp(0.0, 0.4)  # in the box below: every problem has solutions
        more = lr.LinearConstraints(C[1:], C[1:] @ inner + 0.1, "inequality")
        self.constraint: Any = {
            "equality": lr.LinearConstraints(C, C @ inner),
            "inequality": lr.LinearConstraints(C, C @ inner + 0.1, "inequality"),
            "both": [lr.LinearConstraints(C[:1], C[:1] @ inner), more],
            "with a box": (more, lr.Box(torch.tensor([-0.1, -math.inf, 0.0, -0.4, -math.inf]), 0.4)),
            "repeated": [more, more],
        }[kind]
        self.theta, self.x = draw(P), draw(N)
        self.active: tuple[int, ...] = ()
        constants = {"hessian_lipschitz": 0.8588, "cross_lipschitz": 0.0, "upper_gradient_lipschitz": 1.2}
        mu = float(torch.linalg.eigvalsh(self.H)[0])
        self.problem = lr.BilevelProblem(self.lower, self.upper, mu, **constants, constraint=self.constraint)

    def lower(self, x: Tensor, theta: Tensor, data: object) -> Tensor:
        return 0.5 * x @ self.H.to(x) @ x - x @ (self.B.to(x) @ theta) + (1.0 + x**2).sqrt().sum()

    def upper(self, x: Tensor, theta: Tensor, data: object) -> Tensor:
        return 0.5 * (x - self.aim.to(x)).square().sum() + 0.1 * x.sum() * theta[0] + 0.1 * theta.square().sum()

    @property
    def polyhedron(self) -> Polyhedron:
        return Polyhedron.of(self.constraint, N)

    def solution(self, theta: Tensor) -> Tensor:
        rows = self.polyhedron
        pairs = [(torch.from_numpy(a), torch.from_numpy(b)) for a, b in ((rows.E, rows.e), (rows.C, rows.d))]
        found = constrained_minimum(lambda x: self.lower(x, theta, None), self.x, *pairs, likely=self.active)
        self.active = found[2]
        return found[0]

    def differences(self, solution: Callable[[Tensor], Tensor], step: float) -> Tensor:
        """Central ones of the loss."""

        def loss(theta: Tensor) -> float:
            return float(self.upper(solution(theta), theta, None))

        unit = torch.eye(P, dtype=torch.float64)
        found = [(loss(self.theta + step * e) - loss(self.theta - step * e)) / (2.0 * step) for e in unit]
        return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_hypergradients_against_dense_solutions(kind: str, rotating_generator: torch.Generator) -> None:
    case = Case(kind, rotating_generator)
    truth, exact = case.solution(case.theta), case.differences(case.solution, 1e-5)
    for tolerance in (0.3, 1e-6):
        found = case.problem.hypergradient(case.theta, case.x, tolerance=tolerance)
        off = float((found.gradient["theta"] - exact).norm())
        assert off <= found.error_bound + 1e-8 * (1.0 + float(exact.norm()))
        assert float((found.x - truth).norm()) <= float(found.state_error_bound) + 1e-9
        assert found.status.converged
        assert found.certified or found.reason
    assert off < 1e-6 * (1.0 + float(exact.norm()))
    solved = case.problem.solve(case.theta, case.x, tolerance=1e-6)
    assert float((solved.x - truth).norm()) / math.sqrt(N) <= float(solved.error_bound) + 1e-9
    assert solved.certified
    assert float(solved.error_bound) <= 1e-6
    assert case.polyhedron.slack(solved.x.numpy()).min(initial=0.0) > -1e-9


@pytest.mark.parametrize("kind", ["both", "with a box"])
def test_hypergradients_against_scipy(kind: str, generator: torch.Generator) -> None:
    case = Case(kind, generator)
    rows = case.polyhedron
    bounds = [LinearConstraint(rows.E, rows.e, rows.e)] * bool(len(rows.E))
    bounds += [LinearConstraint(rows.C, -np.inf, rows.d)]

    def solution(theta: Tensor) -> Tensor:
        def value(v: np.ndarray) -> tuple[float, np.ndarray]:
            x = torch.from_numpy(v).requires_grad_()
            energy = case.lower(x, theta, None)
            return float(energy.detach()), torch.autograd.grad(energy, x)[0].numpy()

        found = minimize(
            value, np.zeros(N), jac=True, method="SLSQP", constraints=bounds, options={"ftol": 1e-16, "maxiter": 500}
        )
        return torch.from_numpy(found.x)

    found = case.problem.hypergradient(case.theta, case.x, tolerance=1e-6)
    assert found.certified
    expected = case.differences(solution, 1e-3)
    assert float((found.gradient["theta"] - expected).norm()) < 1e-3 * (1.0 + float(expected.norm()))


@pytest.mark.parametrize("method", [lr.Piggyback(), lr.Implicit(), lr.Unrolled(steps=30)], ids=lambda m: m.name)
def test_methods_on_a_plane(method: Any, generator: torch.Generator) -> None:
    case = Case("equality", generator)
    case.problem.functions.constants["gradient_lipschitz"] = float(torch.linalg.eigvalsh(case.H)[-1]) + 1.0
    found = case.problem.hypergradient(case.theta, case.x, method=method, tolerance=1e-3)
    exact = case.differences(case.solution, 1e-5)
    assert found.certified
    assert float((found.gradient["theta"] - exact).norm()) <= found.error_bound + 1e-8


def test_float32_and_dicts(generator: torch.Generator) -> None:
    """x as a dict: its entries in order."""
    case = Case("both", generator)

    def joined(x: dict[str, Tensor]) -> Tensor:
        return torch.cat([x["a"], x["b"].flatten()])

    problem = lr.BilevelProblem(
        lambda x, theta, data: case.lower(joined(x), theta["t"], data),
        lambda x, theta, data: case.upper(joined(x), theta["t"], data),
        constraint=case.constraint,
        **case.problem.functions.constants,
    )
    x = {"a": case.x[:1].float(), "b": case.x[1:].view(2, 2).float()}
    found = problem.hypergradient({"t": case.theta.float()}, x, tolerance=1e-3)
    truth = case.solution(case.theta.float().double())
    assert found.certified
    assert found.x["b"].shape == (2, 2)
    assert found.gradient["t"].dtype == torch.float32
    assert float((joined(found.x).double() - truth).norm()) <= float(found.state_error_bound) + 1e-9


@pytest.mark.parametrize("kind", ["equality", "both"])
def test_without_constants_there_are_estimates(kind: str, generator: torch.Generator) -> None:
    """Of a lower level in another unit, too."""
    case = Case(kind, generator)
    problem = lr.BilevelProblem(
        lambda x, theta, data: 1e6 * case.lower(x, theta, data), case.upper, constraint=case.constraint
    )
    found = problem.hypergradient(case.theta, case.x, tolerance=1e-4)
    exact = case.differences(case.solution, 1e-5)
    assert (found.bound_kind, found.status) == ("estimate", lr.Status.ESTIMATED)
    assert float((found.gradient["theta"] - exact).norm()) <= 1e-3 * float(exact.norm())


def test_convexity_on_the_constraints_is_enough() -> None:
    """lower is linear across a plane, and the half-space along it cuts the solution off."""
    plane = lr.LinearConstraints(torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64), 2.0)
    cut = lr.LinearConstraints(torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64), 0.5, "inequality")

    def problem(constraint: Any) -> lr.BilevelProblem:
        return lr.BilevelProblem(
            lambda x, theta, data: 0.5 * (x[:2] - theta).square().sum() + x[2] * theta[0],
            lambda x, theta, data: 0.5 * x.square().sum(),
            1.0,
            hessian_lipschitz=0.0,
            cross_lipschitz=0.0,
            upper_gradient_lipschitz=1.0,
            constraint=constraint,
        )

    theta, x = torch.tensor([1.0, 3.0], dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for constraint, expected in ((plane, [1.0, 3.0]), ([plane, cut], [0.0, 3.0])):
        found = problem(constraint).hypergradient(theta, x, tolerance=1e-6)
        assert found.certified
        assert found.gradient["theta"].tolist() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(lr.AssumptionError, match="strongly convex"):
        problem(cut).hypergradient(theta, x, tolerance=1e-6)


def test_degenerate_constraints_are_no_certificate(generator: torch.Generator) -> None:
    """One that only just touches the solution: the hypergradient jumps there."""
    case = Case("equality", generator)
    free = lr.BilevelProblem(case.lower, case.upper, **case.problem.functions.constants)
    x = free.solve(case.theta, case.x, tolerance=1e-13).x
    row = torch.ones(1, N, dtype=torch.float64)
    touching = lr.BilevelProblem(
        case.lower,
        case.upper,
        **case.problem.functions.constants,
        constraint=lr.LinearConstraints(row, row @ x, "inequality"),
    )
    found = touching.hypergradient(case.theta, case.x, tolerance=1e-4)
    assert (found.bound_kind, found.status) == ("estimate", lr.Status.ESTIMATED)
    assert "not decided" in found.reason
    solved = touching.solve(case.theta, case.x, tolerance=1e-6)
    assert solved.certified, "the solution has a bound whatever holds it"
    assert float((solved.x - x).norm()) / math.sqrt(N) <= float(solved.error_bound) + 1e-12


@pytest.mark.parametrize("kind", ["equality", "inequality"])
def test_descent_changes_faces(kind: str, generator: torch.Generator) -> None:
    case = Case(kind, generator)
    posed = case.problem.at(case.theta.clone(), case.x)
    objective = lr.BilevelObjective(posed)
    descent = lr.AdaptiveDescent()
    losses = [objective.evaluate(descent.accuracy).loss]
    for _ in range(4):
        step = descent.step(objective)
        assert step.certified or not step.accepted
        losses.append(objective.evaluate(descent.accuracy).loss)
    theta = posed.function.theta(torch.float64)[0]
    exact = float(case.upper(case.solution(theta), theta, None))
    assert exact < losses[0] - 1e-3
    assert objective.value(1e-8).certified
    assert objective.value(1e-8).lower <= exact + 1e-9 <= objective.value(1e-8).upper + 2e-9


def test_a_box_alone_stays_a_box() -> None:
    problem = lr.BilevelProblem(lambda x, t, d: (x - t).square().sum(), lambda x, t, d: x.sum(), constraint=lr.Box(0.0))
    assert problem.at(torch.ones(2), torch.ones(2)).faces is None
    with pytest.raises(lr.ConfigError, match="sequence"):
        lr.BilevelProblem(lambda x, t, d: x, lambda x, t, d: x, constraint="x > 0").at(torch.ones(2), torch.ones(2))  # type: ignore[arg-type]
