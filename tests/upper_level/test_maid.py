"""MAID's rules on the public quadratic of Ehrhardt and Roberts, whose exact loss has a closed form, and on images."""

from __future__ import annotations

import numpy as np
import pytest
import registry
import torch
from torch import Tensor

import learnreg as lr
from learnreg.upper_level.objective import Accuracy, Trial

pytestmark = pytest.mark.usefixtures("one_thread")


class PublicQuadratic:
    """x(theta) = argmin ‖C theta + D x - e‖², loss ‖A x - b‖²."""

    def __init__(self, m: int = 1000, n: int = 10) -> None:
        draw = np.random.RandomState(0)
        A = draw.rand(m, n)
        b = A @ draw.rand(n) + 0.01 * draw.randn(m)
        C, D = draw.rand(m, n), draw.rand(m, n)
        e = C @ draw.rand(n) + D @ draw.rand(n) + 0.01 * draw.randn(m)
        self.A, self.b, self.C, self.D, self.e = (torch.from_numpy(t) for t in (A, b, C, D, e))
        eigenvalues = torch.linalg.eigvalsh(2.0 * self.D.T @ self.D)
        self.mu, self.L = float(eigenvalues[0]), float(eigenvalues[-1])
        self.problem = lr.BilevelProblem(
            lambda x, theta, data: (self.C @ theta + self.D @ x - self.e).square().sum(),
            lambda x, theta, data: (self.A @ x - self.b).square().sum(),
            self.mu,
            gradient_lipschitz=self.L,
            hessian_lipschitz=0.0,
            cross_bound=float(torch.linalg.matrix_norm(2.0 * self.C.T @ self.D, ord=2)),
            cross_lipschitz=0.0,
            upper_gradient_lipschitz=float(torch.linalg.eigvalsh(2.0 * self.A.T @ self.A)[-1]),
        )
        self.theta, self.x = torch.ones(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)

    def loss(self, theta: Tensor) -> float:
        x = torch.linalg.lstsq(self.D, (self.e - self.C @ theta)[:, None]).solution[:, 0]
        return float((self.A @ x - self.b).square().sum())


def test_every_accepted_step_lowers_the_exact_loss() -> None:
    case = PublicQuadratic()
    theta = case.theta.clone()
    assert case.loss(theta) == pytest.approx(3109.26038718, rel=1e-10)
    assert (case.mu, case.L) == pytest.approx((145.602732, 5108.1278), rel=1e-6)
    objective = lr.BilevelObjective(case.problem.at(theta, case.x))
    descent = lr.MAID(step_size=1e-3)
    losses = [case.loss(theta)]
    for _ in range(6):
        step = descent.step(objective)
        losses.append(case.loss(theta))
        assert step.accepted
        assert step.certified
        assert step.loss_interval[0] <= losses[-2] * (1 + 1e-12)
        assert losses[-2] <= step.loss_interval[1] * (1 + 1e-12)
        assert losses[-1] <= losses[-2] - step.decrease + 1e-9 * losses[0]
        assert step.decrease >= descent.decrease * step.step_size * step.gradient_norm**2
        assert step.gradient_bound <= (1.0 - descent.eta) * step.gradient_norm
    assert losses[-1] < 0.8 * losses[0]


def test_images() -> None:
    problem = registry.build("denoising", "FieldsOfExperts")
    x_true, b = registry.measure(problem)
    loss = lr.SquaredError(x_true)
    objective, descent = lr.BatchObjective(problem, b, loss), lr.MAID()
    exact = [float(loss.value(lr.solve(problem, b, 1e-10).x))]
    for _ in range(4):
        step = descent.step(objective)
        exact.append(float(loss.value(lr.solve(problem, b, 1e-10).x)))
        assert step.certified == step.accepted
        assert (exact[-1] < exact[-2]) if step.accepted else exact[-1] == exact[-2]
    assert exact[-1] < exact[0]


class Known(lr.BilevelObjective):
    """An objective with intervals of a width that shrinks with the accuracy."""

    def __init__(self, posed: object) -> None:
        super().__init__(posed)  # type: ignore[arg-type]
        self.asked: list[float] = []

    def _evaluate(self, accuracy: Accuracy) -> Trial:
        self.asked.append(accuracy.state)
        theta = self.posed.function.theta(torch.float64)[0]
        value = float((theta**2).sum())
        return Trial(value - accuracy.state, value + accuracy.state, True, {"theta0": 2 * theta}, 0.0, 0.0, False)


def test_the_schedules() -> None:
    """Wide intervals decide nothing; the accuracies are halved after J trials, and J + 1 follow; accepted steps relax
    them and lengthen the step."""
    problem = lr.BilevelProblem(
        lambda x, theta, data: 0.5 * (x - theta).square().sum(),
        lambda x, theta, data: x.square().sum(),
        1.0,
        hessian_lipschitz=0.0,
        cross_lipschitz=0.0,
        upper_gradient_lipschitz=2.0,
    )
    theta = torch.tensor([1.0], dtype=torch.float64)
    objective = Known(problem.at(theta, torch.zeros(1, dtype=torch.float64)))
    descent = lr.MAID(step_size=0.5, state=1.5, adjoint=0.2, backtracks=2, shrink=0.5, attempts=5)
    step = descent.step(objective)
    assert objective.asked == [1.5] * 3 + [0.75] * 4 + [0.375] * 2
    assert step.accepted
    assert float(theta[0]) == pytest.approx(0.0, abs=1e-6)
    assert descent.step_size == pytest.approx(0.5 * 10 / 9)
    assert descent.accuracy == Accuracy(0.375 * 1.05, 0.05 * 1.05)
    again = lr.MAID()
    again.load_state_dict(descent.state_dict())
    assert (again.step_size, again.accuracy) == (descent.step_size, descent.accuracy)
    few = lr.MAID(step_size=0.5, state=1e3, attempts=2)
    theta.fill_(1.0)
    rejected = few.step(Known(problem.at(theta, torch.zeros(1, dtype=torch.float64))))
    assert not rejected.accepted
    assert float(theta[0]) == 1.0
    assert few.accuracy.state == 250.0


@pytest.mark.parametrize(
    "options",
    [
        {"step_size": 0.0},
        {"eta": 1.0},
        {"eta": 0.1, "decrease": 0.2},
        {"shrink": 1.0},
        {"grow": 0.9},
        {"tighten": 0.0},
        {"relax": 0.5},
        {"backtracks": 0},
        {"attempts": 1.5},
        {"state": float("nan")},
    ],
)
def test_refusals(options: dict[str, float]) -> None:
    with pytest.raises(lr.ConfigError, match="MAID"):
        lr.MAID(**options)  # type: ignore[arg-type]
